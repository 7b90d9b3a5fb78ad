"""`imagenet9`: the ImageNet probe on the backgrounds challenge's eight variants (Xiao et al. 2020, arXiv 2006.09994).

    imagenet9/VARIANT/val/00_dog/*.JPEG        bg_challenge/VARIANT/val/... is found too

Two ways of scoring. The official one maps the likeliest of 1,000 classes to one of nine; a class that belongs to none
is wrong. The exact one asks for the very class of the foreground, whose WordNet id is in the file name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypedDict

import numpy as np

from eval.benchmarks.bench import LEFT_OUT, Bench, Column, ImageSet, Ints, Source, Summary, check_counts, top
from eval.benchmarks.imagefolder import Pictures, list_folder
from eval.benchmarks.imagenet_labels import class_index
from eval.benchmarks.imagenet_tree import TASK, need, splits, train_set, training_counts
from eval.benchmarks.scoring import mapped
from shards.class_names import WNID
from shards.errors import UserError

__all__ = ["VARIANTS", "foreground_class", "imagenet9_mapping", "open_imagenet9"]

VARIANTS = (
    "original",
    "mixed_same",
    "mixed_rand",
    "mixed_next",
    "only_fg",
    "no_fg",
    "only_bg_b",
    "only_bg_t",
)
WITHOUT_OBJECT = ("no_fg", "only_bg_b", "only_bg_t")  # where a larger figure is no better
IMAGES = 4_050  # of each variant: 450 of each of the nine classes
FOLDER = re.compile(r"0?([0-8])_(.+)")


@cache
def imagenet9_mapping() -> Ints:
    """[1000] the ImageNet-9 class 0..8 of each ImageNet class, LEFT_OUT for the 630 that belong to none."""
    mapping = np.full(len(class_index()), LEFT_OUT, np.int64)
    for number, entry in enumerate(_table()):
        mapping[[class_index()[wnid] for wnid in entry["classes"]]] = number
    return mapping


def foreground_class(name: str, broad: int) -> int:
    """The ImageNet class of a file's foreground, LEFT_OUT if the name has no WordNet id within `broad`'s classes.

    Names of composites carry the foreground's id first and the background's after it.
    """
    classes = [class_index().get(wnid, LEFT_OUT) for wnid in WNID.findall(name.rpartition("/")[2])]
    return next((c for c in classes if c != LEFT_OUT and imagenet9_mapping()[c] == broad), LEFT_OUT)


def open_imagenet9(source: Source) -> Bench:
    """All variants; no head but ImageNet's is trained."""
    imagenet_root = source.benchmarks / "imagenet"
    need("imagenet9", source, {"imagenet9": [[source.root]], "imagenet": splits(imagenet_root, "train")})
    root = source.root / "bg_challenge" if (source.root / "bg_challenge").is_dir() else source.root
    variants = [_read(root, name) for name in VARIANTS if (root / name / "val").is_dir()]
    if not variants:
        raise UserError(f"{root} has no variant: it must look like {root}/original/val/00_dog/*.JPEG")
    imagenet = train_set(imagenet_root)
    partial = check_counts("imagenet9", _counts(variants) | training_counts(imagenet), source.partial)
    columns = tuple(column for variant in variants for column in variant.columns())
    return Bench(
        name="imagenet9",
        root=source.root,
        sets=(imagenet.images, *(variant.images for variant in variants)),
        tasks=(imagenet.task,),
        columns=columns,
        summaries=_gaps({column.name for column in columns}),
        partial=partial,
        notes={
            "train": str(imagenet.where),
            "exact": "left out of variants whose file names carry no WordNet id",
        },
    )


class _Entry(TypedDict):
    """One of the nine classes in data/imagenet9.json."""

    name: str
    classes: list[str]
    """WordNet ids of its ImageNet classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    images: ImageSet
    labels: Ints
    """[n] 0..8."""
    exact: Ints
    """[n] ImageNet class, LEFT_OUT where the file name has none."""

    def columns(self) -> list[Column]:
        name = self.images.name
        official = Column(
            name=name,
            task=TASK,
            images=name,
            score=mapped(self.labels, imagenet9_mapping()),
            expected=IMAGES,
            about="the likeliest of 1,000 classes, mapped to the nine, is the folder's (the official rule)",
            marked=name not in WITHOUT_OBJECT,
        )
        exact = Column(
            name=f"{name}_exact",
            task=TASK,
            images=name,
            score=top(self.exact),  # as many as have an id in their name; the variant's count is checked above
            about="the likeliest of 1,000 classes is the foreground's own (WordNet id of the file name)",
            marked=name not in WITHOUT_OBJECT,
        )
        return [official, exact] if (self.exact != LEFT_OUT).any() else [official]


def _read(root: Path, name: str) -> _Variant:
    pictures = list_folder(root / name / "val")
    if not pictures.keys:
        raise UserError(f"{pictures.where} holds no pictures: it must look like {pictures.where}/00_dog/*.JPEG")
    labels = np.array(_broad_classes(pictures), np.int64)
    exact = [foreground_class(key, broad) for key, broad in zip(pictures.keys, labels.tolist(), strict=True)]
    return _Variant(images=pictures.image_set(name, may_train=False), labels=labels, exact=np.array(exact, np.int64))


def _broad_classes(pictures: Pictures) -> list[int]:
    """0..8 by folder, `00_dog` to `08_fish`: number and name must agree."""
    known = {}
    for folder in set(pictures.class_names()):
        match = FOLDER.fullmatch(folder)
        # `02_wheeled vehicle` in the release; copies write underscores for spaces
        if match is None or match.group(2).replace("_", " ") != _table()[int(match.group(1))]["name"]:
            wanted = ", ".join(f"{number:02d}_{entry['name']}" for number, entry in enumerate(_table()))
            raise UserError(f"{pictures.where} holds the folder {folder!r}, none of ImageNet-9's ({wanted})")
        known[folder] = int(match.group(1))
    return [known[folder] for folder in pictures.class_names()]


def _counts(variants: list[_Variant]) -> dict[str, tuple[int, int]]:
    found = {variant.images.name: len(variant.labels) for variant in variants}
    return {f"images of {name}": (found.get(name, 0), IMAGES) for name in VARIANTS}


def _gaps(columns: set[str]) -> tuple[Summary, ...]:
    """How much of the accuracy is owed to backgrounds that go with the class."""
    pairs = {"bg_gap": ("mixed_same", "mixed_rand"), "bg_gap_exact": ("mixed_same_exact", "mixed_rand_exact")}
    return tuple(
        Summary(name=name, kind="difference", columns=pair, about="mixed_same minus mixed_rand")
        for name, pair in pairs.items()
        if columns >= set(pair)
    )


@cache
def _table() -> list[_Entry]:
    text = files("eval").joinpath("data/imagenet9.json").read_text(encoding="utf-8")
    entries: list[_Entry] = json.loads(text)["classes"]
    return entries
