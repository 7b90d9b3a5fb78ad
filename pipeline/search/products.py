"""Dot products of int8 codes, as whole numbers, by the quicker of two ways.

PyTorch's product of int8 is fast where the processor has instructions for it (AVX512-VNNI, AMX). Where it has none,
each number is multiplied alone: 256 x 4096 products of 384 dimensions took 500 ms on a core of a Zen 3, and 19 ms in
float32 (2026-11-27). Sums of such products up to 2^24 are exact in float32, so both ways give the same numbers, and a
stopwatch may choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["by_floats", "by_integers", "dot_products"]

Codes = npt.NDArray[np.int8]
Products = npt.NDArray[np.int32]
EXACT = 1024  # dimensions that float32 sums exactly: 1,024 * 128^2 is 2^24
COLUMNS = 4096  # at a time in float32: some 10 MB
TRIAL = 256, 512, 384  # rows, columns, dimensions


def dot_products(rows: Codes, columns: Codes, out: Products) -> None:
    """out [rows, columns]: the dot product of each of `rows` with each of `columns`."""
    _quicker()(rows, columns, out)


def by_integers(rows: Codes, columns: Codes, out: Products) -> None:
    import torch

    if rows.shape[1] == 1:  # on processors with VNNI PyTorch 2.14 leaves `out` as it was
        return by_floats(rows, columns, out)
    torch._int_mm(torch.from_numpy(rows), torch.from_numpy(columns).T, out=torch.from_numpy(out))


def by_floats(rows: Codes, columns: Codes, out: Products) -> None:
    import torch

    queries, whole = torch.from_numpy(rows).float(), torch.from_numpy(out)
    for start in range(0, len(columns), COLUMNS):
        block = torch.from_numpy(columns[start : start + COLUMNS]).float()
        target = whole[:, start : start + COLUMNS]
        target.copy_(queries[:, :EXACT] @ block[:, :EXACT].T)
        for first in range(EXACT, rows.shape[1], EXACT):
            target += (queries[:, first : first + EXACT] @ block[:, first : first + EXACT].T).int()


@cache
def _quicker() -> Callable[[Codes, Codes, Products], None]:
    rows, columns, dim = TRIAL
    codes, out = np.ones((columns, dim), np.int8), np.empty((rows, columns), np.int32)
    return min((by_integers, by_floats), key=lambda way: _seconds(lambda: way(codes[:rows], codes, out)))


def _seconds(function: Callable[[], None]) -> float:
    """The quickest of three: the first also pays for what is only paid once."""
    found = []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        found.append(time.perf_counter() - begin)
    return min(found)
