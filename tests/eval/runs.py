"""Runs of seconds, and the command line in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from eval.cli import main
from tests.make import make_shards
from trainer.loop import train
from trainer.recipe import Recipe, from_table
from trainer.world import World


def train_run(shards: Path | str, run: Path, objective: str = "simclr", *, epochs: int = 1, seed: int = 0) -> Path:
    """A miniature run with checkpoints and metrics; all objectives start from the same weights."""
    table: dict[str, Any] = {
        "name": "test",
        "epochs": epochs,
        "seed": seed,
        "precision": "float32",
        "data": {"shards": str(shards), "batch_size": 8},
        "augment": {"image_size": 16, "blur": 0.0},
        "model": {"backbone": "test_vit", "projector_norm": "layer", "projector_hidden": 32, "projector_dim": 16},
        "objective": {"name": objective},
        "optimiser": {"name": "adamw", "lr": 1e-3, "lr_scaling": "none", "warmup_epochs": 0.5},
        "run": {"workers": 0, "log_every": 1, "checkpoint_every": 100, "knn_every": 1},
    }
    train(from_table(Recipe, table, where="test"), run, World(device=torch.device("cpu")))
    return run


def small_run(root: Path) -> Path:
    """A run on a handful of shards, root/runs/one."""
    return train_run(make_shards(root / "shards", sizes=(24,)), root / "runs" / "one")


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def suite_results(world: Path, config: str, out: str) -> dict[str, Any]:
    """Of `xclr-eval suite` in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        assert run_eval(["suite", "--config", config, "--out", out]) == 0
    return read(world / out / "results.json")


def run_eval(arguments: list[str]) -> int:
    """The exit code of `xclr-eval ARGUMENTS`."""
    with mock.patch.object(sys, "argv", ["xclr-eval", *arguments]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0
