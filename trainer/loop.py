"""The training loop: one code path for one and for many ranks.

Every random choice of step t is a function of (seed, t) and this rank: which samples, how they are augmented, dropout.
So a run that is killed and resumed passes through the same weights as one that never stopped.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.markup import escape

from shards.atomic import sha256_file
from shards.bars import say
from shards.errors import UserError
from shards.graph import Graph
from shards.mirror import RemoteShards, open_shards
from shards.reader import Shards
from trainer import run_folder, setup
from trainer.advice import Adviser
from trainer.agree import alike, meet, settings
from trainer.ahead import Ahead, cache_limit
from trainer.bad_images import BadImages
from trainer.checkpoint import checkpoints, write_best, write_checkpoint
from trainer.clock import Clock
from trainer.collectives import Delayed, reduced
from trainer.data import Batch, batches_of, make_loader
from trainer.metrics import Metrics
from trainer.monitor import Monitor
from trainer.own import code_id, short
from trainer.plan import BatchPlan
from trainer.recipe import Recipe, as_table
from trainer.saver import Saver
from trainer.signals import INTERRUPTED, STOPPING, heeded
from trainer.step import Outcome
from trainer.trackers import open_tracker
from trainer.world import World

__all__ = ["Result", "Stopped", "train"]

SAVE, STOP = 1, 2  # what a rank may tell the others


class Stopped(Exception):
    """A signal came: a checkpoint was written at this step, and the same command with --resume goes on."""

    def __init__(self, message: str, by: int) -> None:
        super().__init__(message)
        self.by = by
        """The signal; 0 where another rank had it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    run: Path
    steps: int
    already_done: bool
    loss: float | None


def train(recipe: Recipe, run: Path, world: World, *, resume: bool = False) -> Result:
    """Train `recipe` into the folder `run`.

    recipe.data.shards names the folder of shards, by path or URL. resume: go on from the newest checkpoint of `run`, if
    there is one.
    Raises UserError for input that cannot work, for a run of another recipe, and where another process trains into
    the folder; Stopped after SIGTERM, SIGUSR1, SIGHUP or Ctrl-C.
    """
    with run_folder.start_kept(run) if world.is_main else nullcontext():
        shards = open_shards(recipe.data.shards)
        recipe = setup.settle(recipe, shards, world, run)
        plan = setup.make_plan(recipe, shards)
        total = plan.steps_per_epoch * recipe.epochs
        data_id = sha256_file(shards.root / "manifest.json")
        meet(world, "shards")
        alike(settings(recipe, data_id), world)
    before_the_first_step = partial(_stop_at_once, run if world.is_main else None)
    without_ctrl_c = [number for number in STOPPING if number != signal.SIGINT]  # which is an exception already
    with run_folder.held(run) if world.is_main else nullcontext(), heeded(before_the_first_step, without_ctrl_c):
        return _train(recipe, run, world, shards, plan, total, data_id, resume=resume)


def _train(
    recipe: Recipe, run: Path, world: World, shards: Shards, plan: BatchPlan, total: int, data_id: str, *, resume: bool
) -> Result:
    state = run_folder.resume_state(run, recipe, data_id, world, resume=resume)
    start = int(state["step"]) if state else 0
    if start >= total:
        with suppress(OSError, ValueError, KeyError):  # without run.json it is finished all the same
            if world.is_main and run_folder.status_of(run) != "finished":  # killed before it was written
                run_folder.set_status(run, "finished", start)
        return Result(run=run, steps=total, already_done=True, loss=None)
    if state and world.is_main:
        say(f"going on from step {start} of {total}")
    graph = setup.graph_of(recipe, shards, world)
    alike({"graph (graph.json)": run_folder.graph_id(recipe, graph)}, world)
    run_folder.check_same(run, state, recipe, graph)
    loop = _Loop(recipe, run, world, shards, graph, plan, data_id, fresh=state is None)
    if world.is_main:
        run_folder.describe_run(run, recipe, shards, step=start, total=total)
    if state:
        loop.load(state)
    del state, graph  # gigabytes, which the device holds now, or of which the loop keeps what it needs
    return loop.go(start, total)


class _Loop:
    """What the steps of one run share."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        world: World,
        shards: Shards,
        graph: Graph | None,
        plan: BatchPlan,
        data_id: str,
        *,
        fresh: bool,
    ) -> None:
        self.recipe, self.run, self.world, self.shards, self.plan = recipe, run, world, shards, plan
        self.data_id, self.graph_id = data_id, run_folder.graph_id(recipe, graph)
        self.code_id = code_id(recipe.model.backbone)
        self.stepper = setup.build_stepper(
            recipe, shards, graph, world, steps_per_epoch=plan.steps_per_epoch, fresh=fresh
        )
        self.monitor: Monitor | None = None
        if world.is_main and recipe.run.knn_every > 0:
            codes = graph or setup.monitors_graph(recipe, shards)
            size, statistics = recipe.augment.image_size, recipe.model.statistics
            self.monitor = Monitor(shards, codes, size, recipe.seed, statistics)
        self.workers = setup.workers(recipe, world)
        self.adviser = Adviser(
            recipe=recipe,
            device=world.device.type,
            workers=self.workers,
            graph_kind=graph.kind if graph else "",
            coded=graph is not None and graph.codes is not None,
        )
        self.bad, self.best = BadImages(shards, world), float("-inf")
        self.saver = Saver()
        self.save_by = self._in_time()
        self.asked = Delayed(world)

    def _in_time(self) -> float:
        minutes = self.recipe.run.checkpoint_minutes
        return time.monotonic() + 60 * minutes if minutes else math.inf

    def _overdue(self) -> bool:
        """Whether the last checkpoint is long ago: told once, by rank 0, whose clock counts."""
        overdue = self.world.is_main and time.monotonic() >= self.save_by
        if overdue:
            self.save_by = self._in_time()
        return overdue

    def load(self, state: dict[str, Any]) -> None:
        try:
            self.stepper.encoder.load_state_dict(state["encoder"])
        except RuntimeError as error:  # another version of timm, or code that the network's own file imports
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise UserError(
                f"{self.run} holds the weights of another network than {self.recipe.model.backbone} is now "
                f"({reason[0].strip()}): put that one back, or choose another --out"
            ) from None
        self.stepper.optimiser.load_state_dict(state["optimiser"])
        self.best = float(state.get("best", self.best))
        self.bad.before = int(state.get("bad_images", 0))

    def go(self, start: int, total: int) -> Result:
        recipe, world = self.recipe, self.world
        ahead = self._ahead(start, total)
        meet(world, "tars")
        loader = make_loader(
            self.shards, self.plan, recipe.augment, world, start=start, stop=total, workers=self.workers
        )
        # Workers fork here, before any thread of `ahead` runs.
        batches = batches_of(loader, None if recipe.data.chunk else world.device)
        title = f"{recipe.objective.name} {short(recipe.model.backbone)}"
        with (
            heeded(_stop_after_step) as stopping,
            _metrics(self.run, world, recipe, start, total, title) as metrics,
            self.saver,
            ahead or nullcontext(),
        ):
            loss = self._steps(batches, start, total, metrics, stopping, ahead)
        return Result(run=self.run, steps=total, already_done=False, loss=loss)

    def _ahead(self, start: int, total: int) -> Ahead | None:
        """What keeps the shards of object storage coming: on one rank of each machine, with the first ones here."""
        if not isinstance(self.shards, RemoteShards) or self.world.local_rank:
            return None
        limit = cache_limit(self.shards, self.plan, self.recipe.run.cache_gib)
        ahead = Ahead(self.shards, self.plan, start=start, stop=total, limit=limit)
        ahead.fill()
        return ahead

    def _steps(
        self,
        batches: Iterator[Batch],
        start: int,
        total: int,
        metrics: Metrics | None,
        stopping: list[int],
        ahead: Ahead | None,
    ) -> float:
        recipe, per_epoch = self.recipe, self.plan.steps_per_epoch
        clock = Clock()
        finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        loss = torch.zeros(())
        for step in range(start, total):
            if ahead:
                ahead.at(step)
            with clock.waiting():
                batch = next(batches)
            self.bad.add(batch)
            outcome = self.stepper.step(batch, step, total)
            self.saver.check()  # a full disk is told at once, not when the next checkpoint is due
            loss = outcome.loss
            finite &= torch.isfinite(loss)
            done = step + 1
            clock.count(recipe.data.batch_size)
            last, every = done == total, recipe.run.knn_every * per_epoch
            told = self._told(STOP if stopping else SAVE if self._overdue() else 0)
            stop = told == STOP
            log = done % recipe.run.log_every == 0 or last
            watch = every > 0 and done % every == 0
            save = done % recipe.run.checkpoint_every == 0 or last or told > 0
            if log or watch or save:
                self._check_finite(finite, done)
            if watch or save:
                self._check_finite(self._weights_finite(), done, "weights are")
            if log:
                self._log(metrics, done, outcome, clock)
            if metrics:
                metrics.advance(done)
            if watch:
                self._watch(metrics, done)
            if save:
                self._save(done, total)
            if stop and not last:
                self.saver.wait()
                self._agree(False)  # all wait for the file: torchrun kills the rest 30 seconds after the first has left
                raise Stopped(
                    f"stopped at step {done} of {total}; the same command with --resume goes on from there",
                    by=stopping[0] if stopping else 0,
                )
        return float(loss)

    def _log(self, metrics: Metrics | None, done: int, outcome: Outcome, clock: Clock) -> None:
        bad, loss = self.bad.total(), reduced(float(outcome.loss), self.world)
        if not metrics:
            return
        rate, wait = clock.read()
        values = {
            "step": done,
            "epoch": done / self.plan.steps_per_epoch,
            "loss": loss / self.world.size,
            "lr": self.stepper.optimiser.param_groups[0]["lr"],
            "samples_per_s": rate,
            "data_wait": wait,
            "bad_images": bad,
            **outcome.statistics(),
        }
        self._write(metrics, values)
        if news := self.bad.news(bad):
            self._warn(metrics, done, news)

    def _warn(self, metrics: Metrics, step: int, text: str) -> None:
        metrics.say(f"[yellow]warning:[/] {escape(text)}")
        metrics.event("warning", step=step, text=text)

    def _watch(self, metrics: Metrics | None, done: int) -> None:
        """Online kNN and RankMe; the best encoder so far is kept."""
        if not metrics or not self.monitor:
            return
        values = self.monitor.measure(self.stepper.encoder, self.world.device)
        if not values:
            self._warn(metrics, done, "the online kNN is left out: in evaluation mode some features are not finite")
            return
        self._write(metrics, {"step": done, "epoch": done / self.plan.steps_per_epoch, **values})
        figure = values.get("knn", values.get("knn_similarity"))
        if figure is not None and figure > self.best:
            self.best = figure
            self.saver.save(self._encoder_state(), lambda state: write_best(self.run, done, state))

    def _write(self, metrics: Metrics, values: dict[str, float]) -> None:
        metrics.step(values)
        for text in self.adviser.look(values):
            self._warn(metrics, int(values["step"]), text)

    def _weights_finite(self) -> torch.Tensor:
        """The loss is of the weights before a step: this is asked of those after it, before they are kept."""
        modules = self.stepper.encoder.modules()
        running = [x for m in modules for x in (getattr(m, "running_mean", None), getattr(m, "running_var", None))]
        kept = [*self.stepper.encoder.parameters(), *(x for x in running if isinstance(x, torch.Tensor))]
        sums = [x.detach().sum() for x in kept]
        return torch.stack(sums).isfinite().all()

    def _check_finite(self, finite: torch.Tensor, done: int, what: str = "loss is") -> None:
        if self._agree(not bool(finite)):
            self.saver.wait()
            kept = checkpoints(self.run)
            where = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was written yet"
            remedies = ["lower the learning rate", "lengthen the warm-up"]
            if self.recipe.precision != "float32":
                remedies.append("use precision = 'float32'")
            raise UserError(f"the {what} not finite at step {done}; {where}: {', or '.join(remedies)}")

    def _told(self, what: int) -> int:
        """The most that any rank tells; of several, before this step."""
        return self.asked.largest(what)

    def _agree(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(reduced(int(flag), self.world, dist.ReduceOp.MAX))

    def _save(self, step: int, total: int) -> None:
        bad = self.bad.total()
        if not self.world.is_main:
            return
        self.save_by = self._in_time()
        state = {**self._encoder_state(), "optimiser": self.stepper.optimiser.state_dict(), "bad_images": bad}
        status = "finished" if step == total else "running"

        def write(copy: dict[str, Any]) -> None:
            write_checkpoint(self.run, step, copy, self.recipe.run.keep)
            run_folder.describe_run(self.run, self.recipe, self.shards, step=step, total=total, status=status)

        self.saver.save(state, write)

    def _encoder_state(self) -> dict[str, Any]:
        return {
            "encoder": self.stepper.encoder.state_dict(),
            "recipe": json.dumps(as_table(self.recipe)),
            "data": self.data_id,
            "graph": self.graph_id,
            "code": self.code_id,
            "best": self.best,
        }


@contextmanager
def _metrics(run: Path, world: World, recipe: Recipe, start: int, total: int, title: str) -> Iterator[Metrics | None]:
    if not world.is_main:
        yield None
        return
    tracker = open_tracker(recipe.run.track, run, as_table(recipe)) if recipe.run.track else None
    with Metrics(run, start=start, stop=total, title=title, tracker=tracker) as metrics:
        metrics.event("resume" if start else "start", step=start)
        yield metrics
        metrics.event("end", step=total)


def _stop_after_step(number: int, before: Sequence[int]) -> None:
    """A second Ctrl-C ends the process at once."""
    if number == signal.SIGINT:
        if number in before:
            raise KeyboardInterrupt
        _tell("stopping after this step; Ctrl-C again stops at once")


def _stop_at_once(run: Path | None, number: int, before: Sequence[int]) -> None:
    """Nothing is lost yet, and what there is to wait for (tars, a graph) may take longer than a scheduler does."""
    if run is not None:
        with suppress(OSError, ValueError, KeyError):  # no run.json yet, or a full disk
            if run_folder.status_of(run) != "finished":
                run_folder.set_status(run, "stopped")
        _tell("stopped before the first step; the same command with --resume starts again")
    os._exit(INTERRUPTED)


def _tell(line: str) -> None:
    """From a signal's handler, which may have interrupted a print."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())
