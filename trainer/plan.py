"""Which samples make up batch t: a pure function of (seed, epoch, shard sizes, batch size).

The number of ranks and loader workers does not enter, so a run may stop on eight GPUs and go on on two. Work goes
through a window of shards at a time: their samples are shuffled together, and the next window follows. Reads stay
within a few files, and data sets of up to a window of shards are shuffled whole.

A random batch holds next to none of a text's listed neighbours. Shards of the packed layout name groups of
neighbours, and `grouped` is the share of every batch that is drawn as whole groups; the rest stays random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

__all__ = ["BatchPlan", "StepSampler", "Ticket", "check_share"]

Ticket = tuple[int, int]  # (epoch, sample): all that a sample's augmentation may depend on, besides the seed
Order = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The order of samples of every epoch.

    Within an epoch no sample comes twice, and at most batch_size - 1 are left out (others each epoch).
    """

    shard_sizes: Sequence[int]
    """Samples in each shard, in index order."""
    batch_size: int
    """Samples of a global batch."""
    seed: int
    window: int = 64
    """Shards whose samples are shuffled together."""
    grouped: float = 0.0
    """Share of each batch drawn as groups, 0..1; 0: plain random."""
    groups: npt.NDArray[np.int32] | None = None
    """[n] group of each sample, -1 without; needed where grouped > 0."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"window must be at least 1 shard, not {self.window}")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}")
        if sum(self.shard_sizes) < self.batch_size:
            raise UserError(
                f"{sum(self.shard_sizes)} samples do not fill one batch of {self.batch_size}: lower --batch-size"
            )
        if not 0 <= self.grouped <= 1:
            raise UserError(f"data.grouped is a share of the batch, 0 to 1, not {self.grouped}")
        if self.grouped and (self.groups is None or (self.groups < 0).all()):
            raise UserError(
                f"data.grouped = {self.grouped} needs neighbour groups, and these shards name none: build them in the "
                "packed layout, or set it to 0"
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.shard_sizes) // self.batch_size

    def order(self, epoch: int) -> Order:
        """[n] every sample once, in the order of this epoch; batch t is [t * batch_size, (t + 1) * batch_size)."""
        rng = self._rng(epoch)
        starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        windows = [
            rng.permutation(np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards]))
            for shards in self._windows(rng)
        ]
        return self._with_groups(windows, rng) if self.grouped else np.concatenate(windows)

    def windows(self, epoch: int) -> list[Order]:
        """The shards of each window of this epoch, in the order in which they are worked through."""
        return self._windows(self._rng(epoch))

    def window_at(self, step: int) -> tuple[int, int]:
        """(epoch, window) that the first sample of this step's batch comes from."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        ends = np.cumsum(np.asarray(self.shard_sizes)[np.concatenate(self.windows(epoch))])
        return epoch, int(np.searchsorted(ends, batch * self.batch_size, side="right")) // self.window

    def _rng(self, epoch: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch]))

    def _windows(self, rng: np.random.Generator) -> list[Order]:
        shards = rng.permutation(len(self.shard_sizes))
        return [shards[i : i + self.window] for i in range(0, len(shards), self.window)]

    def _with_groups(self, windows: list[Order], rng: np.random.Generator) -> Order:
        """Two streams through the windows, one of whole groups and one of random samples; a batch takes from both."""
        assert self.groups is not None
        steps, each = self.steps_per_epoch, round(self.grouped * self.batch_size)
        total = sum(map(len, windows))
        # The first stream is as long as all batches need, and a share of what the last of them leaves over.
        wanted = steps * each + round((total - steps * self.batch_size) * self.grouped)
        bounds = np.cumsum([0, *map(len, windows)]) * wanted // total
        packed, loose = [], []
        for samples, quota in zip(windows, np.diff(bounds), strict=True):
            gathered = _gather(samples, self.groups[samples])
            packed.append(gathered[:quota])
            loose.append(rng.permutation(gathered[quota:]))
        first, second = np.concatenate(packed), np.concatenate(loose)
        rest = self.batch_size - each
        batches = np.concatenate(
            [first[: steps * each].reshape(steps, each), second[: steps * rest].reshape(steps, rest)], axis=1
        )
        # Shuffled within, so that no rank's share of a batch is all groups.
        batches = rng.permuted(batches, axis=1)
        return np.concatenate([batches.ravel(), first[steps * each :], second[steps * rest :]])


def check_share(batch_size: int, ranks: int) -> None:
    if batch_size % ranks:
        raise UserError(f"a batch of {batch_size} does not divide over {ranks} ranks: change --batch-size")


class StepSampler:
    """Batch sampler for PyTorch's DataLoader: this rank's share of batches start, start + 1, ..., stop - 1.

    Steps count over the whole run, so that loader workers live through all epochs and resuming is a start value.
    """

    def __init__(self, plan: BatchPlan, *, rank: int, size: int, start: int, stop: int) -> None:
        check_share(plan.batch_size, size)
        self.plan, self.rank, self.size, self.start, self.stop = plan, rank, size, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[Ticket]]:
        share = self.plan.batch_size // self.size
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.stop):
            wanted, batch = divmod(step, self.plan.steps_per_epoch)
            if wanted != epoch:
                epoch, order = wanted, self.plan.order(wanted)
            first = batch * self.plan.batch_size + self.rank * share
            yield [(epoch, int(sample)) for sample in order[first : first + share]]


def _gather(samples: Order, groups: npt.NDArray[np.int32]) -> Order:
    """The samples with those of a group side by side, groups in order of their first sample, ungrouped ones last."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    place = np.where(groups < 0, len(samples), first[inverse])
    gathered: Order = samples[np.argsort(place, kind="stable")]
    return gathered
