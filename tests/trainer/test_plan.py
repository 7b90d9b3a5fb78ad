"""The invariants of the batch plan, over ranks, workers, odd sizes, epochs, and stopping in between."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from trainer.plan import BatchPlan, StepSampler, Ticket

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def run(plan: BatchPlan, size: int, start: int, stop: int) -> list[list[Ticket]]:
    """The global batches: the ranks' shares of each step joined in rank order."""
    ranks = [list(StepSampler(plan, rank=rank, size=size, start=start, stop=stop)) for rank in range(size)]
    assert len({len(steps) for steps in ranks}) == 1
    return [list(chain(*shares)) for shares in zip(*ranks, strict=True)]


@given(SIZES, st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(0, 99), st.data())
@settings(max_examples=150, deadline=None)
def test_batches_do_not_depend_on_ranks_nor_on_stopping(
    sizes: list[int], ranks: int, other: int, share: int, seed: int, data: st.DataObject
) -> None:
    batch = ranks * other * share
    if batch > sum(sizes):
        return
    plan = BatchPlan(shard_sizes=sizes, batch_size=batch, seed=seed, window=data.draw(st.integers(1, 9)))
    total = 3 * plan.steps_per_epoch
    whole = run(plan, 1, 0, total)
    stop = data.draw(st.integers(0, total))
    assert run(plan, ranks, 0, stop) + run(plan, other, stop, total) == whole


@given(SIZES, st.integers(1, 20), st.integers(0, 99), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_epoch_covers_the_samples_once(sizes: list[int], batch: int, seed: int, window: int) -> None:
    if batch > sum(sizes):
        return
    plan = BatchPlan(shard_sizes=sizes, batch_size=batch, seed=seed, window=window)
    steps = run(plan, 1, 0, 2 * plan.steps_per_epoch)
    for epoch in range(2):
        tickets = list(chain(*steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]))
        assert {e for e, _ in tickets} == {epoch}
        samples = [sample for _, sample in tickets]
        assert len(set(samples)) == len(samples) > sum(sizes) - batch
        assert set(samples) <= set(range(sum(sizes)))


def test_order_stays_within_a_window_of_shards() -> None:
    plan = BatchPlan(shard_sizes=[10] * 12, batch_size=4, seed=3, window=3)
    order = plan.order(0)
    for first in range(0, 120, 30):
        assert len(set(order[first : first + 30] // 10)) == 3


def test_epochs_and_seeds_differ_and_the_order_is_uniform() -> None:
    plan = BatchPlan(shard_sizes=[7, 13], batch_size=4, seed=0)
    assert not np.array_equal(plan.order(0), plan.order(1))
    assert not np.array_equal(plan.order(0), BatchPlan(shard_sizes=[7, 13], batch_size=4, seed=1).order(0))
    first = np.array([plan.order(epoch)[0] for epoch in range(4000)])
    counts = np.bincount(first, minlength=20)  # 200 each; a chi-square of 19 degrees stays below 50
    assert ((counts - 200) ** 2 / 200).sum() < 50


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="5 samples do not fill one batch of 6: lower --batch-size"):
        BatchPlan(shard_sizes=[2, 3], batch_size=6, seed=0)
    with pytest.raises(UserError, match="does not divide over 3 ranks"):
        StepSampler(BatchPlan(shard_sizes=[9], batch_size=4, seed=0), rank=0, size=3, start=0, stop=1)
