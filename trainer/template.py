"""A recipe as a TOML file with every key, its value and what it means: to read, to copy and to change."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shards.errors import UserError
from trainer.recipe import Recipe, builtin_recipes, load_recipe, stored_recipe

__all__ = ["as_toml", "recipe_of"]

WIDTH = 100


def recipe_of(name: str) -> Recipe:
    """A recipe by name or file, or that of a run by its folder. Raises UserError for what is none of these."""
    described = Path(name) / "run.json"
    if not described.is_file():
        if Path(name).is_dir() and name not in builtin_recipes():
            raise UserError(f"{name} is no folder of a run: it has no run.json")
        return load_recipe(name)
    try:
        table = json.loads(described.read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{described} is damaged ({type(error).__name__}): name another run, or a recipe") from None
    return stored_recipe(table, where=str(described))


def as_toml(recipe: Recipe) -> str:
    """The text of a file that `load_recipe` reads as this recipe; its name is the file's."""
    return "\n".join(_lines(recipe, [])).strip() + "\n"


def _lines(config: Any, keys: list[str]) -> list[str]:
    """Single values first, then the sections, as TOML wants it."""
    docs, hints = _docs(type(config)), get_type_hints(type(config))
    single, sections = list[str](), list[str]()
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            inner = [*keys, field.name]
            said = textwrap.wrap(" ".join((type(value).__doc__ or "").split()), WIDTH)
            said = [] if said and said[0].startswith(f"{type(value).__name__}(") else said  # a dataclass's own
            sections += ["", f"[{'.'.join(inner)}]", *(f"# {line}" for line in said), *_lines(value, inner)]
        elif keys or field.name != "name":
            about = docs.get(field.name, "")
            if get_origin(hints[field.name]) is Literal:
                options = ", ".join(str(option) or '""' for option in get_args(hints[field.name]))
                about = f"{about} ({options})" if about else options
            single += [f"# {line}" for line in textwrap.wrap(about, WIDTH)]
            single.append(f"{field.name} = {_value(value)}")
    return single + sections


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's, which TOML reads as well
    return json.dumps(value)


def _docs(cls: type) -> dict[str, str]:
    """The text below each field of a class, on one line; none where it was installed without its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):
        return {}
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef)).body
    found = {}
    for node, after in pairwise(body):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(text, str):
            found[node.target.id] = " ".join(text.split())
    return found
