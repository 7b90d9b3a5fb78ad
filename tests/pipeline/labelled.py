"""Samples with labels beside them, for tests, and what a build made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.manifest import Manifest
from shards.reader import Shards

NAMES = [f"{i}.jpg" for i in range(24)]  # ten may be left out whatever the budget
ANIMALS = ("cat", "dog", "yak")


def labelled(out: Path) -> list[tuple[str, str | None]]:
    """(text, class or None) of every sample, by key."""
    shards, names = Shards.open(out), Manifest.load(out).classes
    labels = [None if label < 0 else names[label] for label in shards.index.label]
    texts = [sample.parts["txt"].decode() for sample in shards.samples()]
    pairs = zip(shards.index.key.to_pylist(), texts, labels, strict=True)
    return [(text, label) for _, text, label in sorted(pairs)]


def rows(labels: Sequence[object]) -> list[dict[str, Any]]:
    return [
        {"image": name, "caption": f"picture {name}", "kind": labels[i % len(labels)]} for i, name in enumerate(NAMES)
    ]


def write_table(path: Path, given: Sequence[dict[str, Any]]) -> None:
    match path.suffix:
        case ".csv":
            lines = [",".join("" if value is None else str(value) for value in row.values()) for row in given]
            path.write_text("\n".join([",".join(given[0]), *lines, ""]))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in given))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(given)), path)
