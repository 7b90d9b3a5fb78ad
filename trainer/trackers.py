"""Weights & Biases and MLflow, for those who watch their runs there: the same values that metrics.jsonl gets.

Neither is a dependency; who names one in the recipe ([run] track, or --track) has it installed. Where it sends to, and
as whom, it reads from its own environment (WANDB_API_KEY, WANDB_MODE, MLFLOW_TRACKING_URI, ...).
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any, Protocol

from shards.atomic import write_json
from shards.errors import UserError

__all__ = ["Tracker", "library_of", "open_tracker"]

PROJECT = "xclr"  # where the libraries' own variables name none


class Tracker(Protocol):
    def step(self, values: dict[str, float], step: int) -> None:
        """Values of a step; several calls may name one step."""

    def close(self, *, failed: bool) -> None:
        """The run ended or stopped; it may be opened again."""


def library_of(name: str) -> Any:
    """Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"--track {name}: the package is not installed: pip install {name}") from None


def open_tracker(name: str, run: Path, recipe: dict[str, Any]) -> Tracker:
    """name: wandb or mlflow. A resumed run goes on in the same record, whose id is kept in the run's folder.

    Raises UserError where the library is missing or refuses.
    """
    library = library_of(name)
    try:
        return KINDS[name](library, run, recipe)
    except Exception as error:  # each library has a zoo of its own: no server, no key, no such record
        raise UserError(f"--track {name}: {' '.join(str(error).split())}") from error


class _WandB:
    def __init__(self, library: Any, run: Path, recipe: dict[str, Any]) -> None:
        self.record = library.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            dir=str(run),
            config=recipe,
            id=_kept(run, "wandb"),
            resume="allow",
        )
        _keep(run, "wandb", self.record.id)

    def step(self, values: dict[str, float], step: int) -> None:
        # Steps that a killed run had sent already are refused by W&B; they were the same.
        self.record.log(values, step=step)

    def close(self, *, failed: bool) -> None:
        self.record.finish(exit_code=int(failed))


class _MLflow:
    def __init__(self, library: Any, run: Path, recipe: dict[str, Any]) -> None:
        self.library = library
        before = _kept(run, "mlflow")
        if before is None and not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
            library.set_experiment(PROJECT)
        self.record = library.start_run(run_id=before, run_name=run.name)
        if before is None:
            library.log_params(_flat(recipe))
        _keep(run, "mlflow", self.record.info.run_id)

    def step(self, values: dict[str, float], step: int) -> None:
        self.library.log_metrics(values, step=step)

    def close(self, *, failed: bool) -> None:
        self.library.end_run("FAILED" if failed else "FINISHED")


KINDS: dict[str, type[_WandB] | type[_MLflow]] = {"wandb": _WandB, "mlflow": _MLflow}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"window": 64}} -> {"data.window": 64}"""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _kept(run: Path, name: str) -> str | None:
    try:
        value = json.loads((run / "tracker.json").read_text(encoding="utf-8")).get(name)
    except (OSError, ValueError, AttributeError):
        return None
    return str(value) if value else None


def _keep(run: Path, name: str, value: str) -> None:
    others = {other: known for other in KINDS if other != name and (known := _kept(run, other))}
    write_json(run / "tracker.json", {**others, name: value})
