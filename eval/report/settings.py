"""How the rows of a table were trained, and in what they differ: the column that an ablation is about."""

from __future__ import annotations

from typing import Any

from shards.config import unlike_values

__all__ = ["row_settings", "setting"]

ASIDE = {"seed", "run", "name"}  # of a recipe: what does not tell methods apart
Settings = dict[str, list[str]]


def row_settings(recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """{"keys": settings that are not the same in all rows, "rows": {method: their values in words}}.

    recipes: of each row's first run, {} where it is not known: such a row is left out.
    """
    known = [recipe for recipe in recipes.values() if recipe]
    keys = {keys for recipe in known[1:] for keys, *_ in unlike_values(known[0], recipe) if keys[0] not in ASIDE}
    ordered = sorted(keys)
    return {
        "keys": [".".join(key) for key in ordered],
        "rows": {method: [setting(recipe, key) for key in ordered] for method, recipe in recipes.items() if recipe},
    }


def setting(recipe: dict[str, Any], keys: tuple[str, ...]) -> str:
    """A recipe's value in words, by its keys from the outermost table inwards; empty where it has none."""
    value: Any = recipe
    for key in keys:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
