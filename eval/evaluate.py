"""One model on one benchmark by one method: features, heads, scores, and a JSON value that says how."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from math import sqrt
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Any, Literal

import numpy as np

from eval.benchmarks.bench import LEFT_OUT, Bench, Column, Floats, Ints, Scorer, Summary, Task
from eval.benchmarks.few_shot import few_shot
from eval.features import Features, extract
from eval.heads.bank import Bank
from eval.heads.knn import KNN, KNNConfig, check_neighbours
from eval.heads.probe import Probe, ProbeConfig, check_split
from eval.heads.probe_file import kept_probes
from eval.models.model import Model, as_it_is_now, transform_table
from shards.atomic import atomic_file
from shards.bars import say
from shards.errors import UserError

__all__ = [
    "DIGITS",
    "METHODS",
    "Method",
    "Settings",
    "evaluate",
    "evaluation_hash",
    "hits_of",
    "is_whole",
    "method_table",
    "prepared",
    "wilson",
]

DIGITS = 6  # behind the point, of percentages that are kept: what is shown is rounded once

Method = Literal["linear_probe", "knn"]
METHODS: tuple[Method, ...] = ("linear_probe", "knn")
VERSION = 5  # of the protocol: raise it when figures change
Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval
PACKAGES = ("torch", "timm", "numpy", "opencv-python-headless")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to evaluate."""

    features: Path
    """Where features and probes are kept."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    knn: KNNConfig = field(default_factory=KNNConfig)
    partial: bool = False
    """Accept other counts than the benchmark's, and mark the result."""
    views: bool = False
    """Protocol `views`: the probe trains on augmented views."""
    few_shot: float | None = None
    """Percent of the training images; None: all."""


def evaluate(model: Model, bench: Bench, method: Method, settings: Settings) -> dict[str, Any]:
    """Every column of a benchmark, of the weights that the model has now. Raises UserError, among others where a count
    is not the benchmark's; TypeError for what is no Model."""
    if method not in METHODS:
        raise UserError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if not isinstance(model, Model):
        raise TypeError(f"model is a Model, not {type(model).__name__}: model_of(network, name, transform) makes one")
    settings = replace(settings, features=Path(settings.features))
    model = as_it_is_now(model)
    bench = prepared(bench, method, settings)
    features = {images.name: extract(model, images, settings.features) for images in bench.sets}
    reused = [name for name, values in features.items() if values.reused]
    if reused:
        say(f"{model.name} on {bench.name}: features from before are used again ({', '.join(reused)})")
    heads, chosen = _heads(model, bench, features, method, settings)
    hits = _hits(bench, heads, features)
    columns = {
        column.name: _figure(column, hits[column.name], features[column.images], bench, settings)
        for column in bench.columns
    }
    return {
        "bench": bench.name,
        "root": str(bench.root),
        "method": method,
        "partial": list(bench.partial) + _other_counts(bench, columns),
        "columns": columns,
        "summaries": {
            s.name: {"value": _summary(s, columns), "columns": list(s.columns), "about": s.about}
            for s in bench.summaries
        },
        "chosen": chosen,
        "model": dict(model.about),
        "feature_dim": model.feature_dim,
        "pictures": {
            name: {"count": len(values), "unreadable": int((~values.ok).sum()), "features": values.hash}
            for name, values in features.items()
        },
        "protocol": method_table(method, model, settings),
        "notes": {**bench.notes, **_kept_splits(bench, settings.features)},
        "versions": versions(),
    }


def prepared(bench: Bench, method: Method, settings: Settings) -> Bench:
    """The benchmark with the training images that are asked for. Raises UserError where they are too few: it costs
    nothing to ask before features are extracted."""
    if settings.few_shot is not None:
        bench = few_shot(bench, settings.few_shot)
    for task in bench.tasks:
        labels = task.labels[task.labels != LEFT_OUT]
        if method == "knn":
            check_neighbours(len(labels), settings.knn)
        elif len(labels):
            check_split(labels, settings.probe)
    return bench


def method_table(method: Method, model: Model, settings: Settings) -> dict[str, Any]:
    """The protocol, spelled out."""
    shared = {
        "version": VERSION,
        "features": f"frozen, {model.feature_dim} pooled features of the backbone; pictures seen once, centre crop",
        "transform": transform_table(model.transform),
    }
    few = {} if settings.few_shot is None else {"few_shot_percent": settings.few_shot}
    if method == "knn":
        vote = "exp(cosine / temperature) of the k nearest training images (Wu et al. 2018)"
        return {**shared, **few, "vote": vote, **asdict(settings.knn)}
    grid = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(settings.probe).items()}
    return {**shared, **few, **_probe_words(settings), **grid}


def _probe_words(settings: Settings) -> dict[str, Any]:
    classifier = "softmax regression on standardised features, from zero weights"
    if settings.views:
        return {
            "name": "views",
            "classifier": classifier,
            "training": "random crops of 0.08 to 1 of the area and flips, two an image and pass, epochs / 2 passes; "
            "SGD with momentum, cosine to 0, every candidate whole",
            "selection": "by accuracy on centre crops of a stratified part held out of the training images; the winner "
            "is not trained again on all of them",
        }
    selection = "by accuracy on a stratified part held out of the training images"
    if settings.probe.solver == "lbfgs":
        optimiser = "L-BFGS to convergence for each weight decay; learning rates have no say"
    else:
        optimiser = (
            "SGD with momentum, cosine to 0; learning rates relative to 1 / largest eigenvalue of the covariance"
        )
        selection += ", one training passing the ends of all learning rates"
    return {
        "name": "features",
        "classifier": classifier,
        "optimiser": optimiser,
        "selection": f"{selection}; the winner is trained again on all of them",
    }


def evaluation_hash(model: Model, bench: Bench, method: Method, settings: Settings) -> str:
    """Names a result: equal for equal weights, pictures, labels and protocol."""
    labels = {task.name: hashlib.sha256(task.labels.tobytes()).hexdigest() for task in bench.tasks}
    what = {
        "weights": model.sha256,
        "bench": bench.name,
        "pictures": {images.name: images.fingerprint for images in bench.sets},
        "labels": labels,
        "columns": [[column.name, column.about, column.score.truth] for column in bench.columns],
        "partial": bench.partial,
        "protocol": method_table(method, model, settings),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Of what decides figures."""
    return {"python": platform.python_version(), "xclr": version("xclr"), **{name: version(name) for name in PACKAGES}}


Head = Callable[[Floats], Floats]


def _heads(
    model: Model, bench: Bench, features: dict[str, Features], method: Method, settings: Settings
) -> tuple[dict[str, Head], dict[str, dict[str, Any]]]:
    """A trained head for each task, and what was chosen for it."""
    heads: dict[str, Head] = {}
    chosen: dict[str, dict[str, Any]] = {}
    for images in bench.sets:
        values = features[images.name]
        tasks = [(task, _rows(task, values)) for task in bench.tasks if task.images == images.name]
        if method == "knn":
            for task, rows in tasks:
                heads[task.name] = KNN(Bank(values, rows), task.labels[rows], len(task.classes), settings.knn).scores
                chosen[task.name] = {"trained_on": len(rows)}
        elif tasks:
            root = settings.features / "probes"
            probes = kept_probes(model, images, values, tasks, settings.probe, root, views=settings.views)
            heads.update({name: probe.scores for name, probe in probes.items()})
            chosen.update({name: _chosen(probe) for name, probe in probes.items()})
    return heads, chosen


def _rows(task: Task, features: Features) -> Ints:
    """The images a task trains on."""
    rows = np.flatnonzero((task.labels != LEFT_OUT) & features.ok).astype(np.int64)
    if not len(rows):
        raise UserError(f"{task.name}: no training image has a label")
    lost = np.setdiff1d(task.labels[task.labels != LEFT_OUT], task.labels[rows])
    if len(lost):
        count = int((task.labels == lost[0]).sum())
        raise UserError(
            f"{task.name}: none of the {count} training pictures of class {task.classes[lost[0]]!r} decodes "
            f"({len(lost)} such of {len(task.classes)} classes): mend them, or take the class out"
        )
    return rows


def _chosen(probe: Probe) -> dict[str, Any]:
    counts = {"trained_on": probe.trained_on, "held_out": probe.held_out}
    return {**asdict(probe.chosen), **counts, "candidates": probe.table}


def _hits(bench: Bench, heads: dict[str, Head], features: dict[str, Features]) -> dict[str, Floats]:
    """By column. A head is asked once for each block, however many columns judge its scores."""
    alike: dict[tuple[str, str], list[Column]] = {}
    for column in bench.columns:
        alike.setdefault((column.task, column.images), []).append(column)
    hits = {column.name: [np.zeros(0, np.float32)] for column in bench.columns}
    for (task, images), columns in alike.items():
        for rows, block in features[images].blocks():
            scores = heads[task](block)
            for column in columns:
                hits[column.name].append(column.score(scores, rows))
    return {name: np.concatenate(parts) for name, parts in hits.items()}


def _figure(column: Column, hits: Floats, features: Features, bench: Bench, settings: Settings) -> dict[str, Any]:
    counted = hits[~np.isnan(hits)]
    unreadable = _unreadable(column.score, features, len(_classes(bench, column)))
    found = len(counted) + unreadable
    if column.expected is not None and found != column.expected and not settings.partial:
        raise UserError(
            f"{bench.name}: {column.name} counts {found:,} images, the benchmark has {column.expected:,}: mend the "
            "copy, or give --partial to score what is there, and have the result marked so"
        )
    if not len(counted):
        raise UserError(f"{bench.name}: {column.name} counts no image")
    return {
        **_of_hits(counted),
        "n": len(counted),
        "unreadable": unreadable,
        "expected": column.expected,
        "about": column.about,
        "marked": column.marked,
        "hits": base64.b64encode(np.packbits(counted > 0).tobytes()).decode(),
        "counted": hashlib.sha256(np.flatnonzero(features.ok)[~np.isnan(hits)].tobytes()).hexdigest()[:16],
    }


def is_whole(value: object) -> bool:
    """Whether evaluate() may have left this value: nothing cut off, nothing that an earlier version did not know, no
    accuracy or interval but that of its hits."""
    needed = {"columns", "summaries", "chosen", "partial", "pictures", "protocol", "notes", "versions"}
    if not (isinstance(value, dict) and needed <= set(value)):
        return False
    figure = {"accuracy", "interval", "n", "unreadable", "about", "marked", "hits", "counted"}
    try:
        columns = value["columns"].values()
        return all(figure <= set(c) and _is_of(c, hits_of(c)) for c in columns)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _is_of(figure: dict[str, Any], hits: Floats) -> bool:
    return bool(0 < len(hits) == figure["n"] and _of_hits(hits).items() <= figure.items())


def _of_hits(hits: Floats) -> dict[str, Any]:
    """Accuracy and interval, in percent, as they are kept."""
    share = float(hits.mean(dtype=float))
    ends = [round(100 * end, DIGITS) for end in wilson(share, len(hits))]
    return {"accuracy": round(100 * share, DIGITS), "interval": ends}


def hits_of(column: dict[str, Any]) -> Floats:
    """1 for each counted image that was right, 0 for each that was wrong, in order [n]: of a value in `columns`."""
    packed = np.frombuffer(base64.b64decode(column["hits"]), np.uint8)
    return np.unpackbits(packed)[: column["n"]].astype(np.float32)


def wilson(share: float, count: int) -> tuple[float, float]:
    """The score interval of a share of `count` right and wrong answers (Wilson 1927): it has a width at 0 and 1 too."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z / (1 + Z**2 / count) * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def _classes(bench: Bench, column: Column) -> list[str]:
    """Classes of the task behind a column."""
    return list(next(task.classes for task in bench.tasks if task.name == column.task))


def _unreadable(score: Scorer, features: Features, classes: int) -> int:
    """How many of the pictures that did not decode would have been counted."""
    bad: Ints = np.flatnonzero(~features.ok).astype(np.int64)
    if not len(bad):
        return 0
    return int((~np.isnan(score(np.zeros((len(bad), classes), np.float32), bad))).sum())


def _kept_splits(bench: Bench, root: Path) -> dict[str, Any]:
    """Write the bench's splits beside the features; {"splits": {name: file and sha256}}, empty without any."""
    table = {}
    for name, data in bench.splits.items():
        digest = hashlib.sha256(data).hexdigest()
        path = root / "splits" / f"{bench.name}-{name}-{digest[:8]}.tsv"
        if not path.is_file():
            with atomic_file(path) as file:
                file.write(data)
        table[name] = {"file": str(path), "sha256": digest}
    return {"splits": table} if table else {}


def _other_counts(bench: Bench, columns: dict[str, dict[str, Any]]) -> list[str]:
    wrong = []
    for column in bench.columns:
        found = columns[column.name]["n"] + columns[column.name]["unreadable"]
        if column.expected in (None, found):
            continue
        line = f"{column.name}: {found:,} of {column.expected:,}"
        if not any(said.endswith(line) for said in bench.partial):  # what its files already say
            wrong.append(line)
    return wrong


def _summary(summary: Summary, columns: dict[str, dict[str, Any]]) -> float:
    values: list[float] = [columns[name]["accuracy"] for name in summary.columns]
    if summary.kind == "difference":
        return round(values[0] - values[1], DIGITS)
    return round(mean(values) if summary.kind == "mean" else stdev(values), DIGITS)
