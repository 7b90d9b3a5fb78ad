"""The targets' half of the loss on a GPU, in Triton: no similarity of two codes ever leaves the chip.

For samples i of a rank and j of the batch, e_ij = exp((G_ij - g_i) / tau_s), g_i the row's largest, and v_j the sum of
a sample's two views, kernels make what loss.py needs of them:

    E v and the rows' sums    as attention does, with a running maximum a row
    E'(v / d)                 by columns, once a row's total d_i is known, from similarities made again

Similarities of codes are products of int8, exact in whatever order. Listed pairs, some dozens a row, are not looked for
in the tiles: these take their codes' similarity, and a sum over the pairs alone replaces it. Taking out what was added
is safe while no code's similarity exceeds 1 by much beside tau_s, as the sibling's, which is 1, stays in the total;
`takes` says where. Exponents are of G - 1, since the similarities that count at a small tau_s lie near 1, and G / tau_s
itself would be rounded to 1e-3 at 1e-4. Nothing uses atomics: the same input gives the same bits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional

from trainer import fused
from trainer.block import Codes, SimilarityBlock
from trainer.fused import HOPPER, Tiles, shared_memory
from trainer.parts import cut, dot, load, number_of_parts, split

__all__ = ["attract", "takes", "tiles_for"]

LOWEST_TAU_S = 0.01  # of lists beside codes: similarities of int8 codes exceed 1 by less than 0.02, a factor of 7 here
UNROLLED = 512  # dimensions of codes up to which a tile's are in shared memory at once
PAIRS = 32  # listed ones, of a program
FREE = ["n", "m", "first"]  # batches of 1 and of multiples of 16 are no kernels of their own


def tiles_for(memory: int, parts: int) -> Tiles:
    """Hopper's were the quickest of six on an H200 (docs/decisions.md); those of the logits do not spill elsewhere."""
    return Tiles(128, 32, 8, 3) if memory >= HOPPER else fused.tiles_for(memory, parts)


def takes(block: SimilarityBlock) -> bool:
    """Whether these kernels make the block's similarities: of int8 codes or one constant a row, and lists."""
    if block.matrix is not None:
        return False
    if block.row_code is None:
        return True
    safe = block.listed is None or (block.tau_s >= LOWEST_TAU_S and not block.row_code.long)
    return block.row_code.quantised is not None and safe


def attract(
    rows: torch.Tensor,
    columns: torch.Tensor,
    block: SimilarityBlock,
    row_gradient: torch.Tensor,
    column_gradient: torch.Tensor,
) -> torch.Tensor:
    """What `loss._attract` does: sum of z_i.o_i [float64]; takes o off row_gradient, S'z off column_gradient.

    rows [2b, dim], columns [2B, dim], of a block that `takes` says yes to.
    """
    b, dim, scale = len(block), rows.shape[1], math.log2(math.e) / block.tau_s  # exponents are in base 2
    views, row_views, column_views = (x.view(-1, 2, b, dim) for x in (rows, row_gradient, column_gradient))
    both = columns.view(-1, 2, b, dim).sum(1).view(-1, dim)  # [B, dim] of each sample the sum of its views
    m, parts = len(both), number_of_parts()
    inputs, kind = _inputs(block)
    sizes = b, m, block.offset, scale
    tiles = tiles_for(shared_memory(rows), parts)
    fixed = kind | tiles.options(dim, parts)
    pairs = block.listed if block.listed is not None and len(block.listed.row) else None
    others, (mass, largest) = rows.new_empty(b, dim), rows.new_empty(2, b)
    with torch.cuda.device_of(rows):
        _by_rows[triton.cdiv(b, tiles.held),](*inputs, cut(both, parts), others, mass, largest, *sizes, **fixed)
        if pairs is not None:
            change = rows.new_empty(len(pairs.row))
            listed = pairs.row, pairs.column, pairs.value
            grid = (triton.cdiv(len(change), PAIRS),)
            _changes[grid](*inputs, *listed, largest, change, len(change), scale, **kind, COUNT=PAIRS)
            _add(pairs.row, pairs.column, change, both, others, mass)
        del both  # here and below: nothing of the features' size lives longer than it must
        own = torch.exp2(-largest)
        total = (2 * mass + own)[:, None]
        others, sibling = others.div_(total), own[:, None].div_(total)
        pushed = views[0].sum(0)
        picked = (pushed * others).sum(dtype=torch.float64)  # of both views: o is others and the sibling's share
        picked += 2 * (views[0, 0] * views[0, 1] * sibling).sum(dtype=torch.float64)
        row_views[0] -= others
        for gradient in (row_views[0], column_views[block.offset // b]):
            gradient[0].addcmul_(sibling, views[0, 1], value=-1)
            gradient[1].addcmul_(sibling, views[0, 0], value=-1)
        pushed, pulled = pushed.div_(total), rows.new_empty(m, dim)
        _by_columns[triton.cdiv(m, tiles.held),](*inputs, cut(pushed, parts), pulled, largest, *sizes, **fixed)
        if pairs is not None:
            column, order = pairs.column.sort(stable=True)
            _add(column, pairs.row[order], change[order], pushed, pulled)
    column_views -= pulled.view(-1, 1, b, dim)
    return picked


def _inputs(block: SimilarityBlock) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """What similarities are made of, of rows and columns: codes [n, CODE] and scales, keys; a row's tail, less 1."""
    keys = block.row_key, block.column_key
    if block.row_code is None or block.column_code is None:
        tail = torch.full_like(keys[0], -math.inf, dtype=torch.float32) if block.row_tail is None else block.row_tail
        return (*keys, *keys, *keys, (tail - 1).float()), {"CODE": 0, "STEP": 0, "UNROLL": False}
    (row, row_scale), (column, column_scale) = _padded(block.row_code), _padded(block.column_code)
    step = min(row.shape[1], 128)
    kind = {"CODE": row.shape[1], "STEP": step, "UNROLL": row.shape[1] <= UNROLLED}
    return (row, column, row_scale, column_scale, *(key.int() for key in keys), row_scale), kind  # no tail to read


def _padded(codes: Codes) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [n, dim], dim now a power of 2 from 32 to 128 or a multiple of 128, as tensor cores take them; scales."""
    assert codes.quantised is not None
    assert codes.scale is not None
    dim = codes.quantised.shape[1]
    width = max(32, triton.next_power_of_2(dim)) if dim <= 128 else 128 * math.ceil(dim / 128)
    return functional.pad(codes.quantised, (0, width - dim)) if width > dim else codes.quantised, codes.scale


def _add(
    owner: torch.Tensor,
    other: torch.Tensor,
    weight: torch.Tensor,
    values: torch.Tensor,
    out: torch.Tensor,
    mass: torch.Tensor | None = None,
) -> None:
    """out[owner] += weight * values[other] and mass[owner] += weight, over entries sorted by owner."""
    start = torch.searchsorted(owner, torch.arange(len(out) + 1, device=owner.device))
    dim = out.shape[1]
    width = triton.next_power_of_2(dim)
    _add_entries[len(out),](start, other, weight, values, out, mass, DIM=dim, WIDTH=width, COUNT=16, num_warps=2)


@triton.jit
def _products(held, passing, n, m, i, j, CODE: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr):
    """Of codes i of held [n, CODE] and j of passing [m, CODE], int8."""
    d = tl.arange(0, STEP)
    a = held + i.to(tl.int64)[:, None] * CODE + d[None, :]
    b = passing + j.to(tl.int64)[:, None] * CODE + d[None, :]
    a_inside, b_inside = (i < n)[:, None], (j < m)[:, None]
    found = tl.zeros([i.shape[0], j.shape[0]], tl.int32)
    if UNROLL:
        for k in tl.static_range(0, CODE, STEP):
            one = tl.load(a + k, mask=a_inside, other=0)
            found = tl.dot(one, tl.trans(tl.load(b + k, mask=b_inside, other=0)), found, out_dtype=tl.int32)
    else:
        for k in range(0, CODE, STEP):
            one = tl.load(a + k, mask=a_inside, other=0)
            found = tl.dot(one, tl.trans(tl.load(b + k, mask=b_inside, other=0)), found, out_dtype=tl.int32)
    return found.to(tl.float32)


@triton.jit(do_not_specialize=FREE)
def _by_rows(
    row_code, column_code, row_scale, column_scale, row_key, column_key, tail,
    values, out, mass_out, largest_out, n, m, first, scale,
    CODE: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, PASSING: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    i, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    key = tl.load(row_key + i, mask=i < n, other=0)
    if CODE:
        factor = tl.load(row_scale + i, mask=i < n, other=0.0) * scale
    else:
        factor = tl.load(tail + i, mask=i < n, other=0.0) * scale
    largest = tl.zeros([HELD], tl.float32)  # the sibling's: every row has one
    mass = tl.zeros([HELD], tl.float32)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    for start in range(0, m, PASSING):
        j = start + tl.arange(0, PASSING)
        if CODE:
            other = tl.load(column_scale + j, mask=j < m, other=0.0)
            g = _products(row_code, column_code, n, m, i, j, CODE, STEP, UNROLL)
            g = g * (factor[:, None] * other[None, :]) - scale
        else:
            g = factor[:, None] + tl.zeros([HELD, PASSING], tl.float32)
        same = key[:, None] == tl.load(column_key + j, mask=j < m, other=0)[None, :]
        g = tl.where(same, 0.0, g)
        g = tl.where((j < m)[None, :] & (j[None, :] != i[:, None] + first), g, -float("inf"))
        larger = tl.maximum(largest, tl.max(g, 1))
        weight = tl.exp2(g - larger[:, None])
        fade = tl.exp2(largest - larger)
        mass = mass * fade + tl.sum(weight, 1)
        total = total * fade[:, None] + dot(split(weight, PARTS), load(values, m, j, WIDTH, PARTS), PARTS)
        largest = larger
    tl.store(mass_out + i, mass, mask=i < n)
    tl.store(largest_out + i, largest, mask=i < n)
    tl.store(out + i.to(tl.int64)[:, None] * DIM + d[None, :], total, mask=(i < n)[:, None] & (d < DIM)[None, :])


@triton.jit(do_not_specialize=FREE)
def _by_columns(
    row_code, column_code, row_scale, column_scale, row_key, column_key, tail,
    values, out, largest, n, m, first, scale,
    CODE: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    HELD: tl.constexpr, PASSING: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    j, d = tl.program_id(0) * HELD + tl.arange(0, HELD), tl.arange(0, WIDTH)
    key = tl.load(column_key + j, mask=j < m, other=0)
    if CODE:
        factor = tl.load(column_scale + j, mask=j < m, other=0.0)
    total = tl.zeros([HELD, WIDTH], tl.float32)
    for start in range(0, n, PASSING):
        i = start + tl.arange(0, PASSING)
        if CODE:
            other = tl.load(row_scale + i, mask=i < n, other=0.0) * scale
            g = _products(column_code, row_code, m, n, j, i, CODE, STEP, UNROLL)
            g = g * (other[None, :] * factor[:, None]) - scale
        else:
            other = tl.load(tail + i, mask=i < n, other=0.0) * scale
            g = other[None, :] + tl.zeros([HELD, PASSING], tl.float32)
        same = key[:, None] == tl.load(row_key + i, mask=i < n, other=0)[None, :]
        g = tl.where(same, 0.0, g)
        g = tl.where((i < n)[None, :] & (j[:, None] != i[None, :] + first), g, -float("inf"))
        weight = tl.exp2(g - tl.load(largest + i, mask=i < n, other=0.0)[None, :])
        total += dot(split(weight, PARTS), load(values, n, i, WIDTH, PARTS), PARTS)
    tl.store(out + j.to(tl.int64)[:, None] * DIM + d[None, :], total, mask=(j < m)[:, None] & (d < DIM)[None, :])


@triton.jit(do_not_specialize=["count"])
def _changes(
    row_code, column_code, row_scale, column_scale, row_key, column_key, tail,
    row, column, value, largest, out, count, scale,
    CODE: tl.constexpr, STEP: tl.constexpr, UNROLL: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Of listed pairs the weight, less that which the tiles gave them."""
    e = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    inside = e < count
    i, j = tl.load(row + e, mask=inside, other=0), tl.load(column + e, mask=inside, other=0)
    if CODE:
        product = tl.zeros([COUNT], tl.int32)
        for k in range(0, CODE, STEP):
            d = k + tl.arange(0, STEP)
            a = tl.load(row_code + i[:, None] * CODE + d[None, :]).to(tl.int32)
            b = tl.load(column_code + j[:, None] * CODE + d[None, :]).to(tl.int32)
            product += tl.sum(a * b, 1)
        g = product.to(tl.float32) * (tl.load(row_scale + i) * scale * tl.load(column_scale + j)) - scale
    else:
        g = tl.load(tail + i) * scale
    shift = tl.load(largest + i)
    listed = (tl.load(value + e, mask=inside, other=0.0) - 1) * scale
    # Of one text the tiles have 1, whatever a graph made elsewhere may list.
    other = tl.load(row_key + i) != tl.load(column_key + j)
    tl.store(out + e, tl.where(other, tl.exp2(listed - shift) - tl.exp2(g - shift), 0.0), mask=inside)


@triton.jit
def _add_entries(starts, other, weight, values, out, mass, DIM: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr):
    own, d = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    begin, end = tl.load(starts + own), tl.load(starts + own + 1)
    total, sums = tl.zeros([COUNT, WIDTH], tl.float32), tl.zeros([COUNT], tl.float32)
    for start in range(begin, end, COUNT):
        e = start + tl.arange(0, COUNT)
        w = tl.load(weight + e, mask=e < end, other=0.0)
        at = tl.load(other + e, mask=e < end, other=0)
        inside = (e < end)[:, None] & (d < DIM)[None, :]
        total += w[:, None] * tl.load(values + at[:, None] * DIM + d[None, :], mask=inside, other=0.0)
        sums += w
    if begin < end:
        at = out + own * DIM + d
        tl.store(at, tl.load(at, mask=d < DIM) + tl.sum(total, 0), mask=d < DIM)
        if mass is not None:
            tl.store(mass + own, tl.load(mass + own) + tl.sum(sums, 0))
