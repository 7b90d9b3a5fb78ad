"""Protocol `views`: the probe trains on augmented views, as papers do it, not on one centre crop an image.

Each pass decodes every training image once and takes two random crops of it (RandomResizedCrop of 0.08 to 1 of the
area, horizontal flip); the frozen network turns them into features that train every candidate of every task at once.
A part of the images is held out and selects by centre crops; the winner is not trained again on all of them, for that
would take as long once more. Features cannot be kept, so a probe costs epochs / 2 forward passes over two views an
image: this is the slow protocol, for comparison with published figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from eval.benchmarks.bench import ImageSet, Task
from eval.features import Features, loader, normalise, placed
from eval.heads.bank import Bank, Ints
from eval.heads.probe import Candidate, Probe, ProbeConfig, split
from eval.heads.solvers import Heads, Moments, curvature, moments, prepare
from eval.models.model import Model, evaluating, exact
from shards.bars import bar
from trainer.augment import AugmentConfig, BadImage, decode, sample_rng, two_views

__all__ = ["fit_views"]

VIEWS = 2  # of each image and pass


def fit_views(
    model: Model, images: ImageSet, features: Features, tasks: Sequence[tuple[Task, Ints]], config: ProbeConfig
) -> dict[str, Probe]:
    """A probe for each task on `images`. features: of the centre crops; tasks with the rows they train on."""
    banks = {task.name: Bank(features, rows) for task, rows in tasks}
    runs = [_Run(task, rows, banks[task.name], config) for task, rows in tasks]
    wanted = np.unique(np.concatenate([run.train_rows for run in runs]))
    passes = max(1, round(config.epochs / VIEWS))
    batch = max(1, min(config.batch_size, len(wanted) * VIEWS // 8) // VIEWS)
    steps = passes * -(-len(wanted) // batch)
    step = 0
    place = runs[0].bank.device
    network = placed(model, place)
    augment = AugmentConfig(image_size=model.transform.image_size, jitter_probability=0, grayscale=0, blur=0)
    dataset, batches = _TwoViews(images, augment, config.seed), _batches(wanted, passes, batch, config.seed)
    size = batch * VIEWS * 3 * augment.image_size**2
    # Workers fork here: within the bar, whose thread may hold its lock, one that warns would wait for it for ever.
    seen = iter(loader(dataset, batches, images=len(wanted), size=size))
    with bar(f"probe on views of {images.name}", passes * len(wanted)) as advance, evaluating(network):
        for views, rows in seen:
            with torch.inference_mode(), exact():
                x = network(normalise(views.to(place), model.transform)).float()
            for run in runs:
                run.step(x, rows, step / steps)
            step += 1
            advance(len(rows))
    return {run.task.name: run.finish() for run in runs}


class _Run:
    """The candidates of one task."""

    def __init__(self, task: Task, rows: Ints, bank: Bank, config: ProbeConfig) -> None:
        self.task, self.bank, self.config = task, bank, config
        self.labels = task.labels  # [n of the image set]
        self.of_bank = task.labels[rows]
        train, self.held = split(self.of_bank, config.held_out, config.seed)
        self.train_rows: Ints = rows[train]
        self.in_training = np.zeros(len(task.labels), bool)
        self.in_training[self.train_rows] = True
        self.groups: list[tuple[list[Candidate], Moments, Heads]] = []
        for kind in config.features:
            group = [
                Candidate(features=kind, lr=lr, weight_decay=decay)
                for lr in config.learning_rates
                for decay in config.weight_decays
            ]
            at = moments(bank, train, kind)
            top = curvature(bank, train, kind, at, config.seed)
            heads = Heads(group, len(task.classes), width=bank.dim + 1, top=top, place=bank.device)
            self.groups.append((group, at, heads))

    def step(self, x: torch.Tensor, rows: Ints, progress: float) -> None:
        """x [VIEWS * b, d]: first views, then second views of `rows`."""
        chosen = np.flatnonzero(self.in_training[rows])
        if not len(chosen):
            return
        both = torch.from_numpy(np.concatenate([chosen + view * len(rows) for view in range(VIEWS)])).to(x.device)
        y = torch.from_numpy(np.tile(self.labels[rows[chosen]], VIEWS)).to(x.device)
        for group, at, heads in self.groups:
            heads.step(prepare(x[both], group[0].features, at), y, self.config.momentum, progress)

    def finish(self) -> Probe:
        """The candidate that is best on the centre crops of the held-out images, which it is not trained on."""
        table: list[dict[str, Any]] = []
        best: tuple[float, Candidate, Moments, torch.Tensor] | None = None
        for group, at, heads in self.groups:
            for candidate, weight in zip(group, heads.weights(), strict=True):
                accuracy = self._accuracy(candidate, at, weight)
                table.append({**asdict(candidate), "held_out_accuracy": round(100 * accuracy, 3)})
                if best is None or accuracy > best[0]:
                    best = accuracy, candidate, at, weight
        assert best is not None
        _, chosen, at, weight = best
        return Probe(
            mean=at.mean,
            scale=at.scale,
            weight=weight,
            chosen=chosen,
            table=table,
            trained_on=len(self.train_rows),
            held_out=len(self.held),
        )

    def _accuracy(self, candidate: Candidate, at: Moments, weight: torch.Tensor) -> float:
        right = 0
        for x, part in self.bank.blocks(self.held):
            logits = prepare(x, candidate.features, at) @ weight
            if not logits.isfinite().all():
                return 0.0
            right += int((logits.argmax(1).cpu().numpy() == self.of_bank[part]).sum())
        return right / len(self.held)


Ticket = tuple[int, int]  # pass, row


def _batches(rows: Ints, passes: int, batch: int, seed: int) -> Iterator[list[Ticket]]:
    """Every pass in another order."""
    for number in range(passes):
        order = np.random.default_rng([seed, number]).permutation(rows)
        for start in range(0, len(order), batch):
            yield [(number, row) for row in order[start : start + batch].tolist()]


class _TwoViews(Dataset[Any]):
    """Tickets -> (views [VIEWS * b, size, size, 3] uint8, rows [b]): all first views, then all second ones.

    Of rows that decoded when their features were extracted, augmented by (seed, pass, row).
    """

    def __init__(self, images: ImageSet, augment: AugmentConfig, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed

    def __getitems__(self, tickets: list[Ticket]) -> tuple[torch.Tensor, Ints]:
        size = self.augment.image_size
        views = np.zeros((VIEWS, len(tickets), size, size, 3), np.uint8)
        for i, (number, row) in enumerate(tickets):
            try:
                image = decode(self.images.read(row))
                if self.images.prepare is not None:
                    image = self.images.prepare(image)
            except BadImage:
                continue  # the file has changed since: a black picture among thousands
            views[:, i] = two_views(image, self.augment, sample_rng(self.seed, number, row))
        return torch.from_numpy(views.reshape(-1, size, size, 3)), np.array([row for _, row in tickets], np.int64)
