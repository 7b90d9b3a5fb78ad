"""The training loop: one code path for one and for many ranks.

Every random choice of step t is a function of (seed, t) and this rank: which samples, how they are augmented, dropout.
So a run that is killed and resumed passes through the same weights as one that never stopped.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shards.atomic import sha256_file, write_json
from shards.config import from_table
from shards.errors import SkipBudget, UserError
from shards.reader import Shards
from trainer.block import SimilarityBlock, TextTable
from trainer.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from trainer.data import Batch, make_loader, to_views
from trainer.loss import contrastive_loss
from trainer.metrics import Metrics
from trainer.model import build_encoder
from trainer.monitor import Monitor
from trainer.optim import learning_rate, make_optimiser
from trainer.plan import BatchPlan
from trainer.recipe import Recipe, as_table, differences
from trainer.world import World

__all__ = ["Result", "Stopped", "train"]

BAD_IMAGES = 0.01  # share of samples that may fail to decode before the run stops; stage one checks every image


class Stopped(Exception):
    """SIGTERM came: a checkpoint was written at this step, and the same command with --resume goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    run: Path
    steps: int
    already_done: bool
    loss: float | None


def train(recipe: Recipe, run: Path, world: World, *, resume: bool = False) -> Result:
    """Train `recipe` into the folder `run`.

    recipe.data.shards names the folder of shards. resume: go on from the newest checkpoint of `run`, if there is one.
    Raises UserError for input that cannot work and for a run of another recipe, Stopped after SIGTERM.
    """
    shards = Shards.open(Path(recipe.data.shards))
    recipe = _settle(recipe, shards, world)
    plan = BatchPlan(
        shard_sizes=[shard.samples for shard in shards.manifest.shards],
        batch_size=recipe.data.batch_size,
        seed=recipe.seed,
        window=recipe.data.window,
        grouped=recipe.data.grouped,
        groups=shards.index.group if recipe.data.grouped else None,
    )
    total = plan.steps_per_epoch * recipe.epochs
    data_id = sha256_file(shards.root / "manifest.json")
    state = _resume_state(run, recipe, data_id, resume=resume)
    start = int(state["step"]) if state else 0
    if start >= total:
        return Result(run=run, steps=total, already_done=True, loss=None)
    if world.is_main:
        _describe_run(run, recipe, shards, total)
    return _Loop(recipe, run, world, shards, plan, data_id).go(state, start, total)


class _Loop:
    """What the steps of one run share."""

    def __init__(self, recipe: Recipe, run: Path, world: World, shards: Shards, plan: BatchPlan, data_id: str) -> None:
        self.recipe, self.run, self.world, self.shards, self.plan = recipe, run, world, shards, plan
        self.data_id = data_id
        soft = recipe.objective.name == "xclr"
        wanted = recipe.data.graph or (shards.graph_names() or [""])[0]  # the monitor takes whichever there is
        graph = shards.graph(recipe.data.graph or None) if soft else shards.graph(wanted) if wanted else None
        self.table = TextTable.from_graph(graph, world.device, tail=recipe.objective.tail) if soft and graph else None
        monitor = world.is_main and recipe.run.knn_every > 0
        self.monitor = Monitor(shards, graph, recipe.augment.image_size, recipe.seed) if monitor else None
        self.encoder = build_encoder(recipe.model, recipe.augment.image_size, recipe.seed).to(world.device)
        self.encoder.to(memory_format=torch.channels_last)
        if world.size > 1 and world.device.type == "cuda":
            self.encoder = nn.SyncBatchNorm.convert_sync_batchnorm(self.encoder)  # type: ignore[no-untyped-call]
        self.optimiser = make_optimiser(self.encoder, recipe.optimiser)
        self.model = self._wrapped()
        self.budget = SkipBudget("training images", BAD_IMAGES)
        self.bfloat16 = recipe.precision == "bfloat16"

    def _wrapped(self) -> nn.Module:
        model: nn.Module = self.encoder
        if self.recipe.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        if self.world.size > 1:
            devices = [self.world.local_rank] if self.world.device.type == "cuda" else None
            model = DistributedDataParallel(model, device_ids=devices)
        return model

    def go(self, state: dict[str, Any] | None, start: int, total: int) -> Result:
        if state:
            self.encoder.load_state_dict(state["encoder"])
            self.optimiser.load_state_dict(state["optimiser"])
        recipe, world = self.recipe, self.world
        loader = make_loader(
            self.shards, self.plan, recipe.augment, world, start=start, stop=total, workers=_workers(recipe, world)
        )
        title = f"{recipe.objective.name} {recipe.model.backbone}"
        with _caught_sigterm() as stopping, _metrics(self.run, world, start, total, title) as metrics:
            loss = self._steps(iter(loader), start, total, metrics, stopping)
        return Result(run=self.run, steps=total, already_done=False, loss=loss)

    def _steps(
        self, batches: Iterator[Batch], start: int, total: int, metrics: Metrics | None, stopping: list[int]
    ) -> float:
        recipe, per_epoch = self.recipe, self.plan.steps_per_epoch
        clock = _Clock()
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        loss = torch.zeros(())
        for step in range(start, total):
            with clock.waiting():
                batch = next(batches)
            loss, block = self._step(batch, step, total)
            finite &= torch.isfinite(loss.detach())
            done = step + 1
            clock.count(recipe.data.batch_size)
            log, last = done % recipe.run.log_every == 0 or done == total, done == total
            if log:
                self._check_finite(finite, done)
                self._log(metrics, done, loss, block, clock)
            if metrics:
                metrics.advance(done)
            if done % per_epoch == 0 and recipe.run.knn_every and (done // per_epoch) % recipe.run.knn_every == 0:
                self._watch(metrics, done)
            stop = self._agree(bool(stopping)) if done % STOP_CHECK == 0 or self.world.size == 1 else False
            if done % recipe.run.checkpoint_every == 0 or last or stop:
                self._check_finite(finite, done)
                self._save(done, total)
            if stop and not last:
                raise Stopped(f"stopped at step {done} of {total}; the same command with --resume goes on from there")
        return float(loss.detach())

    def _step(self, batch: Batch, step: int, total: int) -> tuple[torch.Tensor, SimilarityBlock]:
        recipe, world, objective = self.recipe, self.world, self.recipe.objective
        self._count_bad(batch)
        torch.manual_seed(((recipe.seed << 31) + step) * 4096 + world.rank)  # dropout and stochastic depth
        rate = learning_rate(
            step,
            peak=recipe.optimiser.peak_lr(recipe.data.batch_size),
            warmup=round(recipe.optimiser.warmup_epochs * self.plan.steps_per_epoch),
            total=total,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        device = world.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            z = self.model(to_views(batch, device))  # [2b, dim]
        block = SimilarityBlock.build(
            objective=objective.name,
            sample_ids=batch.samples.to(device),
            text_ids=batch.texts.to(device),
            labels=batch.labels.to(device),
            table=self.table,
            tau_s=objective.tau_s,
            world=world,
        )
        loss = contrastive_loss(z, block, tau=objective.tau, world=world, implementation=objective.implementation)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return loss, block

    def _count_bad(self, batch: Batch) -> None:
        if batch.bad:
            self.budget.skip("undecodable image", "in a batch", batch.bad)
        self.budget.ok(len(batch.samples) - batch.bad)

    def _log(
        self, metrics: Metrics | None, done: int, loss: torch.Tensor, block: SimilarityBlock, clock: _Clock
    ) -> None:
        mean = loss.detach().clone()
        if self.world.size > 1:
            dist.all_reduce(mean)
            mean /= self.world.size
        if not metrics:
            return
        rate, wait = clock.read()
        metrics.step(
            {
                "step": done,
                "epoch": done / self.plan.steps_per_epoch,
                "loss": float(mean),
                "lr": self.optimiser.param_groups[0]["lr"],
                "samples_per_s": rate,
                "data_wait": wait,
                "bad_images": self.budget.reasons.total(),
                **block.statistics(),
            }
        )

    def _watch(self, metrics: Metrics | None, done: int) -> None:
        if metrics and self.monitor:
            values = self.monitor.measure(self.encoder, self.world.device)
            metrics.step({"step": done, "epoch": done / self.plan.steps_per_epoch, **values})

    def _check_finite(self, finite: torch.Tensor, done: int) -> None:
        if self._agree(not bool(finite)):
            kept = checkpoints(self.run)
            where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
            raise UserError(
                f"the loss is not finite at step {done}; {where}. "
                "Lower the learning rate, lengthen the warm-up, or use precision = 'float32'"
            )

    def _agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        if self.world.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.world.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def _save(self, step: int, total: int) -> None:
        if not self.world.is_main:
            return
        state = {
            "encoder": self.encoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "recipe": json.dumps(as_table(self.recipe)),
            "data": self.data_id,
        }
        write_checkpoint(self.run, step, state, self.recipe.run.keep)
        _set_status(self.run, "finished" if step == total else "running", step)


STOP_CHECK = 10  # steps between asking the other ranks whether one was told to stop


class _Clock:
    """Samples a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.samples, self.wait, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.wait += time.perf_counter() - begin

    def count(self, samples: int) -> None:
        self.samples += samples

    def read(self) -> tuple[float, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = self.samples / elapsed, self.wait / elapsed
        self.__init__()  # type: ignore[misc]
        return values


@contextmanager
def _metrics(run: Path, world: World, start: int, total: int, title: str) -> Iterator[Metrics | None]:
    if not world.is_main:
        yield None
        return
    with Metrics(run, start=start, stop=total, title=title) as metrics:
        metrics.event("resume" if start else "start", step=start)
        yield metrics
        metrics.event("end", step=total)


@contextmanager
def _caught_sigterm() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM came; schedulers send it before they kill."""
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        signal.signal(signal.SIGTERM, before)


def _settle(recipe: Recipe, shards: Shards, world: World) -> Recipe:
    """Resolve what `auto` means here and check that data and objective fit."""
    objective = recipe.objective.name
    if objective == "supcon" and (len(shards) == 0 or (shards.index.label < 0).any()):
        raise UserError(
            f"supcon needs a label for every sample, and {shards.root} has samples without: use xclr or simclr"
        )
    if shards.manifest.split != "train":
        raise UserError(
            f"{shards.root} holds the {shards.manifest.split} split of {shards.manifest.dataset}, not training data"
        )
    precision = recipe.precision
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(world.device) else "float32"
    return replace(recipe, precision=precision)


def _fast_bfloat16(device: torch.device) -> bool:
    """Where bfloat16 has instructions of its own. On AVX512-BF16 a ResNet step took 0.4-0.6 of the float32 time; on
    CPUs that emulate it, it is far slower (docs/decisions.md)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.12
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _resume_state(run: Path, recipe: Recipe, data_id: str, *, resume: bool) -> dict[str, Any] | None:
    found = checkpoints(run)
    if not found:
        return None
    state = read_checkpoint(found[-1])
    before = from_table(Recipe, json.loads(state["recipe"]), where=str(found[-1]))  # new options take their defaults
    unlike = differences(as_table(recipe), as_table(before))
    if unlike:
        raise UserError(
            f"{run} holds a run of another recipe ({'; '.join(unlike[:4])}): choose another --out, or delete the folder"
        )
    if state["data"] != data_id:
        raise UserError(f"{run} holds a run on other shards than {recipe.data.shards} is now: choose another --out")
    if not resume:
        raise UserError(f"{run} holds a run at step {state['step']}: add --resume to go on, or choose another --out")
    return state


def _describe_run(run: Path, recipe: Recipe, shards: Shards, total: int) -> None:
    write_json(
        run / "run.json",
        {
            "recipe": as_table(recipe),
            "dataset": shards.manifest.dataset,
            "samples": len(shards),
            "steps": total,
            "status": "running",
            "step": 0,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def _set_status(run: Path, status: str, step: int) -> None:
    path = run / "run.json"
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "status": status, "step": step})


def _workers(recipe: Recipe, world: World) -> int:
    if recipe.run.workers >= 0:
        return recipe.run.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, cores // ranks_here)
