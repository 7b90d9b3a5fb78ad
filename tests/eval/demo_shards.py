"""Folders of shards like those of `xclr-shards build demo` and `demo-test`, in any size, from the same pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pipeline.demo.pictures import SHAPES, DemoSample, samples
from shards.atomic import atomic_file, sha256_file
from shards.graph import write_graph
from shards.index import write_index, write_texts
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.tar import TarWriter
from tests.make import make_graph


def make_demo(root: Path, train: int, scenes: int) -> tuple[Path, Path]:
    """`train` training pictures and all variants of `scenes` test scenes: (root/demo, root/demo-test)."""
    write(root / "demo", "train", list(samples("train", count=train)))
    write(root / "demo-test", "test", list(samples("test", count=5 * scenes)))
    return root / "demo", root / "demo-test"


def write(root: Path, split: str, rows: list[DemoSample]) -> None:
    texts = sorted({row.caption for row in rows})
    ids = {text: i for i, text in enumerate(texts)}
    name = f"{split}-000000"
    index: dict[str, list[object]] = {k: [] for k in ("key", "offset", "size", "text_id", "label")}
    with atomic_file(root / f"{name}.tar") as file:
        tar = TarWriter(file)
        for row in rows:
            values = (row.key, tar.add(f"{row.key}.jpg", row.jpeg), len(row.jpeg), ids[row.caption], row.label)
            for column, value in zip(index.values(), values, strict=True):
                column.append(value)
            tar.add(f"{row.key}.txt", row.caption.encode())
            tar.add(f"{row.key}.json", json.dumps(row.attributes).encode())
        tar.close()
    write_index(root / "index" / f"{name}.parquet", **index)  # type: ignore[arg-type]
    write_texts(root / "texts.parquet", texts, [sum(row.caption == text for row in rows) for text in texts])
    paths = [root / f"{name}.tar", root / "index" / f"{name}.parquet", root / "texts.parquet"]
    Manifest(
        dataset="demo" if split == "train" else "demo-test",
        split=split,  # type: ignore[arg-type]
        source="embedded",
        layout="shuffled",
        seed=0,
        samples=len(rows),
        texts=len(texts),
        classes=SHAPES,
        shards=(ShardEntry(name=name, samples=len(rows), tar=f"{name}.tar"),),
        files={str(p.relative_to(root)): FileEntry(sha256=sha256_file(p), bytes=p.stat().st_size) for p in paths},
    ).save(root)
    if split == "train":
        write_graph(root, "made", make_graph(len(texts), dim=32, k=8), np.zeros(len(texts), np.int32), [name])
