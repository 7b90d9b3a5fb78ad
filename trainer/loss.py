"""The contrastive loss with soft targets, of this rank's rows against the global batch.

    p_ij = exp(z_i.z_j / tau) / sum_{k != i} exp(z_i.z_k / tau)     s_ij likewise of G_ij / tau_s     (block.py)
    L    = -(1/2B) sum_i sum_{j != i} s_ij log p_ij                 Sobal et al. 2025, equation 5

Since the s_ij of a row sum to 1, L_i = logsumexp_j(l_ij) - sum_j s_ij l_ij with l = z z' / tau, and its gradient with
respect to l_ij is p_ij - s_ij. `dense` lets autograd find that out and holds several 2b x 2B matrices. `tiled` walks
over row tiles of fixed memory and, because the loss is a scalar, collects the gradient of z in the same sweep: a tile's
logits and targets are made once, used for value and gradient, and dropped (docs/loss.md).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch.nn import functional

from trainer.block import SimilarityBlock
from trainer.collectives import gather_with_gradient
from trainer.world import World

__all__ = ["Implementation", "contrastive_loss"]

Implementation = Literal["auto", "dense", "tiled"]

# Rows x columns from which `auto` tiles: dense then holds some 100 MB. Below, both take about as long.
DENSE_ENTRIES = 1 << 22
# Entries of a tile: each of the few float32 buffers of its size takes 8 MB, which stays near the caches of a CPU.
TILE_ENTRIES = 1 << 21


def contrastive_loss(
    z: torch.Tensor,
    block: SimilarityBlock,
    *,
    tau: float = 0.1,
    world: World,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Mean loss over this rank's rows; averaged over ranks it is the loss of the global batch.

    z: [2b, dim] projections of any float type, first views then second views; they are normalised here, in float32.
    Every rank calls it: features are gathered, with gradient.
    """
    rows = functional.normalize(z.float(), dim=1)
    columns = gather_with_gradient(rows, world)
    if implementation == "auto":
        implementation = "dense" if len(rows) * len(columns) <= DENSE_ENTRIES else "tiled"
    if implementation == "dense":
        return _dense(rows, columns, block, tau)
    return cast(torch.Tensor, _Tiled.apply(rows, columns, block, tau))  # type: ignore[no-untyped-call]


def _dense(rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float) -> torch.Tensor:
    logits = rows @ columns.T / tau  # [2b, 2B]
    row = torch.arange(len(rows), device=rows.device)
    diagonal = torch.zeros_like(logits, dtype=torch.bool)
    diagonal[row, row + block.offset] = True
    # -inf on the diagonal would meet s = 0 there and give NaN, so it leaves the sum only.
    normaliser = torch.logsumexp(logits.masked_fill(diagonal, -torch.inf), dim=1)
    return (normaliser - (block.targets(0, len(rows)) * logits).sum(1)).mean()


class _Tiled(torch.autograd.Function):
    """Value and gradient in one sweep over row tiles."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float
    ) -> torch.Tensor:
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        n, m = len(rows), len(columns)
        height = max(1, TILE_ENTRIES // m)
        total = rows.new_zeros((), dtype=torch.float64)
        row_gradient = torch.empty_like(rows) if wanted else None
        column_gradient = torch.zeros_like(columns) if wanted else None
        for start in range(0, n, height):
            stop = min(start + height, n)
            tile = rows[start:stop]
            logits = (tile @ columns.T).div_(tau)  # [height, m]
            here = torch.arange(stop - start, device=rows.device)
            targets = block.targets(start, stop)
            picked = torch.linalg.vecdot(targets, logits)  # before -inf goes in, since 0 * -inf is NaN
            logits[here, here + (block.offset + start)] = -torch.inf
            normaliser = torch.logsumexp(logits, dim=1)
            total += (normaliser - picked).sum(dtype=torch.float64)
            if row_gradient is not None and column_gradient is not None:
                difference = logits.sub_(normaliser[:, None]).exp_().sub_(targets)  # p - s
                row_gradient[start:stop] = difference @ columns
                column_gradient.addmm_(difference.T, tile)
        scale = 1 / (n * tau)
        if row_gradient is not None and column_gradient is not None:
            ctx.save_for_backward(row_gradient.mul_(scale), column_gradient.mul_(scale))
        return (total / n).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        row_gradient, column_gradient = ctx.saved_tensors
        return row_gradient * gradients[0], column_gradient * gradients[0], None, None
