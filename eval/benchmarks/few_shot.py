"""Few-shot: the same benchmark with a fixed share of its training images.

An image's place in its class is the rank of sha256(key), so subsets depend on nothing but the names of the files, are
the same on every machine, and the smaller ones lie within the larger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eval.benchmarks.bench import LEFT_OUT, Bench, Ints, Task, fingerprint
from shards.errors import UserError

__all__ = ["few_shot"]


def few_shot(bench: Bench, percent: float) -> Bench:
    """Tasks keep `percent` of each class (rounded, at least one image), the rest is LEFT_OUT; the notes say which."""
    if not 0 < percent < 100:
        raise UserError(f"--few-shot is a percentage between 0 and 100, not {percent:g}")
    tasks, notes = [], {}
    for task in bench.tasks:
        keys = bench.by_name[task.images].keys
        kept = _keep(task, keys, percent)
        tasks.append(replace(task, labels=np.where(kept, task.labels, LEFT_OUT)))
        chosen = [keys[row] for row in np.flatnonzero(kept).tolist()]
        notes[task.name] = {"images": len(chosen), "sha256": fingerprint(chosen)}
    return replace(bench, tasks=tuple(tasks), notes={**bench.notes, "few_shot": {"percent": percent, **notes}})


def _keep(task: Task, keys: Sequence[str], percent: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    order = np.array([hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8] for key in keys], "S8")
    ranked: Ints = np.lexsort((order, task.labels)).astype(np.int64)  # by class, then by hash
    counts = np.bincount(task.labels - LEFT_OUT, minlength=len(task.classes) + 1)  # LEFT_OUT first
    wanted = np.where(counts > 0, np.maximum(1, np.round(counts * percent / 100)), 0).astype(np.int64)
    wanted[0] = 0
    within = np.arange(len(ranked)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.zeros(len(keys), bool)
    kept[ranked[within < np.repeat(wanted, counts)]] = True
    return kept
