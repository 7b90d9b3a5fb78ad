"""Builds for tests, and what they left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pipeline.build import build_shards
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import Dataset, load_dataset
from pipeline.sources.find import open_source
from pipeline.sources.source import Source
from pipeline.sources.tables import grouped_rows
from shards.reader import Shards


def build(dataset: str, source: Path | None, out: Path, processes: int = 1, **settings: Any) -> Path:
    found = open_source(load_dataset(dataset), str(source) if source else None)
    build_shards(found, out, BuildSettings(**settings), processes)
    return out


def contents(root: Path) -> dict[str, str]:
    """Checksum of every file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def built(dataset: str, source: Path, out: Path, **settings: Any) -> dict[str, tuple[bytes, str]]:
    """Path that KEY.json names -> image and text."""
    build_shards(open_source(load_dataset(dataset), str(source)), out, BuildSettings(**settings), 1)
    found = {json.loads(s.parts["json"])["path"]: s for s in Shards.open(out).samples()}
    images = {path: next(p for e, p in s.parts.items() if e not in ("json", "txt")) for path, s in found.items()}
    return {path: (images[path], sample.parts["txt"].decode()) for path, sample in found.items()}


def grouped(path: Path) -> dict[str, list[str]]:
    """Captions by image."""
    dataset = Dataset(name="mine", format="table")
    source = Source(dataset=dataset, where="", partitions=(), tables=(path,))
    cache = path.with_suffix(".arrow")
    cache.unlink(missing_ok=True)
    _, rows, _, _ = grouped_rows(source, cache, 0, 1)
    return {name.decode(): [caption.decode() for caption in captions] for name, captions, _ in rows}
