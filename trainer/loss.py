"""The contrastive loss with soft targets, of this rank's rows against the global batch.

    p_ij = exp(z_i.z_j / tau) / sum_{k != i} exp(z_i.z_k / tau)     s_ij likewise of G_ij / tau_s     (block.py)
    L    = -(1/2B) sum_i sum_{j != i} s_ij log p_ij                 Sobal et al. 2025, equation 5

Since the s_ij of a row sum to 1, L_i = logsumexp_j(l_ij) - sum_j s_ij l_ij with l = z z' / tau, and its gradient with
respect to l_ij is p_ij - s_ij. `dense` lets autograd find that out and holds several 2b x 2B matrices. `tiled` walks
over tiles of fixed memory and, because the loss is a scalar, collects the gradient of z in the same sweep: a tile's
logits and targets are made once, used for value and gradient, and dropped (docs/loss.md).
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
from torch.nn import functional

from trainer.block import SimilarityBlock
from trainer.collectives import gather_with_gradient
from trainer.world import World

__all__ = ["Implementation", "contrastive_loss"]

Implementation = Literal["auto", "dense", "tiled"]

# Entries of a tile of logits. CPU: 8 MB of float32, which stays near the caches. GPU: 64 MB, enough to fill the device.
TILE_ENTRIES = {"cpu": 1 << 21, "cuda": 1 << 24}


def contrastive_loss(
    z: torch.Tensor,
    block: SimilarityBlock,
    *,
    tau: float = 0.1,
    world: World,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Mean loss over this rank's rows; averaged over ranks it is the loss of the global batch.

    z: [2b, dim] projections of any float type, first views then second views; they are normalised here. All is
    computed in float32 (float64 if z is), under autocast too. Every rank calls it: features are gathered, with
    gradient. implementation: `auto` is `tiled`, which was slower than `dense` at no size (docs/loss.md); `dense` is
    the one to read, and to differentiate twice.
    """
    with torch.autocast(z.device.type, enabled=False):
        rows = functional.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)
        columns = gather_with_gradient(rows, world)
        if implementation == "dense":
            return _dense(rows, columns, block, tau)
        return cast(torch.Tensor, _Tiled.apply(rows, columns, block, tau))


def _dense(rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float) -> torch.Tensor:
    logits = rows @ columns.T / tau  # [2b, 2B]
    row = torch.arange(len(rows), device=rows.device)
    diagonal = torch.zeros_like(logits, dtype=torch.bool)
    diagonal[row, row + 2 * block.offset] = True
    # -inf on the diagonal would meet s = 0 there and give NaN, so it leaves the sum only.
    normaliser = torch.logsumexp(logits.masked_fill(diagonal, -torch.inf), dim=1)
    return (normaliser - (block.targets(logits.dtype) * logits).sum(1)).mean()


class _Tiled(torch.autograd.Function):
    """Value and gradient in one sweep over tiles."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float
    ) -> torch.Tensor:
        loss, *gradients = _sweep(rows, columns, block, tau)
        if columns is rows:  # one rank: their gradients are one, which saves three copies until `backward` is done
            gradients = [gradients[0].add_(gradients[1])]
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        row_gradient, *column_gradient = (saved * gradients[0] for saved in ctx.saved_tensors)
        return row_gradient, column_gradient[0] if column_gradient else None, None, None


def _sweep(
    rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss of rows [2b, dim] against columns [2B, dim], and its gradient with respect to both.

    Targets are made once a pair of samples, not of views: their sum over columns, o_i = sum_j s_ij z_j, needs the sum
    of each sample's two views only. With it the picked logits are z_i . o_i / tau, and o_i is their gradient as well.
    """
    b, dim, m = len(block), rows.shape[1], len(columns)
    views, row_gradient = rows.view(2, b, dim), torch.empty_like(rows)
    both = columns.view(-1, 2, b, dim).sum(1).view(-1, dim)  # [B, dim] of each sample the sum of its views
    pushed, pulled = torch.zeros_like(columns), torch.zeros_like(both)  # what rows ask of columns: P'z, and S'z
    value = rows.new_zeros((), dtype=torch.float64)
    height = min(b, max(1, TILE_ENTRIES.get(rows.device.type, TILE_ENTRIES["cuda"]) // m))
    logits, weights = rows.new_empty(height, m), rows.new_empty(height, m // 2)  # reused: fresh pages cost as much
    own = pushed[2 * block.offset :][: 2 * b].view(2, b, dim)
    for start in range(0, b, height):
        stop = min(start + height, b)
        target = block.weights(start, stop, weights[: stop - start])
        tile, sibling = views[:, start:stop], target.sibling / target.total
        picked = (target.others @ both) / target.total + sibling * tile.flip(0)  # [2, height, dim] o
        pulled.addmm_(target.others.T, tile.sum(0) / target.total)
        own[:, start:stop] -= sibling * tile.flip(0)
        for view in (0, 1):
            first = 2 * block.offset + view * b + start  # the column that is the tile's first row itself
            normaliser, drawn = _push(tile[view], columns, first, tau, logits[: stop - start], pushed)
            row_gradient.view(2, b, dim)[view, start:stop] = drawn - picked[view]
            value += normaliser.sum(dtype=torch.float64) - (tile[view] * picked[view]).sum(dtype=torch.float64) / tau
    pushed.view(-1, 2, b, dim).sub_(pulled.view(-1, 1, b, dim))
    scale = 1 / (2 * b * tau)
    return (value / (2 * b)).to(rows.dtype), row_gradient.mul_(scale), pushed.mul_(scale)


def _push(
    tile: torch.Tensor, columns: torch.Tensor, first: int, tau: float, logits: torch.Tensor, pushed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logsumexp [rows, 1] and sum_j p_ij z_j [rows, dim] of a tile of rows; adds sum_i p_ij z_i to pushed [2B, dim].

    logits: [rows, 2B], overwritten. In base 2, since exp2 is the faster; p stays unnormalised until it meets something
    small.
    """
    torch.mm(tile * (math.log2(math.e) / tau), columns.T, out=logits)
    logits.diagonal(first).fill_(-torch.inf)
    largest = logits.amax(1, keepdim=True)
    mass = logits.sub_(largest).exp2_().sum(1, keepdim=True)
    pushed.addmm_(logits.T, tile / mass)
    return (largest + mass.log2()) * math.log(2), (logits @ columns) / mass
