"""Checkpoints: written beside the training, and in time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import SIZES, recipe
from trainer import loop
from trainer.checkpoint import checkpoints
from trainer.loop import train
from trainer.saver import Saver
from trainer.step import Stepper
from trainer.world import World


def test_saving_does_not_wait_and_keeps_the_values_of_its_step() -> None:
    gate, seen = threading.Event(), []
    weight = torch.zeros(2)

    def write(state: dict[str, Any]) -> None:
        gate.wait(5)
        seen.append([state["encoder"]["w"].tolist(), state["optimiser"]["state"][0].tolist()])

    with Saver() as saver:
        saver.save({"encoder": {"w": weight}, "optimiser": {"state": [weight]}}, write)
        weight += 1  # the next step, while the file is being written
        assert seen == []
        gate.set()
    assert seen == [[[0, 0], [0, 0]]]


def test_a_failed_write_is_raised() -> None:
    def fail(state: dict[str, Any]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Saver() as saver:
        saver.save({}, fail)


def test_a_failed_write_is_raised_before_the_end() -> None:
    """As soon as it is asked for, and by the next one: a run of days is not told at its end."""

    def fail(state: dict[str, Any]) -> None:
        raise OSError("disk full")

    for told in (lambda saver: saver.check(), lambda saver: saver.save({}, lambda state: None)):
        with Saver() as saver:
            saver.save({}, fail)
            assert saver.running
            saver.running.exception(5)
            with pytest.raises(OSError, match="disk full"):
                told(saver)
            saver.running = None


def train_slowly(world: World, shards: Path, run: Path, minutes: float) -> None:
    """On a rank: as if each step took a minute, by the clock of rank 0; another's does not count."""
    begun, clock = time.monotonic(), [0]

    def slow(self: Stepper, batch: Any, step: int, total: int) -> Any:
        clock[0] += 60 if world.is_main else 6000
        return steps(self, batch, step, total)

    steps = Stepper.step
    chosen = recipe(shards, run__checkpoint_every=1000, run__checkpoint_minutes=minutes, run__keep=99)
    with (
        mock.patch.object(loop, "time", mock.Mock(monotonic=lambda: begun + clock[0])),
        mock.patch.object(Stepper, "step", slow),
    ):
        train(chosen, run, world)


@pytest.mark.parametrize(("size", "kept"), [(1, [6, 12, 18, 20]), (2, [7, 14, 20])])
def test_slow_steps_are_kept_by_the_clock(tmp_path: Path, ranks: Ranks, size: int, kept: list[int]) -> None:
    """Once each time it is due, six minutes after the last; several ranks agree on the step after."""
    shards = make_shards(tmp_path / "shards", sizes=SIZES, classes=6)
    ranks(size, train_slowly, shards, tmp_path / "run", 6)
    assert [int(path.stem.removeprefix("step-")) for path in checkpoints(tmp_path / "run")] == kept
    if size == 1:
        ranks(1, train_slowly, shards, tmp_path / "never", 0)
        assert [path.stem for path in checkpoints(tmp_path / "never")] == ["step-00000020"]
