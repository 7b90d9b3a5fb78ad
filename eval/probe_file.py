"""Probes kept on disk: one trained on ImageNet's features serves ReaL, ImageNet-9 and ObjectNet as well."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch

from eval.bars import bar, say
from eval.bench import Ints, Task
from eval.features import Features
from eval.probe import Candidate, Probe, ProbeConfig, fit_probe, probe_steps
from shards.atomic import atomic_file

__all__ = ["kept_probe"]

VERSION = 2  # of the arithmetic in eval/probe.py: raise it when weights change


def kept_probe(task: Task, features: Features, rows: Ints, config: ProbeConfig, root: Path) -> Probe:
    """The task's probe on rows of its features: read from `root`, or trained and kept there."""
    labels = task.labels[rows]
    path = root / f"{_name(features, labels, rows, len(task.classes), config)}.npz"
    found = _read(path)
    if found is not None:
        say(f"{task.name}: the probe trained before is used again")
        return found
    with bar(f"probe for {task.name}", probe_steps(len(rows), config)) as advance:
        probe = fit_probe(features.rows(rows), labels, len(task.classes), config, advance)
    _write(path, probe)
    return probe


def _name(features: Features, labels: Ints, rows: Ints, classes: int, config: ProbeConfig) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, features.hash, classes, asdict(config)], sort_keys=True).encode())
    digest.update(rows.tobytes())
    digest.update(labels.tobytes())
    return digest.hexdigest()[:32]


def _write(path: Path, probe: Probe) -> None:
    words = {
        "kind": probe.kind,
        "chosen": asdict(probe.chosen),
        "table": probe.table,
        "trained_on": probe.trained_on,
        "held_out": probe.held_out,
    }
    arrays = {name: getattr(probe, name).cpu().numpy() for name in ("mean", "scale", "weight")}
    with atomic_file(path) as file:
        np.savez(file, words=np.array(json.dumps(words)), **arrays)


def _read(path: Path) -> Probe | None:
    """None where there is none, or a damaged one, which training writes again."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with np.load(path) as data:
            words = json.loads(str(data["words"]))
            arrays = {name: torch.from_numpy(data[name]).to(device) for name in ("mean", "scale", "weight")}
        return Probe(
            kind=words["kind"],
            chosen=Candidate(**words["chosen"]),
            table=words["table"],
            trained_on=words["trained_on"],
            held_out=words["held_out"],
            **arrays,
        )
    except (OSError, ValueError, KeyError, BadZipFile):
        return None
