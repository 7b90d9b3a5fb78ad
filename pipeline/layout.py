"""Which sample goes into which shard, at which place."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

__all__ = ["group_shards", "shard_bounds", "shuffled"]


def shuffled(samples: int, seed: int) -> npt.NDArray[np.int64]:
    """A seeded order of all samples: 8 bytes a sample, so the whole is shuffled at once, whatever the images weigh."""
    return np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(samples)


def shard_bounds(samples: int, shard_size: int) -> list[tuple[int, int]]:
    """(start, stop) of each shard in the order of samples: the fewest shards of at most `shard_size`, evenly filled."""
    count = -(-samples // shard_size)
    cuts = [samples * i // max(count, 1) for i in range(count + 1)]
    return list(pairwise(cuts))


def group_shards(samples: int, group_size: int, shard_size: int) -> list[tuple[int, int]]:
    """As shard_bounds, for samples that lie in groups of `group_size`, the last one maybe short: no group is cut.

    Raises UserError where a shard is too small for a group.
    """
    if group_size > shard_size:
        raise UserError(
            f"a shard of {shard_size} samples holds no group of {group_size}: raise --shard-size or lower --group-size"
        )
    groups = -(-samples // group_size)
    bounds = shard_bounds(groups, shard_size // group_size)
    return [(start * group_size, min(stop * group_size, samples)) for start, stop in bounds]
