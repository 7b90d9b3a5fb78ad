"""Folders of shards with given texts and labels and no images: all that a graph needs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from shards.atomic import atomic_file, sha256_file
from shards.index import write_index, write_texts
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.tar import TarWriter


def text_shards(
    root: Path,
    texts: Sequence[str],
    labels: Sequence[int | None] | None = None,
    classes: Sequence[str] = (),
    samples: Sequence[int] | None = None,
    shards: int = 2,
) -> Path:
    """A finished folder; samples: the text of each sample (default: one sample a text), labels: one a sample."""
    text_ids = list(range(len(texts))) if samples is None else list(samples)
    marks = labels if labels is not None else [None] * len(text_ids)
    cut = [len(text_ids) * i // shards for i in range(shards + 1)]
    entries = []
    for position, (start, stop) in enumerate(pairwise(cut)):
        name = f"train-{position:06d}"
        with atomic_file(root / f"{name}.tar") as file:
            tar = TarWriter(file)
            offsets = [tar.add(f"{i:06d}.jpg", b"no image") for i in range(start, stop)]
            tar.close()
        write_index(
            root / "index" / f"{name}.parquet",
            key=[f"{i:06d}" for i in range(start, stop)],
            offset=offsets,
            size=[8] * (stop - start),
            text_id=text_ids[start:stop],
            label=marks[start:stop],
        )
        entries.append(ShardEntry(name=name, samples=stop - start, tar=f"{name}.tar"))
    write_texts(root / "texts.parquet", texts, [text_ids.count(i) for i in range(len(texts))])
    paths = sorted([*root.glob("*.tar"), *root.glob("index/*.parquet"), root / "texts.parquet"])
    Manifest(
        dataset="made",
        split="train",
        source="tests",
        layout="shuffled",
        seed=0,
        samples=len(text_ids),
        texts=len(texts),
        classes=tuple(classes),
        shards=tuple(entries),
        files={
            str(path.relative_to(root)): FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
            for path in paths
        },
    ).save(root)
    return root
