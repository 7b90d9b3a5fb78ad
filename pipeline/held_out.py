"""A held-out test split of one source: the bytes of a sample's image say on which side it lies, and nothing else does.

So it is the same on every machine and in every order, copies of an image lie on one side whatever they are called, and
a sample stays where it is when others come. A name would do neither: renamed folders and rows of a table that share an
image would part it. Of a larger share the split holds the smaller one's samples and more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.scan.samples import mapped
from shards.bars import say
from shards.errors import UserError

__all__ = ["image_hashes", "on_side"]


def image_hashes(places: Iterable[tuple[str, int, int]]) -> list[int]:
    """The first 64 bits of sha256 of each image. places: file, offset and size, those of one file together.

    This reads every byte, as writing does later; a part would do for JPEG, but pictures without compression can be
    alike in any part.
    """
    hashes = list[int]()
    for path, images in groupby(places, itemgetter(0)):
        try:
            with mapped(Path(path)) as (_, content):
                for _, offset, size in images:
                    digest = hashlib.sha256(content[offset : offset + size]).digest()
                    hashes.append(int.from_bytes(digest[:8], "big"))
        except OSError as error:
            raise UserError(f"{path} has changed since it was scanned ({error.strerror}): run again") from None
    return hashes


def on_side(share: float, held_out: bool, scans: Sequence[Path], where: str) -> npt.NDArray[np.bool_] | None:
    """[samples] whether a scanned sample is in the build: of those held out, or of the others; None for all of them.

    Raises UserError where samples are all on one side: what the other one is for could then not be done.
    """
    if not share:
        return None
    found = (pq.read_table(path, columns=["hash"], partitioning=None)["hash"].to_numpy() for path in scans)
    hashes: npt.NDArray[np.uint64] = np.concatenate([np.empty(0, np.uint64), *found])
    held = hashes < np.uint64(share * 2**64)
    count = int(held.sum())
    if len(held) and count in (0, len(held)):
        raise UserError(
            f"held_out = {share:g} holds out {'all' if count else 'none'} of {len(held):,} samples of {where}: "
            f"{'lower' if count else 'raise'} it in the data set file, or give a test split of its own"
        )
    done = "built" if held_out else "left out"
    say(f"held_out = {share:g}: {count:,} of {len(held):,} samples, which are {done} here")
    return held if held_out else ~held
