"""One training that passes through all learning rates of a weight decay, instead of one training for each.

The loss is convex and a learning rate is a step along its gradient flow: SGD from zero weights with momentum m and a
cosine of peak lr over S steps ends near the flow's point at time lr S / (2 (1 - m)), whatever lr is. So one run visits
the ends of all learning rates, the smaller first. It starts slowly, each step going a fixed share of the way so far,
until a constant pace is reached that takes it to the last end in a sixth of the steps. A pace beyond a stable learning
rate is made of momentum. Minibatch noise, which the cosine takes out of a training of its own, is averaged out around
each end.

What this gives is a ranking of the candidates, on held-out rows; the winner is then trained as it says it is. On 19
tasks, real and made (docs/results.md), its choice was as good as that of training every candidate whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from eval.heads.bank import Bank, Ints
from eval.heads.solvers import Advance, Candidate, Kind, Moments, Schedule, curvature, prepare, threads_for

__all__ = ["follow", "path_steps"]

SHARE, LEAST = 1 / 6, 400  # steps of a path, of those of a whole training; and at least
GROWTH = 0.05  # of the way so far, that a step goes at most
WINDOW = 0.4  # weights are averaged over the times within this share of an end
STABLE = 10.0  # learning rate, relative to 1 / largest eigenvalue, up to which the pace needs no momentum
REPORT = 50  # steps


def path_steps(whole: Schedule) -> int:
    """Steps of the path that stands for trainings of this schedule, give or take the rounding of its slow start."""
    return max(LEAST, round(SHARE * whole.steps))


def follow(
    bank: Bank,
    positions: Ints,
    labels: torch.Tensor,
    classes: int,
    kind: Kind,
    rates: Sequence[float],
    decays: Sequence[float],
    at: Moments,
    whole: Schedule,
    *,
    advance: Advance,
) -> dict[Candidate, torch.Tensor]:
    """Where each of rates x decays would end, about: a [d + 1, classes] each.

    labels: [n of the bank]. whole: the schedule of a training; its batches may be smaller than the path's.
    """
    top = curvature(bank, positions, kind, at, whole.seed)
    source = bank.holding(lambda x: prepare(x, kind, at)) or bank
    rates = sorted(set(rates))
    ends = [rate * whole.steps / (2 * (1 - whole.momentum)) for rate in rates]
    heads, place = len(decays), bank.device
    decay = torch.tensor(decays, device=place).repeat_interleave(classes)[None]
    weight = torch.zeros(bank.dim + 1, heads * classes, device=place)
    slope = torch.zeros_like(weight)  # the gradient, averaged over 1 / (1 - momentum) steps
    sums = [torch.zeros_like(weight) for _ in ends]
    counted = [0.0] * len(ends)
    rng, time = np.random.default_rng(whole.seed), 0.0
    batch = min(whole.most, len(positions))
    batches = _endless(source, positions, batch, rng)
    with threads_for(4 * batch * weight.numel()):
        for number, step in enumerate(paces(ends[0], ends[-1], path_steps(whole))):
            rows, part = next(batches)
            x = prepare(rows, kind, at) if source is bank else rows
            y = labels[torch.from_numpy(part).to(place, non_blocking=True)]
            momentum = max(0.0, 1 - STABLE / step)
            p = torch.softmax((x @ weight).view(-1, classes), dim=1).view(len(x), heads, classes)
            p[torch.arange(len(x), device=place), :, y] -= 1
            slope.addmm_(x.T, p.view(len(x), -1), beta=momentum, alpha=(1 - momentum) / len(x))
            slope[:-1].addcmul_(decay, weight[:-1], value=1 - momentum)  # not the bias
            weight.add_(slope, alpha=-step / top)
            time += step
            for end, total in enumerate(sums):
                if (1 - WINDOW) * ends[end] <= time <= (1 + WINDOW) * ends[end]:
                    total.add_(weight, alpha=step)
                    counted[end] += step
            if (number + 1) % REPORT == 0:
                advance(REPORT)
    found: dict[Candidate, torch.Tensor] = {}
    for rate, total, count in zip(rates, sums, counted, strict=True):
        for value, mean in zip(decays, torch.split(total / count, classes, dim=1), strict=True):
            found[Candidate(features=kind, lr=rate, weight_decay=value)] = mean.contiguous()
    return found


def _endless(bank: Bank, positions: Ints, batch: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, Ints]]:
    while True:
        yield from bank.shuffled(positions, batch, rng)


def paces(first: float, last: float, steps: int) -> list[float]:
    """How far each step goes, for about `steps` of them to reach `last`; some fourteen by the time of `first`."""

    def needed(pace: float) -> float:
        slow = math.log(max(1.0, pace / (GROWTH * first))) / math.log1p(GROWTH)
        return slow + max(0.0, last - max(0.0, pace / GROWTH - first)) / pace

    low, high = last / (4 * steps), last
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if needed(middle) > steps else (low, middle)
    result, time = list[float](), 0.0
    while time < last * (1 - 1e-9):
        result.append(min(high, GROWTH * (time + first), last - time))
        time += result[-1]
    return result
