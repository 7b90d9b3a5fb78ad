"""`demo`: the embedded data set's test shards; the object on its own and other grounds, its colour, its texture.

Heads are trained on the training shards (`demo`), never on a test variant. The object's head is judged on every variant
of ImageNet-9's background challenge, those of colour and texture on the original pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks.bench import BG_GAP, Absent, Bench, Column, ImageSet, Source, Task, fingerprint, top
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import TEST, Shards, is_finished, test_folder

__all__ = ["VARIANTS", "open_demo"]

VARIANTS = ("original", "mixed_same", "mixed_rand", "only_fg", "only_bg")
ABOUT = {
    "original": "the object, on grounds as in training",
    "mixed_same": "the object, on another ground of its class",
    "mixed_rand": "the object, on a ground of another class",
    "only_fg": "the object, on black",
    "only_bg": "the object that was taken out of its ground: here more is no better",
}
HEADS = ("object", "colour", "texture")


def open_demo(source: Source) -> Bench:
    """Train shards: --data, the checkpoint's, or data/demo; test shards beside them, in NAME-test."""
    train = _train_folder(source)
    test = test_folder(train)
    train_rows, test_rows = _rows(train), _rows(test)
    names = {head: _class_names([train_rows, test_rows], head) for head in HEADS}
    train_set = _images("train", train, train_rows, "train")
    test_sets = {variant: _images(variant, test, test_rows, variant) for variant in VARIANTS}
    labels = {
        name: {head: np.array([row.labels[head] for row in images.rows], np.int64) for head in HEADS}
        for name, images in {"train": train_set, **test_sets}.items()
    }
    columns = [
        Column(
            name="object" if variant == "original" else variant,
            task="object",
            images=variant,
            score=top(labels[variant]["object"]),
            about=ABOUT[variant],
            marked=variant != "only_bg",
        )
        for variant in VARIANTS
    ]
    columns += [
        Column(
            name=head,
            task=head,
            images="original",
            score=top(labels["original"][head]),
            about=f"the object's {head}",
        )
        for head in HEADS[1:]
    ]
    return Bench(
        name="demo",
        root=train,
        sets=(train_set.images, *(images.images for images in test_sets.values())),
        tasks=tuple(
            Task(name=head, images="train", labels=labels["train"][head], classes=names[head]) for head in HEADS
        ),
        columns=tuple(columns),
        summaries=(BG_GAP,),
        notes={"train": str(train), "test": str(test)},
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """One sample's KEY.json, as far as it is used, and its position in the shards."""

    position: int
    key: str
    variant: str
    labels: dict[str, int]
    names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Set:
    images: ImageSet
    rows: list[_Row]


def _train_folder(source: Source) -> Path:
    """The first place that holds both folders of shards."""
    candidates = [source.root, source.root / "demo", source.shards, Path("data/demo")]
    there = [folder for folder in candidates if folder is not None and is_finished(folder)]
    ours = [folder for folder in there if folder == source.root or Manifest.load(folder).dataset == "demo"]
    whole = [folder for folder in ours if is_finished(test_folder(folder))]
    if whole:
        return whole[0]
    halves = [folder for folder in ours if Manifest.load(folder).dataset == "demo"]
    if halves:
        raise UserError(
            f"{test_folder(halves[0])} is missing, which the benchmark demo tests on: run `xclr-shards build demo-test`"
        )
    raise Absent(
        f"the benchmark demo needs the shards demo and demo-test, and there are none in {source.root} or data/: "
        "run `make demo`, or `xclr-shards build demo` and `xclr-shards build demo-test`",
        {"demo": [f"data/demo{part}" for part in ("", TEST)]},
    )


def _rows(folder: Path) -> list[_Row]:
    """What KEY.json says of every sample, in index order."""
    rows = []
    for position, sample in enumerate(Shards.open(folder).samples()):
        try:
            meta: dict[str, Any] = json.loads(sample.parts["json"])
            labels = {head: int(meta[head]) for head in HEADS}
            names = {head: str(meta[f"{head}_name"]) for head in HEADS if f"{head}_name" in meta}
            rows.append(_Row(position, sample.key, str(meta["variant"]), labels, names))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder}: {sample.key}.json lacks {error}: these are not shards of the demo data set, which "
                "`xclr-shards build demo` makes"
            ) from None
    return rows


def _class_names(splits: list[list[_Row]], head: str) -> list[str]:
    """Names by label; the number where KEY.json gives none."""
    known = {row.labels[head]: row.names.get(head, str(row.labels[head])) for rows in splits for row in rows}
    return [known.get(label, str(label)) for label in range(max(known, default=-1) + 1)]


def _images(name: str, folder: Path, rows: list[_Row], variant: str) -> _Set:
    rows = [row for row in rows if row.variant == variant]
    if not rows:
        raise UserError(f"{folder} has no picture of variant {variant!r}: build it again with `xclr-shards build`")
    shards = Shards.open(folder)
    assert len(shards.index) == len(shards)  # read before workers fork, so that they share it
    positions = [row.position for row in rows]
    images = ImageSet(
        name=name,
        keys=[row.key for row in rows],
        read=lambda i: shards.image(positions[i]),
        fingerprint=fingerprint(
            [variant, *(f"{path} {entry.sha256}" for path, entry in sorted(shards.manifest.files.items()))]
        ),
        may_train=variant == "train",
    )
    return _Set(images, rows)
