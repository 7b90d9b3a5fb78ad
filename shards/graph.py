"""graphs/NAME: for every text its nearest texts (exact), and a compact code for every other pair.

A top-k list alone is almost invisible to a random batch (12 M texts, k = 32, batch 4096: 0.011 listed neighbours a
row), so a graph also carries, for each text, an int8 code whose dot products stand in for the similarities that are
not listed, and the mean and deviation of its similarity to random texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import sha256_file
from shards.errors import UserError, first_line
from shards.index import write_rows
from shards.manifest import Manifest
from shards.sealed import write_sealed

__all__ = ["Graph", "flat_places", "read_graph", "unlike", "write_graph"]

META = "graph.json"
GRAPH_SCHEMA = pa.schema(
    [
        pa.field("text_id", pa.int64(), nullable=False),
        pa.field("neighbours", pa.list_(pa.int64()), nullable=False),
        pa.field("similarities", pa.list_(pa.float16()), nullable=False),
        pa.field("background_mean", pa.float32(), nullable=False),
        pa.field("background_std", pa.float32(), nullable=False),
        pa.field("code", pa.binary()),
        pa.field("code_scale", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Similarities between n texts; row i belongs to text_id i.

    The similarity of two codes is code_scale[i] * code_scale[j] * (codes[i] . codes[j]).
    """

    meta: dict[str, Any]
    """graph.json: source, k, metric, search, audited recall, fidelity, sha256 per file."""
    indptr: npt.NDArray[np.int64]
    """[n + 1] row i's neighbours are neighbours[indptr[i]:indptr[i + 1]]."""
    neighbours: npt.NDArray[np.int32]
    """[listed] text ids by falling similarity, never the text itself."""
    similarities: npt.NDArray[np.float16]
    """[listed]"""
    background_mean: npt.NDArray[np.float32]
    """[n] mean similarity to random texts."""
    background_std: npt.NDArray[np.float32]
    """[n]"""
    codes: npt.NDArray[np.int8] | None
    """[n, dim]"""
    code_scale: npt.NDArray[np.float32] | None
    """[n]"""

    @property
    def kind(self) -> str:
        """What it is made of: encoder, class, random, wordnet or file; empty where graph.json does not say."""
        source = self.meta.get("source")
        return str(source.get("kind", "")) if isinstance(source, dict) else ""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __repr__(self) -> str:
        parts = [self.kind, f"{len(self):,} texts", f"{len(self.neighbours):,} listed pairs"]
        codes = [] if self.codes is None else [f"codes of {self.codes.shape[1]} dimensions"]
        return f"Graph({', '.join(part for part in parts + codes if part)})"

    def __post_init__(self) -> None:
        n = len(self)
        assert len(self.neighbours) == len(self.similarities) == self.indptr[-1]
        assert len(self.background_mean) == len(self.background_std) == n
        assert (self.codes is None) == (self.code_scale is None)
        assert self.codes is None or self.codes.shape[0] == n


def write_graph(root: Path, name: str, graph: Graph, home: npt.NDArray[np.int32], shard_names: Sequence[str]) -> Path:
    """Write graphs/NAME below `root`: one parquet file a shard, then graph.json; returns the folder.

    home: [n] position of the shard in which a text first appears; that shard's file carries its row.
    """
    folder = root / "graphs" / name
    files = {}
    order = np.argsort(home, kind="stable")
    cuts = np.searchsorted(home, np.arange(1, len(shard_names)), sorter=order)
    for shard, ids in zip(shard_names, np.split(order, cuts), strict=True):
        path = folder / f"{shard}.parquet"
        write_rows(path, GRAPH_SCHEMA, len(ids), partial(_rows, graph, ids))
        files[path.name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    write_sealed(folder / META, {**graph.meta, "texts": len(graph), "files": files})
    return folder


def unlike(graph: Graph, manifest: Manifest) -> str:
    """What shows that the graph was made of other texts than the manifest's; empty where nothing does."""
    if len(graph) != manifest.texts:
        return f"is of {len(graph)} texts, the manifest says {manifest.texts}"
    texts = manifest.files.get("texts.parquet")
    if texts and graph.meta.get("texts_sha256", texts.sha256) != texts.sha256:  # absent before 2026-11-24
        return "was made of other texts, as many as these"
    return ""


def read_graph(folder: Path) -> Graph:
    """Read graphs/NAME whole. Raises UserError for an unfinished or damaged folder."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        n, names = int(meta["texts"]), sorted(meta["files"])
    except FileNotFoundError:
        raise UserError(f"{folder} has no {META}, so it is unfinished: run `xclr-shards graph` again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / META} is damaged ({error}): delete {folder} and run `xclr-shards graph` again"
        ) from None
    try:
        tables = (pq.read_table(folder / name, partitioning=None).cast(GRAPH_SCHEMA) for name in names)
        graph = _assemble(meta, n, tables)
        pa.default_memory_pool().release_unused()  # of 1.2 GB, Arrow kept 0.2 for later tables
        return graph
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or error} is missing: delete {folder} and run `xclr-shards graph` again"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{folder} is damaged ({reason}): delete it and run `xclr-shards graph` again") from None


def flat_places(indptr: npt.NDArray[Any], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Positions of the rows' entries in the flat arrays: those of the first row, then of the second, ..."""
    counts = indptr[rows + 1] - indptr[rows]
    return np.repeat(indptr[rows] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


def _rows(graph: Graph, texts: npt.NDArray[np.int64], start: int, stop: int) -> pa.Table:
    """The rows of texts[start:stop] as a table of GRAPH_SCHEMA."""
    ids = texts[start:stop]
    flat = flat_places(graph.indptr, ids)
    lists = pa.array(np.concatenate([[0], np.cumsum(np.diff(graph.indptr)[ids])]), pa.int32())
    code, scale = pa.nulls(len(ids), pa.binary()), pa.nulls(len(ids), pa.float32())
    if graph.codes is not None and graph.code_scale is not None:
        dim = graph.codes.shape[1]
        fixed = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(dim), len(ids), [None, pa.py_buffer(np.ascontiguousarray(graph.codes[ids]))]
        )
        code, scale = fixed.cast(pa.binary()), pa.array(graph.code_scale[ids])
    return pa.Table.from_arrays(
        [
            pa.array(ids, pa.int64()),
            pa.ListArray.from_arrays(lists, pa.array(graph.neighbours[flat], pa.int64())),
            pa.ListArray.from_arrays(lists, pa.array(graph.similarities[flat], pa.float16())),
            pa.array(graph.background_mean[ids], pa.float32()),
            pa.array(graph.background_std[ids], pa.float32()),
            code,
            scale,
        ],
        schema=GRAPH_SCHEMA,
    )


def _assemble(meta: dict[str, Any], n: int, tables: Iterable[pa.Table]) -> Graph:
    """Scatter the shards' rows to their text ids, a shard at a time: every rank of a machine does so at once.

    The lists are joined as numpy arrays: Arrow's int32 offsets would overflow past 2 G listed pairs.
    """
    counts, seen = np.zeros(n, np.int64), np.zeros(n, np.bool_)
    mean, deviation, scale = (np.zeros(n, np.float32) for _ in range(3))
    codes: npt.NDArray[np.int8] | None = None
    lists, coded = [], 0
    for table in map(pa.Table.combine_chunks, filter(len, tables)):
        ids = table["text_id"].to_numpy()
        if not (ids.min() >= 0 and ids.max() < n) or seen[ids].any() or len(np.unique(ids)) < len(ids):
            raise ValueError(f"its rows do not name each of {n} texts once")
        seen[ids] = True
        counts[ids], neighbours, similarities = _lists(table, n)
        lists.append((ids, neighbours, similarities))
        mean[ids], deviation[ids] = table["background_mean"].to_numpy(), table["background_std"].to_numpy()
        part = _codes(table["code"].chunk(0))
        if part is not None:
            codes = np.zeros((n, part.shape[1]), np.int8) if codes is None else codes
            codes[ids], scale[ids] = part, table["code_scale"].to_numpy()
            coded += len(ids)
    if not seen.all():
        raise ValueError(f"its rows name {seen.sum()} of {n} texts")
    if coded not in (0, n):
        raise ValueError(f"{n - coded} of {n} texts have no code")
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    neighbours, similarities = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], np.float16)
    while lists:  # each is given up once it is placed
        ids, near, values = lists.pop()
        flat = flat_places(indptr, ids)
        neighbours[flat], similarities[flat] = near, values
    return Graph(
        meta=meta,
        indptr=indptr,
        neighbours=neighbours,
        similarities=similarities,
        background_mean=mean,
        background_std=deviation,
        codes=codes,
        code_scale=None if codes is None else scale,
    )


def _lists(table: pa.Table, n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """Entries of each row, neighbours and similarities of all."""
    near, values = table["neighbours"].chunk(0), table["similarities"].chunk(0)
    counts = np.diff(near.offsets.to_numpy()).astype(np.int64)
    ids, similarities = near.flatten().to_numpy(), values.flatten().to_numpy()
    if not np.array_equal(counts, np.diff(values.offsets.to_numpy())):
        raise ValueError("neighbours and similarities differ in length")
    if len(ids) and not (ids.min() >= 0 and ids.max() < n):
        raise ValueError(f"a neighbour id lies outside 0..{n - 1}")
    return counts, ids.astype(np.int32), similarities


def _codes(chunk: Any) -> npt.NDArray[np.int8] | None:
    """[rows, dim]; None where no row has any."""
    if chunk.null_count == len(chunk):
        return None
    if chunk.null_count:
        raise ValueError(f"{chunk.null_count} of {len(chunk)} texts have no code")
    dim = len(chunk[0].as_buffer())
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    if not (np.diff(offsets) == dim).all():
        raise ValueError("codes differ in length")
    return np.frombuffer(chunk.buffers()[2], np.int8)[offsets[0] : offsets[-1]].reshape(len(chunk), dim)
