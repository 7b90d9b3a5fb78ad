"""Weights & Biases and MLflow, by stand-ins that hold what the genuine ones are asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.small import lines_of, recipe
from trainer.loop import train
from trainer.trackers import _keep, _kept
from trainer.world import World

ALONE = World(device=torch.device("cpu"))
SIZES = (30, 25, 29)


class WandB:
    """wandb.init, run.log, run.finish."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.ends: list[int] = []

    def init(self, **options: Any) -> Any:
        self.inits.append(options)
        return SimpleNamespace(id=options["id"] or "abc", log=self.log, finish=self.finish)

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.lines.append((step, values))

    def finish(self, *, exit_code: int) -> None:
        self.ends.append(exit_code)


class MLflow:
    """mlflow.set_experiment, start_run, log_params, log_metrics, end_run."""

    def __init__(self, *, broken_at: int = 1 << 30) -> None:
        self.broken_at, self.calls = broken_at, list[tuple[str, Any]]()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def set_experiment(self, name: str) -> None:
        self.calls.append(("set_experiment", name))

    def start_run(self, *, run_id: str | None, run_name: str) -> Any:
        self.calls.append(("start_run", run_id))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "r1"))

    def log_params(self, values: dict[str, Any]) -> None:
        self.calls.append(("log_params", values))

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        if step >= self.broken_at:
            raise ConnectionError("no answer from the server")
        self.lines.append((step, values))

    def end_run(self, status: str) -> None:
        self.calls.append(("end_run", status))


def test_a_record_of_each_kind_is_kept(tmp_path: Path) -> None:
    for name, record in (("wandb", "a"), ("mlflow", "b"), ("wandb", "c")):
        _keep(tmp_path, name, record)
    assert (_kept(tmp_path, "wandb"), _kept(tmp_path, "mlflow")) == ("c", "b")


def logged(run: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (line["step"], {name: value for name, value in line.items() if name != "step"})
        for line in lines_of(run)
        if "event" not in line
    ]


def test_wandb_gets_what_the_file_gets_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = WandB()
    monkeypatch.setitem(sys.modules, "wandb", library)  # type: ignore[arg-type]
    shards, run = make_shards(tmp_path / "shards", SIZES), tmp_path / "run"
    chosen = recipe(shards, run__track="wandb")
    train(chosen, run, ALONE)
    assert library.lines == logged(run)
    assert library.ends == [0]
    for path in sorted((run / "checkpoints").glob("*.pt"))[-1:]:
        path.unlink()  # as if it had been killed before the last one
    train(chosen, run, ALONE, resume=True)
    assert [options["id"] for options in library.inits] == [None, "abc"]
    assert library.inits[1]["config"]["data"]["batch_size"] == 8


def test_mlflow_gets_settings_and_metrics_and_may_go_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = MLflow(broken_at=5)
    monkeypatch.setitem(sys.modules, "mlflow", library)  # type: ignore[arg-type]
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    shards, run = make_shards(tmp_path / "shards", SIZES), tmp_path / "run"
    assert not train(recipe(shards, run__track="mlflow"), run, ALONE).already_done
    assert library.lines == [(step, values) for step, values in logged(run) if step < 5]
    kinds = [name for name, _ in library.calls]
    assert kinds == ["set_experiment", "start_run", "log_params"]
    assert library.calls[2][1]["data.batch_size"] == 8
    words = capsys.readouterr().err
    assert words.count("the tracker is left out from step 5 on: no answer from the server") == 1


def test_a_server_that_is_away_at_the_end_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = MLflow()
    monkeypatch.setitem(sys.modules, "mlflow", library)  # type: ignore[arg-type]
    monkeypatch.setattr(library, "end_run", lambda status: 1 / 0)
    shards, run = make_shards(tmp_path / "shards", SIZES), tmp_path / "run"
    assert train(recipe(shards, run__track="mlflow"), run, ALONE).steps == 20


def test_a_missing_library_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    shards = make_shards(tmp_path / "shards", SIZES)
    with pytest.raises(UserError, match="--track wandb: the package is not installed: pip install wandb"):
        train(recipe(shards, run__track="wandb"), tmp_path / "run", ALONE)


def test_a_server_that_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> None:
        raise RuntimeError("api key\nnot configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))  # type: ignore[arg-type]
    shards = make_shards(tmp_path / "shards", SIZES)
    with pytest.raises(UserError, match="--track wandb: api key not configured"):
        train(recipe(shards, run__track="wandb"), tmp_path / "run", ALONE)
