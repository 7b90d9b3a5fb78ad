"""`imagenet` and `imagenet-real`: the 1000-way probe on ILSVRC2012's validation images, by its labels and by ReaL's."""

from __future__ import annotations

from pathlib import Path

import timm

from eval.benchmarks.bench import Bench, Column, Source, check_counts, top
from eval.benchmarks.imagenet_labels import IMAGES, real_labels
from eval.benchmarks.imagenet_tree import TASK, ImageNet, Val, need, splits, train_set, training_counts, val_set
from eval.benchmarks.scoring import any_of
from shards.errors import UserError

__all__ = ["open_imagenet", "open_imagenet_real"]


def _check_classes(imagenet: ImageNet, val: Val) -> None:
    """A partial copy may lack classes, but one whose halves do not meet would score 0 without a word."""
    if not set(val.labels.tolist()) & set(imagenet.task.labels.tolist()):
        raise UserError(f"no class of {val.where} is among those of {imagenet.where}: both must hold some in common")


def open_imagenet(source: Source) -> Bench:
    """Top-1 and top-5 by ImageNet's own labels."""
    imagenet, val, partial = _open("imagenet", source, source.root)
    columns = tuple(
        Column(
            name=f"top{k}",
            task=TASK,
            images=val.images.name,
            score=top(val.labels, k),
            expected=IMAGES,
            about=f"ImageNet's label among the {k} likeliest of 1,000 classes" if k > 1 else "ImageNet's label",
        )
        for k in (1, 5)
    )
    return Bench(
        name="imagenet",
        root=source.root,
        sets=(imagenet.images, val.images),
        tasks=(imagenet.task,),
        columns=columns,
        partial=partial,
        notes=_notes(imagenet, val),
    )


def open_imagenet_real(source: Source) -> Bench:
    """Right if the prediction is in ReaL's set; images of an empty set are in neither numerator nor denominator.

    The pictures and the probe are ImageNet's: `imagenet-real` needs no folder of its own.
    """
    own = source.benchmarks / "imagenet-real"  # where --data does not say otherwise
    root = source.benchmarks / "imagenet" if source.root == own and not own.exists() else source.root
    imagenet, val, partial = _open("imagenet-real", source, root)
    unnamed = [key for key, number in zip(val.images.keys, val.numbers.tolist(), strict=True) if not number]
    if unnamed:
        raise UserError(
            f"ReaL's labels go by file name, ILSVRC2012_val_NNNNNNNN.JPEG, and {val.where} has {unnamed[0]} "
            f"({len(unnamed):,} such): give a copy with the original names"
        )
    labels = real_labels()
    right = [labels[number - 1] for number in val.numbers.tolist()]
    column = Column(
        name="real",
        task=TASK,
        images=val.images.name,
        score=any_of(right),
        expected=sum(map(bool, labels)),
        about="the likeliest class is in ReaL's set; images whose set is empty are not counted",
    )
    return Bench(
        name="imagenet-real",
        root=root,
        sets=(imagenet.images, val.images),
        tasks=(imagenet.task,),
        columns=(column,),
        partial=partial,
        notes={
            **_notes(imagenet, val),
            "real_labels": f"timm {timm.__version__}",
            "empty_sets": len(right) - sum(map(bool, right)),
        },
    )


def _open(name: str, source: Source, root: Path) -> tuple[ImageNet, Val, tuple[str, ...]]:
    need(name, source, {"imagenet": splits(root, "train", "val")})
    imagenet, val = train_set(root), val_set(root)
    partial = check_counts(name, training_counts(imagenet) | val.counts(), source.partial)
    _check_classes(imagenet, val)
    return imagenet, val, partial


def _notes(imagenet: ImageNet, val: Val) -> dict[str, str]:
    return {"train": str(imagenet.where), "val": str(val.where), "val_labels": val.source}
