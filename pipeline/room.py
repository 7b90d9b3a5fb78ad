"""Whether the disk has the room for what a build fetches, and for the shards it writes: said before either begins."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.ranges import size
from pipeline.sources.source import Source
from shards.bars import say
from shards.errors import UserError

__all__ = ["room_to_fetch", "room_to_write"]

DENSEST = 5  # bytes of a resized JPEG for each pixel of the square: 1.5 a pixel, of pictures three times as long


def room_to_fetch(source: Source, out: Path, folder: Path, again: float) -> None:
    """Say how much there is to fetch into `folder`; UserError where it does not fit. For sources with URLs.

    again: the shards will take so many times as much as well.
    """
    remote = [partition for partition in source.partitions if partition.url]
    if not remote:
        return
    total = sum(max(partition.bytes, 0) for partition in remote)
    free = shutil.disk_usage(out).free
    say(f"{source.where}: {len(remote):,} files to fetch, {total / 1e9:.2f} GB; {free / 1e9:.0f} GB are free")
    there = sum(path.stat().st_size for place in (out, folder) for path in place.glob("*.tar"))
    needed = total * (1 + again) - there
    if needed > free:
        raise UserError(
            f"{source.where} takes {needed / 1e9:.0f} GB more, fetched{' and as shards' if again else ''}; the disk "
            f"of {out} has {free / 1e9:.0f} GB free: make room, choose another OUT= (--out), or name fewer files"
        )


def room_to_write(source: Source, out: Path, samples: pa.Table, image_size: int | None) -> None:
    """Images and 4 KB of headers and texts a sample, less what is already there."""
    sizes = samples["size"].to_numpy()
    if image_size:
        sizes = np.minimum(sizes, DENSEST * image_size**2)
    needed = int(np.sum(sizes)) + 4096 * samples.num_rows
    there = sum(path.stat().st_size for path in out.glob("*.tar"))
    free = shutil.disk_usage(out).free
    say(f"the shards take some {size(needed)}; {size(free)} are free")
    if needed - there > free:
        remedies = ["make room", "choose another OUT= (--out)", "shrink images with --image-size"]
        if source.dataset.format == "webdataset":
            remedies.append("leave the tars where they are with --layout in-place")
        raise UserError(
            f"{out} needs some {size(needed - there)} more, its disk has {size(free)} free: "
            f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
        )
