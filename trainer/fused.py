"""The logits' half of the loss on a GPU, in Triton: no logit ever leaves the chip.

For rows z_i of a rank and columns z_j of the batch, l_ij = z_i.z_j / tau and p_ij the softmax of a row without the
row's own column, two kernels make what loss.py needs of them:

    lse_i = log sum_j exp(l_ij)  and  P z     as attention does, with a running maximum a row (Dao et al. 2022)
    P'z                                       by columns, once lse is known, from logits made again

On one rank rows are columns and l is symmetric, so P z + P'z comes out of the second kernel with one product for both,
and the first makes lse alone: three products in all, as in `tiled`; four on several ranks. Neither uses atomics: the
same input gives the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from shards.errors import UserError

__all__ = ["LARGEST_DIM", "check", "repel", "tiles_for"]

LARGEST_DIM = 128  # a tile of features lies in shared memory whole


class Tiles(NamedTuple):
    """How the kernels cut their work."""

    held: int
    """Rows (or columns) whose sums a program holds."""
    passing: int
    """Columns (or rows) that it takes at a time."""
    warps: int
    stages: int
    precision: str
    """Of products, in Triton's terms."""


def tiles_for(shared_memory: int, exact: bool) -> Tiles:
    """Tiles that fit the bytes of shared memory of a card and keep what is summed in registers.

    exact: products of float32's precision, from six of bfloat16; else TF32's. Chosen by what ptxas says of registers
    and spills for compute capabilities 8.0 and 9.0 (Triton 3.8.0, 2026-11), not by times.
    """
    large = shared_memory >= 200 << 10  # Hopper and Blackwell for data centres
    if exact:
        return Tiles(128, 32, 8, 2, "bf16x6") if large else Tiles(64, 32, 8, 2, "bf16x6")
    return Tiles(128, 64, 8, 2, "tf32") if large else Tiles(64, 64, 4, 2, "tf32")


def check(rows: torch.Tensor) -> None:
    """Raises UserError where the kernels do not take these rows, or not on their device."""
    if rows.dtype != torch.float32 or rows.shape[1] > LARGEST_DIM:
        found = f"{rows.shape[1]} of {str(rows.dtype).removeprefix('torch.')}"
        raise UserError(f"the fused loss takes up to {LARGEST_DIM} dimensions of float32, not {found}: use tiled")
    if _interpreted():
        return
    if not rows.is_cuda or torch.version.hip or torch.cuda.get_device_capability(rows.device) < (8, 0):
        raise UserError("the fused loss needs an NVIDIA GPU of compute capability 8.0 or more: use tiled")


def repel(
    rows: torch.Tensor,
    columns: torch.Tensor,
    first: int,
    tau: float,
    row_gradient: torch.Tensor,
    column_gradient: torch.Tensor,
) -> torch.Tensor:
    """What `loss._repel` does: sum of lse_i [float64]; adds P z to row_gradient, P'z to column_gradient.

    rows [n, dim], columns [m, dim]; row i is column first + i, which is left out. Products are of float32's precision,
    or of TF32's where torch.set_float32_matmul_precision says so.
    """
    (n, dim), m, alone = rows.shape, len(columns), columns is rows
    assert row_gradient.is_contiguous()
    assert column_gradient.is_contiguous()
    rows = rows.contiguous()
    columns = rows if alone else columns.contiguous()
    lse = rows.new_empty(n)
    tiles = tiles_for(_shared_memory(rows), torch.get_float32_matmul_precision() == "highest")
    fixed = {
        "DIM": dim,
        "WIDTH": max(16, triton.next_power_of_2(dim)),
        "HELD": tiles.held,
        "PASSING": tiles.passing,
        "PRECISION": "ieee" if _interpreted() else tiles.precision,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    inputs = n, m, first, math.log2(math.e) / tau
    with torch.cuda.device_of(rows):
        _by_rows[triton.cdiv(n, tiles.held),](rows, columns, lse, row_gradient, *inputs, VALUES=not alone, **fixed)
        _by_columns[triton.cdiv(m, tiles.held),](rows, columns, lse, column_gradient, *inputs, ALONE=alone, **fixed)
    return lse.sum(dtype=torch.float64) * math.log(2)


def _interpreted() -> bool:
    return bool(triton.knobs.runtime.interpret)


def _shared_memory(rows: torch.Tensor) -> int:
    """Bytes that a block may have, of the card; 0 on the CPU."""
    if not rows.is_cuda:
        return 0
    return int(torch.cuda.get_device_properties(rows.device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


@triton.jit
def _by_rows(
    rows, columns, lse, gradient, n, m, first, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, PASSING: tl.constexpr,
    PRECISION: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    i, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    at = i.to(tl.int64)[:, None] * DIM + d[None, :]
    inside = (i < n)[:, None] & (d < DIM)[None, :]
    z = tl.load(rows + at, mask=inside, other=0.0)
    largest = tl.full([HELD], -float("inf"), tl.float32)
    mass = tl.zeros([HELD], tl.float32)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    for start in range(0, m, PASSING):
        j = start + tl.arange(0, PASSING)
        other = tl.load(
            columns + j.to(tl.int64)[:, None] * DIM + d[None, :], mask=(j < m)[:, None] & (d < DIM)[None, :], other=0.0
        )
        logit = tl.dot(z, tl.trans(other), input_precision=PRECISION)
        logit = tl.where((j < m)[None, :] & (j[None, :] != i[:, None] + first), logit, -float("inf"))
        # The first tile holds two columns at least, so the maximum is finite from there on.
        larger = tl.maximum(largest, tl.max(logit, 1))
        weight = tl.exp2((logit - larger[:, None]) * scale)
        fade = tl.exp2((largest - larger) * scale)
        mass = mass * fade + tl.sum(weight, 1)
        if VALUES:
            total = tl.dot(weight, other, total * fade[:, None], input_precision=PRECISION)
        largest = larger
    tl.store(lse + i, largest * scale + tl.log2(mass), mask=i < n)
    if VALUES:
        tl.store(gradient + at, total / mass[:, None] + tl.load(gradient + at, mask=inside), mask=inside)


@triton.jit
def _by_columns(
    rows, columns, lse, gradient, n, m, first, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, PASSING: tl.constexpr,
    PRECISION: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    j, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    at = j.to(tl.int64)[:, None] * DIM + d[None, :]
    inside = (j < m)[:, None] & (d < DIM)[None, :]
    z = tl.load(columns + at, mask=inside, other=0.0)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    if ALONE:
        own = tl.load(lse + j, mask=j < m, other=0.0)
    for start in range(0, n, PASSING):
        i = start + tl.arange(0, PASSING)
        other = tl.load(
            rows + i.to(tl.int64)[:, None] * DIM + d[None, :], mask=(i < n)[:, None] & (d < DIM)[None, :], other=0.0
        )
        logit = tl.dot(z, tl.trans(other), input_precision=PRECISION) * scale
        counts = (i < n)[None, :] & (j < m)[:, None] & (j[:, None] != i[None, :] + first)
        logit = tl.where(counts, logit, -float("inf"))
        weight = tl.exp2(logit - tl.load(lse + i, mask=i < n, other=0.0)[None, :])
        if ALONE:
            weight += tl.exp2(logit - own[:, None])
        total = tl.dot(weight, other, total, input_precision=PRECISION)
    tl.store(gradient + at, total + tl.load(gradient + at, mask=inside), mask=inside)
