"""Gathering over real processes: order, gradient, and the loss of several ranks against that of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.trainer.interpreted import INTERPRETED
from tests.trainer.ranks import Ranks
from tests.trainer.reference import ALONE, Samples, build, random_graph, random_samples, targets, value_and_gradient
from trainer import loss as loss_module
from trainer.block import Objective
from trainer.clip import clip_loss
from trainer.collectives import gather, gather_with_gradient
from trainer.loss import Implementation, contrastive_loss
from trainer.table import Tail
from trainer.world import World


def gathered(world: World) -> list[Any]:
    """Gather rank-coloured rows, then ask different things of the result on each rank."""
    x = torch.arange(6, dtype=torch.float64).reshape(3, 2) + 100 * world.rank
    plain = gather(x, world)
    x.requires_grad_()
    whole = gather_with_gradient(x, world)
    (whole * torch.arange(len(whole))[:, None] * (world.rank + 1)).sum().backward()  # type: ignore[no-untyped-call]
    small = gather(torch.full((2,), world.rank, dtype=torch.int8), world)
    return [plain.tolist(), whole.detach().tolist(), x.grad.tolist(), small.tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [2, 4])
def test_gather_keeps_rank_order_and_sums_gradients(ranks: Ranks, size: int) -> None:
    expected = [[100.0 * r + 2 * i, 100.0 * r + 2 * i + 1] for r in range(size) for i in range(3)]
    factor = size * (size + 1) / 2  # every rank's loss reads the row, rank r with weight r + 1
    for rank, (plain, whole, gradient, small) in enumerate(ranks(size, gathered)):
        assert plain == whole == expected
        assert gradient == [[factor * (3 * rank + i)] * 2 for i in range(3)]
        assert small == [r for r in range(size) for _ in range(2)]


def test_one_rank_gathers_nothing() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    assert gather(x, ALONE) is x
    assert gather_with_gradient(x, ALONE) is x


def share_of_loss(world: World, seed: int, objective: Objective, tail: Tail, how: Implementation, entries: int) -> Any:
    """Loss and gradient [2, b, dim] of this rank's samples, the gradient averaged as DistributedDataParallel does."""
    loss_module.TILE_ENTRIES["cpu"] = entries
    batch, graph = seeded(seed)
    b = len(batch.texts) // world.size
    dtype = torch.float32 if how == "fused" else torch.float64
    z = batch.z[:, world.rank * b : (world.rank + 1) * b].to(dtype, copy=True).requires_grad_()
    block = build(batch, graph, objective, tail, 0.1, world)
    value = contrastive_loss(z.flatten(0, 1), block, tau=0.1, implementation=how)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return float(value.detach()), (z.grad / world.size).numpy()


def share_of_penalty(world: World) -> Any:
    """Gradient [2, b, dim] of this rank's samples, of the sum over ranks of |d (all ranks' losses) / dz|^2."""
    batch, graph = seeded(0)
    b = len(batch.texts) // world.size
    z = batch.z[:, world.rank * b : (world.rank + 1) * b].clone().requires_grad_()
    block = build(batch, graph, "xclr", "code", 0.1, world)
    value = contrastive_loss(z.flatten(0, 1), block, tau=0.1, implementation="dense")
    (first,) = torch.autograd.grad(value, z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z)
    return second.numpy()


@pytest.mark.parametrize("size", [2, 3])
def test_second_derivatives_of_ranks_are_those_of_the_whole_batch(ranks: Ranks, size: int) -> None:
    batch, graph = seeded(0)
    z = batch.z.clone().requires_grad_()
    block = build(batch, graph, "xclr", "code", 0.1, ALONE)
    value = size * contrastive_loss(z.flatten(0, 1), block, tau=0.1, implementation="dense")
    (first,) = torch.autograd.grad(value, z, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), z)
    found = np.concatenate(ranks(size, share_of_penalty), axis=1)
    np.testing.assert_allclose(found, second.numpy(), rtol=1e-6, atol=1e-9 * float(second.abs().max()))


def seeded(seed: int) -> tuple[Samples, Any]:
    rng = np.random.default_rng(seed)
    return random_samples(rng, 12, 8), random_graph(rng, 8)


# 24 columns: tiles of 1, 2 and all rows of 12, 6 and 3 samples a rank.
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("how", "entries"),
    [("dense", 1), ("tiled", 24), ("tiled", 50), ("tiled", 1 << 20), *([("fused", 1)] if INTERPRETED else [])],
)
def test_loss_and_gradient_of_ranks_are_those_of_the_whole_batch(
    ranks: Ranks, size: int, how: Implementation, entries: int
) -> None:
    for seed, (objective, tail) in enumerate(
        [("xclr", "code"), ("xclr", "background"), ("xclr", "none"), ("simclr", "none"), ("supcon", "none")]
    ):
        batch, graph = seeded(seed)
        value, gradient = value_and_gradient(batch, targets(batch, graph, objective, tail, 0.1), 0.1)  # type: ignore[arg-type]
        shares = ranks(size, share_of_loss, seed, objective, tail, how, entries)
        error = 1e-6 if how == "fused" else 1e-7  # in float32
        assert np.mean([share for share, _ in shares]) == pytest.approx(value, abs=error)
        np.testing.assert_allclose(np.concatenate([g for _, g in shares], 1), gradient.numpy(), atol=error)


def share_of_clip(world: World) -> Any:
    """Loss, and gradients of this rank's views [2, b, dim] and captions [b, dim], averaged."""
    generator = torch.Generator().manual_seed(0)
    z, text = torch.randn(2, 12, 6, generator=generator), 7 * torch.randn(12, 6, generator=generator)
    mine = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    z, text = (x.clone().requires_grad_() for x in (z[:, mine], text[mine]))
    value = clip_loss(z.flatten(0, 1), text, world)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert text.grad is not None
    return float(value.detach()), (z.grad / world.size).numpy(), (text.grad / world.size).numpy()


@pytest.mark.parametrize("size", [2, 3])
def test_clips_loss_and_gradient_of_ranks_are_those_of_the_whole_batch(ranks: Ranks, size: int) -> None:
    value, views, captions = share_of_clip(ALONE)
    shares = ranks(size, share_of_clip)
    assert np.mean([share for share, _, _ in shares]) == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(np.concatenate([z for _, z, _ in shares], 1), views, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([text for _, _, text in shares]), captions, atol=1e-6)
