"""What a run needs before its first step: settings that fit, the plan, the encoder, and what its folder holds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shards.atomic import json_bytes, sweep, write_json
from shards.bars import say
from shards.config import from_table
from shards.errors import NO_LOCKS, UserError
from shards.graph import Graph
from shards.machine import cores
from shards.reader import Shards
from trainer.checkpoint import NotRead, checkpoint_path, checkpoints, read_checkpoint
from trainer.model import build_encoder
from trainer.own import code_id, normal
from trainer.plan import BatchPlan
from trainer.recipe import Recipe, as_table, differences
from trainer.step import Stepper
from trainer.table import TextTable
from trainer.text import Captions, TextTower, vocabulary
from trainer.trackers import library_of
from trainer.world import World

__all__ = [
    "alone",
    "build_stepper",
    "check_same",
    "describe_run",
    "graph_id",
    "graph_name",
    "graph_of",
    "held",
    "make_plan",
    "monitors_graph",
    "resume_state",
    "set_status",
    "settle",
    "start_kept",
    "status_kept",
    "status_of",
    "workers",
]


# Pixels. Below, strided convolutions meet maps of one pixel, where PyTorch's bfloat16 gradients on CPUs hold memory
# that was never written (torch 2.14, oneDNN; docs/decisions.md).
SMALL = 32


def make_plan(recipe: Recipe, shards: Shards) -> BatchPlan:
    return BatchPlan(
        shard_sizes=[shard.samples for shard in shards.manifest.shards],
        batch_size=recipe.data.batch_size,
        seed=recipe.seed,
        window=recipe.data.window,
        grouped=recipe.data.grouped,
        groups=shards.index.group if recipe.data.grouped else None,
    )


def graph_of(recipe: Recipe, shards: Shards) -> Graph | None:
    """The graph that xclr trains on; None for other objectives."""
    return shards.graph(recipe.data.graph or None) if recipe.objective.name == "xclr" else None


def monitors_graph(recipe: Recipe, shards: Shards) -> Graph | None:
    """For an objective without one: any that is there, by whose codes the monitor says how alike neighbours are.

    None where there are labels, by which it says more.
    """
    name = recipe.data.graph or (shards.graph_names() or [""])[0]
    labelled = bool((shards.index.label >= 0).all())
    try:
        return shards.graph(name) if name and not labelled else None
    except UserError as error:
        say(f"warning: {error}; the run does without")
        return None


def build_stepper(
    recipe: Recipe, shards: Shards, graph: Graph | None, world: World, *, steps_per_epoch: int, fresh: bool = True
) -> Stepper:
    """fresh: with the weights that a new run starts from; a resumed one loads its own, and fetches none."""
    _choose_kernels(deterministic=recipe.deterministic)
    objective = recipe.objective
    soft = objective.name == "xclr" and graph is not None
    table = TextTable.from_graph(graph, world.device, tail=objective.tail) if soft and graph else None
    model = recipe.model if fresh else replace(recipe.model, pretrained=False, start="")
    encoder = build_encoder(model, recipe.augment.image_size, recipe.seed)
    captions = None
    if objective.name == "clip":
        texts = shards.texts()
        words = vocabulary(texts, recipe.text.words)
        captions = Captions(texts, words, recipe.text.length)
        encoder.text = TextTower(recipe.text, len(words), recipe.model.projector_dim, objective.tau)
    return Stepper(recipe, encoder, world, steps_per_epoch=steps_per_epoch, table=table, captions=captions)


def _choose_kernels(*, deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch refuses cuBLAS's products
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()  # shapes stay the same


def settle(recipe: Recipe, shards: Shards, world: World, run: Path | None = None) -> Recipe:
    """Resolve what `auto` and the absence of a graph's name mean here, and check that data and objective fit.

    run: a run that is gone on with keeps its graph, though others have come.
    """
    shards.check_sizes()
    if recipe.run.track:
        library_of(recipe.run.track)  # before anything slow
    objective = recipe.objective.name
    if objective == "supcon" and (len(shards) == 0 or (shards.index.label < 0).any()):
        raise UserError(
            f"supcon needs a label for every sample, and {shards.root} has samples without: use xclr or simclr"
        )
    if objective == "clip" and not shards.manifest.texts:
        raise UserError(
            f"clip needs captions, and {shards.root} has none: use simclr, or supcon where there are labels"
        )
    if shards.manifest.split != "train":
        raise UserError(
            f"{shards.root} holds the {shards.manifest.split} split of {shards.manifest.dataset}, not training data"
        )
    precision = recipe.precision
    if precision == "auto":
        small = world.device.type == "cpu" and recipe.augment.image_size < SMALL
        precision = "bfloat16" if _fast_bfloat16(world.device) and not small else "float32"
    data = replace(recipe.data, graph=graph_name(recipe, shards, run))
    model = replace(recipe.model, backbone=normal(recipe.model.backbone))
    return replace(recipe, precision=precision, data=data, model=model)


def graph_name(recipe: Recipe, shards: Shards, run: Path | None) -> str:
    """The graph's name where one is trained on: as asked for, else the run's own, else the only one there is."""
    if recipe.data.graph or recipe.objective.name != "xclr":
        return recipe.data.graph
    names = shards.graph_names()
    if run and len(names) > 1:
        with suppress(OSError, ValueError, KeyError, TypeError):  # none yet, or torn: then it has to be said
            known = json.loads((run / "run.json").read_text(encoding="utf-8"))["recipe"]["data"]["graph"]
            if known in names:
                return str(known)
    return shards.graph_name(None)


def _fast_bfloat16(device: torch.device) -> bool:
    """Where bfloat16 has instructions of its own. On AVX512-BF16 a ResNet step took 0.4-0.6 of the float32 time; on
    CPUs that emulate it, it is far slower (docs/decisions.md)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent before torch 2.12
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


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
    said = torch.tensor(step, device=world.device)
    dist.broadcast(said, 0)
    step = int(said)
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


NEW, REFUSED = -1, -2


def _chosen_state(run: Path, recipe: Recipe, data_id: str, *, resume: bool) -> dict[str, Any] | None:
    found = checkpoints(run)
    if not found:
        return None
    state, torn = _newest_readable(found)
    before = from_table(Recipe, json.loads(state["recipe"]), where=str(found[-1]))  # new options take their defaults
    # Where the shards lie may change; whether they are the same ones is asked of the manifest.
    # A run of an earlier version has no graph's name where there was one graph only.
    graph = before.data.graph or recipe.data.graph
    before = replace(before, data=replace(before.data, shards=recipe.data.shards, graph=graph))
    before = replace(before, model=replace(before.model, backbone=normal(before.model.backbone)))
    chunk, before = before.data.chunk, replace(before, data=replace(before.data, chunk=recipe.data.chunk))
    unlike = differences(as_table(recipe), as_table(before))
    if unlike:
        raise UserError(
            f"{run} holds a run of another recipe ({'; '.join(unlike[:4])}): choose another --out, with --start {run} "
            "to begin with its weights"
        )
    if state["data"] != data_id:
        raise UserError(f"{run} holds a run on other shards than {recipe.data.shards} is now: choose another --out")
    if not resume:
        raise UserError(f"{run} holds a run at step {state['step']}: add --resume to go on, or choose another --out")
    if chunk != recipe.data.chunk:  # fewer GPUs may have to
        say(f"note: {recipe.data.chunk or 'all'} samples of a rank at a time from here on: what BatchNorm sees at once")
    for path in torn:  # else they would stay the newest for whoever asks next
        with suppress(OSError):
            path.rename(path.with_suffix(".torn"))
    return state


def graph_id(recipe: Recipe, graph: Graph | None) -> str:
    """A checksum of graph.json, which holds those of the graph's files; empty where none is trained on."""
    if graph is None or recipe.objective.name != "xclr":
        return ""
    return hashlib.sha256(json_bytes(graph.meta)).hexdigest()


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
    """Hold the run's folder against a second training. The lock goes with the process, however it ends.

    It is of the kind that forked processes do not share: a killed run's loader workers live some seconds longer.
    """
    run.mkdir(parents=True, exist_ok=True)
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
        yield


def describe_run(run: Path, recipe: Recipe, shards: Shards, *, step: int, total: int, status: str = "running") -> None:
    """Write run.json. step: of the newest checkpoint."""
    write_json(
        run / "run.json",
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
    return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["status"])


def set_status(run: Path, status: str, step: int | None = None) -> None:
    """step: of the newest checkpoint; None: as it was."""
    path = run / "run.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**before, "status": status, "step": before["step"] if step is None else step})


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


def workers(recipe: Recipe, world: World) -> int:
    if recipe.run.workers >= 0:
        return recipe.run.workers
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, cores() // ranks_here)
