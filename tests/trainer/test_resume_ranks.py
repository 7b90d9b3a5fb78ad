"""Several ranks that stop and go on: from one checkpoint, to the same bits, with DDP's gradients."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from shards.atomic import sha256_file
from shards.errors import UserError
from shards.reader import Shards
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import SIZES, recipe, weights
from trainer import run_folder, setup
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.loop import STOP, Stopped, _Loop, train
from trainer.step import Stepper
from trainer.world import World


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", sizes=SIZES, classes=6)


def train_until(world: World, shards: Path, run: Path, stop: int, lost: int) -> int:
    """On a rank: up to `stop`. The rank `lost` cannot read the newest checkpoint at its first try. Its first step."""
    tries, first, told, read = [0], [-1], _Loop._told, run_folder.read_checkpoint

    def asked(self: _Loop, what: int) -> int:
        tries[0] += 1
        return told(self, STOP if tries[0] >= stop else what)

    def once(path: Path) -> Any:
        if world.rank == lost and not seen:
            seen.append(path)
            raise UserError(f"{path} is not a readable checkpoint")
        return read(path)

    def noted(self: Stepper, batch: Any, step: int, total: int) -> Any:
        first[0] = step if first[0] < 0 else first[0]
        return steps(self, batch, step, total)

    seen: list[Path] = []
    steps = Stepper.step
    with (
        mock.patch.object(_Loop, "_told", asked),
        mock.patch.object(run_folder, "read_checkpoint", once),
        mock.patch.object(Stepper, "step", noted),
        suppress(Stopped),
    ):
        train(recipe(shards, data__batch_size=12, run__checkpoint_every=2), run, world, resume=True)
    return first[0]


def train_by(world: World, shards: Path, run: Path, ddp: bool, chunk: int) -> None:
    """On a rank: with gradients exchanged by DDP, as several GPUs do it, or all at once."""
    parallel = DistributedDataParallel if ddp else lambda encoder: None
    chosen = recipe(shards, model__backbone="test_resnet", data__chunk=chunk, epochs=1, optimiser__name="sgd")
    with mock.patch.object(Stepper, "_parallel", lambda self: parallel(self.encoder)):
        train(chosen, run, world)


@pytest.mark.parametrize("chunk", [0, 2])
def test_gradients_are_those_of_ddp(shards: Path, tmp_path: Path, ranks: Ranks, chunk: int) -> None:
    for ddp in (False, True):
        ranks(2, train_by, shards, tmp_path / str(ddp), ddp, chunk)
    ours, theirs = weights(tmp_path / "False"), weights(tmp_path / "True")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def resumed(world: World, shards: Path, run: Path, lost: int, epochs: int = 2) -> Any:
    """On a rank: the step to go on from, or what is wrong; the rank `lost` cannot read any checkpoint."""
    real = run_folder.read_checkpoint

    def reading(path: Path) -> Any:
        if world.rank == lost:
            raise UserError(f"{path} is not readable")
        return real(path)

    data = sha256_file(shards / "manifest.json")
    chosen = setup.settle(recipe(shards, data__batch_size=12, epochs=epochs), Shards.open(shards), world, run)
    with mock.patch.object(run_folder, "read_checkpoint", reading):
        try:
            state = run_folder.resume_state(run, chosen, data, world, resume=True)
        except UserError as error:
            return str(error)
    return state and state["step"]


def test_three_ranks_that_were_stopped_end_in_the_same_bits(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    """Three: the order of a sum of two does not show."""
    ranks(3, train_until, shards, tmp_path / "whole", 99, -1)
    for stop in (4, 5, 99):
        ranks(3, train_until, shards, tmp_path / "parts", stop, -1)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_all_ranks_go_on_from_the_checkpoint_that_rank_0_chooses(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    ranks(2, train_until, shards, tmp_path / "run", 5, -1)
    steps = [read_checkpoint(path)["step"] for path in checkpoints(tmp_path / "run")]
    assert ranks(2, train_until, shards, tmp_path / "run", 1, 0) == [steps[-2]] * 2  # rank 0 cannot read the newest
    step, error = ranks(2, resumed, shards, tmp_path / "run", 1)
    assert step > steps[-2]
    assert re.fullmatch("rank 1: .* is not readable; all ranks read .*run, which must be on a shared disk", error)
    step, error = ranks(2, resumed, shards, tmp_path / "run", -1, 99)
    assert "holds a run of another recipe" in step
    assert error == "rank 0 does not start, and says why"
