"""Checks a folder of shards against its manifest, byte for byte and row for row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.atomic import TEMPORARY, sha256_file
from shards.errors import UserError
from shards.graph import read_graph
from shards.manifest import Manifest
from shards.reader import Shards
from shards.tar import scan

__all__ = ["verify"]


def verify(root: Path, progress: Callable[[str], None] = lambda name: None) -> list[str]:
    """Problems found, in words; empty when the folder is sound. Raises UserError without a readable manifest.

    progress is called with each file's name before it is read.
    """
    manifest = Manifest.load(root)
    problems = []
    for name, entry in manifest.files.items():
        progress(name)
        problems += _check_file(root / name, entry.sha256, entry.bytes)
    problems += _foreign(root, manifest)
    if not problems:  # rows of a damaged file would only repeat the same news
        problems += _check_rows(root, manifest, progress)
    for folder in sorted(path for path in root.glob("graphs/*") if path.is_dir()):
        progress(f"graphs/{folder.name}")
        problems += _check_graph(folder, manifest)
    return problems


def _check_file(path: Path, sha256: str, size: int) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing"]
    if path.stat().st_size != size:
        return [f"{path} has {path.stat().st_size} bytes, the manifest says {size}"]
    if sha256_file(path) != sha256:
        return [f"{path} has changed: its sha256 is not the manifest's"]
    return []


def _foreign(root: Path, manifest: Manifest) -> list[str]:
    """Files that look like ours but are not in the manifest; leftovers of a killed writer are harmless."""
    found = {
        str(p.relative_to(root))
        for pattern in ("*.tar", "index/*.parquet", "texts.parquet")
        for p in root.glob(pattern)
    }
    strange = sorted(name for name in found - set(manifest.files) if not Path(name).name.startswith(TEMPORARY))
    needed = {"texts.parquet"} | {f"index/{s.name}.parquet" for s in manifest.shards} | {s.tar for s in manifest.shards}
    unlisted = sorted(needed - set(manifest.files))
    return [f"{root / name} is not in the manifest" for name in strange] + [
        f"the manifest has no checksum of {name}" for name in unlisted
    ]


def _check_rows(root: Path, manifest: Manifest, progress: Callable[[str], None]) -> list[str]:
    shards = Shards(root, manifest)
    try:
        index, texts = shards.index, shards.texts()
    except UserError as error:
        return [str(error)]
    problems = []
    if len(texts) != manifest.texts:
        problems.append(f"texts.parquet has {len(texts)} rows, the manifest says {manifest.texts}")
    if len(index) and not (index.text_id.min() >= 0 and index.text_id.max() < len(texts)):
        problems.append(f"the index names a text outside 0..{len(texts) - 1}")
    if index.label.max(initial=-1) >= max(len(manifest.classes), 1) and manifest.classes:
        problems.append(f"the index names a label outside 0..{len(manifest.classes) - 1}")
    for position, shard in enumerate(manifest.shards):
        progress(shard.tar)
        with shards.tar_path(position).open("rb") as file:
            members = {(member.offset, member.size) for member in scan(file)}
        rows = np.flatnonzero(index.shard == position)
        missing = sum((int(index.offset[i]), int(index.size[i])) not in members for i in rows)
        if missing:
            problems.append(f"{missing} rows of index/{shard.name}.parquet point at no member of {shard.tar}")
    return problems


def _check_graph(folder: Path, manifest: Manifest) -> list[str]:
    try:
        graph = read_graph(folder)
    except UserError as error:
        return [str(error)]
    problems = []
    for name, entry in graph.meta["files"].items():
        problems += _check_file(folder / name, entry["sha256"], entry["bytes"])
    if len(graph) != manifest.texts:
        problems.append(f"{folder} is of {len(graph)} texts, the manifest says {manifest.texts}")
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    if (rows == graph.neighbours).any():
        problems.append(f"{folder} lists a text as its own neighbour")
    falling = np.diff(graph.similarities.astype(np.float32)) <= 0
    if not (falling | (np.diff(rows) > 0)).all():
        problems.append(f"{folder} has a list that is not sorted by falling similarity")
    return problems
