"""Folders of shards whose pictures have the colour of a class, and whatever label a test wants them to have."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from shards.atomic import atomic_file, sha256_file
from shards.index import write_index, write_texts
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.tar import TarWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}
Sample = tuple[str, int | None]
"""The colour of a picture, and its label."""


def coloured(rng: np.random.Generator, colour: str) -> bytes:
    """A noisy picture whose mean tells its colour, for the probe and by its direction for kNN."""
    buffer, noise = BytesIO(), rng.integers(-30, 31, (16, 16, 3))
    Image.fromarray((np.array(COLOURS[colour]) + noise).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_labelled(
    root: Path,
    samples: Sequence[Sample],
    classes: Sequence[str],
    split: str = "train",
    *,
    bad: tuple[int, ...] = (),
    text: str = "a picture",
) -> Path:
    """Two shards. bad: positions that hold no picture. text: all samples' caption, in texts.parquet alone."""
    rng = np.random.default_rng([len(samples), len(split)])
    shards = []
    for shard, part in enumerate(np.array_split(np.arange(len(samples)), 2)):
        name = f"{split}-{shard:06d}"
        rows: dict[str, list[object]] = {k: [] for k in ("key", "offset", "size", "text_id", "label")}
        with atomic_file(root / f"{name}.tar") as file:
            tar = TarWriter(file)
            for number in part.tolist():
                colour, label = samples[number]
                image = b"no picture" if number in bad else coloured(rng, colour)
                values = (f"{number:06d}", tar.add(f"{number:06d}.jpg", image), len(image), 0, label)
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
                tar.add(f"{number:06d}.txt", b"a picture")
                tar.add(f"{number:06d}.json", b"{}")
            tar.close()
        write_index(root / "index" / f"{name}.parquet", **rows)  # type: ignore[arg-type]
        shards.append(ShardEntry(name=name, samples=len(part), tar=f"{name}.tar"))
    write_texts(root / "texts.parquet", [text], [len(samples)])
    paths = sorted([*root.glob("*.tar"), *root.glob("index/*.parquet"), root / "texts.parquet"])
    Manifest(
        dataset=root.name,
        split=split,  # type: ignore[arg-type]
        source="/data/my pictures",
        layout="shuffled",
        seed=0,
        samples=len(samples),
        texts=1,
        classes=tuple(classes),
        shards=tuple(shards),
        files={str(p.relative_to(root)): FileEntry(sha256=sha256_file(p), bytes=p.stat().st_size) for p in paths},
    ).save(root)
    return root
