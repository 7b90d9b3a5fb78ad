"""Pictures of one class each, in a set that trains and one that tests: their task and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks.bench import LEFT_OUT, Column, Ints, Task, top
from shards.bars import say
from shards.errors import UserError

__all__ = ["Classified", "Words", "class_figures"]

TOP5_FROM = 10  # classes; below, the figure says little


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """The classes of an ImageSet's pictures."""

    images: str
    """Name of the ImageSet."""
    where: Path
    """What a message calls it."""
    names: Sequence[str]
    """Name of class 0, 1, ...; some may have no picture."""
    labels: Ints
    """[n of that set] the class of each picture, in 0..len(names)-1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """How a benchmark speaks of classes."""

    truth: str
    """What top1 holds to be right."""
    matched: str
    """By what classes are matched."""
    needs: str
    """What a probe needs beyond a single class."""
    picture: str = "picture"
    """What a class of the test set may have none of."""


def class_figures(train: Classified, test: Classified, words: Words) -> tuple[Task, tuple[Column, ...], dict[str, Any]]:
    """A task on the classes that `train` has pictures of, top1 (and top5) on `test`, and notes of both.

    Classes are matched by name, whatever their numbers; lists that are equal are matched as they stand, so that two
    classes of one name (ImageNet has two cranes) stay two. Raises UserError where `test` has a class that `train`
    lacks, and where there is one class only.
    """
    used: Ints = np.unique(train.labels).astype(np.int64)
    classes = [train.names[label] for label in used.tolist()]
    place = np.full(len(train.names) + 1, LEFT_OUT, np.int64)  # the last is that of LEFT_OUT, -1
    place[used] = np.arange(len(used))
    truth = place[_matched(train.names, test.names)][test.labels]
    if (truth == LEFT_OUT).any():
        raise _unknown(train, test, test.labels[truth == LEFT_OUT], words)
    if len(classes) < 2:
        raise UserError(f"{train.where} has one class, {classes[0]!r}: a probe needs two, {words.needs}")
    without = np.setdiff1d(np.arange(len(classes)), truth)
    if len(without):
        first = classes[without[0]]
        say(f"{test.where} has no {words.picture} of {len(without)} of {len(classes)} classes, {first!r} among them")
    columns = [Column(name="top1", task="class", images=test.images, score=top(truth), about=words.truth)]
    if len(classes) >= TOP5_FROM:
        about = "among the five likeliest"
        columns.append(Column(name="top5", task="class", images=test.images, score=top(truth, 5), about=about))
    notes = {
        train.images: str(train.where),
        test.images: str(test.where),
        "classes": len(classes),
        f"not_in_{test.images}": len(without),
    }
    task = Task(name="class", images=train.images, labels=place[train.labels], classes=classes)
    return task, tuple(columns), notes


def _matched(ours: Sequence[str], theirs: Sequence[str]) -> Ints:
    """The number in `ours` of each class of `theirs`, LEFT_OUT for those that it lacks."""
    if list(ours) == list(theirs):
        return np.arange(len(ours), dtype=np.int64)
    number = {name: label for label, name in enumerate(ours)}
    return np.array([number.get(name, LEFT_OUT) for name in theirs], np.int64)


def _unknown(train: Classified, test: Classified, labels: Ints, words: Words) -> UserError:
    """labels: of the test pictures whose class `train` lacks."""
    found, counts = np.unique(labels, return_counts=True)
    return UserError(
        f"{test.where} has the class {test.names[found[0]]!r} ({counts[0]} pictures), which {train.where} lacks "
        f"({len(found)} such of {len(np.unique(test.labels))}): {words.matched}"
    )
