"""Are training images among the test images? Such a figure looks like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.benchmarks.bench import Ints
from shards.bars import say

__all__ = ["Held", "of_training"]

COMPARED = 100  # test pictures that are looked for among the training pictures
READ = 1 << 28  # bytes of those, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Encoded pictures, wherever they lie."""

    where: Path
    sizes: Ints
    """[n] bytes."""
    read: Callable[[int], bytes]


def of_training(train: Held, test: Held) -> dict[str, int]:
    """How many of some test pictures are training pictures, byte for byte; said where there are any.

    Only training pictures of equal size are read: of ImageNet's some 60 MB for all of them. Where more than READ would
    be, fewer test pictures are compared.
    """
    some = np.random.default_rng(0).permutation(len(test.sizes))[:COMPARED]
    alike = np.flatnonzero(np.isin(train.sizes, test.sizes[some]))
    compared = found = spent = 0
    for sample in some.tolist():
        size = int(test.sizes[sample])
        same = alike[train.sizes[alike] == size]
        if spent + size * len(same) > READ:
            continue
        spent, compared = spent + size * len(same), compared + 1
        image = test.read(sample)
        found += bool(image) and any(train.read(other) == image for other in same.tolist())
    if found:
        say(
            f"warning: {found:,} of {compared:,} pictures of {test.where} that were looked at are in {train.where} "
            "too, byte for byte: figures say how well such are remembered"
        )
    return {"compared": compared, "found": found}
