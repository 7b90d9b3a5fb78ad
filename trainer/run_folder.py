"""A run's folder: held against a second training, what it says of the run, and what to go on from.

runs/NAME/lock        held while a process trains into the folder
runs/NAME/run.json    recipe, data, step of the newest checkpoint, status: running, stopped, failed, finished
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch

from shards.atomic import json_bytes, sweep, write_json
from shards.bars import say
from shards.errors import NO_LOCKS, UserError
from shards.graph import Graph
from shards.reader import Shards, is_finished
from shards.remote import shown
from trainer.checkpoint import NotRead, checkpoint_path, checkpoints, read_checkpoint
from trainer.collectives import of_rank_0
from trainer.described import DESCRIPTION, described
from trainer.own import code_id, normal
from trainer.recipe import Recipe, as_table, differences, stored_recipe
from trainer.world import World

__all__ = [
    "alone",
    "check_same",
    "contents_id",
    "describe_run",
    "graph_id",
    "held",
    "resume_state",
    "set_status",
    "start_kept",
    "status_of",
]

NEW, REFUSED = -1, -2  # in place of a step, from rank 0


def resume_state(run: Path, recipe: Recipe, data_id: str, world: World, *, resume: bool) -> dict[str, Any] | None:
    """What to go on from; None: from the start. Raises UserError for a run of another recipe or of other data.

    Rank 0 chooses the checkpoint for all: each by itself might see other files of a shared folder, and train on.
    """
    if world.size == 1:
        return _chosen_state(run, recipe, data_id, resume=resume)
    state, refused, step = None, None, NEW
    if world.is_main:
        try:
            state = _chosen_state(run, recipe, data_id, resume=resume)
            step = NEW if state is None else int(state["step"])
        except UserError as error:
            refused, step = error, REFUSED
    step = of_rank_0(step, world)
    if refused:
        raise refused
    if step == REFUSED:
        raise UserError("rank 0 does not start, and says why")
    if step == NEW or world.is_main:
        return state
    try:
        return read_checkpoint(checkpoint_path(run, step))
    except UserError as error:
        raise UserError(f"rank {world.rank}: {error}; all ranks read {run}, which must be on a shared disk") from None


def _chosen_state(run: Path, recipe: Recipe, data_id: str, *, resume: bool) -> dict[str, Any] | None:
    found = checkpoints(run)
    if not found:
        if resume and (lost := _steps_done(run)):
            say(f"warning: {run} was at step {lost} and has no checkpoints any more: it starts anew")
        return None
    state, torn = _newest_readable(found)
    before = stored_recipe(json.loads(state["recipe"]), where=str(found[-1]))
    # Where the shards lie may change; whether they are the same ones is asked of the manifest.
    # A run of an earlier version has no graph's name where there was one graph only.
    graph = before.data.graph or recipe.data.graph if recipe.objective.name == "xclr" else recipe.data.graph
    before = replace(before, data=replace(before.data, shards=recipe.data.shards, graph=graph))
    mean, std = before.model.statistics  # left open by a run of an earlier version
    before = replace(before, model=replace(before.model, backbone=normal(before.model.backbone), mean=mean, std=std))
    if recipe.objective.name != "xclr":  # where they change nothing
        kept = replace(before.objective, tau_s=recipe.objective.tau_s, tail=recipe.objective.tail)
        before = replace(before, objective=kept)
    chunk, before = before.data.chunk, replace(before, data=replace(before.data, chunk=recipe.data.chunk))
    unlike = differences(as_table(recipe), as_table(before))
    if unlike:
        raise UserError(
            f"{run} holds a run of another recipe ({'; '.join(unlike[:4])}): choose another --out; with --start "
            f"{quote(str(run))} to begin with its weights"
        )
    if state["data"] != data_id:
        raise UserError(
            f"{run} holds a run on other shards than {shown(recipe.data.shards)} is now: choose another --out; with "
            f"--start {quote(str(run))} to begin with its weights"
        )
    if not resume:
        raise UserError(f"{run} holds a run at step {state['step']}: add --resume to go on, or choose another --out")
    if chunk != recipe.data.chunk:  # fewer GPUs may have to
        say(f"note: {recipe.data.chunk or 'all'} samples of a rank at a time from here on: what BatchNorm sees at once")
    for path in torn:  # else they would stay the newest for whoever asks next
        with suppress(OSError):
            path.rename(path.with_suffix(".torn"))
    return state


def _steps_done(run: Path) -> int:
    """By run.json: the step of a checkpoint that was there; 0 where none was, or nothing can be read."""
    with suppress(ValueError, TypeError):
        return int(described(run).get("step", 0))
    return 0


def graph_id(recipe: Recipe, graph: Graph | None) -> str:
    """A checksum of graph.json, which holds those of the graph's files; empty where none is trained on."""
    return "" if graph is None or recipe.objective.name != "xclr" else contents_id(graph)


def contents_id(graph: Graph) -> str:
    """sha256 of graph.json, but for a count that graphs from before 2026-11-27 lack, and that no training reads."""
    return hashlib.sha256(json_bytes({k: v for k, v in graph.meta.items() if k != "as_another"})).hexdigest()


def check_same(run: Path, state: dict[str, Any] | None, recipe: Recipe, graph: Graph | None) -> None:
    """Raises UserError where the run would go on with another graph, or another network, under the same name."""
    for key, now, what in (
        ("graph", graph_id(recipe, graph), "on another graph than has its name now"),
        ("code", code_id(recipe.model.backbone), f"with another {recipe.model.backbone.rpartition(':')[0]}"),
    ):
        if state and state.get(key, now) != now:
            raise UserError(f"{run} was trained {what}: put that one back, or choose another --out")


def _newest_readable(found: list[Path]) -> tuple[dict[str, Any], list[Path]]:
    """And those that are newer, but torn, each of which costs the steps since the one before."""
    torn = []
    for path in reversed(found):
        try:
            state = read_checkpoint(path)
        except NotRead:
            raise
        except UserError as error:
            say(f"warning: {error}")
            torn.append(path)
            continue
        if torn:
            say(f"going on from the one before, {path.name}")
        return state, torn
    run = found[0].parent.parent
    raise UserError(f"none of the checkpoints of {run} is readable: delete the folder, or choose another --out")


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Hold the run's folder against a second training. The lock goes with the process, however it ends. Raises
    UserError for a folder that another process trains into, that cannot be made, or that holds shards.

    It is of the kind that forked processes do not share: a killed run's loader workers live some seconds longer.
    """
    made = not run.exists()
    if is_finished(run):
        raise UserError(f"{run} is a folder of shards: choose another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run} cannot be made ({error.strerror}): choose another --out") from None
    with (run / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process is training into {run}: wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"warning: the disk of {run} has no locks: see to it that nothing else trains into that folder")
        sweep(run, run / "checkpoints")  # what a killed run was writing
        try:
            yield
        finally:
            with suppress(OSError):  # of a run that was refused nothing stays
                if made and [path.name for path in run.iterdir()] == ["lock"]:
                    (run / "lock").unlink()
                    run.rmdir()


def describe_run(run: Path, recipe: Recipe, shards: Shards, *, step: int, total: int, status: str = "running") -> None:
    """Write run.json. step: of the newest checkpoint."""
    write_json(
        run / DESCRIPTION,
        {
            "recipe": as_table(recipe),
            "dataset": shards.manifest.dataset,
            "samples": len(shards),
            "steps": total,
            "status": status,
            "step": step,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def status_of(run: Path) -> str:
    """Raises KeyError where nothing says."""
    return str(described(run)["status"])


def set_status(run: Path, status: str, step: int | None = None) -> None:
    """step: of the newest checkpoint; None: as it was."""
    before = described(run)
    write_json(run / DESCRIPTION, {**before, "status": status, "step": before["step"] if step is None else step})


@contextmanager
def held(run: Path) -> Iterator[None]:
    """The run's folder, from before anything is decided until the end, however it comes."""
    with alone(run), status_kept(run):
        yield


@contextmanager
def start_kept(run: Path) -> Iterator[None]:
    """Before the folder is held: run.json of a stopped run says `failed` after an error, of one that another process
    trains nothing new."""
    try:
        yield
    except Exception:
        with suppress(OSError, ValueError, KeyError):
            if status_of(run) == "stopped":
                set_status(run, "failed")
        raise


@contextmanager
def status_kept(run: Path) -> Iterator[None]:
    """run.json says `stopped` after a signal (--resume goes on), `failed` after an error that may well come again, also
    before the first step.

    Of a run that was killed it goes on saying `running`.
    """
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt) or getattr(error, "by", None) is not None
        with suppress(OSError, ValueError, KeyError):  # of a full disk, which is the error itself, or no run.json yet
            if status_of(run) != "finished":
                set_status(run, "stopped" if stopped else "failed")
        raise
