"""Runs of seconds: a recipe, the command line that trains by it, and what a run leaves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.config import from_table
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.loop import Stopped, train
from trainer.recipe import Recipe
from trainer.step import Stepper
from trainer.world import World

ALONE = World(device=torch.device("cpu"))
SIZES = (30, 25, 29)


def table(shards: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of seconds: a ViT without batch statistics, 10 steps an epoch."""
    recipe: dict[str, Any] = {
        "epochs": 2,
        "precision": "float32",
        "data": {"shards": str(shards), "batch_size": 8},
        "augment": {"image_size": 16, "blur": 0.0},
        "model": {"backbone": "test_vit", "projector_norm": "layer", "projector_hidden": 32, "projector_dim": 16},
        "text": {"width": 32, "layers": 1, "heads": 2},
        "optimiser": {"name": "adamw", "lr": 1e-3, "lr_scaling": "none", "warmup_epochs": 0.5},
        "run": {"workers": 0, "log_every": 1, "checkpoint_every": 3, "knn_every": 1},
    }
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (recipe.setdefault(section, {}) if section else recipe)[name] = value
    return recipe


def recipe(shards: Path, **changes: Any) -> Recipe:
    return from_table(Recipe, {"name": "test", **table(shards, **changes)}, where="test")


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines_of(run) if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = read_checkpoint(checkpoints(run)[-1])["encoder"]
    return state


def command(shards: Path, run: Path, ranks: int = 1, **changes: Any) -> list[str]:
    """The command line of such a run, through torchrun for several ranks."""
    path = run.parent / f"{run.name}.toml"
    lines = []
    sections = table(shards, **changes)
    lines += [f"{k} = {json.dumps(v)}" for k, v in sections.items() if not isinstance(v, dict)]
    for section, values in sections.items():
        if isinstance(values, dict):
            lines += [f"[{section}]"] + [f"{k} = {json.dumps(v)}" for k, v in values.items()]
    path.write_text("\n".join(lines))
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    return [*start, "trainer.cli", "--recipe", str(path), "--out", str(run), "--device", "cpu", "--resume"]


def trained(world: World, chosen: Recipe, run: Path, resume: bool = False) -> None:
    train(chosen, run, world, resume=resume)


def env() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def stop_at(monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    steps = Stepper.step

    def tell(self: Stepper, batch: Any, step: int, total: int) -> Any:
        if step == stop:
            raise Stopped("stopped", by=15)
        return steps(self, batch, step, total)

    monkeypatch.setattr(Stepper, "step", tell)
