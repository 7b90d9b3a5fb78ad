"""float32 for tensor cores: numbers as sums of bfloat16 parts, and products of such sums (Triton).

Features are cut beforehand into three parts, x = x0 + x1 + x2, each with the next 8 bits, and six products of parts
make one, the smallest first (as Triton's bf16x6, which cuts a tile each time it is read). What
torch.set_float32_matmul_precision("high") allows, they do with two parts and three products.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["cut", "dot", "load", "number_of_parts", "split", "width"]


def number_of_parts() -> int:
    """How many bfloat16 make a float32."""
    return 3 if torch.get_float32_matmul_precision() == "highest" else 2


def width(dim: int) -> int:
    """Of a tile of rows of so many dimensions: tensor cores take 16 at least."""
    return max(16, int(triton.next_power_of_2(dim)))


def cut(x: torch.Tensor, parts: int) -> torch.Tensor:
    """x [n, dim] -> [parts, n, width] bfloat16 whose sum is x; the width that kernels read, beyond dim 0."""
    n, dim = x.shape
    found = x.new_zeros(parts, n, width(dim), dtype=torch.bfloat16)
    for part in found[:, :, :dim]:
        part.copy_(x)
        x = x - part
    return found


@triton.jit
def load(x, count, i, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """Rows i of x [PARTS, count, WIDTH], a tile a part; 0 beyond the last."""
    at = x + i.to(tl.int64)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    part, inside = count.to(tl.int64) * WIDTH, (i < count)[:, None]
    x0 = tl.load(at, mask=inside, other=0.0)
    x1 = tl.load(at + part, mask=inside, other=0.0)
    x2 = x1
    if PARTS > 2:
        x2 = tl.load(at + 2 * part, mask=inside, other=0.0)
    return x0, x1, x2


@triton.jit
def split(x, PARTS: tl.constexpr):
    """What `cut` does, in registers."""
    x0 = x.to(tl.bfloat16)
    x1 = (x - x0.to(tl.float32)).to(tl.bfloat16)
    x2 = x1
    if PARTS > 2:
        x2 = (x - x0.to(tl.float32) - x1.to(tl.float32)).to(tl.bfloat16)
    return x0, x1, x2


@triton.jit
def dot(a, b, PARTS: tl.constexpr):
    """a b, of parts; products of parts that lie below float32's precision are left out."""
    a0, a1, a2 = a
    b0, b1, b2 = b
    total = tl.zeros([a0.shape[0], b0.shape[1]], tl.float32)
    if PARTS > 2:
        total = tl.dot(a2, b0, total)
        total = tl.dot(a0, b2, total)
        total = tl.dot(a1, b1, total)
    total = tl.dot(a1, b0, total)
    total = tl.dot(a0, b1, total)
    return tl.dot(a0, b0, total)
