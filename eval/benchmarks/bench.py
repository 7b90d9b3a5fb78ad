"""What a benchmark is: sets of images, heads to train on some of them, and columns that score the others.

    ImageSet   pictures by position, with a fingerprint that names their cached features
    Task       one classifier over frozen features, trained on a labelled ImageSet that allows training
    Column     one figure: a task's scores on an ImageSet, judged by a Scorer
    Summary    a figure made of columns: a difference (BG-gap), a mean or a deviation (over random splits)

A reader is a function `open(source: Source) -> Bench` in a file NAME.py beside this one, entered in registry.py.
It lists files and labels and opens no picture: pictures are read by position when their features are extracted, once.
Linear probe and kNN serve every column alike: both give [images, classes] scores of a task.

Everything else follows from three rules:
- a training image whose label is LEFT_OUT (-1) is not trained on, a test image whose hit is NaN is not counted, so
  random splits of one ImageSet need no second copy of its features (MIT-States);
- a test image whose picture does not decode is left out, counted and reported;
- only an ImageSet made with `may_train=True` can stand behind a Task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shards.errors import UserError

__all__ = [
    "BG_GAP",
    "LEFT_OUT",
    "Absent",
    "Bench",
    "Column",
    "Floats",
    "ImageSet",
    "Ints",
    "Pixels",
    "Scorer",
    "Source",
    "Summary",
    "Task",
    "check_counts",
    "fingerprint",
    "top",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

LEFT_OUT = -1
"""The label of a training image that a task leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """(scores [m, classes], rows [m]) -> hits [m]: 1 right, 0 wrong, NaN not counted.

    scores: of a task's classes, larger is likelier; may hold ties, which go to the lower class (argmax's rule).
    rows: positions in the column's ImageSet, in any order and any part of it: it is called block by block.
    """

    judge: Callable[[Floats, Ints], Floats]
    truth: str
    """fingerprint() of the labels and mappings behind it: other ones are another evaluation."""

    def __call__(self, scores: Floats, rows: Ints) -> Floats:
        return self.judge(scores, rows)


class Absent(UserError):
    """Files of a benchmark are not on this machine."""

    def __init__(self, message: str, lacks: Mapping[str, Sequence[str]]) -> None:
        super().__init__(message)
        self.lacks = lacks  # of each benchmark: its own, and those whose images its probe trains on


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a reader looks."""

    root: Path
    """The benchmark's folder: --data, else BENCHMARKS/NAME."""
    benchmarks: Path
    """$XCLR_BENCHMARKS, else data/benchmarks: where the other benchmarks lie (ObjectNet's probe trains on imagenet)."""
    partial: bool = False
    """Accept counts other than the benchmark's (--partial); see check_counts."""
    shards: Path | None = None
    """Folder of the shards that the checkpoint was trained on, where known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Pictures by position 0..n-1."""

    name: str
    """Short, unique in a bench: `train`, `val`, `mixed_same`."""
    keys: Sequence[str]
    """[n] what a message calls each picture (its path within the benchmark)."""
    read: Callable[[int], bytes]
    """The encoded file of a picture. Called in forked workers: open files lazily or read by offset (os.pread)."""
    fingerprint: str
    """Equal for equal content, as far as is cheap to know: see fingerprint(). Names the cached features."""
    prepare: Callable[[Pixels], Pixels] | None = None
    """Applied to the decoded RGB picture [height, width, 3] before resizing (ObjectNet's border). May raise
    trainer.augment.BadImage. Whatever it does must be named in `fingerprint`."""
    may_train: bool = False
    """Only such sets may stand behind a Task."""

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A classifier over frozen features, and what its training set is."""

    name: str
    """`object`, `colour`, `attributes/seed0`."""
    images: str
    """Name of the ImageSet to train on."""
    labels: Ints
    """[n of that set] class of each image, LEFT_OUT for those not to train on."""
    classes: Sequence[str]
    """Name of class 0, 1, ...; labels lie below its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One figure of the table: the share of hits, in percent, over the counted images."""

    name: str
    """`top1`, `mixed_same`, `objectnet (113)`: unique in a bench, and what JSON calls it."""
    task: str
    """Name of the Task whose scores are judged."""
    images: str
    """Name of the ImageSet it is judged on."""
    score: Scorer
    expected: int | None = None
    """How many images must be counted; another count is an error without --partial, a mark with it. Unreadable
    pictures are part of the count that is compared."""
    about: str = ""
    """One line of protocol: what is counted, what is right."""
    marked: bool = True
    """Tables mark the best model of a column; not where more is no better (a background without its object)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A figure made of columns: the first minus the second, or the mean or sample deviation of all."""

    name: str
    kind: Literal["difference", "mean", "deviation"]
    columns: tuple[str, ...]
    about: str = ""


BG_GAP = Summary(
    name="bg_gap",
    kind="difference",
    columns=("mixed_same", "mixed_rand"),
    about="mixed_same minus mixed_rand: how much is owed to the ground",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark as it lies on this machine."""

    name: str
    root: Path
    sets: tuple[ImageSet, ...]
    tasks: tuple[Task, ...]
    columns: tuple[Column, ...]
    summaries: tuple[Summary, ...] = ()
    partial: tuple[str, ...] = ()
    """What is missing or too much, in words; not empty only under --partial. Every output shows it."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Plain values for the protocol part of the JSON: label source and version, where pictures were found."""
    splits: Mapping[str, bytes] = field(default_factory=dict)
    """Random splits as files, by name, so that others can score on the same: evaluation writes them beside the
    features and names them, with their sha256, in the notes."""

    def __post_init__(self) -> None:
        sets, tasks = self.by_name, {task.name: task for task in self.tasks}
        assert len(sets) == len(self.sets), "names must be unique"
        assert len(tasks) == len(self.tasks), "names must be unique"
        figures = [column.name for column in self.columns] + [summary.name for summary in self.summaries]
        assert len(set(figures)) == len(figures), "names must be unique"
        for task in self.tasks:
            images = sets[task.images]
            assert images.may_train, f"{self.name}: {images.name} must never be trained on"
            assert len(task.labels) == len(images)
            assert task.labels.max(initial=LEFT_OUT) < len(task.classes)
        for column in self.columns:
            assert column.task in tasks
            assert column.images in sets

    @property
    def by_name(self) -> dict[str, ImageSet]:
        """Image sets by their name."""
        return {images.name: images for images in self.sets}


def top(labels: npt.ArrayLike, k: int = 1) -> Scorer:
    """Right if the label is among the k best scores; labels [n], LEFT_OUT: not counted. Ties go to the lower class.

    A score that is not a number beats all others, so that a model that diverged gets nothing right.
    """
    truth = np.asarray(labels, np.int64)

    def score(scores: Floats, rows: Ints) -> Floats:
        wanted = truth[rows]
        counted = wanted != LEFT_OUT
        own = np.take_along_axis(scores, np.where(counted, wanted, 0)[:, None], 1)
        later = np.arange(scores.shape[1]) > wanted[:, None]
        behind = (scores < own) | ((scores == own) & later)
        rank = scores.shape[1] - 1 - behind.sum(1)
        return np.where(counted, rank < k, np.nan).astype(np.float32)

    return Scorer(judge=score, truth=fingerprint(["top", k, truth.tobytes()]))


def fingerprint(parts: Iterable[object]) -> str:
    """sha256 over the parts, in order: the file names and sizes of a set, and whatever else decides its pixels."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def check_counts(bench: str, counts: Mapping[str, tuple[int, int]], partial: bool) -> tuple[str, ...]:
    """Compare {what: (found, expected)}; returns Bench.partial. Raises UserError on a difference without --partial."""
    wrong = tuple(
        f"{what}: {found:,} of {expected:,}" for what, (found, expected) in counts.items() if found != expected
    )
    if wrong and not partial:
        raise UserError(
            f"{bench} is not complete ({'; '.join(wrong)}): mend the copy, or give --partial to score what is there, "
            "and have the result marked so"
        )
    return wrong
