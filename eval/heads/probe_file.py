"""Probes kept on disk: one trained on ImageNet's features serves ReaL, ImageNet-9 and ObjectNet as well."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from eval.benchmarks.bench import ImageSet, Ints, Task
from eval.features import DAMAGED, Features, device
from eval.heads.bank import Bank
from eval.heads.estimate import announce
from eval.heads.probe import Candidate, Probe, ProbeConfig, fit_probe, probe_steps
from eval.heads.probe_views import fit_views
from eval.models.model import Model
from shards.atomic import atomic_file
from shards.bars import bar, say

__all__ = ["kept_probes"]

ARRAYS = ("mean", "scale", "weight")
VERSION = 5  # of the arithmetic in eval/heads/solvers.py: raise it when weights change


def kept_probes(
    model: Model,
    images: ImageSet,
    features: Features,
    tasks: Sequence[tuple[Task, Ints]],
    config: ProbeConfig,
    root: Path,
    *,
    views: bool,
) -> dict[str, Probe]:
    """The probes of tasks on one ImageSet, each with the rows it trains on: read from `root`, or trained, kept there.

    views: on augmented views (eval/heads/probe_views.py), not on the features.
    """
    paths = {task.name: root / f"{_name(task, features, rows, config, views)}.npz" for task, rows in tasks}
    found = {name: probe for name, path in paths.items() if (probe := _read(path)) is not None}
    if found:
        say(f"the probe trained before is used again ({', '.join(found)})")
    missing = [(task, rows) for task, rows in tasks if task.name not in found]
    if views and missing:
        trained = fit_views(model, images, features, missing, config)
    else:
        trained = {task.name: _fit(task, features, rows, config) for task, rows in missing}
    for name, probe in trained.items():
        _write(paths[name], probe)
    return {**found, **trained}


def _fit(task: Task, features: Features, rows: Ints, config: ProbeConfig) -> Probe:
    bank = Bank(features, rows)
    announce(task.name, bank, len(task.classes), config)
    with bar(f"probe for {task.name}", probe_steps(len(rows), config)) as advance:
        return fit_probe(bank, task.labels[rows], len(task.classes), config, advance)


def _name(task: Task, features: Features, rows: Ints, config: ProbeConfig, views: bool) -> str:
    what = [VERSION, features.hash, len(task.classes), asdict(config), views]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    digest.update(rows.tobytes())
    digest.update(task.labels[rows].tobytes())
    return digest.hexdigest()[:32]


def _write(path: Path, probe: Probe) -> None:
    words = {
        "chosen": asdict(probe.chosen),
        "table": probe.table,
        "trained_on": probe.trained_on,
        "held_out": probe.held_out,
    }
    arrays = {name: getattr(probe, name).cpu().numpy() for name in ARRAYS}
    with atomic_file(path) as file:
        np.savez(file, words=np.array(json.dumps(words)), **arrays)


def _read(path: Path) -> Probe | None:
    """None where there is none, or a damaged one, which training writes again."""
    try:
        with path.open("rb") as file, np.load(file) as data:
            words = json.loads(str(data["words"]))
            found = Probe(
                chosen=Candidate(**words["chosen"]),
                table=words["table"],
                trained_on=words["trained_on"],
                held_out=words["held_out"],
                **{name: torch.from_numpy(data[name]) for name in ARRAYS},
            )
    except DAMAGED:
        return None
    return replace(found, **{name: getattr(found, name).to(device()) for name in ARRAYS})
