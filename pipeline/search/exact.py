"""Brute force in float64 on a sample of texts: what every other search, and every graph, is held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["ROWS", "TIE", "Doubles", "Similarity", "dot_products", "largest_similarities", "random_texts"]

Vectors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Similarity = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Doubles]
"""(rows, columns) -> their exact similarities [rows, columns], float64."""

TIE = 1e-6  # similarities this close are a tie: the error of a float32 dot product of unit vectors
ROWS = 1 << 13  # texts a block: 64 MB of similarities to 1,000 texts


def dot_products(vectors: Vectors) -> Similarity:
    """Similarities of unit vectors [n, dim], in float64."""

    def similarity(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> Doubles:
        products: Doubles = vectors[rows].astype(np.float64) @ vectors[columns].T.astype(np.float64)
        return products

    return similarity


def largest_similarities(similarity: Similarity, rows: npt.NDArray[np.int64], n: int, k: int) -> Doubles:
    """[rows, k] the k largest similarities of each row to the other n - 1 texts, by brute force, in any order."""
    best = np.full((len(rows), k), -np.inf)
    for start in range(0, n, ROWS):
        columns = np.arange(start, min(start + ROWS, n))
        block = similarity(rows, columns)
        block[rows[:, None] == columns] = -np.inf
        best = np.concatenate([best, block], axis=1)
        best = np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k :] if k else best[:, :0]
    return best


def random_texts(n: int, count: int, seed: int, purpose: str) -> npt.NDArray[np.int64]:
    """`count` distinct texts (all when there are no more), sorted; other purposes draw other texts."""
    if n <= count:
        return np.arange(n)
    generator = np.random.default_rng([seed, *purpose.encode()])
    return np.sort(generator.choice(n, count, replace=False))
