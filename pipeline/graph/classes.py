"""Graphs that know a text by its class: `class` (SupCon's graph) and `random` (the paper's control).

The similarity of two texts is an entry of a matrix of classes. `class`: 1 within a class, 0 otherwise, which one-hot
codes give exactly at any size. `random`: one number a pair of classes, drawn once, evenly from 0..1. Such a matrix
has negative eigenvalues, so no code's dot products can be it: its rows are complete lists, for as many texts as that
is reasonable for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.search.exact import Doubles, Similarity
from pipeline.search.neighbours import Lists
from shards.bars import say
from shards.errors import UserError
from shards.reader import Shards

__all__ = [
    "COMPLETE",
    "check_classes",
    "check_complete",
    "class_background",
    "class_codes",
    "class_lists",
    "class_similarity",
    "complete_lists",
    "matrix_background",
    "matrix_similarity",
    "random_matrix",
    "text_classes",
]

Classes = npt.NDArray[np.int64]
Matrix = npt.NDArray[np.float32]
LARGEST = 4 << 30  # bytes of one-hot codes, which each rank of a training holds
OTHERS = "use captions (`build` without --graph, `graph --kind encoder`), or --kind file for similarities of your own"
COMPLETE = 8192  # texts up to which every row may be complete: 67 M listed pairs, 400 MB in memory


def text_classes(shards: Shards, *, quiet: bool = False) -> Classes:
    """[texts] the most frequent label of each text's samples, the smaller of equals.

    Raises UserError where the shards have no labels, or a text has no labelled sample.
    """
    classes, texts = len(shards.manifest.classes), shards.manifest.texts
    index = shards.index
    labelled = index.label >= 0
    if not classes or not labelled.any():
        raise UserError(f"{shards.root} has no class labels, which this graph needs: {OTHERS}")
    pairs, counts = np.unique(index.text_id[labelled] * classes + index.label[labelled], return_counts=True)
    text, label = pairs // classes, pairs % classes
    order = np.lexsort((-label, counts, text))  # the last row of each text is its most frequent, then smallest label
    if not quiet and (several := int((np.bincount(text) > 1).sum())) > 0:
        say(f"note: {several:,} texts are of samples of several classes; each counts for its most frequent")
    result = np.full(texts, -1, np.int64)
    result[text[order]] = label[order]
    if (missing := int((result < 0).sum())) > 0:
        raise UserError(f"{missing} of {texts} texts in {shards.root} have no labelled sample: {OTHERS}")
    return result


def random_matrix(classes: int, seed: int) -> Matrix:
    """[classes, classes] symmetric, evenly from 0..1, with 1 on the diagonal."""
    drawn = np.triu(np.random.default_rng([seed, *b"random"]).random((classes, classes), np.float32), 1)
    return drawn + drawn.T + np.eye(classes, dtype=np.float32)


def class_similarity(classes: Classes) -> Similarity:
    """1 within a class, 0 otherwise."""

    def similarity(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Doubles:
        same: Doubles = (classes[rows][:, None] == classes[columns]).astype(np.float64)
        return same

    return similarity


def matrix_similarity(matrix: Matrix, classes: Classes) -> Similarity:
    """Similarities of texts by their classes; 1 between a text and itself."""

    def similarity(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Doubles:
        values = matrix[classes[rows][:, None], classes[columns]].astype(np.float64)
        return np.where(rows[:, None] == columns, 1.0, values)

    return similarity


def class_background(classes: Classes) -> tuple[Matrix, Matrix]:
    """Mean and deviation [n] of each text's similarity, 0 or 1, to all others."""
    same = np.bincount(classes)[classes] - 1
    mean = same / max(len(classes) - 1, 1)
    return mean.astype(np.float32), np.sqrt(mean * (1 - mean)).astype(np.float32)


def matrix_background(matrix: Matrix, classes: Classes) -> tuple[Matrix, Matrix]:
    """Mean and deviation [n] of each text's similarity to all others: sums over classes, so exact and cheap."""
    counts = np.bincount(classes, minlength=len(matrix)).astype(np.float64)
    diagonal, others = np.diag(matrix).astype(np.float64), max(len(classes) - 1, 1)
    first, second = -diagonal / others, -(diagonal**2) / others
    for start in range(0, len(matrix), 1024):  # a matrix of 20,000 classes takes 3 GB in float64
        block = matrix[start : start + 1024].astype(np.float64)
        first[start : start + 1024] += block @ counts / others
        second[start : start + 1024] += block**2 @ counts / others
    if len(classes) == 1:
        first, second = np.zeros_like(first), np.zeros_like(second)
    deviation = np.sqrt(np.maximum(second - first**2, 0))
    return first[classes].astype(np.float32), deviation[classes].astype(np.float32)


def class_codes(classes: Classes, count: int) -> tuple[npt.NDArray[np.int8], Matrix]:
    """One-hot codes [n, count] with scale 1: exactly 1 within a class and 0 otherwise."""
    codes = np.zeros((len(classes), count), np.int8)
    codes[np.arange(len(classes)), classes] = 1
    return codes, np.ones(len(classes), np.float32)


def class_lists(classes: Classes, k: int) -> Lists:
    """For each text k others of its class (k + 1 for odd k; all, where there are fewer) at similarity 1.

    All are equally near, so a class is a ring in the order of its ids, and a text lists the next and the last k / 2.
    """
    half = (k + 1) // 2
    rows: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(classes)
    for label in np.unique(classes):
        ring = np.flatnonzero(classes == label)
        steps = np.arange(1, len(ring)) if len(ring) - 1 <= 2 * half else np.r_[-half:0, 1 : half + 1]
        near = ring[(np.arange(len(ring))[:, None] + steps) % len(ring)]
        for text, others in zip(ring, np.sort(near, axis=1), strict=True):
            rows[text] = others
    return _join(rows, [np.ones(len(row), np.float16) for row in rows])


def check_classes(shards: Shards, *, complete: bool) -> None:
    """Raises UserError where there can be no graph of the classes, before anything of it is made.

    complete: every pair is to be listed, else one-hot codes are to stand for the classes.
    """
    texts, count = len(text_classes(shards, quiet=True)), len(shards.manifest.classes)
    if complete:
        check_complete(texts)
    elif texts * count > LARGEST:
        raise UserError(
            f"codes of {texts:,} texts for {count:,} classes are {texts * count / 2**30:.0f} GiB: use --kind encoder, "
            "or train with --objective supcon, which takes labels without a graph"
        )


def check_complete(texts: int) -> None:
    """Raises UserError beyond COMPLETE texts: before a matrix of as many classes is made."""
    if texts > COMPLETE:
        raise UserError(f"this graph lists every pair, so it takes at most {COMPLETE} texts, not {texts}: {OTHERS}")


def complete_lists(matrix: Matrix, classes: Classes) -> Lists:
    """Every other text of every row, by falling similarity, ties by id. Raises UserError beyond COMPLETE texts."""
    check_complete(len(classes))
    half = matrix.astype(np.float16)
    rows, values = [], []
    orders = {}
    for text, label in enumerate(classes):
        if label not in orders:
            orders[label] = np.argsort(-half[label, classes], kind="stable")
        others = orders[label][orders[label] != text]
        rows.append(others)
        values.append(half[label, classes[others]])
    return _join(rows, values)


def _join(rows: Sequence[npt.NDArray[np.int64]], values: Sequence[npt.NDArray[np.float16]]) -> Lists:
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=indptr[1:])
    return indptr, np.concatenate(rows).astype(np.int32), np.concatenate(values)
