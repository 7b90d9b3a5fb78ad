"""`objectnet`: the ImageNet probe on ObjectNet's 113 classes that overlap ImageNet's (Barbu et al. 2019).

    objectnet/images/FOLDER/*.png        313 folders; objectnet-1.0/images/ and bare folders are found too

Counted are the 18,574 pictures of the overlap, not all 50,273. An ObjectNet class may have several ImageNet classes (a
chair is a barber chair, a folding chair or a rocking chair); any of them is right. ObjectNet's licence forbids training
on it, and nothing here can: its set is never marked as one that may be trained on, and a head refuses any other.

Every official picture has a frame of two red pixels, which is there to find leaked copies and must not be looked at. It
is searched for rather than cut off, because copies without it, or with it resized, are about.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from eval.benchmarks.bench import Bench, Column, ImageSet, Pixels, Source, check_counts
from eval.benchmarks.imagefolder import Pictures, list_folder, unpacked
from eval.benchmarks.imagenet_labels import class_index
from eval.benchmarks.imagenet_tree import TASK, need, splits, train_set, training_counts
from eval.benchmarks.scoring import any_of
from shards.errors import UserError

__all__ = ["border_width", "objectnet_classes", "open_objectnet", "remove_border"]

IMAGES, OVERLAP = 50_273, 18_574
# Red is (255, 0, 0) in the official PNGs; the tolerance is for JPEG copies, whose frames come out near it.
RED_LEAST, OTHERS_MOST = 200, 70
RED_SHARE = 0.99
OFFICIAL, MAX_BORDER = 2, 8  # pixels
# Of the official frame's inner pixels JPEG mixes the colour with the scene's: red less the larger of green and blue is
# 80 or more in 99.5 % of each side at qualities 75 and 90, and in 83 % at most of the next ring (85 pictures, 2026-11).
BLURRED_LEAST = 80
SET = "objectnet"


@cache
def objectnet_classes() -> dict[str, tuple[int, ...]]:
    """ObjectNet's 313 folders -> their ImageNet classes, none for the 200 outside the overlap."""
    table = json.loads(files("eval").joinpath("data/objectnet.json").read_text(encoding="utf-8"))["folders"]
    return {folder: tuple(sorted(class_index()[wnid] for wnid in wnids)) for folder, wnids in table.items()}


def open_objectnet(source: Source) -> Bench:
    """Both ways of scoring: the choice among the overlap's ImageNet classes, and among all 1,000."""
    imagenet_root = source.benchmarks / "imagenet"
    need("objectnet", source, {"objectnet": [[source.root]], "imagenet": splits(imagenet_root, "train")})
    pictures = list_folder(_images_folder(source.root))
    imagenet = train_set(imagenet_root)
    names = np.array(pictures.class_names())
    classes = objectnet_classes()
    rows = np.flatnonzero(np.isin(names, [folder for folder, ids in classes.items() if ids]))
    partial = check_counts(
        "objectnet",
        {
            "folders with images": (len(set(names.tolist())), len(classes)),
            "images": (len(pictures.keys), IMAGES),
            "images of the overlap": (len(rows), OVERLAP),
        }
        | training_counts(imagenet),
        source.partial,
    )
    if not len(rows):
        raise UserError(f"{pictures.where} holds no picture of the {OVERLAP:,} that are scored")
    right = [classes[name] for name in names[rows].tolist()]
    among = {number for ids in classes.values() for number in ids}
    overlap = sum(map(bool, classes.values()))
    return Bench(
        name="objectnet",
        root=source.root,
        sets=(imagenet.images, _test_set(pictures.only(rows.tolist()))),
        tasks=(imagenet.task,),
        columns=(
            Column(
                name="objectnet",
                task=TASK,
                images=SET,
                score=any_of(right, among=among),
                expected=OVERLAP,
                about=f"likeliest of the {len(among)} ImageNet classes of the {overlap} overlapping classes",
            ),
            Column(
                name="objectnet_1000",
                task=TASK,
                images=SET,
                score=any_of(right),
                expected=OVERLAP,
                about=f"likeliest of all 1,000 ImageNet classes, on the {overlap} overlapping classes",
            ),
            Column(
                name="objectnet_1000_top5",
                task=TASK,
                images=SET,
                score=any_of(right, k=5),
                expected=OVERLAP,
                about="one of the class's ImageNet classes among the 5 likeliest of all 1,000",
            ),
        ),
        partial=partial,
        notes={
            "images": str(pictures.where),
            "train": str(imagenet.where),
            "border": f"a closed red frame at the edge is cut off where there is one, up to {MAX_BORDER} pixels",
        },
    )


def border_width(image: Pixels) -> int:
    """Width in pixels of the closed red frame around an RGB picture [height, width, 3], 0 without one.

    A frame is closed: a red wall at one side is part of the scene.
    """
    height, width = image.shape[:2]
    limit: int = min(MAX_BORDER, (min(height, width) - 1) // 2)
    for depth in range(limit):
        bottom, right = height - 1 - depth, width - 1 - depth
        sides = (
            image[depth, depth : right + 1],
            image[bottom, depth : right + 1],
            image[depth : bottom + 1, depth],
            image[depth : bottom + 1, right],
        )
        red = _blurred_red if 0 < depth < OFFICIAL else _pure_red
        if any(red(side) < RED_SHARE for side in sides):
            return depth
    return limit


def _pure_red(side: Pixels) -> float:
    """Share of a side's pixels [length, RGB] that are."""
    return float(((side[:, 0] >= RED_LEAST) & (side[:, 1:] <= OTHERS_MOST).all(1)).mean())


def _blurred_red(side: Pixels) -> float:
    return float((side[:, 0].astype(np.int16) - side[:, 1:].max(1) >= BLURRED_LEAST).mean())


def remove_border(image: Pixels) -> Pixels:
    """The picture within its red frame; the picture itself if it has none."""
    width = border_width(image)
    return image[width : image.shape[0] - width, width : image.shape[1] - width]


def _images_folder(root: Path) -> Path:
    """The folder of the class folders. Raises UserError if it holds none of ObjectNet's or others."""
    folder = unpacked(root / "objectnet-1.0" / "images", root / "images", root)
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    known = set(objectnet_classes())
    if not names & known:
        raise UserError(f"{folder} holds none of ObjectNet's {len(known)} folders (air_freshener, alarm_clock, ...)")
    if names - known:
        raise UserError(
            f"{folder} holds the folder {sorted(names - known)[0]!r} ({len(names - known)} such), which is none of "
            f"ObjectNet's {len(known)}: take it out"
        )
    return folder


def _test_set(pictures: Pictures) -> ImageSet:
    return ImageSet(
        name=SET,
        keys=pictures.keys,
        read=pictures.read,
        fingerprint=pictures.fingerprint(pictures.keys, "red frame removed, blurred too"),
        prepare=remove_border,
        may_train=False,
    )
