"""What ranks tell each other, and which row is whose.

Each rank holds b samples, and 2b rows: its first views, then its second views. Gathered, the ranks' rows stand one
rank after the other:

    column   0 .. b-1      b .. 2b-1     2b .. 3b-1    3b .. 4b-1    ...
             rank 0        rank 0        rank 1        rank 1
             first views   second views  first views   second views

so local row i of rank r is column 2b r + i. With one process all functions are identities.

The gradient of a gathered tensor is the sum of all ranks' gradients with respect to this rank's share: every rank's
loss reads it. Averaging parameter gradients over ranks, as DistributedDataParallel does, then gives the gradient of
the mean of the ranks' losses, that is of the loss over the global batch.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from trainer.world import World

__all__ = ["Delayed", "gather", "gather_with_gradient", "of_rank_0", "reduced"]

Number = TypeVar("Number", int, float)

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


def reduced(number: Number, world: World, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Number:
    """The sum of all ranks' numbers, or what else `op` makes of them."""
    if world.size == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else None, device=world.device)
    dist.all_reduce(value, op)
    return cast(Number, value.item())


def of_rank_0(number: int, world: World) -> int:
    if world.size == 1:
        return number
    value = torch.tensor(int(number), device=world.device)
    dist.broadcast(value, 0)
    return int(value)


class Delayed:
    """The largest number that any rank gives, told a step later: no step waits for the others' answers.

    By then only what was queued before it has to be waited for, not the step at work.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked: tuple[torch.Tensor, torch.cuda.Event | None] | None = None

    def largest(self, number: int) -> int:
        """Of what was given a step ago, 0 at first; with one process `number` itself."""
        if self.world.size == 1:
            return number
        before, self.asked = self.asked, self._sent(number)
        if before is None:
            return 0
        value, copied = before
        if copied:
            copied.synchronize()
        return int(value)

    def _sent(self, number: int) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        value = torch.full((), number, device=self.world.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        if value.device.type != "cuda":
            return value, None
        value = torch.empty((), dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return value, copied


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        return gather(x, world)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return cast(torch.Tensor, _SumOfMine.apply(gradients[0], ctx.world)), None


class _SumOfMine(torch.autograd.Function):
    """[size * n, ...] of every rank -> [n, ...], the sum of their rows for this rank. A function of its own, since a
    gradient may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, world: World) -> torch.Tensor:
        ctx.world = world
        rows = x.shape[0] // world.size
        if x.device.type == "cuda":
            out = x.new_empty((rows, *x.shape[1:]))
            _reduce_scatter(out, x.contiguous())
            return out
        total = x.clone(memory_format=torch.contiguous_format)  # autograd may have handed it to others too
        dist.all_reduce(total)  # gloo has no reduce-scatter
        return total[world.rank * rows : (world.rank + 1) * rows]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gather_with_gradient(gradients[0], ctx.world), None
