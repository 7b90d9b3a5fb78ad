"""The logits' half of the loss on a GPU, in Triton: no logit ever leaves the chip.

For rows z_i of a rank and columns z_j of the batch, l_ij = z_i.z_j / tau and p_ij the softmax of a row without the
row's own column, two kernels make what loss.py needs of them:

    lse_i = log sum_j exp(l_ij)  and  P z     as attention does, with a running maximum a row (Dao et al. 2022)
    P'z                                       by columns, once lse is known, from logits made again

On one rank rows are columns and l is symmetric, so P z + P'z comes out of the second kernel with one product for both,
and the first makes lse alone: three products in all, as in `tiled`; four on several ranks. Neither uses atomics: the
same input gives the same bits.

Products have float32's precision, as sums of products of bfloat16 parts (parts.py). Tensor cores round towards zero
each time they add to a sum, so a tile's sum starts at zero and is added to the others in float32: over 65,536 columns
in one chain the gradient was off by 2e-4 of its largest entry. The targets' half is in fused_targets.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from shards.errors import UserError, first_line
from trainer.parts import cut, dot, load, number_of_parts, split, width

__all__ = ["HOPPER", "Tiles", "check", "repel", "shared_memory", "takes", "tiles_for"]

LARGEST_DIM = 128  # a tile of features lies in shared memory whole
HOPPER = 200 << 10  # bytes of shared memory from which on a card is one, or Blackwell for data centres


class Tiles(NamedTuple):
    """How the kernels cut their work."""

    held: int
    """Rows (or columns) whose sums a program holds."""
    passing: int
    """Columns (or rows) that it takes at a time."""
    warps: int
    stages: int

    def options(self, dim: int, parts: int) -> dict[str, Any]:
        """What a kernel is built for, of rows [n, dim] cut into so many parts."""
        return {
            "DIM": dim,
            "WIDTH": width(dim),
            "HELD": self.held,
            "PASSING": self.passing,
            "PARTS": parts,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


def tiles_for(shared_memory: int, parts: int) -> Tiles:
    """Tiles that fit the bytes of shared memory of a card and keep what is summed in registers.

    Hopper's were the quickest of seven on an H200 (docs/decisions.md); of the others ptxas says that they spill least,
    for compute capabilities 8.0 and 8.6.
    """
    if shared_memory >= HOPPER:
        return Tiles(128, 64, 8, 2 if parts == 3 else 3)
    return Tiles(32 if parts == 3 else 64, 32, 4, 2)


def takes(rows: torch.Tensor) -> bool:
    """Whether the kernels are for rows of this type and length."""
    return rows.dtype == torch.float32 and rows.shape[1] <= LARGEST_DIM


def check(rows: torch.Tensor) -> None:
    """Raises UserError where the kernels do not take these rows, or not on their device."""
    if not takes(rows):
        found = f"{rows.shape[1]} of {str(rows.dtype).removeprefix('torch.')}"
        raise UserError(f"the fused loss takes up to {LARGEST_DIM} dimensions of float32, not {found}: use tiled")
    if not _has_kernels(rows):
        raise UserError("the fused loss needs an NVIDIA GPU of compute capability 8.0 or more: use tiled")
    if obstacle := _obstacle(rows.device):
        raise UserError(f"the kernels of the fused loss cannot be built here ({obstacle}): use tiled")


def repel(
    rows: torch.Tensor,
    columns: torch.Tensor,
    first: int,
    tau: float,
    row_gradient: torch.Tensor,
    column_gradient: torch.Tensor,
) -> torch.Tensor:
    """What `loss._repel` does: sum of lse_i [float64]; adds P z to row_gradient, P'z to column_gradient.

    rows [n, dim], columns [m, dim]; row i is column first + i, which is left out.
    """
    (n, dim), m, alone = rows.shape, len(columns), columns is rows
    assert row_gradient.is_contiguous()
    assert column_gradient.is_contiguous()
    lse = rows.new_empty(n)
    parts = number_of_parts()
    tiles = tiles_for(shared_memory(rows), parts)
    row_parts = cut(rows, parts)
    cuts = row_parts, row_parts if alone else cut(columns, parts)
    inputs, fixed = (n, m, first, math.log2(math.e) / tau), tiles.options(dim, parts)
    with torch.cuda.device_of(rows):
        _by_rows[triton.cdiv(n, tiles.held),](*cuts, lse, row_gradient, *inputs, VALUES=not alone, **fixed)
        _by_columns[triton.cdiv(m, tiles.held),](*cuts, lse, column_gradient, *inputs, ALONE=alone, **fixed)
    return lse.sum(dtype=torch.float64) * math.log(2)


@cache
def _obstacle(device: torch.device) -> str:
    """Why kernels cannot be built: Triton needs a C compiler, and a folder to write to. Tried once, on a tiny batch."""
    rows = torch.eye(32, 16, device=device)
    try:
        repel(rows, rows, 0, 1.0, torch.zeros_like(rows), torch.zeros_like(rows))
    except Exception as error:
        return first_line(error)
    return ""


def _has_kernels(rows: torch.Tensor) -> bool:
    return rows.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(rows.device) >= (8, 0)


def shared_memory(rows: torch.Tensor) -> int:
    """Bytes that a block may have, of the card; 0 in Triton's interpreter."""
    if not rows.is_cuda:
        return 0
    return int(torch.cuda.get_device_properties(rows.device).shared_memory_per_block_optin)  # type: ignore[attr-defined]


@triton.jit
def _logits(a, b, PARTS: tl.constexpr):
    """a b' [a's rows, b's rows]"""
    b0, b1, b2 = b
    return dot(a, (tl.trans(b0), tl.trans(b1), tl.trans(b2)), PARTS)


@triton.jit
def _by_rows(
    rows, columns, lse, gradient, n, m, first, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, PASSING: tl.constexpr,
    PARTS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    i, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    z = load(rows, n, i, WIDTH, PARTS)
    largest = tl.full([HELD], -float("inf"), tl.float32)
    mass = tl.zeros([HELD], tl.float32)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    for start in range(0, m, PASSING):
        j = start + tl.arange(0, PASSING)
        other = load(columns, m, j, WIDTH, PARTS)
        logit = _logits(z, other, PARTS)
        logit = tl.where((j < m)[None, :] & (j[None, :] != i[:, None] + first), logit, -float("inf"))
        # The first tile holds two columns at least, so the maximum is finite from there on.
        larger = tl.maximum(largest, tl.max(logit, 1))
        weight = tl.exp2((logit - larger[:, None]) * scale)
        fade = tl.exp2((largest - larger) * scale)
        mass = mass * fade + tl.sum(weight, 1)
        if VALUES:
            total = total * fade[:, None] + dot(split(weight, PARTS), other, PARTS)
        largest = larger
    tl.store(lse + i, largest * scale + tl.log2(mass), mask=i < n)
    if VALUES:
        at = gradient + i.to(tl.int64)[:, None] * DIM + d[None, :]
        inside = (i < n)[:, None] & (d < DIM)[None, :]
        tl.store(at, total / mass[:, None] + tl.load(at, mask=inside), mask=inside)


@triton.jit
def _by_columns(
    rows, columns, lse, gradient, n, m, first, scale,
    DIM: tl.constexpr, WIDTH: tl.constexpr, HELD: tl.constexpr, PASSING: tl.constexpr,
    PARTS: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    j, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    z = load(columns, m, j, WIDTH, PARTS)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    if ALONE:
        own = tl.load(lse + j, mask=j < m, other=0.0)
    for start in range(0, n, PASSING):
        i = start + tl.arange(0, PASSING)
        other = load(rows, n, i, WIDTH, PARTS)
        logit = _logits(z, other, PARTS) * scale
        counts = (i < n)[None, :] & (j < m)[:, None] & (j[:, None] != i[None, :] + first)
        logit = tl.where(counts, logit, -float("inf"))
        weight = tl.exp2(logit - tl.load(lse + i, mask=i < n, other=0.0)[None, :])
        if ALONE:
            weight += tl.exp2(logit - own[:, None])
        total += dot(split(weight, PARTS), other, PARTS)
    at = gradient + j.to(tl.int64)[:, None] * DIM + d[None, :]
    inside = (j < m)[:, None] & (d < DIM)[None, :]
    tl.store(at, total + tl.load(at, mask=inside), mask=inside)
