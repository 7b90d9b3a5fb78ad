"""Exact nearest texts by inner product, and the symmetric lists that a graph holds.

A search only proposes: whatever finds the candidates, their similarities are computed again in float32, one plain
dot product a pair, and ranked by (similarity, id). So equal candidates give equal lists, on any search method.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from shards.bars import bar

__all__ = ["MARGIN", "Ids", "Lists", "Vectors", "pair_similarities", "rank", "search_exact", "symmetric_lists"]

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]
Lists = tuple[npt.NDArray[np.int64], Ids, npt.NDArray[np.float16]]
"""indptr [n + 1], neighbours [listed], similarities [listed], as in shards.graph.Graph."""

# Candidates beyond k: one for the text itself, the rest because float32 sums differ by their order, so a search may
# rank the k-th and the next few the other way round than the plain dot product does.
MARGIN = 8
QUERIES = 4096  # queries a call of FAISS: half a second of work at 60,000 texts
PAIRS = 1 << 24  # pairs a block when lists are made symmetric: some 500 MB of temporary arrays


def search_exact(vectors: Vectors, k: int) -> tuple[Ids, Vectors]:
    """The k nearest other texts of each, by brute force.

    Returns ids and similarities [n, min(k, n - 1)] by falling similarity, ties by id.
    """
    n = len(vectors)
    width = min(k + 1 + MARGIN, n)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    ids = np.empty((n, min(k, n - 1)), np.int32)
    similarities = np.empty(ids.shape, np.float32)
    with bar(f"exact search, k = {ids.shape[1]}", n) as advance:
        for start in range(0, n, QUERIES):
            rows = np.arange(start, min(start + QUERIES, n))
            _, found = index.search(np.ascontiguousarray(vectors[rows]), width)
            ids[rows], similarities[rows] = rank(vectors, rows, found, ids.shape[1])
            advance(len(rows))
    return ids, similarities


def rank(vectors: Vectors, rows: npt.NDArray[np.int64], candidates: npt.NDArray[Any], k: int) -> tuple[Ids, Vectors]:
    """The best k of each row's candidates by recomputed similarity, ties by id, without the row itself.

    candidates: [rows, at least k + 1] ids, -1 where a search found none, no id twice in a row.
    Returns [rows, k]; places that no candidate fills hold id -1 and similarity -inf.
    """
    similarities = pair_similarities(vectors, rows, candidates)
    similarities[(candidates == rows[:, None]) | (candidates < 0)] = -np.inf
    order = np.lexsort((candidates, -similarities), axis=1)[:, :k]
    similarities = np.take_along_axis(similarities, order, axis=1)
    ids = np.take_along_axis(candidates, order, axis=1).astype(np.int32)
    ids[np.isneginf(similarities)] = -1
    return ids, similarities


def pair_similarities(vectors: Vectors, rows: npt.NDArray[np.int64], others: npt.NDArray[Any]) -> Vectors:
    """[rows, m] dot products of vectors[rows] with vectors[others[row]], in float32; any number where others is -1."""
    base = np.ascontiguousarray(vectors)
    queries = np.ascontiguousarray(vectors[rows])
    wanted = np.ascontiguousarray(others, np.int64)
    products = np.zeros(wanted.shape, np.float32)
    library: Any = faiss  # its stubs leave the plain C++ functions out
    pointers = [library.swig_ptr(array) for array in (products, queries, base, wanted)]
    library.fvec_inner_products_by_idx(*pointers, base.shape[1], len(queries), wanted.shape[1])
    return products


def symmetric_lists(ids: Ids, similarities: Vectors) -> Lists:
    """The union of "j is among i's nearest" and "i is among j's", sorted by falling similarity, ties by id.

    Similarities are rounded to float16 first, so the order is that of the numbers in the file.
    """
    n, k = ids.shape
    per_block = max(1, min(n, PAIRS // max(4 * k, 1)))
    counts, neighbours, values = [np.zeros(1, np.int64)], [], []
    for start in range(0, n, per_block):
        rows, others, near = _block(ids, similarities, start, min(start + per_block, n))
        counts.append(np.bincount(rows - start, minlength=min(per_block, n - start)))
        neighbours.append(others.astype(np.int32))
        values.append(near)
    return np.cumsum(np.concatenate(counts)), np.concatenate(neighbours), np.concatenate(values)


def _block(
    ids: Ids, similarities: Vectors, start: int, stop: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float16]]:
    """(row, neighbour, similarity) of rows start..stop, sorted, each pair once."""
    k = ids.shape[1]
    back = np.flatnonzero((ids >= start) & (ids < stop))  # places where some text lists one of these rows
    rows = np.concatenate([np.repeat(np.arange(start, stop), k), ids.ravel()[back]])
    others = np.concatenate([ids[start:stop].ravel(), back // k])
    near = np.concatenate([similarities[start:stop].ravel(), similarities.ravel()[back]])
    found = others >= 0
    rows, others, near = rows[found], others[found], near[found].astype(np.float16)
    _, once = np.unique(rows.astype(np.int64) * len(ids) + others, return_index=True)
    rows, others, near = rows[once].astype(np.int64), others[once].astype(np.int64), near[once]
    order = np.lexsort((others, -near, rows))
    return rows[order], others[order], near[order]
