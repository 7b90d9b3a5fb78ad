"""Builds for tests, and what they left."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pipeline.build import build_shards
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source


def build(dataset: str, source: Path | None, out: Path, processes: int = 1, **settings: Any) -> Path:
    found = open_source(load_dataset(dataset), str(source) if source else None)
    build_shards(found, out, BuildSettings(**settings), processes)
    return out


def contents(root: Path) -> dict[str, str]:
    """Checksum of every file."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
