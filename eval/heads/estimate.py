"""How long a probe will take and how much it will hold, said before it starts where that is worth knowing."""

from __future__ import annotations

import time

import numpy as np
import torch

from eval.heads.bank import Bank
from eval.heads.flow import path_steps
from eval.heads.probe import ProbeConfig, schedule
from eval.heads.solvers import Candidate, Moments, Schedule, sgd
from shards.bars import say, spoken

__all__ = ["announce", "estimate"]

WORTH_SAYING = 30  # seconds
TRIAL_STEPS = 2


def announce(name: str, bank: Bank, classes: int, config: ProbeConfig) -> None:
    """One line with the estimate, for a long probe or one that streams."""
    if config.solver != "sgd":
        return
    work = 4.0 * len(bank) * bank.dim * classes * len(config.learning_rates) * len(config.weight_decays)
    if work < 1e11 and not bank.streams:  # a second or so an epoch: not worth a trial
        return
    seconds, held = estimate(bank, classes, config)
    if seconds > WORTH_SAYING or bank.streams:
        where = "read from disk as they are used" if bank.streams else "in memory"
        say(
            f"probe for {name}: {len(bank):,} x {bank.dim} features {where}, {classes} classes: "
            f"about {spoken(seconds)} and {held / 2**30:.1f} GiB"
        )


def estimate(bank: Bank, classes: int, config: ProbeConfig) -> tuple[float, int]:
    """(seconds, bytes held at most), from a few steps of the path through the candidates and of a single one."""
    whole, rates, decays = schedule(len(bank), config), len(config.learning_rates), len(config.weight_decays)
    seconds = _step_seconds(bank, classes, 1, whole) * whole.steps
    if rates * decays * len(config.features) > 1:
        steps = len(config.features) * path_steps(schedule(len(bank) - round(config.held_out * len(bank)), config))
        seconds += _step_seconds(bank, classes, decays, whole) * steps
    # Of the path: the weights, their average gradient, what it is scaled by, and an average for each learning rate.
    weights = 4 * (bank.dim + 1) * classes * decays * (3 + rates)
    resident = bank.memory if bank.values is None else bank.values.numel() * bank.values.element_size()
    resident += 4 * len(bank) * (bank.dim + 1) if bank.copies else 0
    return seconds, weights + resident + 3 * 4 * whole.batch * (bank.dim + classes * decays)


def _step_seconds(bank: Bank, classes: int, heads: int, whole: Schedule) -> float:
    """Of a step with so many candidates, on real rows, reading included."""
    rows = np.arange(min(len(bank), TRIAL_STEPS * whole.batch), dtype=np.int64)
    candidates = [Candidate(features="standardised", lr=1e-3, weight_decay=0.0)] * heads
    at = Moments(torch.zeros(bank.dim, device=bank.device), torch.ones(bank.dim, device=bank.device))
    labels = torch.zeros(len(bank), dtype=torch.int64, device=bank.device)
    trial = Schedule(batch=whole.batch, per_epoch=TRIAL_STEPS, epochs=2, most=whole.batch, momentum=0.9, seed=0)
    marks: list[float] = []
    sgd(bank, rows, labels, classes, candidates, at, trial, advance=lambda _: marks.append(_now()))
    return (marks[1] - marks[0]) / TRIAL_STEPS  # the second pass: buffers are warm


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
