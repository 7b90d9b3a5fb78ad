"""Which sample goes into which shard, at which place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["shard_bounds", "shuffled"]


def shuffled(samples: int, seed: int) -> npt.NDArray[np.int64]:
    """A seeded order of all samples: 8 bytes a sample, so the whole is shuffled at once, whatever the images weigh."""
    return np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(samples)


def shard_bounds(samples: int, shard_size: int) -> list[tuple[int, int]]:
    """(start, stop) of each shard in the order of samples: the fewest shards of at most `shard_size`, evenly filled."""
    count = -(-samples // shard_size)
    cuts = [samples * i // max(count, 1) for i in range(count + 1)]
    return list(pairwise(cuts))
