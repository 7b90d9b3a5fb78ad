"""Which samples make up batch t: a pure function of (seed, epoch, shard sizes, batch size).

The number of ranks and loader workers does not enter, so a run may stop on eight GPUs and go on on two. Work goes
through a window of shards at a time: their samples are shuffled together, and the next window follows. Reads stay
within a few files, and data sets of up to a window of shards are shuffled whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

__all__ = ["BatchPlan", "StepSampler", "Ticket"]

Ticket = tuple[int, int]  # (epoch, sample): all that a sample's augmentation may depend on, besides the seed


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

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"window must be at least 1 shard, not {self.window}")
        if self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {self.batch_size}")
        if sum(self.shard_sizes) < self.batch_size:
            raise UserError(
                f"{sum(self.shard_sizes)} samples do not fill one batch of {self.batch_size}: lower --batch-size"
            )

    @property
    def steps_per_epoch(self) -> int:
        return sum(self.shard_sizes) // self.batch_size

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """[n] every sample once, in the order of this epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        starts = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        shards = rng.permutation(len(self.shard_sizes))
        parts = []
        for first in range(0, len(shards), self.window):
            window = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + self.window]]
            parts.append(rng.permutation(np.concatenate(window)))
        return np.concatenate(parts)


class StepSampler:
    """Batch sampler for PyTorch's DataLoader: this rank's share of batches start, start + 1, ..., stop - 1.

    Steps count over the whole run, so that loader workers live through all epochs and resuming is a start value.
    """

    def __init__(self, plan: BatchPlan, *, rank: int, size: int, start: int, stop: int) -> None:
        if plan.batch_size % size:
            raise UserError(f"a batch of {plan.batch_size} does not divide over {size} ranks: change --batch-size")
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
