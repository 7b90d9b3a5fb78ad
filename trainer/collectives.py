"""The two things that ranks tell each other, and which row is whose.

Each rank holds b samples, and 2b rows: its first views, then its second views. Gathered, the ranks' rows stand one
rank after the other:

    column   0 .. b-1      b .. 2b-1     2b .. 3b-1    3b .. 4b-1    ...
             rank 0        rank 0        rank 1        rank 1
             first views   second views  first views   second views

so local row i of rank r is column 2b r + i. With one process both functions are identities.

The gradient of a gathered tensor is the sum of all ranks' gradients with respect to this rank's share: every rank's
loss reads it. Averaging parameter gradients over ranks, as DistributedDataParallel does, then gives the gradient of
the mean of the ranks' losses, that is of the loss over the global batch.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist

from trainer.world import World

__all__ = ["gather", "gather_with_gradient"]

# Renamed in torch 2.14; the old names warn there.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def gather(x: torch.Tensor, world: World) -> torch.Tensor:
    """[n, ...] of every rank -> [size * n, ...], without gradient."""
    if world.size == 1:
        return x
    x = x.contiguous()
    out = x.new_empty((world.size * x.shape[0], *x.shape[1:]))
    _all_gather(out, x)
    return out


def gather_with_gradient(x: torch.Tensor, world: World) -> torch.Tensor:
    """[n, ...] of every rank -> [size * n, ...]; backward sums over ranks."""
    return x if world.size == 1 else cast(torch.Tensor, _Gather.apply(x, world))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world, ctx.rows = world, x.shape[0]
        return gather(x, world)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        world, rows = ctx.world, ctx.rows
        gradient = gradients[0].contiguous()
        if gradient.device.type == "cuda":
            out = gradient.new_empty((rows, *gradient.shape[1:]))
            _reduce_scatter(out, gradient)
            return out, None
        dist.all_reduce(gradient)  # gloo has no reduce-scatter
        return gradient[world.rank * rows : (world.rank + 1) * rows], None
