"""What a run is called where --out does not say: by its data, its objective, its network, and what sets it apart."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.config import unlike_values
from trainer.own import short
from trainer.recipe import Recipe, as_table

__all__ = ["default_run", "unheeded"]

OF_XCLR = {"data.graph": "--graph", "objective.tau_s": "--tau-s", "objective.tail": "--tail"}
NAMED = {("data", "graph"), ("data", "shards"), ("model", "backbone"), ("objective", "name"), ("seed",)}
"""What has its own place in the name, or none (shards: the data set is named)."""
FREE = {("data", "chunk")}  # a resumed run may have another
LONGEST = 120  # characters of a name; file systems end at 255 bytes


def default_run(recipe: Recipe, base: Recipe, dataset: str, *, below: Path = Path("runs")) -> Path:
    """runs/DATASET-OBJECTIVE-MODEL, with whatever of `recipe` differs from `base`, the recipe as it is in its file.

    So the runs of a sweep lie beside each other, and each is found again by its own command. A recipe that is named
    neither `default` nor like the data set is named as well.
    """
    objective = recipe.objective.name
    graph = recipe.data.graph if objective == "xclr" else ""
    file = base.name if base.name not in ("default", dataset) else ""
    unlike = unlike_values(as_table(base), as_table(recipe))
    own = [
        f"{keys[-1]}{_value(value)}"
        for keys, _, value in unlike
        if keys not in NAMED | FREE and keys[0] not in ("run", "name") and not _only_xclr(keys, objective)
    ]
    seed = [f"seed{recipe.seed}"] if recipe.seed else []

    def name(*parts: str) -> Path:
        whole = "-".join(filter(None, parts))
        return below / re.sub(r"[^\w.+-]+", "_", whole)[:LONGEST]

    network = short(recipe.model.backbone).replace(":", "-")
    before = name(dataset, file, objective, network, *own, *seed)
    if graph and _graph_of(before) == graph:  # begun while there was no other, and none had to be named
        return before
    return name(dataset, file, objective, graph, network, *own, *seed)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "_".join(map(_value, value))
    return f"-{Path(value).name}" if isinstance(value, str) else "" if value is True else str(value)


def _only_xclr(keys: tuple[str, ...], objective: str) -> bool:
    return objective != "xclr" and ".".join(keys) in OF_XCLR


def _graph_of(run: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["data"]["graph"])
    return ""


def unheeded(objective: str, given: dict[str, Any]) -> dict[str, str]:
    """Options, by their dotted names, that were given and that the objective has no use for.

    given: the options' values by dotted name, None where they were not given.
    """
    return {} if objective == "xclr" else {key: option for key, option in OF_XCLR.items() if given.get(key) is not None}
