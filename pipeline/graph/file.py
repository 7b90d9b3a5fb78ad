"""Similarities from a file: vectors or a square matrix (.npy), or the edges of a graph (.parquet)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.search.exact import Doubles, Similarity
from pipeline.search.neighbours import Lists
from pipeline.work import mapped_zeros
from shards.errors import UserError, first_line
from shards.reader import Shards

__all__ = [
    "edge_background",
    "edge_similarity",
    "holds_vectors",
    "like_distances",
    "of_classes",
    "open_array",
    "read_edges",
    "read_matrix",
    "unit_vectors",
]

Matrix = npt.NDArray[np.float32]
COLUMNS = ("a", "b", "similarity")
ROWS = 1 << 14  # of vectors, normalised at a time
ROUNDING = 1e-3  # of cosines, in half precision too


def open_array(path: Path) -> npt.NDArray[Any]:
    """[rows, columns] numbers, mapped from the file. Pickles are not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no whole .npy file of numbers, as numpy.save writes them ({error})") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or 0 in array.shape:
        raise UserError(f"{path} holds no table of numbers but shape {getattr(array, 'shape', None)}")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {array.dtype}, not numbers")
    return array


def of_classes(path: Path, array: npt.NDArray[Any], shards: Shards) -> bool:
    """Whether the rows are classes, not texts. Raises UserError where they are neither.

    Where there are as many of both, which may stand in another order, vectors are of texts and a matrix is of classes.
    """
    classes, texts = len(shards.manifest.classes), shards.manifest.texts
    if len(array) not in (classes, texts):
        raise UserError(f"{path} is of {len(array)} rows; {shards.root} has {classes} classes and {texts} texts")
    return len(array) == classes and (classes != texts or _square(array))


def holds_vectors(path: Path) -> bool:
    """Whether the file holds rows to be compared; a square array says itself how alike the rows are."""
    return path.suffix == ".npy" and not _square(open_array(path))


def _square(array: npt.NDArray[Any]) -> bool:
    return bool(array.shape[0] == array.shape[1])


def unit_vectors(path: Path, given: npt.NDArray[Any], rows: npt.NDArray[np.int64], out: Path) -> Matrix:
    """[n, dim] the vectors given[rows[i]], of length 1, mapped from the file `out`."""
    n = len(rows)
    vectors = mapped_zeros(out, (n, given.shape[1]))
    for start in range(0, n, ROWS):
        part = given[rows[start : start + ROWS]].astype(np.float64)  # float32's squares would overflow
        length = np.linalg.norm(part, axis=1, keepdims=True)
        usable = np.isfinite(length[:, 0]) & (length[:, 0] > 0)
        if not usable.all():
            out.unlink()
            row = rows[start + int(np.argmin(usable))]
            raise UserError(f"{path}: row {row} has no direction, since it is all zeros, or not finite")
        vectors[start : start + ROWS] = part / length
    return vectors


def read_matrix(path: Path, array: npt.NDArray[Any]) -> Matrix:
    """[m, m] symmetric, finite, within -1..1, all to rounding; the diagonal is the similarity within a class."""
    matrix = _in_range(path, array.astype(np.float32))
    if (odd := np.abs(matrix - matrix.T) > ROUNDING).any():
        row, column = np.argwhere(odd)[0]
        raise UserError(
            f"{path} is not symmetric: [{row}, {column}] is {matrix[row, column]}, [{column}, {row}] is "
            f"{matrix[column, row]}. A square array is taken for similarities; vectors of as many dimensions as rows "
            "need one more column, of zeros"
        )
    matrix += matrix.T.copy()
    matrix /= 2
    return matrix


def like_distances(matrix: Matrix) -> bool:
    """Whether the diagonal is the least of every row: as in distances, where other classes are nearest by the graph."""
    diagonal = np.diagonal(matrix)
    return bool((diagonal <= matrix.min(axis=1)).all() and (diagonal < matrix.max(axis=1)).any())


def read_edges(path: Path, n: int) -> Lists:
    """Edges between text ids (columns a, b, similarity), each in one direction or in both; other pairs are at 0.

    Raises UserError for ids outside 0..n-1, similarities outside -1..1, and a pair with two similarities.
    """
    try:
        names = pq.read_schema(path).names
        if lost := [name for name in COLUMNS if name not in names]:
            raise pa.ArrowInvalid(f"it has {', '.join(names)}, and no {lost[0]}")
        table = pq.read_table(path, columns=list(COLUMNS), partitioning=None)
        a, b = (table[name].cast(pa.int64()).to_numpy() for name in COLUMNS[:2])
        similarity = table[COLUMNS[2]].cast(pa.float32()).to_numpy()
    except (OSError, pa.ArrowException) as error:
        reason = first_line(error)
        raise UserError(
            f"cannot read {path} as edges (columns {', '.join(COLUMNS)}; or text and embedding, for vectors): {reason}"
        ) from None
    ids = np.concatenate([a, b])
    if len(strange := ids[~((ids >= 0) & (ids < n))]):  # a null is no number
        raise UserError(f"{path} names text {strange[0]}; text ids go from 0 to {n - 1}")
    similarity = _in_range(path, similarity)
    rows, others = np.concatenate([a, b])[(loop := np.tile(a != b, 2))], np.concatenate([b, a])[loop]
    near = np.tile(similarity, 2)[loop].astype(np.float16)
    pairs, first, inverse = np.unique(rows * n + others, return_index=True, return_inverse=True)
    if (conflict := np.flatnonzero(near[first][inverse] != near)).size:
        raise UserError(f"{path} has two similarities for texts {rows[conflict[0]]} and {others[conflict[0]]}")
    rows, others, near = pairs // n, pairs % n, near[first]
    order = np.lexsort((others, -near, rows))
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=n), out=indptr[1:])
    return indptr, others[order].astype(np.int32), near[order]


def edge_similarity(lists: Lists) -> Similarity:
    """What the edges say, 0 for every other pair, 1 for a text and itself."""
    indptr, neighbours, near = lists

    def similarity(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Doubles:
        values: Doubles = (rows[:, None] == columns).astype(np.float64)
        place = np.argsort(columns, kind="stable")
        for i, row in enumerate(rows):
            span = slice(indptr[row], indptr[row + 1])
            at = np.searchsorted(columns, neighbours[span], sorter=place)
            found = at < len(columns)
            at = place[at[found]]
            hit = columns[at] == neighbours[span][found]
            values[i, at[hit]] = near[span][found][hit]
        return values

    return similarity


def edge_background(n: int) -> tuple[Matrix, Matrix]:
    """Pairs without an edge are at 0, so that is what an unlisted pair is taken for: mean 0, no deviation."""
    return np.zeros(n, np.float32), np.zeros(n, np.float32)


def _in_range(path: Path, values: Matrix) -> Matrix:
    strange = values[~(np.abs(values) <= 1 + ROUNDING)]  # or no numbers
    if len(strange):
        remedy = "scale them" if np.isfinite(strange).all() else "each is a number"
        raise UserError(f"{path} has {len(strange)} similarities outside -1..1, such as {strange[0]}: {remedy}")
    return np.clip(values, -1, 1)
