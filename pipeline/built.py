"""What `xclr-shards build` says of the shards that are there now."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.scan.tars import TORN
from pipeline.skipped import SKIPPED
from shards.bars import say
from shards.manifest import Manifest

__all__ = ["say_built", "say_left_out"]


def say_built(root: Path, fresh: bool, where: str) -> None:
    """where: the source, as it was given."""
    manifest = Manifest.load(root)
    skipped = "".join(f", {count} {reason}" for reason, count in manifest.skipped.items())
    counts = f"{manifest.samples:,} samples in {len(manifest.shards)} shards, {manifest.texts:,} texts"
    if (root / SKIPPED).is_file():
        skipped += f" (by name in {root / SKIPPED})"
    print(f"{root}: shards {'written' if fresh else 'already there'}, {counts}{skipped}", flush=True)
    if not fresh:
        if os.path.abspath(manifest.source) != os.path.abspath(where):  # a copy, or the same table over other images
            say(f"note: they were built from {manifest.source}, whose files have the names and sizes of {where}'s")
        say_left_out(root)
    if manifest.texts == 1 or len(manifest.classes) == 1:
        what = f"are of one class, {manifest.classes[0]!r}" if len(manifest.classes) == 1 else "have the same text"
        say(f"warning: all samples {what}, which teaches nothing: does SOURCE lie a folder too high?")


def say_left_out(root: Path) -> None:
    """Images that were mended or came since are no other source, so a build that is there stays as it is."""
    skipped = dict(Manifest.load(root).skipped)
    torn = skipped.pop(TORN, 0)
    left_out = [f"{count:,} sample{'s' * (count > 1)} of the source"] if (count := sum(skipped.values())) else []
    if torn:
        left_out.append(f"the rest of {torn:,} torn tar{'s' * (torn > 1)}")
    if left_out:
        say(
            f"note: left out when it was built: {' and '.join(left_out)}. If those were mended since, "
            f"choose another OUT= (--out), or delete {root}, to build anew"
        )
