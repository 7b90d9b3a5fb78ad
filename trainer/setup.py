"""What a run needs before its first step: settings that fit, the plan, the encoder."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from shards.bars import say
from shards.errors import UserError
from shards.graph import Graph
from shards.machine import cores
from shards.mirror import RemoteShards
from shards.reader import Shards
from trainer.agree import meet
from trainer.checkpoint import checkpoints
from trainer.described import described
from trainer.memory import check_fits, room_for_weights
from trainer.model import build_encoder, statistics_of_run, with_statistics
from trainer.monitor import mostly_labelled
from trainer.own import normal
from trainer.plan import BatchPlan
from trainer.recipe import Recipe
from trainer.share import read_for_all
from trainer.step import Stepper
from trainer.table import TextTable
from trainer.text import Captions, TextTower, vocabulary
from trainer.trackers import library_of
from trainer.world import World

__all__ = [
    "build_stepper",
    "check_split",
    "graph_name",
    "graph_of",
    "make_plan",
    "monitors_graph",
    "settle",
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


def graph_of(recipe: Recipe, shards: Shards, world: World) -> Graph | None:
    """The graph that xclr trains on; None for other objectives, whose monitor may look at one that is named. All ranks
    of `world` call it together."""
    name = recipe.data.graph or None
    if recipe.objective.name != "xclr":
        if name:
            with suppress(UserError):  # which `monitors_graph` tells
                shards.fetch_graph(name)
        return None
    shards.fetch_graph(name)
    meet(world, "graph")
    return read_for_all(partial(shards.graph, name), world)


def monitors_graph(recipe: Recipe, shards: Shards) -> Graph | None:
    """For an objective without one: any that is there, by whose codes the monitor says how alike neighbours are.

    None where there are labels, by which it says more, and where it would have to be fetched unasked: the other ranks
    would not wait for that.
    """
    name = recipe.data.graph
    if not name and not isinstance(shards, RemoteShards):
        name = (shards.graph_names() or [""])[0]
    labelled = mostly_labelled(shards)
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
    model = recipe.model if fresh else replace(recipe.model, start="")
    captions = None
    with room_for_weights():
        encoder = build_encoder(model, recipe.augment.image_size, recipe.seed)
        if objective.name == "clip":
            texts = shards.texts()
            words = vocabulary(texts, recipe.text.words)
            captions = Captions(texts, words, recipe.text.length)
            encoder.text = TextTower(recipe.text, len(words), recipe.model.projector_dim, objective.tau)
    check_fits(encoder, recipe, world)
    return Stepper(recipe, encoder, world, steps_per_epoch=steps_per_epoch, table=table, captions=captions)


def _choose_kernels(*, deterministic: bool) -> None:
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch refuses cuBLAS's products
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()  # shapes stay the same


def settle(recipe: Recipe, shards: Shards, world: World, run: Path | None = None) -> Recipe:
    """Resolve what `auto` and the absence of a graph's name mean here, and check that data and objective fit.

    run: a run that is gone on with keeps its graph, though others have come, and what its images are normalised by.
    """
    shards.check_sizes()
    if recipe.run.track:
        library_of(recipe.run.track)  # before anything slow
    objective = recipe.objective.name
    if objective == "supcon" and not (shards.index.label >= 0).any():
        raise UserError(
            f"supcon needs labels, and no sample of {shards.root} has one: use xclr or simclr, or build shards with "
            "labels (docs/sources.md)"
        )
    if objective == "clip" and not shards.manifest.texts:
        raise UserError(
            f"clip needs captions, and {shards.root} has none: use simclr, or supcon where there are labels"
        )
    check_split(shards)
    precision = recipe.precision
    if precision == "auto":
        small = world.device.type == "cpu" and recipe.augment.image_size < SMALL
        precision = "bfloat16" if _fast_bfloat16(world.device) and not small else "float32"
    data = replace(recipe.data, graph=graph_name(recipe, shards, run))
    before = statistics_of_run(run) if run and checkpoints(run) else None
    model = with_statistics(replace(recipe.model, backbone=normal(recipe.model.backbone)), before)
    return replace(recipe, precision=precision, data=data, model=model)


def check_split(shards: Shards) -> None:
    """Raises UserError for a test split."""
    if shards.manifest.split != "train":
        raise UserError(
            f"{shards.root} holds the {shards.manifest.split} split of {shards.manifest.dataset}, not training data"
        )


def graph_name(recipe: Recipe, shards: Shards, run: Path | None) -> str:
    """The graph's name where one is trained on: as asked for, else the run's own, else the only one there is."""
    if recipe.data.graph or recipe.objective.name != "xclr":
        return recipe.data.graph
    names = shards.graph_names()
    if run and len(names) > 1:
        with suppress(KeyError, TypeError):  # none yet, or torn: then it has to be said
            known = described(run)["recipe"]["data"]["graph"]
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


def workers(recipe: Recipe, world: World) -> int:
    if recipe.run.workers >= 0:
        return recipe.run.workers
    return max(1, cores() // world.local_size)
