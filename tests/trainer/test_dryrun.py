"""The dry run: what a training will cost, and whether it fits."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.small import ALONE, SIZES, command, recipe
from trainer.cli import app
from trainer.data import ViewDataset
from trainer.dryrun import estimate
from trainer.model import build_encoder
from trainer.step import Stepper


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=SIZES, classes=6)


def test_dry_run_measures_and_leaves_nothing(shards: Path, tmp_path: Path) -> None:
    found = estimate(recipe(shards, epochs=50), ALONE)
    encoder = build_encoder(recipe(shards).model, 16, seed=0)
    assert found.parameters == sum(p.numel() for p in encoder.parameters()) > found.backbone_parameters > 0
    assert found.steps == 500
    assert found.hours == pytest.approx(found.step_s * 500 / 3600)
    assert found.compute_s > 0
    assert found.memory > 1 << 20
    arguments = [*command(shards, tmp_path / "run")[3:], "--dry-run"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert re.search(r"time +\d+ s at this speed", result.output)
    assert re.search(r"measuring .*7/7", result.output)
    assert re.search(r"run.*/run\(adryrunwritesnothing\)", "".join(result.output.split()))
    assert not (tmp_path / "run").exists()
    busy = estimate(recipe(shards, epochs=50, run__workers=2), ALONE)
    assert busy.step_s >= busy.compute_s > 0
    with pytest.raises(
        UserError, match="84 samples, too few for a batch of 100: give --batch-size 32, or any up to 84"
    ):
        CliRunner().invoke(app, [*arguments, "--batch-size", "100"], catch_exceptions=False)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_dry_run_sees_a_loader_that_is_slow(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though every worker has a batch ready when the first step begins."""
    read = ViewDataset.__getitems__

    def slow(self: ViewDataset, tickets: Any) -> Any:
        time.sleep(2)
        return read(self, tickets)

    monkeypatch.setattr(ViewDataset, "__getitems__", slow)
    found = estimate(recipe(shards, epochs=50, run__workers=8), ALONE)
    assert found.step_s > 0.12  # 8 workers, 2 s a batch: 0.25, less what was ready


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (
            [],
            "8 samples at a time do not fit a GPU .CUDA out of memory.: give --chunk 4, .* more GPUs, or a new run",
        ),
        (
            ["--chunk", "1"],
            "1 samples at a time do not fit a GPU .*: give more GPUs, or a new run a smaller --batch-size",
        ),
        (["--dry-run"], "8 samples at a time"),
    ],
)
def test_a_batch_that_a_gpu_cannot_hold(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], remedy: str
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")

    monkeypatch.setattr(Stepper, "step", full)
    with pytest.raises(UserError, match=remedy):
        CliRunner().invoke(app, [*command(shards, tmp_path / "run")[3:], *options], catch_exceptions=False)
