"""Linear probes on frozen features: every learning rate, weight decay and kind of features trained at once.

Plain softmax regression: SGD with momentum and a cosine, on features standardised over the training images. Learning
rates are given relative to the curvature, 1 / (largest eigenvalue of the features' covariance), so that one grid serves
features of any width and correlation.

Candidates compete on a part held out of the training set (stratified, seeded). All learning rates of a weight decay
are one training, which passes the places where each would end (flow.py), and the weight decays are one matrix
[d + 1, decays * classes] (the last row is the bias), so a step is two matrix products however many they are. The winner
is trained on all training images, by itself. Nothing here sees a test image.

solver = "lbfgs" takes each weight decay to convergence instead; learning rates have no say then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch

from eval.heads.bank import Bank, Floats, Ints
from eval.heads.flow import follow, path_steps
from eval.heads.solvers import Advance, Candidate, Kind, Moments, Schedule, lbfgs, moments, prepare, sgd
from shards.errors import UserError

__all__ = [
    "Candidate",
    "Probe",
    "ProbeConfig",
    "check_split",
    "fit_probe",
    "probe_steps",
    "schedule",
    "split",
]

SMALLEST_RATE = 1e-9  # relative
LARGEST_RATE = 15.0  # relative; SGD with momentum 0.9 is not stable above
WEIGHT_DECAYS = {"sgd": (1e-3, 1e-2, 1e-1), "lbfgs": (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The grid and how each of its candidates is trained."""

    solver: Literal["sgd", "lbfgs"] = "sgd"
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Relative to 1 / (largest eigenvalue of the features' covariance); at most LARGEST_RATE."""
    weight_decays: tuple[float, ...] = ()
    """L2 on the weights (not the bias), added to the mean loss: wd / 2 |w|^2. (): the solver's, WEIGHT_DECAYS."""
    features: tuple[Kind, ...] = ("standardised",)
    """unit: scaled to length 1 before they are standardised."""
    epochs: int = 40
    min_steps: int = 500
    """Small training sets are passed over more often, until so many steps are made."""
    batch_size: int = 512
    """At most an eighth of the training set."""
    momentum: float = 0.9
    iterations: int = 100
    """Of L-BFGS, at most, for each weight decay."""
    held_out: float = 0.1
    """Share of the training images that select the candidate."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in ("sgd", "lbfgs"):
            raise UserError(f"the solver is sgd or lbfgs, not {self.solver!r}")
        if not self.weight_decays:
            object.__setattr__(self, "weight_decays", WEIGHT_DECAYS[self.solver])
        if not (self.learning_rates and self.features):
            raise UserError("a probe needs at least one learning rate and kind of features")
        unknown = set(self.features) - set(get_args(Kind))
        if unknown:
            raise UserError(f"unknown kind of features {sorted(unknown)[0]!r}: give {' or '.join(get_args(Kind))}")
        if not all(map(math.isfinite, (*self.learning_rates, *self.weight_decays))):
            raise UserError("learning rates and weight decays are numbers, not nan or inf")
        if min(self.learning_rates) <= 0 or min(self.weight_decays) < 0:
            raise UserError("learning rates are above 0 and weight decays at least 0")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"the seed must lie in 0..2**32 - 1, not {self.seed}")
        if min(self.learning_rates) < SMALLEST_RATE:
            raise UserError(f"a learning rate below {SMALLEST_RATE:g} trains nothing")
        if max(self.learning_rates) > LARGEST_RATE:
            raise UserError(
                f"learning rates are relative to the features' curvature: above {LARGEST_RATE:g} training is not stable"
            )
        if min(self.epochs, self.batch_size, self.min_steps, self.iterations) < 1 or not 0 < self.held_out < 1:
            raise UserError("a probe needs epochs and batch size of at least 1, and a held-out share between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A trained classifier."""

    mean: torch.Tensor
    """[d]"""
    scale: torch.Tensor
    """[d]"""
    weight: torch.Tensor
    """[d + 1, classes]; the last row is the bias."""
    chosen: Candidate
    table: list[dict[str, Any]] = field(default_factory=list)
    """Each candidate, and its accuracy on the held-out part, in percent."""
    trained_on: int = 0
    held_out: int = 0

    def scores(self, features: Floats) -> Floats:
        """[m, d] -> logits [m, classes]. Raises UserError for features of another size."""
        if features.shape[1] != len(self.mean):
            raise UserError(
                f"the probe was trained on {len(self.mean)} features an image, these have {features.shape[1]}: "
                "it belongs to another model"
            )
        with torch.inference_mode():
            x = torch.from_numpy(features).to(self.mean.device)
            at = Moments(self.mean, self.scale)
            result: Floats = (prepare(x, self.chosen.features, at) @ self.weight).cpu().numpy()
        return result


def fit_probe(
    bank: Bank, labels: Ints, classes: int, config: ProbeConfig, advance: Advance = lambda steps: None
) -> Probe:
    """labels [n of the bank] in 0..classes-1. advance(k): k of probe_steps() steps are done."""
    y = torch.from_numpy(labels).to(bank.device)
    fit = _Fit(bank, y, classes, config, advance)
    candidates = _grid(config)
    found, held = dict[Candidate, float](), np.zeros(0, np.int64)
    if len(candidates) > 1:
        train, held = split(labels, config.held_out, config.seed)
        found = fit.compete(train, held, candidates)
    chosen = max(candidates, key=lambda candidate: found.get(candidate, 0.0))  # of equals, the first of the grid
    everything = np.arange(len(labels), dtype=np.int64)
    at = moments(bank, everything, chosen.features)
    weight = fit.train(everything, chosen, at)
    if not weight.isfinite().all():
        raise UserError(
            f"training with learning rate {chosen.lr:g} and weight decay {chosen.weight_decay:g} diverged: give "
            "smaller --learning-rates, or --weight-decays"
        )
    return Probe(
        mean=at.mean,
        scale=at.scale,
        weight=weight,
        chosen=chosen,
        table=[
            {**asdict(candidate), "held_out_accuracy": round(100 * accuracy, 3)}
            for candidate, accuracy in found.items()
        ],
        trained_on=len(labels),
        held_out=len(held),
    )


def check_split(labels: Ints, config: ProbeConfig) -> None:
    """Raises UserError where there are too few images to select a candidate on."""
    if len(_grid(config)) > 1:
        split(labels, config.held_out, config.seed)


def probe_steps(count: int, config: ProbeConfig) -> int:
    """How many steps fit_probe will report for `count` images, about."""
    if config.solver == "lbfgs":
        return config.iterations * (len(config.features) * len(config.weight_decays) + 1)
    steps = schedule(count, config).steps
    if len(_grid(config)) > 1:
        steps += len(config.features) * path_steps(schedule(count - round(config.held_out * count), config))
    return steps


def schedule(count: int, config: ProbeConfig) -> Schedule:
    """Batches and epochs of a training on `count` images."""
    batch = max(1, min(config.batch_size, count // 8))
    per_epoch = count // batch
    return Schedule(
        batch=batch,
        per_epoch=per_epoch,
        epochs=max(config.epochs, math.ceil(config.min_steps / per_epoch)),
        most=config.batch_size,
        momentum=config.momentum,
        seed=config.seed,
    )


def split(labels: Ints, share: float, seed: int) -> tuple[Ints, Ints]:
    """(train, held out): sorted positions; each class gives its share, and keeps at least one image to train on."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]  # shuffled within each class
    counts = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    # Rounding at random keeps the share of classes that are too small for it.
    wanted = share * counts + rng.random(len(counts))
    take = np.minimum(np.floor(wanted).astype(np.int64), counts - 1)
    held = by_class[rank < np.repeat(take, counts)]
    if len(held) == 0:
        raise UserError(
            f"{len(labels)} training images of {(counts > 0).sum()} classes leave none to select on: give more "
            "images a class, a larger --few-shot, or one learning rate and weight decay"
        )
    mask = np.ones(len(labels), bool)
    mask[held] = False
    return np.flatnonzero(mask).astype(np.int64), np.sort(held).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Fit:
    """What all trainings of one probe share."""

    bank: Bank
    labels: torch.Tensor
    classes: int
    config: ProbeConfig
    advance: Advance

    def compete(self, train: Ints, held: Ints, candidates: Sequence[Candidate]) -> dict[Candidate, float]:
        """Accuracy of each candidate on the held-out rows after a training on the others."""
        found: dict[Candidate, float] = {}
        for kind in self.config.features:
            group = [candidate for candidate in candidates if candidate.features == kind]
            at = moments(self.bank, train, kind)
            weights = self.ends(train, group, at)
            found.update(zip(group, self.accuracies(held, kind, at, weights), strict=True))
        return found

    def ends(self, rows: Ints, group: Sequence[Candidate], at: Moments) -> list[torch.Tensor]:
        """Weights of all candidates of one kind of features."""
        if self.config.solver == "lbfgs":
            return self.converged(rows, group, at)
        config, kind = self.config, group[0].features
        rates, decays, whole = config.learning_rates, config.weight_decays, schedule(len(rows), config)
        found = follow(self.bank, rows, self.labels, self.classes, kind, rates, decays, at, whole, advance=self.advance)
        return [found[candidate] for candidate in group]

    def train(self, rows: Ints, candidate: Candidate, at: Moments) -> torch.Tensor:
        """[d + 1, classes]"""
        if self.config.solver == "lbfgs":
            return self.converged(rows, [candidate], at)[0]
        whole = schedule(len(rows), self.config)
        return sgd(self.bank, rows, self.labels, self.classes, [candidate], at, whole, advance=self.advance)[0]

    def converged(self, rows: Ints, group: Sequence[Candidate], at: Moments) -> list[torch.Tensor]:
        iterations = self.config.iterations
        return lbfgs(self.bank, rows, self.labels, self.classes, group, at, iterations=iterations, advance=self.advance)

    def accuracies(self, rows: Ints, kind: Kind, at: Moments, weights: list[torch.Tensor]) -> list[float]:
        """Share right, 0 for a candidate that diverged."""
        right = np.zeros(len(weights))
        for x, part in self.bank.blocks(rows):
            features, y = prepare(x, kind, at), self.labels[torch.from_numpy(part)]
            for number, weight in enumerate(weights):
                logits = features @ weight
                right[number] += float((logits.argmax(1) == y).sum()) if logits.isfinite().all() else -np.inf
        return [max(0.0, float(count)) / len(rows) for count in right]


def _grid(config: ProbeConfig) -> list[Candidate]:
    rates = config.learning_rates if config.solver == "sgd" else (0.0,)
    return [
        Candidate(features=kind, lr=lr, weight_decay=decay)
        for kind in config.features
        for lr in rates
        for decay in config.weight_decays
    ]
