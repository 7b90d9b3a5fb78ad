"""Linear probes on frozen features: every learning rate, weight decay and kind of features trained at once.

H candidates are one matrix [d + 1, H * classes] (the last row is the bias), so a step is two matrix products whatever
H is. Plain softmax regression: SGD with momentum and a cosine, on features standardised over the training images.
Learning rates are given relative to the curvature, 1 / (largest eigenvalue of the features' covariance), so that one
grid serves features of any width and correlation.

Candidates compete on a part held out of the training set (stratified, seeded), in rounds: all of them in a short
training, the best of those in a longer one (successive halving; Jamieson and Talwalkar 2016). A short training imitates
the long one, its learning rate raised by as much as it is shorter, as far as that is stable. The winner is trained
again on all training images. Nothing here sees a test image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shards.errors import UserError

__all__ = ["Candidate", "Probe", "ProbeConfig", "fit_probe"]

Kind = Literal["standardised", "unit"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Advance = Callable[[int], None]
EPSILON = 1e-6  # of the deviation: a feature that never changes stays zero
POWER_STEPS = 20
STABLE = 10.0  # relative learning rate below which SGD with momentum 0.9 is safe
SMALL_STEP = 500_000_000  # multiply-adds


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """The grid and how each of its candidates is trained."""

    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    """Relative to 1 / (largest eigenvalue of the features' covariance); with momentum 0.9, stable up to about 15."""
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """L2 on the weights (not the bias), added to the mean loss: wd / 2 |w|^2."""
    features: tuple[Kind, ...] = ("standardised",)
    """unit: scaled to length 1 before they are standardised."""
    epochs: int = 40
    min_steps: int = 500
    """Small training sets are passed over more often, until so many steps are made."""
    batch_size: int = 512
    """At most an eighth of the training set."""
    momentum: float = 0.9
    rounds: tuple[float, ...] = (0.125, 0.375, 1.0)
    """Length of each round of the competition, as a share of the whole training; (1.0,): every candidate whole."""
    survivors: float = 0.25
    """Share of the candidates that go on to the next round, rounded up."""
    held_out: float = 0.1
    """Share of the training images that select the candidate."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.learning_rates and self.weight_decays and self.features):
            raise UserError("a probe needs at least one learning rate, weight decay and kind of features")
        unknown = set(self.features) - set(get_args(Kind))
        if unknown:
            raise UserError(f"unknown kind of features {sorted(unknown)[0]!r}: give {' or '.join(get_args(Kind))}")
        if min(self.learning_rates) <= 0 or min(self.weight_decays) < 0:
            raise UserError("learning rates are above 0 and weight decays at least 0")
        if not self.rounds or min(self.rounds) <= 0 or max(self.rounds) > 1 or not 0 < self.survivors <= 1:
            raise UserError("rounds and survivors are shares, above 0 and at most 1")
        if self.epochs < 1 or self.batch_size < 1 or self.min_steps < 1 or not 0 < self.held_out < 1:
            raise UserError("a probe needs epochs and batch size of at least 1, and a held-out share between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    features: Kind
    lr: float
    """Relative, as in ProbeConfig."""
    weight_decay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A trained classifier."""

    kind: Kind
    mean: torch.Tensor
    """[d]"""
    scale: torch.Tensor
    """[d]"""
    weight: torch.Tensor
    """[d + 1, classes]; the last row is the bias."""
    chosen: Candidate
    table: list[dict[str, Any]] = field(default_factory=list)
    """Each candidate, the last round it was in, and its accuracy on the held-out part there, in percent."""
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
            x = _prepare(torch.from_numpy(features).to(self.mean.device), self.kind, self.mean, self.scale)
            result: Floats = (x @ self.weight).cpu().numpy()
        return result


def fit_probe(
    features: Floats, labels: Ints, classes: int, config: ProbeConfig, advance: Advance = lambda steps: None
) -> Probe:
    """features [n, d], labels [n] in 0..classes-1. advance(k): k of probe_steps() steps are done."""
    train, held = split(labels, config.held_out, config.seed)
    candidates = [Candidate(features=kind, lr=lr, weight_decay=wd) for kind, lr, wd in _grid(config)]
    raw, y = torch.from_numpy(features).to(_device()), torch.from_numpy(labels).to(_device())
    best: dict[Candidate, tuple[int, float]] = dict.fromkeys(candidates, (0, 0.0))  # (round reached, accuracy there)
    alive = candidates
    for number, share in enumerate(config.rounds):
        found: dict[Candidate, float] = {}
        for kind in config.features:
            group = [c for c in alive if c.features == kind]
            if group:
                mean, scale = _moments(raw, kind, train)
                x = _prepare(raw, kind, mean, scale)
                weights = _train(x[train], y[train], classes, group, config, share, advance)
                found.update(zip(group, _accuracies(x[held], y[held], weights), strict=True))
        best.update({c: (number, accuracy) for c, accuracy in found.items()})
        ranked = sorted(alive, key=lambda c: -found[c])  # stable: of equals, the first of the grid
        alive = ranked[: math.ceil(config.survivors * len(ranked))]
    chosen = ranked[0]
    everything = np.arange(len(labels))
    mean, scale = _moments(raw, chosen.features, everything)
    weight = _train(_prepare(raw, chosen.features, mean, scale), y, classes, [chosen], config, 1.0, advance)[0]
    return Probe(
        kind=chosen.features,
        mean=mean,
        scale=scale,
        weight=weight,
        chosen=chosen,
        table=[
            {**asdict(candidate), "round": number + 1, "held_out_accuracy": round(100 * accuracy, 3)}
            for candidate, (number, accuracy) in best.items()
        ],
        trained_on=len(labels),
        held_out=len(held),
    )


def probe_steps(count: int, config: ProbeConfig) -> int:
    """How many steps fit_probe will report for `count` images; rounds are counted as if every kind stayed in."""
    rounds = [_schedule(count - round(config.held_out * count), config, share) for share in config.rounds]
    parts = [*rounds * len(config.features), _schedule(count, config, 1.0)]
    return sum(part.epochs * part.per_epoch for part in parts)


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
            f"{len(labels)} training images of {len(counts)} classes leave none to select on: give more images a class"
        )
    mask = np.ones(len(labels), bool)
    mask[held] = False
    return np.flatnonzero(mask).astype(np.int64), np.sort(held).astype(np.int64)


def _grid(config: ProbeConfig) -> list[tuple[Kind, float, float]]:
    return list(product(config.features, config.learning_rates, config.weight_decays))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _moments(raw: torch.Tensor, kind: Kind, rows: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / deviation of each feature over some rows."""
    x = _shaped(raw[torch.from_numpy(rows).to(raw.device)], kind)
    deviation, mean = torch.std_mean(x, dim=0, correction=0)
    return mean, torch.where(deviation > EPSILON * deviation.max(), 1 / deviation, 0.0)


def _shaped(x: torch.Tensor, kind: Kind) -> torch.Tensor:
    return functional.normalize(x, dim=1) if kind == "unit" else x


def _prepare(x: torch.Tensor, kind: Kind, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """[n, d] -> [n, d + 1], standardised, with a column of ones for the bias."""
    x = (_shaped(x, kind) - mean) * scale
    return torch.cat([x, torch.ones(len(x), 1, device=x.device)], 1)


def _train(
    x: torch.Tensor,
    y: torch.Tensor,
    classes: int,
    candidates: list[Candidate],
    config: ProbeConfig,
    share: float,
    advance: Advance,
) -> list[torch.Tensor]:
    """Softmax regression from zero weights, all candidates together; a [d + 1, classes] each."""
    heads, width = len(candidates), x.shape[1]
    rates = [min(c.lr / share, max(c.lr, STABLE)) / _largest_eigenvalue(x) for c in candidates]
    lr = _row(rates, classes, x.device)  # [1, H * classes]
    decay = _row([c.weight_decay for c in candidates], classes, x.device).repeat(width, 1)
    decay[-1] = 0  # the bias
    weight = torch.zeros(width, heads * classes, device=x.device)
    velocity = torch.zeros_like(weight)
    generator = torch.Generator().manual_seed(config.seed)
    schedule = _schedule(len(x), config, share)
    steps = schedule.epochs * schedule.per_epoch
    step = 0
    with _threads_for(4 * schedule.batch * weight.numel()):
        for _ in range(schedule.epochs):
            order = torch.randperm(len(x), generator=generator).to(x.device)
            # The last, smaller batch is left out: it would weigh its images more.
            for batch in torch.split(order, schedule.batch)[: schedule.per_epoch]:
                gradient = _gradient(x[batch], y[batch], weight, heads)
                gradient.addcmul_(decay, weight)
                velocity.mul_(config.momentum).add_(gradient)
                weight.addcmul_(lr * (-0.5 * (1 + math.cos(math.pi * step / steps))), velocity)
                step += 1
            advance(schedule.per_epoch)
    return [part.contiguous() for part in torch.split(weight, classes, dim=1)]


@contextmanager
def _threads_for(work: int) -> Iterator[None]:
    """One thread for steps of few operations: waiting for each other costs threads more than they gain there, and
    where other programs use the cores as well, many times more."""
    before = torch.get_num_threads()
    if work < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gradient(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Of the mean cross-entropy of every head: x^T (softmax(x w) - onehot(y)) / b, [d + 1, H * classes]."""
    classes = weight.shape[1] // heads
    p = torch.softmax((x @ weight).view(-1, classes), dim=1)  # [b * H, classes]
    gradient = x.T @ p.view(len(x), -1)
    # The one-hot term is the same for every head: one small product instead of an indexed subtraction from p.
    target = x.T @ functional.one_hot(y, classes).to(x.dtype)  # [d + 1, classes]
    return gradient.view(-1, heads, classes).sub_(target[:, None]).view(gradient.shape).div_(len(x))


def _accuracies(x: torch.Tensor, y: torch.Tensor, weights: list[torch.Tensor]) -> list[float]:
    """Share right, 0 for a candidate that diverged."""
    shares = []
    for weight in weights:
        logits = x @ weight
        right = (logits.argmax(1) == y).float().mean() if logits.isfinite().all() else torch.zeros(())
        shares.append(float(right))
    return shares


def _largest_eigenvalue(x: torch.Tensor) -> float:
    """Of x^T x / n, by power iteration from a fixed start."""
    vector = torch.ones(x.shape[1], device=x.device) / math.sqrt(x.shape[1])
    value = torch.ones((), device=x.device)
    for _ in range(POWER_STEPS):
        product_ = x.T @ (x @ vector) / len(x)
        value = product_.norm()
        vector = product_ / value
    return float(value)


def _row(values: list[float], classes: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device, dtype=torch.float32).repeat_interleave(classes)[None]


@dataclass(frozen=True, slots=True)
class _Schedule:
    batch: int
    per_epoch: int
    epochs: int


def _schedule(count: int, config: ProbeConfig, share: float) -> _Schedule:
    batch = max(1, min(config.batch_size, count // 8))
    per_epoch = count // batch
    whole = max(config.epochs, math.ceil(config.min_steps / per_epoch))
    return _Schedule(batch, per_epoch, max(1, round(share * whole)))
