"""How the rows of a table were trained, and in what they differ: the column that an ablation is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shards.config import unlike_values
from trainer.names import OF_XCLR

__all__ = ["row_settings", "setting"]

ASIDE = {"seed", "run", "name"}  # of a recipe: what does not tell methods apart


def row_settings(recipes: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """{"keys": settings that are not the same in all runs, "rows": {method: their values in words}}.

    recipes: of each row's runs, {} where it is not known; a row of which nothing is known is left out. What the runs of
    a row do not have in common is said in full: `0.1 | 0.2`.
    """
    rows = {method: [recipe for recipe in several if recipe] for method, several in recipes.items()}
    known = [recipe for several in rows.values() for recipe in several]
    keys = {keys for recipe in known[1:] for keys, *_ in unlike_values(known[0], recipe) if keys[0] not in ASIDE}
    ordered = _telling(known, sorted(key for key in keys if len({setting(recipe, key) for recipe in known}) > 1))
    return {
        "keys": [".".join(key) for key in ordered],
        "rows": {
            method: [" | ".join(dict.fromkeys(setting(recipe, key) for recipe in several)) for key in ordered]
            for method, several in rows.items()
            if several
        },
    }


def _telling(known: Sequence[dict[str, Any]], keys: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without what says nothing beside another: contents (checksums) where names tell them apart, and the places of
    shards that hold the same."""
    left_out = set[tuple[str, ...]]()
    for part in ("graph", "shards"):
        place, contents = ("data", part), ("contents", part)
        both = {(setting(recipe, place), setting(recipe, contents)) for recipe in known}
        held = {content for _, content in both}
        if len(both) == len({name for name, _ in both}):
            left_out.add(contents)
        if part == "shards" and len(held) == 1 and "" not in held:
            left_out.add(place)
    return [key for key in keys if key not in left_out]


def setting(recipe: dict[str, Any], keys: tuple[str, ...]) -> str:
    """A recipe's value in words, by its keys from the outermost table inwards; empty where it has none, or no use for
    it."""
    if keys in OF_XCLR and recipe.get("objective", {}).get("name") != "xclr":
        return ""
    value: Any = recipe
    for key in keys:
        value = value.get(key, "") if isinstance(value, dict) else ""
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
