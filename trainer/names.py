"""What a run is called where --out does not say: by its data, its objective, its network, and what sets it apart."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from shards.config import unlike_values
from shards.remote import shown
from trainer.described import DESCRIPTION, described
from trainer.own import short
from trainer.recipe import Recipe, as_table, builtin_recipes, load_recipe, stored_recipe

__all__ = ["OF_XCLR", "default_run", "unheeded", "usual_recipe"]

OF_XCLR = {("objective", "tau_s"), ("objective", "tail")}
"""Settings that no other objective has a use for."""
NAMED = {("data", "graph"), ("data", "shards"), ("model", "backbone"), ("objective", "name"), ("seed",), ("name",)}
"""What has its own place in a name, or none."""
FREE = {("data", "chunk")}  # a resumed run may have another, as it may of all [run]
LEFT_OPEN = {("precision",): "auto", ("data", "graph"): "", ("model", "mean"): [], ("model", "std"): []}
"""What a recipe may leave open, and run.json says."""
LONG = 40  # letters of a setting in a name
LONGEST = 160  # bytes of a name; file systems end at 255, and evaluations are called by it


def usual_recipe(dataset: str) -> str:
    """The recipe that is taken where none is named."""
    return dataset if dataset in builtin_recipes() else "default"


def default_run(recipe: Recipe, base: Recipe, dataset: str, *, below: Path = Path("runs")) -> Path:
    """runs/DATASET-OBJECTIVE-MODEL, with whatever of `recipe` differs from `base`, the recipe as it is in its file, and
    with the folder of shards where it is not called like the data set.

    So the runs of a sweep lie beside each other, and each is found again by its own command. A recipe other than the
    usual one is named as well. A run of this very recipe that has a former name keeps it: graphs had to be named only
    once there were several, and settings were not.
    """
    objective, network = recipe.objective.name, short(recipe.model.backbone).replace(":", "-")
    graph = recipe.data.graph if objective == "xclr" else ""
    file = "" if _is_usual(base, dataset) else base.name
    whole = [f"{keys[-1]}{_value(value)}" for keys, _, value in _deciding(as_table(base), as_table(recipe), objective)]
    own = [_cut(one) for one in whole]
    seed = f"seed{recipe.seed}" if recipe.seed else ""
    folder = re.split(r"[\\/]+", shown(recipe.data.shards).rstrip("/"))[-1]
    data = [dataset] if folder in ("", ".", "..") else [folder] if folder.startswith(dataset) else [dataset, folder]
    name = _slug(*data, file, objective, graph, network, *own, seed)
    former = [_slug(*data, file, objective, network, *whole, seed)] if graph else []
    former.append(_slug(*data, file, objective, graph, network, *whole, seed))
    former.append(_slug(dataset, objective, graph, network, seed))
    if not (below / name / DESCRIPTION).is_file():
        name = next((one for one in former if _is_run_of(below / one, recipe)), name)
    return below / name


def _is_usual(base: Recipe, dataset: str) -> bool:
    usual = load_recipe(usual_recipe(dataset))
    return replace(usual, data=replace(usual.data, shards=base.data.shards)) == base


def _deciding(one: dict[str, Any], other: dict[str, Any], objective: str) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two recipes differ in what decides the result and has no place of its own in a name."""
    aside = NAMED | FREE | (set() if objective == "xclr" else OF_XCLR)
    return (found for found in unlike_values(one, other) if found[0] not in aside and found[0][0] != "run")


def _cut(part: str) -> str:
    """A setting as a name has it; of a long one, such as the run to start from, the beginning and a checksum."""
    if len(part) <= LONG:
        return part
    return f"{part[: LONG - 9].rstrip('-_')}-{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def _slug(*parts: str) -> str:
    """A file's name of these parts; of a long one, the beginning and a checksum."""
    whole = "-".join(filter(None, parts))
    name = re.sub(r"[^\w.+-]+", "_", whole)
    if len(name.encode()) > LONGEST:
        name = f"{name.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return name


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "_".join(map(_value, value))
    if isinstance(value, str):  # of runs/NAME/checkpoints/best.pt, NAME-best.pt
        return "".join(f"-{part}" for part in Path(value).parts[-3:] if part not in ("checkpoints", "..", "/"))
    return "" if value is True else str(value)


def _is_run_of(run: Path, recipe: Recipe) -> bool:
    """Whether run.json is there and says that the folder holds a run of this recipe, on these shards."""
    try:
        found = as_table(stored_recipe(described(run)["recipe"], str(run)))
        shards = found["data"]["shards"]
    except (KeyError, TypeError, AttributeError, ValueError):
        return False
    if os.path.abspath(shards) != os.path.abspath(shown(recipe.data.shards)):
        return False
    aside = FREE | {("data", "shards"), ("name",)} | (set() if recipe.objective.name == "xclr" else OF_XCLR)
    for keys, ours, _ in unlike_values(as_table(recipe), found):
        if keys not in aside and keys[0] != "run" and LEFT_OPEN.get(keys, ...) != ours:
            return False
    return True


def unheeded(objective: str, given: dict[str, Any]) -> dict[str, str]:
    """Options, by their dotted names, that were given and that the objective has no use for.

    given: the options' values by dotted name, None where they were not given.
    """
    options = {} if objective == "xclr" else {"objective.tau_s": "--tau-s", "objective.tail": "--tail"}
    if objective == "supcon":  # the others' monitors may look by a graph's codes how alike neighbours are
        options["data.graph"] = "--graph"
    return {key: option for key, option in options.items() if given.get(key) is not None}
