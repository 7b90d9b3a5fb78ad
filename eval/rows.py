"""The rows of a suite: what each is called, and the models behind it, of which several are one method's seeds."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from eval.models.model import Model
from eval.models.open import NAMELESS, open_model
from shards.errors import UserError
from shards.mirror import local_folder
from trainer.checkpoint import near_paths
from trainer.described import described
from trainer.own import is_own
from trainer.recipe import as_table, differences, stored_recipe

__all__ = [
    "Row",
    "is_before_end",
    "open_rows",
    "recipe_of",
    "rows_of",
    "run_names",
    "steps_of",
    "unalike",
    "unfinished",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table."""

    method: str
    """What the row is called: `xclr`, `untrained`."""
    checkpoint: str = ""
    """As open_model takes it; in a suite file, a path is relative to the suite's folder of runs. A pattern
    (`xclr-seed*`) stands for all runs that are called so."""
    checkpoints: tuple[str, ...] = ()
    """Several instead, trained alike but for the seed: the row has their mean, and how far they lie apart."""
    untrained: bool = False

    def __post_init__(self) -> None:
        if bool(self.checkpoint) == bool(self.checkpoints):
            raise UserError(
                f"the row {self.method!r} is of one checkpoint = '...', or of checkpoints = ['...', '...'], one a seed"
            )
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise UserError(f"the row {self.method!r} names a checkpoint twice")

    @property
    def specs(self) -> tuple[str, ...]:
        return self.checkpoints or (self.checkpoint,)


def rows_of(rows: tuple[Row, ...], suite: str, place: Path, checkpoints: list[str]) -> list[Row]:
    """The rows to evaluate, with names that tell them apart; every checkpoint is there, said before anything slow.

    place: the folder that paths in `rows` are relative to. checkpoints: of the command line, instead of `rows`.
    """
    if checkpoints:
        if "" in checkpoints:
            raise UserError(NAMELESS)
        if len(set(checkpoints)) < len(checkpoints):
            raise UserError("--checkpoint names a model twice")
        names = [Path(spec).name for spec in checkpoints]
        if len(set(names)) < len(names):
            names = checkpoints
        return [Row(method=name, checkpoint=spec) for name, spec in zip(names, checkpoints, strict=True)]
    if not rows:
        raise UserError(f"the suite {suite} names no rows: give --checkpoint, once for each model")
    placed = [replace(row, checkpoint="", checkpoints=_all(place, row)) for row in rows]
    missing = sorted({spec for row in placed for spec in row.specs if not _there(spec)})
    if missing:
        trained = " (`make demo` does)" if suite == "demo" else ""
        named = {spec for row in placed for spec in row.specs}
        lost = ", ".join(spec + _near(spec, named) for spec in missing)
        lost += "" if all(map(os.path.isabs, missing)) else f" (looked for from {Path.cwd()})"
        raise UserError(
            f"the suite {suite} evaluates runs that are not there: {lost}; train them first{trained}, "
            "give --out FOLDER, or runs = 'FOLDER' in the suite, which paths are relative to, or name others with "
            "--checkpoint"
        )
    return placed


def open_rows(rows: list[Row]) -> dict[str, list[Model]]:
    """The models of each row. Raises UserError where two of a row have the same weights: that is no second seed."""
    opened = {}
    for row in rows:
        models = [open_model(spec, untrained=row.untrained) for spec in row.specs]
        by_weights: dict[str, str] = {}
        for spec, model in zip(row.specs, models, strict=True):
            if model.sha256 in by_weights:
                raise UserError(
                    f"the row {row.method!r} counts the same weights twice: {by_weights[model.sha256]} and {spec}"
                )
            by_weights[model.sha256] = spec
        opened[row.method] = models
    return opened


def run_names(row: Row) -> list[str]:
    """What each of its models is called where they are told apart: the row's name, or that and the checkpoint."""
    return [row.method] if len(row.specs) == 1 else [f"{row.method}, {spec}" for spec in row.specs]


def unfinished(row: Row, models: list[Model]) -> Iterator[str]:
    """`simclr: step 136 of 270` of each run that has not come to its end."""
    for name, model in zip(run_names(row), models, strict=True):
        if not row.untrained and is_before_end(model):
            yield f"{name}: step {model.about['step']:,} of {steps_of(model):,}"


def is_before_end(model: Model) -> bool:
    """Whether it is a checkpoint of a run that went on, or was to."""
    step = model.about.get("step")
    return isinstance(step, int) and step < steps_of(model)


def steps_of(model: Model) -> int:
    """Of the whole run that a model is of; 0 where nothing says."""
    steps = _described(model).get("steps")
    return steps if isinstance(steps, int) else 0


def unalike(row: Row, models: list[Model]) -> Iterator[str]:
    """`xclr, runs/b: objective.tau_s: 0.2, not 0.1` of each run that differs from the row's first in more than the
    seed: the spread of such a row is not that of seeds."""
    first = _what(models[0], untrained=row.untrained)
    for name, model in zip(run_names(row)[1:], models[1:], strict=True):
        other = _what(model, untrained=row.untrained)
        found = differences(first, other)
        if first.get("data", {}).get("graph") != other.get("data", {}).get("graph"):  # the names say it
            found = [line for line in found if not line.startswith("contents.graph")]
        if found:
            yield f"{name}: {'; '.join(found[:4])}{'; ...' if len(found) > 4 else ''}"


def _what(model: Model, *, untrained: bool) -> dict[str, Any]:
    """All that should be alike among the seeds of a method, or of the weights that training starts from."""
    table = recipe_of(model)
    if not table:
        return {"network": model.name}
    # Where shards lie says nothing where it is known what they hold; nor does how that is spelt.
    where = local_folder(table["data"]["shards"])
    shards = "" if model.data else os.path.realpath(where) if where else table["data"]["shards"]
    data = {**table["data"], "shards": shards}
    return {"model": table["model"]} if untrained else {**table, "seed": 0, "data": data}


def recipe_of(model: Model) -> dict[str, Any]:
    """What it was trained by; {} where it was not trained here, or by a version that knew other options."""
    try:
        recipe = stored_recipe(_described(model)["recipe"], "")
    except (KeyError, TypeError, UserError):
        return {}
    mean, std = recipe.model.statistics  # left open by a run of an earlier version
    graph = recipe.data.graph if recipe.objective.name == "xclr" else ""  # others train on none
    model_part = replace(recipe.model, mean=mean, std=std)
    found = model.shards if model.shards and model.shards.exists() else None
    where = os.path.realpath(found) if found else recipe.data.shards  # however it was spelt
    table = as_table(replace(recipe, data=replace(recipe.data, graph=graph, shards=where), model=model_part))
    return {**table, "contents": {"graph": model.graph_id[:8] if graph else "", "shards": model.data[:8]}}


def _described(model: Model) -> dict[str, Any]:
    return described(model.folder) if model.folder else {}


def _all(place: Path, row: Row) -> tuple[str, ...]:
    """A row's checkpoints with their paths, and for each pattern those that it stands for, in order of their numbers.
    One that nothing is called by stays, to be missed."""
    found: list[str] = []
    for spec in row.specs:
        path = _below(place, spec)
        found += ([] if _there(path) else _named_by(place, spec)) or [path]
    if twice := next((path for path in found if found.count(path) > 1), None):
        raise UserError(f"the row {row.method!r} names a checkpoint twice: {twice}")
    return tuple(found)


def _named_by(place: Path, pattern: str) -> list[str]:
    """The runs that a pattern stands for, of code too: `mine.py:net@runs/*`."""
    code, _, run = pattern.partition("@")
    code, run = (code, run) if is_own(code) else ("", pattern)
    runs = [name for name in glob(os.path.expanduser(run), root_dir=place) if _is_run(place / name)]
    runs.sort(key=lambda name: (_numbers(name), name))
    return [_below(place, f"{code}@{name}" if code else name) for name in runs]


def _is_run(path: Path) -> bool:
    """Not a table or a folder of results that a pattern met as well."""
    return (path / "run.json").is_file() or (path.suffix == ".pt" and path.is_file())


def _numbers(path: str) -> list[tuple[str, int]]:
    """So that seed2 comes before seed10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", path)]


def _there(spec: str) -> bool:
    """Whether the run is there; what else a checkpoint may name says itself that it is not."""
    code, _, run = spec.partition("@")
    if is_own(code):  # FILE.py:FUNCTION@RUN
        return not run or Path(run).exists()
    return _named(spec) or is_own(spec) or Path(spec).exists()


def _near(spec: str, named: Collection[str]) -> str:
    """` (did you mean runs/xclr-seed0?)`, of what no row names already."""
    code, _, run = spec.partition("@")
    code, run = (f"{code}@", run) if run and is_own(code) else ("", spec)
    near = [found for path in near_paths(Path(run)) if (found := code + path) not in named]
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _named(spec: str) -> bool:
    return spec.startswith(("timm:", "torchvision:"))


def _below(out: Path, spec: str) -> str:
    """With its paths taken from the suite's folder of runs."""
    code, _, run = spec.partition("@")
    if run and is_own(code):
        return f"{_placed(out, code)}@{_placed(out, run)}"
    return spec if _named(spec) else _placed(out, spec)


def _placed(out: Path, path: str) -> str:
    return os.path.normpath(out / Path(path).expanduser())
