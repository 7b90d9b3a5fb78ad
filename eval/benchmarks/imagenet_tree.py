"""ImageNet-1k (ILSVRC2012) as it lies on disk: classes, the training set behind most benchmarks' probe, the val set.

    imagenet/train/WNID/*.JPEG      or train.tar of such folders
    imagenet/val/WNID/*.JPEG        or val.tar of such folders, or
    imagenet/val/*.JPEG             with the labels in a file beside them: see eval.benchmarks.imagenet_labels

Class i is the i-th of the sorted WordNet ids, the order of torchvision and timm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.benchmarks.bench import Absent, ImageSet, Ints, Source, Task
from eval.benchmarks.imagefolder import Pictures, contents, list_folder, list_tar, size_of
from eval.benchmarks.imagenet_labels import (
    IMAGES,
    check_against_real,
    class_index,
    flat_labels,
    image_number,
    wnids,
)
from eval.benchmarks.registry import BENCHES
from shards.bars import say
from shards.class_names import WNID
from shards.errors import UserError
from shards.pictures import is_image

__all__ = ["TASK", "ImageNet", "Val", "need", "splits", "train_set", "training_counts", "val_set"]

TASK = "imagenet"
TRAIN_IMAGES = 1_281_167  # Russakovsky et al. 2015, table 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNet:
    """The training set and the 1000-way head over it, equal for every benchmark, so that one probe serves them all."""

    images: ImageSet
    task: Task
    where: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Val:
    """The validation set."""

    images: ImageSet
    labels: Ints
    """[n] class of each picture."""
    numbers: Ints
    """[n] NNNNNNNN of each ILSVRC2012_val_NNNNNNNN.JPEG, 0 for other names."""
    where: Path
    source: str
    """Where the labels come from."""

    def counts(self) -> dict[str, tuple[int, int]]:
        """For check_counts: pictures and classes."""
        return {
            "val images": (len(self.labels), IMAGES),
            "val classes": (len(np.unique(self.labels)), len(wnids())),
        }


def train_set(root: Path) -> ImageNet:
    """The training set in `root`. Raises UserError for folders that are not ImageNet's classes."""
    pictures = _class_folders(root, "train")
    images = pictures.image_set("imagenet train", may_train=True)
    labels = _folder_classes(pictures)
    return ImageNet(
        images=images,
        task=Task(name=TASK, images=images.name, labels=labels, classes=wnids()),
        where=pictures.where,
    )


def training_counts(imagenet: ImageNet) -> dict[str, tuple[int, int]]:
    """For check_counts: pictures and classes of the training set."""
    labels = imagenet.task.labels
    return {
        "train images": (len(labels), TRAIN_IMAGES),
        "train classes": (len(np.unique(labels)), len(wnids())),
    }


def val_set(root: Path) -> Val:
    """The validation set in `root`, as class folders or flat. Raises UserError for labels that cannot be right."""
    folder = root / "val"
    if folder.is_dir() and not any(WNID.fullmatch(name) for name in _subfolders(folder)):
        pictures = _flat(folder)
        labels, source = flat_labels(root, folder, pictures.keys)
    else:
        pictures = _class_folders(root, "val")
        labels, source = _folder_classes(pictures), "class folders"
    numbers = np.array([image_number(key) for key in pictures.keys], np.int64)
    check_against_real(numbers, labels, f"{pictures.where} ({source})")
    return Val(
        images=pictures.image_set("imagenet val", may_train=False),
        labels=labels,
        numbers=numbers,
        where=pictures.where,
        source=source,
    )


def need(bench: str, source: Source, places: Mapping[str, Sequence[Sequence[Path]]]) -> None:
    """Raise Absent, in one line for all that is missing.

    places: benchmark -> what it needs, each as alternatives of which one must exist.
    """
    lacks = {}
    for name, wanted in places.items():
        absent = [str(paths[0]) for paths in wanted if not any(path.exists() for path in paths)]
        if absent:
            lacks[name] = absent
    if lacks:
        words = (f"there is no {' and no '.join(lacks[name])} ({name}: {BENCHES[name].where})" for name in lacks)
        raise Absent(
            f"{bench} cannot be scored: {'; '.join(words)}; set $XCLR_BENCHMARKS to the folder of the benchmarks (now "
            f"{source.benchmarks}), or give --data",
            lacks,
        )


def splits(root: Path, *names: str) -> list[list[Path]]:
    """For need(): the folder or the tar of each split."""
    return [[root / name, root / f"{name}.tar"] for name in names]


def _class_folders(root: Path, split: str) -> Pictures:
    folder, tar = root / split, root / f"{split}.tar"
    say(f"listing {folder if folder.is_dir() else tar}")  # 1.3 million names take a while on a slow disk
    pictures = list_folder(folder) if folder.is_dir() else list_tar(tar)
    if not pictures.keys:
        raise UserError(f"{pictures.where} holds no pictures: it must look like {folder}/n01440764/*.JPEG")
    return pictures


def _folder_classes(pictures: Pictures) -> Ints:
    index = class_index()
    names = pictures.class_names()
    unknown = sorted(set(names) - set(index))
    if unknown:
        raise UserError(
            f"{pictures.where} holds the folder {unknown[0]!r} ({len(unknown)} such), which is none of ImageNet's "
            f"{len(index):,} WordNet ids: take it out"
        )
    return np.array([index[name] for name in names], np.int64)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _flat(folder: Path) -> Pictures:
    with os.scandir(folder) as entries:
        found = sorted((entry.name, size_of(entry)) for entry in entries if is_image(entry.name))
    if not found:
        raise UserError(f"{folder} holds no pictures: it must look like {folder}/ILSVRC2012_val_00000001.JPEG")
    keys = [name for name, _ in found]
    return Pictures(
        where=folder, keys=keys, sizes=[size for _, size in found], read=lambda i: contents(folder / keys[i])
    )
