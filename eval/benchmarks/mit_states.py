"""`mit-states`: objects and their states, on a random even split (Isola et al. 2015; the X-CLR paper's protocol).

    mit-states/images/ADJ_NOUN/*.jpg        `ADJ NOUN`, as the release writes it, and release_dataset/images/ are found

The paper splits the pictures at random into two even parts, one to train the probe and one to test it, without saying
which. Here are three such splits, with mean and deviation. A picture's side is decided by a hash of the seed and its
path, so that a split is the same on every machine and in every version of numpy. The folders `adj NOUN` hold pictures
without a state and are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from eval.benchmarks.bench import (
    LEFT_OUT,
    Bench,
    Column,
    ImageSet,
    Ints,
    Source,
    Summary,
    Task,
    check_counts,
    top,
)
from eval.benchmarks.imagefolder import Pictures, list_folder, unpacked
from eval.benchmarks.imagenet_tree import need
from shards.errors import UserError

__all__ = ["SEEDS", "even_split", "open_mit_states", "split_text"]

SEEDS = (0, 1, 2)
IMAGES, PAIRS, ATTRIBUTES, OBJECTS = 53_753, 1_962, 115, 245
NO_STATE = "adj"
KINDS: tuple[Literal["mean"], Literal["deviation"]] = ("mean", "deviation")
SET = "mit-states"


def open_mit_states(source: Source) -> Bench:
    """Six heads, objects and attributes by three splits, over one set of features."""
    need("mit-states", source, {"mit-states": [[source.root]]})
    pictures, keys = _pictures(source.root)
    pairs = [key.split("/", 1)[0].split("_", 1) for key in keys]
    heads = {"object": [pair[1] for pair in pairs], "attribute": [pair[0] for pair in pairs]}
    partial = check_counts(
        "mit-states",
        {
            "images": (len(keys), IMAGES),
            "pairs": (len({tuple(pair) for pair in pairs}), PAIRS),
            "attributes": (len(set(heads["attribute"])), ATTRIBUTES),
            "objects": (len(set(heads["object"])), OBJECTS),
        },
        source.partial,
    )
    sides = {seed: even_split(keys, seed) for seed in SEEDS}
    tasks, columns = [], []
    for head, names in heads.items():
        classes = sorted(set(names))
        labels = np.searchsorted(classes, names).astype(np.int64)
        for seed, train in sides.items():
            task = f"{head}_seed{seed}"
            tasks.append(Task(name=task, images=SET, labels=np.where(train, labels, LEFT_OUT), classes=classes))
            columns.append(_column(task, np.where(train, LEFT_OUT, labels), head, seed))
    return Bench(
        name="mit-states",
        root=source.root,
        sets=(_image_set(pictures, keys),),
        tasks=tuple(tasks),
        columns=tuple(columns),
        summaries=tuple(_summary(head, kind) for head in heads for kind in KINDS),
        partial=partial,
        notes={"images": str(pictures.where)},
        splits={f"seed{seed}": split_text(keys, train) for seed, train in sides.items()},
    )


def even_split(keys: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """[n] True: to train on. The half, rounded down, with the smallest sha256 of `SEED KEY`; keys ADJ_NOUN/file."""
    digests = [hashlib.sha256(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest() for key in keys]
    order = sorted(range(len(keys)), key=digests.__getitem__)
    train = np.zeros(len(keys), np.bool_)
    train[order[: len(keys) // 2]] = True
    return train


def split_text(keys: Sequence[str], train: npt.NDArray[np.bool_]) -> bytes:
    """One line a picture, `train` or `test`, a tab and the key, sorted by key."""
    lines = (f"{'train' if side else 'test'}\t{key}\n" for key, side in sorted(zip(keys, train, strict=True)))
    return "".join(lines).encode("utf-8", "surrogateescape")


def _pictures(root: Path) -> tuple[Pictures, list[str]]:
    """The pictures that have a state, and their keys with ADJ_NOUN folders whatever the copy's spelling."""
    pictures = list_folder(unpacked(root / "release_dataset" / "images", root / "images", root))
    rows, keys = [], []
    for row, key in enumerate(pictures.keys):
        pair, _, rest = key.partition("/")
        state, _, noun = pair.replace(" ", "_").partition("_")
        if not noun:
            raise UserError(f"{pictures.where} holds the folder {pair!r}: folders must be named ADJ_NOUN")
        if state != NO_STATE:
            rows.append(row)
            keys.append(f"{state}_{noun}/{rest}")
    if not rows:
        raise UserError(
            f"{pictures.where} holds no pictures: it must look like {pictures.where}/ancient_building/*.jpg"
        )
    return pictures.only(rows), keys


def _image_set(pictures: Pictures, keys: list[str]) -> ImageSet:
    return ImageSet(name=SET, keys=keys, read=pictures.read, fingerprint=pictures.fingerprint(keys), may_train=True)


def _column(task: str, labels: Ints, head: str, seed: int) -> Column:
    return Column(
        name=task,
        task=task,
        images=SET,
        score=top(labels),
        expected=IMAGES - IMAGES // 2,
        about=f"{head}, on the half of split {seed} that was not trained on",
    )


def _summary(head: str, kind: Literal["mean", "deviation"]) -> Summary:
    return Summary(
        name=head if kind == "mean" else f"{head}_deviation",
        kind=kind,
        columns=tuple(f"{head}_seed{seed}" for seed in SEEDS),
        about=f"{kind} over {len(SEEDS)} random even splits",
    )
