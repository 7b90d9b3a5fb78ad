"""Checks a folder of shards against its manifest, byte for byte and row for row.

Bytes first: manifest.json and graph.json carry their own checksums, and those of all other files. Rows then, for what a
faulty writer would have put in with the right checksum: counts, ids out of range, lists that do not answer each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.atomic import TEMPORARY, sha256_file
from shards.errors import TornTar, UserError
from shards.graph import Graph, read_graph, unlike
from shards.index import Index, read_text_table
from shards.manifest import Manifest
from shards.reader import Shards
from shards.sealed import seal_problem
from shards.tar import Member, scan

__all__ = ["verify"]

Ints = npt.NDArray[np.int64]
PAIRS = 1 << 24  # listed pairs a block: some 700 MB of temporary arrays


def verify(root: Path, progress: Callable[[str], None] = lambda name: None) -> list[str]:
    """Problems found, in words; empty when the folder is sound. Raises UserError without a readable manifest.

    progress is called with each file's name before it is read.
    """
    manifest = Manifest.load(root)
    if seal := seal_problem(root / "manifest.json"):
        return [seal]  # whatever it says of other files may be what has changed
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


def _check_file(path: Path, sha256: str, size: int | None = None) -> list[str]:
    if not path.is_file():
        return [f"{path} is missing"]
    if size is not None and path.stat().st_size != size:
        return [f"{path} has {path.stat().st_size} bytes, {size} were written"]
    if sha256_file(path) != sha256:
        return [f"{path} has changed: its sha256 is not what was written down"]
    return []


def _foreign(root: Path, manifest: Manifest) -> list[str]:
    """Files that look like ours but are not in the manifest; leftovers of a killed writer are harmless."""
    found = _names(root, ("*.tar", "index/*.parquet", "texts.parquet"))
    needed = {"texts.parquet"} | {f"index/{s.name}.parquet" for s in manifest.shards} | {s.tar for s in manifest.shards}
    strange, unlisted = sorted(found - set(manifest.files)), sorted(needed - set(manifest.files))
    return [f"{root / name} is not in the manifest" for name in strange] + [
        f"the manifest has no checksum of {name}" for name in unlisted
    ]


def _names(root: Path, patterns: Iterable[str]) -> set[str]:
    found = (path for pattern in patterns for path in root.glob(pattern))
    return {str(path.relative_to(root)) for path in found if not path.name.startswith(TEMPORARY)}


def _check_rows(root: Path, manifest: Manifest, progress: Callable[[str], None]) -> list[str]:
    shards = Shards(root, manifest)
    try:
        index, texts = shards.index, read_text_table(root)
    except UserError as error:
        return [str(error)]
    problems = _check_texts(index, texts, manifest)
    if index.label.max(initial=-1) >= len(manifest.classes):
        problems.append(f"the index names class {index.label.max()}, the manifest has {len(manifest.classes)} classes")
    if manifest.layout == "packed":
        problems += _check_groups(index)
    cuts = np.searchsorted(index.shard, np.arange(len(manifest.shards) + 1, dtype=index.shard.dtype))
    for position, shard in enumerate(manifest.shards):
        progress(shard.tar)
        members = {(member.offset, member.size) for member in _members(shards.tar_path(position))}
        rows = range(cuts[position], cuts[position + 1])  # the index is in the order of shards
        missing = sum((int(index.offset[i]), int(index.size[i])) not in members for i in rows)
        if missing:
            problems.append(f"{missing} rows of index/{shard.name}.parquet point at no member of {shard.tar}")
    return problems


def _check_texts(index: Index, texts: pa.Table, manifest: Manifest) -> list[str]:
    """texts.parquet against the manifest and the index."""
    n = texts.num_rows
    if n != manifest.texts:
        return [f"texts.parquet has {n} rows, the manifest says {manifest.texts}"]
    if not np.array_equal(texts["text_id"].to_numpy(), np.arange(n)):
        return ["texts.parquet does not number its texts 0, 1, 2, ..."]
    if len(index) and not (index.text_id.min() >= 0 and index.text_id.max() < n):
        return [f"the index names a text outside 0..{n - 1}"]
    wrong = int((np.bincount(index.text_id, minlength=n) != texts["count"].to_numpy()).sum())
    return [f"{wrong} texts have another number of samples in the index than in texts.parquet"] if wrong else []


def _check_groups(index: Index) -> list[str]:
    if (index.group < 0).any():
        return [f"{int((index.group < 0).sum())} samples of a packed layout are in no group"]
    order = np.argsort(index.group, kind="stable")
    straddling = (np.diff(index.group[order]) == 0) & (np.diff(index.shard[order]) != 0)
    return [f"{int(straddling.sum())} groups lie in two shards"] if straddling.any() else []


def _members(tar: Path) -> list[Member]:
    """Of a torn tar, whose whole samples may be used (in-place), those before the tear."""
    members: list[Member] = []
    with tar.open("rb") as file, suppress(TornTar):
        members.extend(scan(file))
    return members


def _check_graph(folder: Path, manifest: Manifest) -> list[str]:
    if (folder / "graph.json").is_file() and (seal := seal_problem(folder / "graph.json")):
        return [seal]
    try:
        graph = read_graph(folder)
    except UserError as error:
        return [str(error)]
    problems = []
    for name, entry in graph.meta["files"].items():
        problems += _check_file(folder / name, entry["sha256"], entry["bytes"])
    basis = (graph.meta.get("code") or {}).get("basis")
    if basis:
        problems += _check_file(folder / basis["file"], basis["sha256"])
    strange = _names(folder, ("*.parquet", "*.npy")) - set(graph.meta["files"]) - ({basis["file"]} if basis else set())
    problems += [f"{folder / name} is not in {folder}/graph.json" for name in sorted(strange)]
    if foreign := unlike(graph, manifest):
        problems.append(f"{folder} {foreign}")
    return problems or _check_lists(folder, graph)


def _check_lists(folder: Path, graph: Graph) -> list[str]:
    """Rules of format.md for the lists, a block of rows at a time."""
    found, balance = set[str](), 0
    cuts = np.searchsorted(graph.indptr, np.arange(0, graph.indptr[-1], PAIRS))
    for start, stop in pairwise([*np.unique(cuts).tolist(), len(graph)]):
        span = slice(graph.indptr[start], graph.indptr[stop])
        rows = np.repeat(np.arange(start, stop), np.diff(graph.indptr[start : stop + 1]))
        others, near = graph.neighbours[span].astype(np.int64), graph.similarities[span]
        if (rows == others).any():
            found.add("lists a text as its own neighbour")
        falling = np.diff(near.astype(np.float32)) <= 0
        if not (falling | (np.diff(rows) > 0)).all():
            found.add("has a list that is not sorted by falling similarity")
        if len(np.unique(rows * len(graph) + others)) < len(rows):
            found.add("lists a text twice in one list")
        balance += int((_hashes(rows, others, near) - _hashes(others, rows, near)).sum())
    if balance % 2**64:
        found.add("lists a pair that the other text does not list alike: some of its neighbours are foreign")
    return [f"{folder} {problem}" for problem in sorted(found)]


def _hashes(a: Ints, b: Ints, near: npt.NDArray[np.float16]) -> npt.NDArray[np.uint64]:
    """A hash of each (a, b, similarity). Lists are symmetric when those of (a, b) and (b, a) have the same sum, so no
    pair needs to be looked for: some seconds for 600 M pairs. Mixing: splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (a.astype(np.uint64) << np.uint64(32) | b.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    x ^= near.view(np.uint16).astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return x ^ x >> np.uint64(31)
