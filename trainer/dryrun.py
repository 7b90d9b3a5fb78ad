"""What a run would take on this device: a few steps of it are made, measured, and thrown away."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch

from shards.bars import bar
from shards.machine import peak_memory
from shards.mirror import RemoteShards, open_shards
from trainer import setup
from trainer.collectives import of_rank_0
from trainer.data import batches_of, make_loader
from trainer.recipe import Recipe
from trainer.world import World

__all__ = ["Estimate", "estimate"]

WARM_UP, MEASURED = 2, 5  # steps; the first ones allocate memory, choose kernels and start the loader
PATIENCE = 120.0  # seconds after which fewer steps have to do, with many workers and slow steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    backbone_parameters: int
    parameters: int
    """All that is trained: projector and text tower too."""
    steps: int
    step_s: float
    """Seconds a step, data included: the slower of loader and model decides."""
    compute_s: float
    """Of that, the model's."""
    memory: int
    """Bytes at the peak: of the GPU, else of this process."""
    hours: float


def estimate(recipe: Recipe, world: World, run: Path | None = None) -> Estimate:
    """Measure the first steps of a run; nothing is written. Raises UserError as `train` does.

    run: its folder, if it was begun: it keeps its graph.
    """
    shards = open_shards(recipe.data.shards)
    recipe = setup.settle(recipe, shards, world, run)
    plan = setup.make_plan(recipe, shards)
    if isinstance(shards, RemoteShards):
        plan = replace(plan, window=1)  # a few tars are enough to measure
    graph = setup.graph_of(recipe, shards, world)
    stepper = setup.build_stepper(recipe, shards, graph, world, steps_per_epoch=plan.steps_per_epoch)
    total = plan.steps_per_epoch * recipe.epochs
    workers = setup.workers(recipe, world)
    # Each worker has a batch ready when the first step begins; how fast more come is seen behind those.
    most = of_rank_0(workers, world)  # all ranks make as many steps, whatever cores they have
    warm_up = min(WARM_UP + most, total - 1)
    count = min(warm_up + max(MEASURED, most), total)
    loader = make_loader(shards, plan, recipe.augment, world, start=0, stop=total, workers=workers, most_ahead=1)
    batches = batches_of(loader, None if recipe.data.chunk else world.device)
    whole, compute, start = list[float](), list[float](), time.perf_counter()
    with bar("measuring", count) if world.is_main else nullcontext(_unseen) as advance:
        for step in range(count):
            if len(whole) >= WARM_UP + MEASURED and of_rank_0(time.perf_counter() - start > PATIENCE, world):
                warm_up = min(warm_up, len(whole) - MEASURED)
                break
            begin = time.perf_counter()
            batch = next(batches)
            ready = time.perf_counter()
            stepper.step(batch, step, total)
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)
            whole.append(time.perf_counter() - begin)
            compute.append(time.perf_counter() - ready)
            advance(1)
    kept = slice(warm_up, None)
    seconds = mean(whole[kept])  # batches come in bursts: the mean, not the median
    return Estimate(
        backbone_parameters=_count(stepper.encoder.backbone),
        parameters=_count(stepper.encoder),
        steps=total,
        step_s=seconds,
        compute_s=mean(compute[kept]),
        memory=_peak_memory(world),
        hours=seconds * total / 3600,
    )


def _unseen(units: int) -> None:
    """The bar of ranks that show none."""


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _peak_memory(world: World) -> int:
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return peak_memory()
