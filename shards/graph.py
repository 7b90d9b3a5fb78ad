"""graphs/NAME: for every text its nearest texts (exact), and a compact code for every other pair.

A top-k list alone is almost invisible to a random batch (12 M texts, k = 32, batch 4096: 0.011 listed neighbours a
row), so a graph also carries, for each text, an int8 code whose dot products stand in for the similarities that are
not listed, and the mean and deviation of its similarity to random texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import sha256_file
from shards.errors import UserError
from shards.index import write_table
from shards.manifest import Manifest
from shards.sealed import write_sealed

__all__ = ["GRAPH_SCHEMA", "Graph", "read_graph", "unlike", "write_graph"]

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
    for position, shard in enumerate(shard_names):
        path = folder / f"{shard}.parquet"
        write_table(path, _rows(graph, np.flatnonzero(home == position)))
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
        # int32 list offsets would overflow past 2 G listed pairs, so the shards' lists are joined as numpy arrays.
        tables = [pq.read_table(folder / name, partitioning=None).cast(GRAPH_SCHEMA) for name in names]
        return _assemble(meta, n, tables)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename or error} is missing: delete {folder} and run `xclr-shards graph` again"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{folder} is damaged ({reason}): delete it and run `xclr-shards graph` again") from None


def _rows(graph: Graph, ids: npt.NDArray[np.int64]) -> pa.Table:
    """The rows of some texts as a table of GRAPH_SCHEMA."""
    counts = np.diff(graph.indptr)[ids]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # Positions of the chosen rows' entries in the flat arrays: row start + 0, 1, 2, ...
    flat = np.repeat(graph.indptr[ids] - offsets[:-1], counts) + np.arange(offsets[-1])
    lists = pa.array(offsets, pa.int32())
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


def _assemble(meta: dict[str, Any], n: int, tables: list[pa.Table]) -> Graph:
    """Scatter the shards' rows to their text ids."""
    ids = _column(tables, "text_id")
    if len(ids) != n or not np.array_equal(np.sort(ids), np.arange(n)):
        raise ValueError(f"{len(ids)} rows do not name each of {n} texts once")
    order = np.argsort(ids, kind="stable")
    counts = np.concatenate(
        [np.diff(c.offsets.to_numpy()) for c in _chunks(tables, "neighbours")] or [np.zeros(0, np.int64)]
    )
    flat_ids = np.concatenate(
        [c.flatten().to_numpy() for c in _chunks(tables, "neighbours")] or [np.zeros(0, np.int64)]
    )
    flat_sims = np.concatenate(
        [c.flatten().to_numpy() for c in _chunks(tables, "similarities")] or [np.zeros(0, np.float16)]
    )
    if len(flat_ids) != len(flat_sims):
        raise ValueError("neighbours and similarities differ in length")
    if len(flat_ids) and not (flat_ids.min() >= 0 and flat_ids.max() < n):
        raise ValueError(f"a neighbour id lies outside 0..{n - 1}")
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    indptr = np.concatenate([[0], np.cumsum(counts[order])]).astype(np.int64)
    if np.array_equal(order, np.arange(n)):
        neighbours, similarities = flat_ids.astype(np.int32), flat_sims
    else:
        flat = np.repeat(starts[order] - indptr[:-1], counts[order]) + np.arange(indptr[-1])
        neighbours, similarities = flat_ids[flat].astype(np.int32), flat_sims[flat]
    codes, scale = _codes(tables, order)
    return Graph(
        meta=meta,
        indptr=indptr,
        neighbours=neighbours,
        similarities=similarities,
        background_mean=_column(tables, "background_mean")[order],
        background_std=_column(tables, "background_std")[order],
        codes=codes,
        code_scale=scale,
    )


def _codes(
    tables: list[pa.Table], order: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.int8] | None, npt.NDArray[np.float32] | None]:
    chunks = _chunks(tables, "code")
    rows = sum(len(chunk) for chunk in chunks)
    nulls = sum(chunk.null_count for chunk in chunks)
    if rows == 0 or nulls == rows:
        return None, None
    if nulls:
        raise ValueError(f"{nulls} of {rows} texts have no code")
    parts = []
    for chunk in filter(len, chunks):
        dim = len(chunk[0].as_buffer())
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        if not (np.diff(offsets) == dim).all():
            raise ValueError("codes differ in length")
        data = np.frombuffer(chunk.buffers()[2], np.int8)[offsets[0] : offsets[-1]]
        parts.append(data.reshape(len(chunk), dim))
    return np.concatenate(parts)[order], _column(tables, "code_scale")[order]


def _chunks(tables: list[pa.Table], name: str) -> list[Any]:
    return [chunk for table in tables for chunk in table[name].chunks]


def _column(tables: list[pa.Table], name: str) -> npt.NDArray[Any]:
    return np.concatenate([table[name].to_numpy() for table in tables])
