"""The invariants of the batch plan, over ranks, workers, odd sizes, epochs, and stopping in between."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from trainer.plan import BatchPlan, StepSampler, Ticket


@st.composite
def plans(draw: st.DrawFn, multiple_of: int = 1) -> BatchPlan:
    """Odd shard sizes, windows, and a share of the batch in groups, where some samples belong to none."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= multiple_of))
    batch = multiple_of * draw(st.integers(1, min(sum(sizes) // multiple_of, 12)))
    groups = draw(st.lists(st.integers(-1, 6), min_size=sum(sizes), max_size=sum(sizes)))
    groups[0] = 0
    return BatchPlan(
        shard_sizes=sizes,
        batch_size=batch,
        seed=draw(st.integers(0, 99)),
        window=draw(st.integers(1, 9)),
        grouped=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        groups=np.array(groups, np.int32),
    )


def run(plan: BatchPlan, size: int, start: int, stop: int) -> list[list[Ticket]]:
    """The global batches: the ranks' shares of each step joined in rank order."""
    ranks = [list(StepSampler(plan, rank=rank, size=size, start=start, stop=stop)) for rank in range(size)]
    assert len({len(steps) for steps in ranks}) == 1
    return [list(chain(*shares)) for shares in zip(*ranks, strict=True)]


@given(st.integers(1, 8), st.integers(1, 8), st.data())
@settings(max_examples=150, deadline=None)
def test_batches_do_not_depend_on_ranks_nor_on_stopping(ranks: int, other: int, data: st.DataObject) -> None:
    plan = data.draw(plans(multiple_of=math.lcm(ranks, other)))
    total = 3 * plan.steps_per_epoch
    whole = run(plan, 1, 0, total)
    stop = data.draw(st.integers(0, total))
    assert run(plan, ranks, 0, stop) + run(plan, other, stop, total) == whole


@given(plans())
@settings(max_examples=200, deadline=None)
def test_epoch_covers_the_samples_once(plan: BatchPlan) -> None:
    total = sum(plan.shard_sizes)
    steps = run(plan, 1, 0, 2 * plan.steps_per_epoch)
    for epoch in range(2):
        tickets = list(chain(*steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]))
        assert {e for e, _ in tickets} == {epoch}
        samples = [sample for _, sample in tickets]
        assert len(set(samples)) == len(samples) > total - plan.batch_size
        assert set(samples) <= set(range(total))


@given(plans())
@settings(max_examples=50, deadline=None)
def test_a_share_of_nought_is_plain_random_exactly(plan: BatchPlan) -> None:
    plain = BatchPlan(shard_sizes=plan.shard_sizes, batch_size=plan.batch_size, seed=plan.seed, window=plan.window)
    assert np.array_equal(replace(plan, grouped=0.0).order(1), plain.order(1))


@pytest.mark.parametrize("grouped", [0.0, 0.25, 0.5, 1.0])
def test_each_batch_holds_its_share_of_whole_groups(grouped: float) -> None:
    """64 groups of eight in eight shards, batches of 64: half grouped means four groups of eight in each."""
    groups = np.arange(512, dtype=np.int32) // 8
    plan = BatchPlan(shard_sizes=[64] * 8, batch_size=64, seed=1, window=4, grouped=grouped, groups=groups)
    order = plan.order(0)
    for first in range(0, 512, 64):
        _, counts = np.unique(groups[order[first : first + 64]], return_counts=True)
        assert (counts == 8).sum() >= round(grouped * 8)
        assert grouped == 1 or (counts == 8).sum() <= round(grouped * 8) + 1
    same_half = [len(set(groups[order[first : first + 32]])) for first in range(0, 512, 64)]
    assert min(same_half) > 4  # shuffled within: a rank's half is not whole groups


def test_samples_without_a_group_are_grouped_last() -> None:
    groups = np.where(np.arange(128) < 64, np.arange(128) // 8, -1).astype(np.int32)
    plan = BatchPlan(shard_sizes=[128], batch_size=32, seed=0, grouped=0.5, groups=groups)
    order = plan.order(0)
    for first in range(0, 128, 32):
        assert (groups[order[first : first + 32]] >= 0).sum() == 16


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


def test_the_order_is_that_of_earlier_versions() -> None:
    """A run that was stopped under one version may go on under another."""
    plan = BatchPlan(shard_sizes=[5, 4, 3], batch_size=4, seed=5, window=2)
    assert plan.order(2).tolist() == [3, 7, 5, 0, 2, 8, 4, 1, 6, 9, 10, 11]
    orders = [replace(plan, seed=seed).order(epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len(set(map(tuple, orders))) == 16  # none of another seed's epochs comes again


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="5 samples do not fill one batch of 6: lower --batch-size"):
        BatchPlan(shard_sizes=[2, 3], batch_size=6, seed=0)
    with pytest.raises(UserError, match="does not divide over 3 ranks"):
        StepSampler(BatchPlan(shard_sizes=[9], batch_size=4, seed=0), rank=0, size=3, start=0, stop=1)
    with pytest.raises(UserError, match=r"0\.5 needs neighbour groups, and these shards name none"):
        BatchPlan(shard_sizes=[9], batch_size=4, seed=0, grouped=0.5, groups=np.full(9, -1, np.int32))
    for name in ("window", "batch_size"):
        with pytest.raises(UserError, match=f"{name} must be at least 1.*, not 0"):
            BatchPlan(**{"shard_sizes": [9], "batch_size": 4, "seed": 0, name: 0})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="share of the batch, 0 to 1, not 2"):
        BatchPlan(shard_sizes=[9], batch_size=4, seed=0, grouped=2.0)
