"""Fixed subsets of the training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.benchmarks.bench import LEFT_OUT, Bench, Task
from eval.benchmarks.few_shot import few_shot
from shards.errors import UserError
from tests.eval.make_folders import make_set


def bench(order: list[int]) -> Bench:
    """300 images of three classes (200, 90, 10) in some order, the last five without a label."""
    images = make_set(1)
    keys = [f"{i}.jpg" for i in order]
    labels = np.array([0 if i < 200 else 1 if i < 290 else 2 if i < 295 else LEFT_OUT for i in order], np.int64)
    images = type(images)(name="train", keys=keys, read=images.read, fingerprint="x", may_train=True)
    task = Task(name="class", images="train", labels=labels, classes=["a", "b", "c"])
    return Bench(name="made", root=Path(), sets=(images,), tasks=(task,), columns=())


def kept(made: Bench) -> set[str]:
    labels = made.tasks[0].labels
    return {made.sets[0].keys[row] for row in np.flatnonzero(labels != LEFT_OUT).tolist()}


def test_every_class_keeps_its_share() -> None:
    made = few_shot(bench(list(range(300))), 10)
    assert np.bincount(made.tasks[0].labels[made.tasks[0].labels >= 0]).tolist() == [20, 9, 1]  # half of one: one
    assert (made.tasks[0].labels[295:] == LEFT_OUT).all()
    assert made.notes["few_shot"]["class"]["images"] == 30
    three = few_shot(bench(list(range(300))), 3).tasks[0].labels
    assert np.bincount(three[three >= 0]).tolist() == [6, 3, 1]  # of 90 images 2.7


def test_subsets_are_fixed_and_nested() -> None:
    rng = np.random.default_rng(0)
    straight, mixed = bench(list(range(300))), bench(rng.permutation(300).tolist())
    one, five, ten = (kept(few_shot(straight, percent)) for percent in (1, 5, 10))
    assert one < five < ten
    assert one == {"195.jpg", "138.jpg", "246.jpg", "291.jpg"}  # as everywhere
    assert kept(few_shot(mixed, 5)) == five
    assert len(few_shot(straight, 5).notes["few_shot"]["class"]["sha256"]) == 64


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_a_share_of_nothing_or_all_is_one_line(percent: float) -> None:
    with pytest.raises(UserError, match="is a percentage between 0 and 100"):
        few_shot(bench(list(range(300))), percent)
