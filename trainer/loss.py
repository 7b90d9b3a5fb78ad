"""The contrastive loss with soft targets, of this rank's rows against the global batch.

    p_ij = exp(z_i.z_j / tau) / sum_{k != i} exp(z_i.z_k / tau)     s_ij likewise of G_ij / tau_s     (block.py)
    L    = -(1/2B) sum_i sum_{j != i} s_ij log p_ij                 Sobal et al. 2025, equation 5

Since the s_ij of a row sum to 1, L_i = logsumexp_j(l_ij) - sum_j s_ij l_ij with l = z z' / tau, and its gradient with
respect to l_ij is p_ij - s_ij. `dense` lets autograd find that out and holds several 2b x 2B matrices. `tiled` walks
over tiles of fixed memory and, because the loss is a scalar, collects the gradient of z in the same sweep: a tile's
logits and targets are made once, used for value and gradient, and dropped. `fused` is the same in GPU kernels, whose
tiles never leave the chip (fused.py, fused_targets.py). docs/loss.md derives it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch

from shards.errors import UserError
from trainer.block import SimilarityBlock, check_temperature
from trainer.collectives import gather_with_gradient

__all__ = ["TILE_ENTRIES", "Implementation", "contrastive_loss"]

Implementation = Literal["auto", "dense", "tiled", "fused"]

# (rows [n, dim], columns [m, dim], the column that is row 0, tau, gradients of both to add to) -> sum of lse, float64.
Repel = Callable[[torch.Tensor, torch.Tensor, int, float, torch.Tensor, torch.Tensor], torch.Tensor]
# (rows, columns, block, gradients of both to take from) -> sum of the picked logits times tau, float64.
Attract = Callable[[torch.Tensor, torch.Tensor, SimilarityBlock, torch.Tensor, torch.Tensor], torch.Tensor]

# Entries of a tile of logits. CPU: 8 MB of float32, which stays near the caches. GPU: 64 MB, enough to fill the device.
TILE_ENTRIES = {"cpu": 1 << 21, "cuda": 1 << 24}

# Where `fused` was measured beside `tiled` and was the quicker (docs/loss.md): compute capability 9.0 (H100 and H200),
# and from so many pairs of a rank's rows and the batch's on; of fewer the time is that of starting kernels.
FUSED_WINS = ((9, 0),)
FUSED_PAIRS = 1 << 25

# torch.compile unrolls the loop over tiles, three seconds for each: of more it leaves the sweep as it is.
COMPILED_TILES = 8


def contrastive_loss(
    z: torch.Tensor,
    block: SimilarityBlock,
    *,
    tau: float | torch.Tensor = 0.1,
    implementation: Implementation = "auto",
) -> torch.Tensor:
    """Mean loss over this rank's rows; averaged over ranks it is the loss of the global batch.

    z: [2b, dim] projections of any float type, first views then second views; they are normalised here (a row of zeros
    stays one). All is computed in float32 (float64 if z is), under autocast too. Every rank calls it: features are
    gathered, with gradient, over the ranks of `block.world`. implementation: `auto` is `fused` for large batches of up
    to 128 dimensions on H100 and H200, else `tiled`, which on a CPU was slower than `dense` at no size from 1,024 rows
    on (docs/loss.md); `dense` is to be read, and differentiated twice; `fused` raises UserError where its kernels do
    not run. Raises ValueError where z does not hold two views of each of the block's samples, and for a tau that is not
    above 0; TypeError for what is no block, tensor or number; RuntimeError in a backward pass with create_graph=True.
    """
    check_temperature("tau", tau)
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation is one of {', '.join(get_args(Implementation))}, not {implementation!r}")
    if not isinstance(block, SimilarityBlock):
        raise TypeError(
            f"block is a SimilarityBlock, not {type(block).__name__}: of_matrix(...) makes one of similarities [b, B], "
            "of_vectors(...) of embeddings"
        )
    if not isinstance(z, torch.Tensor):
        raise TypeError(f"z is a tensor [2b, dim], not {type(z).__name__}: torch.cat([first views, second views])")
    if not tau > 0:
        raise ValueError(f"tau is a temperature above 0, not {float(tau)}")
    if not len(block):
        raise ValueError("a rank needs at least one sample")
    if z.ndim != 2 or len(z) != 2 * len(block) or not z.shape[1]:
        known = {
            (len(block),): "; a block counts a sample once, not each view",
            (len(block), 2): ": torch.cat(z.unbind(1))",
        }
        hint = known.get(tuple(z.shape[:-1]), "")
        raise ValueError(f"z is [2 x {len(block)}, dim], first views then second views, not {list(z.shape)}{hint}")
    if not z.is_floating_point():
        raise TypeError(f"z is of a floating-point type, not {z.dtype}")
    if z.device != block.row_key.device:
        raise ValueError(f"z is on {z.device} and the block on {block.row_key.device}: make both on one")
    with torch.autocast(z.device.type, enabled=False):
        rows = _unit(z if z.dtype == torch.float64 else z.float())
        columns = gather_with_gradient(rows, block.world)
        if implementation == "dense":
            return _dense(rows, columns, block, tau)
        choose = {"auto": _quickest, "fused": _fused}.get(implementation)
        halves = choose(rows, block) if choose else (_repel, _attract)
        # Not the same tensor twice: of two arguments that are one, torch.compile of PyTorch 2.11 loses the gradient.
        others = None if columns is rows else columns
        learnt = tau if isinstance(tau, torch.Tensor) else None
        number = float(tau if learnt is None else learnt.detach())
        sweep = _Sweep.apply
        if torch.compiler.is_compiling() and len(rows) > COMPILED_TILES * _height(len(rows), len(columns), rows.device):
            sweep = _uncompiled
        return cast(torch.Tensor, sweep(rows, others, learnt, block, number, *halves))


def _unit(z: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, contiguous. Of any length: none whose squares overflow or vanish, and of a row of zeros, as
    ReLU leaves it, no gradient of 1e12."""
    scale = z.detach().abs().amax(1, keepdim=True)
    z = z / torch.where(scale > 0, scale, 1)
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    return (z / torch.where(length > 0, length, 1)).contiguous()


def _dense(
    rows: torch.Tensor, columns: torch.Tensor, block: SimilarityBlock, tau: float | torch.Tensor
) -> torch.Tensor:
    logits = rows @ columns.T / tau  # [2b, 2B]
    row = torch.arange(len(rows), device=rows.device)
    diagonal = torch.zeros_like(logits, dtype=torch.bool)
    diagonal[row, row + 2 * block.offset] = True
    # -inf on the diagonal would meet s = 0 there and give NaN, so it leaves the sum only.
    normaliser = torch.logsumexp(logits.masked_fill(diagonal, -torch.inf), dim=1)
    return (normaliser - (block.targets(logits.dtype) * logits).sum(1)).mean()


class _Sweep(torch.autograd.Function):
    """Value and gradient at once; `backward` multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        others: torch.Tensor | None,
        learnt: torch.Tensor | None,
        block: SimilarityBlock,
        tau: float,
        repel: Repel,
        attract: Attract,
    ) -> torch.Tensor:
        columns = rows if others is None else others
        row_gradient = torch.zeros_like(rows)
        # One rank: rows and columns are the same tensor, and so are their gradients.
        column_gradient = row_gradient if columns is rows else torch.zeros_like(columns)
        normalisers = repel(rows, columns, 2 * block.offset, tau, row_gradient, column_gradient)
        picked = attract(rows, columns, block, row_gradient, column_gradient)
        for gradient in (row_gradient,) if columns is rows else (row_gradient, column_gradient):
            gradient.mul_(1 / (len(rows) * tau))
        # tau divides all logits: its gradient is -sum_ij l_ij dL/dl_ij / tau, and that sum z_i.dL/dR_i, or z_j.dL/dC_j.
        temperature = None
        if learnt is not None and ctx.needs_input_grad[2]:
            halves = 2 if columns is rows else 1  # of the sum, that row_gradient holds
            total = (rows * row_gradient).sum(dtype=torch.float64)
            temperature = (total / (-halves * tau)).to(learnt).view_as(learnt)
        ctx.save_for_backward(row_gradient, None if columns is rows else column_gradient, temperature)
        return ((normalisers - picked / tau) / len(rows)).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True: what it led to would lack the loss's own second derivative
            raise RuntimeError("this loss is differentiable once: use implementation='dense' for second derivatives")
        row, column, temperature = (None if saved is None else saved * gradients[0] for saved in ctx.saved_tensors)
        return row, column, temperature, None, None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _uncompiled(*arguments: Any) -> Any:
    return _Sweep.apply(*arguments)


def _attract(
    rows: torch.Tensor,
    columns: torch.Tensor,
    block: SimilarityBlock,
    row_gradient: torch.Tensor,
    column_gradient: torch.Tensor,
) -> torch.Tensor:
    """sum_i z_i.o_i with o = S z: the targets' half. Subtracts o from the rows' gradient, S'z from the columns'.

    Targets are made once a pair of samples, not of views: their sum over columns, o_i = sum_j s_ij z_j, needs the sum
    of each sample's two views only. With it the picked logits are z_i . o_i / tau, and o_i is their gradient as well.
    """
    b, dim = len(block), rows.shape[1]
    views, row_views, column_views = (x.view(-1, 2, b, dim) for x in (rows, row_gradient, column_gradient))
    both = columns.view(-1, 2, b, dim).sum(1).view(-1, dim)  # [B, dim] of each sample the sum of its views
    pulled, value = torch.zeros_like(both), rows.new_zeros((), dtype=torch.float64)
    own = column_views[block.offset // b]
    height = _height(b, len(both), rows.device)
    weights = rows.new_empty(height, len(both))  # reused: fresh pages cost as much as a pass over them
    for start in range(0, b, height):
        stop = min(start + height, b)
        target = block.weights(start, stop, weights[: stop - start])
        tile, sibling = views[0, :, start:stop], target.sibling / target.total
        picked = (target.others @ both) / target.total + sibling * tile.flip(0)  # [2, height, dim] o
        value += (tile * picked).sum(dtype=torch.float64)
        pulled.addmm_(target.others.T, tile.sum(0) / target.total)
        own[:, start:stop] -= sibling * tile.flip(0)
        row_views[0, :, start:stop] -= picked
    column_views -= pulled.view(-1, 1, b, dim)
    return value


def _repel(
    rows: torch.Tensor,
    columns: torch.Tensor,
    first: int,
    tau: float,
    row_gradient: torch.Tensor,
    column_gradient: torch.Tensor,
) -> torch.Tensor:
    """sum_i lse_i, without the logit of column first + i: the logits' half. Adds P z to the rows' gradient, P'z to the
    columns'.

    In base 2, since exp2 is the faster; p stays unnormalised until it meets something small.
    """
    value = rows.new_zeros((), dtype=torch.float64)
    height = _height(len(rows), len(columns), rows.device)
    buffer = rows.new_empty(height, len(columns))
    for start in range(0, len(rows), height):
        tile = rows[start : start + height]
        logits = torch.mm(tile * (math.log2(math.e) / tau), columns.T, out=buffer[: len(tile)])
        logits.diagonal(first + start).fill_(-torch.inf)
        largest = logits.amax(1, keepdim=True)
        mass = logits.sub_(largest).exp2_().sum(1, keepdim=True)
        column_gradient.addmm_(logits.T, tile / mass)
        row_gradient[start : start + height] += (logits @ columns) / mass
        value += (largest + mass.log2()).sum(dtype=torch.float64)
    return value * math.log(2)


def _height(rows: int, columns: int, device: torch.device) -> int:
    return min(rows, max(1, TILE_ENTRIES.get(device.type, TILE_ENTRIES["cuda"]) // columns))


def _quickest(rows: torch.Tensor, block: SimilarityBlock) -> tuple[Repel, Attract]:
    tiles = _repel, _attract
    pairs = 2 * len(rows) * len(block.column_key)
    if not rows.is_cuda or pairs < FUSED_PAIRS or torch.compiler.is_compiling():
        return tiles
    if torch.version.hip or torch.cuda.get_device_capability(rows.device) not in FUSED_WINS:
        return tiles
    try:
        from trainer import fused

        return _fused(rows, block) if fused.takes(rows) else tiles
    except ImportError:
        return tiles
    except UserError as error:  # no compiler, which can be mended
        warnings.warn(str(error).replace(": use tiled", ", so it is computed in tiles"), RuntimeWarning, stacklevel=3)
        return tiles


def _fused(rows: torch.Tensor, block: SimilarityBlock) -> tuple[Repel, Attract]:
    """Triton comes with PyTorch for Linux; nothing else here needs it."""
    try:
        from trainer import fused, fused_targets
    except ImportError:
        raise UserError("the fused loss needs Triton, which is not installed: use tiled") from None
    fused.check(rows)
    return fused.repel, fused_targets.attract if fused_targets.takes(block) else _attract
