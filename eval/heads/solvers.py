"""Softmax regression on a bank of features: SGD for many candidates at once, L-BFGS for one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn import functional

from eval.heads.bank import Bank, Ints

__all__ = [
    "Advance",
    "Candidate",
    "Heads",
    "Kind",
    "Moments",
    "Schedule",
    "curvature",
    "lbfgs",
    "moments",
    "prepare",
    "sgd",
    "threads_for",
]

Kind = Literal["standardised", "unit"]
Advance = Callable[[int], None]

EPSILON = 1e-6  # of the largest deviation: a feature that changes less stays zero
POWER_STEPS = 20
POWER_ROWS = 16384  # of a large bank, for its largest eigenvalue
SMALL_STEP = 50_000_000  # multiply-adds
HISTORY = 20  # pairs that L-BFGS keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    features: Kind
    lr: float
    """Relative to 1 / (largest eigenvalue of the features' covariance); 0 for L-BFGS, which has none."""
    weight_decay: float


@dataclass(frozen=True, slots=True)
class Moments:
    """How features are standardised."""

    mean: torch.Tensor
    """[d]"""
    scale: torch.Tensor
    """[d] 1 / deviation, 0 for a feature that does not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    batch: int
    per_epoch: int
    """Steps."""
    epochs: int
    most: int
    """The batch that was asked for; `batch` is smaller where there are few rows."""
    momentum: float
    seed: int

    @property
    def steps(self) -> int:
        return self.epochs * self.per_epoch


def moments(bank: Bank, positions: Ints, kind: Kind) -> Moments:
    """Mean and deviation of each feature over some rows."""
    count, total, square = 0, torch.zeros(1), torch.zeros(1)
    shift = torch.zeros(1)
    for x, part in bank.blocks(positions):
        x = shaped(x, kind).double()
        if count == 0:
            shift = x.mean(0)  # sums of squares about a value near the mean lose no digits
            total, square = torch.zeros_like(shift), torch.zeros_like(shift)
        x -= shift
        total += x.sum(0)
        square += x.square().sum(0)
        count += len(part)
    mean = total / count
    deviation = (square / count - mean.square()).clamp_min(0).sqrt()
    scale = torch.where(deviation > EPSILON * deviation.max(), 1 / deviation, 0.0)
    return Moments((mean + shift).float(), scale.float())


def shaped(x: torch.Tensor, kind: Kind) -> torch.Tensor:
    return functional.normalize(x, dim=1) if kind == "unit" else x


def prepare(x: torch.Tensor, kind: Kind, at: Moments) -> torch.Tensor:
    """[n, d] -> [n, d + 1], standardised, with a column of ones for the bias."""
    out = torch.empty(len(x), x.shape[1] + 1, device=x.device)
    torch.sub(shaped(x, kind), at.mean, out=out[:, :-1])
    out[:, :-1] *= at.scale
    out[:, -1] = 1
    return out


class Heads:
    """Candidates of one kind of features that take their steps of SGD together, from zero weights."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        classes: int,
        *,
        width: int,
        top: float,
        place: torch.device,
    ) -> None:
        """width: d + 1. top: largest eigenvalue of the rows' covariance."""
        self.heads, self.classes = len(candidates), classes
        self.lr = _row([c.lr / top for c in candidates], classes, place)  # [1, H * classes]
        self.decay = _row([c.weight_decay for c in candidates], classes, place)  # [1, H * classes]
        self.weight = torch.zeros(width, self.heads * classes, device=place)
        self.velocity = torch.zeros_like(self.weight)

    def step(self, x: torch.Tensor, y: torch.Tensor, momentum: float, progress: float) -> None:
        """x [b, d + 1], y [b]; progress 0..1 along the cosine."""
        p = torch.softmax((x @ self.weight).view(-1, self.classes), dim=1).view(len(x), self.heads, self.classes)
        p[torch.arange(len(x), device=x.device), :, y] -= 1
        # Many heads are bound by memory: the product itself carries the momentum, instead of two passes after it.
        self.velocity.addmm_(x.T, p.view(len(x), -1), beta=momentum, alpha=1 / len(x))
        self.velocity[:-1].addcmul_(self.decay, self.weight[:-1])  # not the bias
        self.weight.addcmul_(self.lr * (-0.5 * (1 + math.cos(math.pi * progress))), self.velocity)

    def weights(self) -> list[torch.Tensor]:
        """[d + 1, classes] of each candidate."""
        return [part.contiguous() for part in torch.split(self.weight, self.classes, dim=1)]


def sgd(
    bank: Bank,
    positions: Ints,
    labels: torch.Tensor,
    classes: int,
    candidates: Sequence[Candidate],
    at: Moments,
    schedule: Schedule,
    *,
    advance: Advance,
) -> list[torch.Tensor]:
    """All candidates (of one kind of features) together: a [d + 1, classes] each.

    labels: [n of the bank].
    """
    kind = candidates[0].features
    top = curvature(bank, positions, kind, at, schedule.seed)
    heads = Heads(candidates, classes, width=bank.dim + 1, top=top, place=bank.device)
    source = bank.holding(lambda x: prepare(x, kind, at)) or bank  # once, instead of batch by batch, if it fits
    rng = np.random.default_rng(schedule.seed)
    step = 0
    with threads_for(4 * schedule.batch * heads.weight.numel()):
        for _ in range(schedule.epochs):
            for x, part in source.shuffled(positions, schedule.batch, rng):
                y = labels[torch.from_numpy(part).to(bank.device, non_blocking=True)]
                rows = prepare(x, kind, at) if source is bank else x
                heads.step(rows, y, schedule.momentum, step / schedule.steps)
                step += 1
            advance(schedule.per_epoch)
    return heads.weights()


def lbfgs(
    bank: Bank,
    positions: Ints,
    labels: torch.Tensor,
    classes: int,
    candidates: Sequence[Candidate],
    at: Moments,
    *,
    iterations: int,
    advance: Advance,
) -> list[torch.Tensor]:
    """To convergence, from the strongest weight decay to the weakest, each from the last: [d + 1, classes] each."""
    kind = candidates[0].features
    weight = torch.zeros(bank.dim + 1, classes, device=bank.device, requires_grad=True)
    found: dict[Candidate, torch.Tensor] = {}
    for candidate in sorted(candidates, key=lambda c: -c.weight_decay):
        optimiser = torch.optim.LBFGS(
            [weight], max_iter=iterations, history_size=HISTORY, line_search_fn="strong_wolfe", tolerance_grad=1e-6
        )

        def objective(decay: float = candidate.weight_decay) -> float:
            """Mean cross-entropy plus decay; fills the gradient."""
            with torch.no_grad():
                gradient, loss = torch.zeros_like(weight), 0.0
                for x, part in bank.blocks(positions):
                    rows, y = prepare(x, kind, at), labels[torch.from_numpy(part)]
                    loss += float(functional.cross_entropy(rows @ weight, y, reduction="sum")) / len(positions)
                    gradient += _gradient(rows, y, weight) / len(positions)
                gradient[:-1] += decay * weight[:-1]
                weight.grad = gradient
                return loss + 0.5 * decay * float(weight[:-1].square().sum())

        optimiser.step(objective)  # type: ignore[no-untyped-call]
        found[candidate] = weight.detach().clone()
        advance(iterations)
    return [found[candidate] for candidate in candidates]


def _gradient(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of the summed cross-entropy: x^T (softmax(x w) - onehot(y)), [d + 1, classes]."""
    p = torch.softmax(x @ weight, dim=1)
    p[torch.arange(len(x), device=x.device), y] -= 1
    return x.T @ p


@contextmanager
def threads_for(work: int) -> Iterator[None]:
    """One thread for steps of few operations: waiting for each other costs threads more than they gain there, and
    where other programs use the cores as well, many times more."""
    before = torch.get_num_threads()
    if work < SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def curvature(bank: Bank, positions: Ints, kind: Kind, at: Moments, seed: int) -> float:
    """Largest eigenvalue of x^T x / n over (a sample of) some rows, by power iteration from a fixed start."""
    if len(positions) > POWER_ROWS:
        positions = np.sort(np.random.default_rng(seed).choice(positions, POWER_ROWS, replace=False))
    x = prepare(bank.take(positions), kind, at)
    vector = torch.ones(x.shape[1], device=x.device) / math.sqrt(x.shape[1])
    value = torch.ones((), device=x.device)
    for _ in range(POWER_STEPS):
        image = x.T @ (x @ vector) / len(x)
        value = image.norm()
        vector = image / value
    return float(value)


def _row(values: list[float], classes: int, place: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=place, dtype=torch.float32).repeat_interleave(classes)[None]
