"""TOML tables to frozen dataclasses: keys and types checked, errors in words."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from shards.errors import UserError

__all__ = ["did_you_mean", "from_table", "read_toml", "typed", "unlike_values"]

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UserError for a file that is missing, or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows' editors begin with a mark
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path} as TOML: {error}") from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean epochs?)` behind a name that is unknown, if one that is known is nearly so; else nothing."""
    near = get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def from_table(cls: type[T], table: dict[str, Any], where: str, around: dict[str, Any] | None = None) -> T:
    """Build a config dataclass from a TOML table, checking keys and types.

    around: the types of the table that this one is in, for where a key belongs that is not one of it.
    """
    hints = get_type_hints(cls)
    unknown = set(table) - set(hints)
    if unknown:
        hint = did_you_mean(min(unknown), hints)
        if section := _section(min(unknown), around or hints):
            hint = f" ({min(unknown)} belongs in [{section}])"
        keys = f"unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, sorted(unknown)))}{hint}"
        raise UserError(f"{where}: {keys}; known are {', '.join(sorted(hints))}")
    missing = [field.name for field in fields(cast(Any, cls)) if field.name not in table and _required(field)]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    values = {}
    for key, value in table.items():
        hint = hints[key]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
            values[key] = from_table(hint, value, f"{where} [{key}]", around=hints)
        else:
            values[key] = typed(hint, value, f"{where}: {key}")
    return cls(**values)


def _section(key: str, hints: dict[str, Any]) -> str:
    """The first section with such a key."""
    sections = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    return next((name for name, hint in sections.items() if key in get_type_hints(hint)), "")


def unlike_values(one: dict[str, Any], other: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(keys from the outermost table inwards, one's value, the other's) where two tables differ; None where absent."""
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from (((key, *keys), x, y) for keys, x, y in unlike_values(a, b))
        elif a != b:
            yield (key,), a, b


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that `hint` names; whole numbers pass for floats, nan and inf for nothing.

    Raises UserError naming `where`.
    """
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            known = ", ".join(str(option) for option in get_args(hint) if option != "")
            near = did_you_mean(value, filter(None, get_args(hint))) if isinstance(value, str) else ""
            empty = " or empty" if "" in get_args(hint) else ""
            raise UserError(f"{where} is one of {known}{empty}, not {value!r}{near}")
        return value
    if get_origin(hint) in (Union, UnionType):
        return value
    if get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} is a list, not {value!r}: write [{value!r}]")
        return tuple(typed(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(get_args(hint)):
            raise UserError(f"{where} is a list of {len(get_args(hint))} numbers, not {value!r}")
        parts = zip(get_args(hint), value, strict=True)
        return tuple(typed(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(parts))
    if hint is float and type(value) in (int, float):
        return _finite(value, where)
    if type(value) is not hint:
        raise UserError(f"{where} is of type {hint.__name__}, not {value!r}")
    return value


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{where} is a finite number, not {number}")
    return number
