"""int8 codes: 388 bytes a text (384 dimensions and a scale) that stand in for every similarity no list holds.

Each row is quantised symmetrically with its own scale, so the plain dot product of two dequantised codes is the
similarity. Fewer dimensions come from an uncentred PCA: the projection that keeps most of the mean square of the dot
products; centring would change the products themselves.
Distance of the target from the dense one, 61,854 captions, tau_s = 0.1: 64 dimensions KL 0.012, 128 0.0027, all 384
0.000009.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "encode", "principal_basis"]

Vectors = npt.NDArray[np.float32]
LEVELS = 127  # -127..127: symmetric, so -128 stays unused
ROWS = 1 << 14  # rows a block: 25 MB at 384 dimensions


def principal_basis(vectors: Vectors, dim: int) -> Vectors:
    """[d, dim] orthonormal: leading eigenvectors of the second moment of `vectors` [n, d], each with a fixed sign."""
    moment = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), ROWS):
        block = vectors[start : start + ROWS].astype(np.float64)
        moment += block.T @ block
    _, basis = np.linalg.eigh(moment)  # by rising eigenvalue
    basis = basis[:, : -dim - 1 : -1]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0)
    signed: Vectors = (basis * np.sign(largest)).astype(np.float32)
    return signed


def encode(vectors: Vectors, basis: Vectors | None) -> tuple[npt.NDArray[np.int8], Vectors]:
    """Codes [n, dim] and scales [n] with vectors[i] . vectors[j] ~ scale[i] * scale[j] * (codes[i] . codes[j])."""
    n, dim = len(vectors), (vectors if basis is None else basis).shape[1]
    codes, scale = np.empty((n, dim), np.int8), np.empty(n, np.float32)
    for start in range(0, n, ROWS):
        block = vectors[start : start + ROWS]
        projected = block if basis is None else block @ basis
        step = np.maximum(np.abs(projected).max(axis=1), np.finfo(np.float32).tiny) / LEVELS
        codes[start : start + ROWS] = np.rint(projected / step[:, None])
        scale[start : start + ROWS] = step
    return codes, scale
