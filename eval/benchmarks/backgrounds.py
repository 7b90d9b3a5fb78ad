"""`backgrounds`: the backgrounds challenge (Xiao et al. 2020, arXiv 2006.09994) on one's own class folders with boxes.

    DIR/train, DIR/val         as imagefolder's
    DIR/boxes.csv              path,x0,y0,x1,y1: for each of val's pictures the object's first and last column and row

One probe on `train` as it is, judged on the same pictures of `val` in each variant. These are made while they are read:
nothing is written, and each pair of an object and a ground is the same for every model.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from eval.benchmarks.bench import BG_GAP, Bench, ImageSet, Ints, Source, fingerprint
from eval.benchmarks.classes import class_figures
from eval.benchmarks.composites import VERSION, Box, ground, on_black, on_ground
from eval.benchmarks.imagefolder import WORDS as FOLDERS
from eval.benchmarks.imagefolder import WORTH_A_BAR, Pictures, named, open_splits
from eval.benchmarks.overlap import of_training
from shards.bars import bar
from shards.errors import UserError
from trainer.augment import DECODERS_RAISE, BadImage, decode

__all__ = ["VARIANTS", "open_backgrounds", "partners"]

ABOUT = {
    "original": "the picture as it is",
    "mixed_same": "the object on the ground of another picture of its class",
    "mixed_rand": "the object on the ground of a picture of a class at random",
    "only_fg": "the object on black",
    "only_bg_t": "the ground, the object's box filled with tiles of it: more is no better",
}
VARIANTS = tuple(ABOUT)
LEAST, MOST = 0.04, 0.5  # of the picture's area: less shows no object at 64 pixels, more leaves too little ground
OVER = 2  # pixels that a box may reach beyond its picture: of one of another size most reach further
BEYOND, IN_SHARES = "with a box beyond their edges", "with a box in shares, not pixels"
HEAD = ["path", "x0", "y0", "x1", "y1"]
WORDS = replace(FOLDERS, picture="picture with a usable box")

Corners = tuple[float, float, float, float]


def open_backgrounds(source: Source) -> Bench:
    """Raises UserError naming what is missing; pictures without a box, or with one that will not do, are left out."""
    train, test = open_splits(source.root)
    split = test.where.name.removesuffix(".tar")
    boxes, first = _read_boxes(source.root / "boxes.csv", f"{split}/")
    rows, cuts, left_out = _usable(test, [boxes.get(f"{split}/{key}") for key in test.keys])
    if left_out["without a box"] == len(test.keys):
        raise UserError(
            f"{source.root / 'boxes.csv'} names no picture of {split}: its paths must be {split}/CLASS/..., and the "
            f"first is {first!r}"
        )
    whole = test.classified("original")
    shown = replace(whole, labels=whole.labels[rows])
    several = np.isin(shown.labels, np.flatnonzero(np.bincount(shown.labels, minlength=1) > 1))
    left_out["alone in their class"] = int((~several).sum())
    rows, cuts, shown = rows[several], cuts[several], replace(shown, labels=shown.labels[several])
    if len(np.unique(shown.labels)) < 2:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise UserError(
            f"{test.where} has too few pictures whose box takes {LEAST:.0%} to {MOST:.0%} of them ({len(rows)} of "
            f"{len(test.keys)}; {why}): two classes of two such are the least"
        )
    task, (top1, *_), notes = class_figures(train.classified("train"), shown, WORDS)
    same, other = partners(shown.labels)
    scenes = _Scenes(test, rows, cuts, {"mixed_same": same, "mixed_rand": other})
    pictures = test.fingerprint(test.keys)
    columns = [
        replace(top1, name=name, images=name, about=about, marked=name != "only_bg_t") for name, about in ABOUT.items()
    ]
    return Bench(
        name="backgrounds",
        root=source.root,
        sets=(
            train.image_set("train", may_train=True),
            *(scenes.image_set(variant, fingerprint([pictures, scenes.made_of(variant)])) for variant in VARIANTS),
        ),
        tasks=(named(task, source.root),),
        columns=tuple(columns),
        summaries=(BG_GAP,),
        notes={**notes, "boxes": str(source.root / "boxes.csv"), "left_out": left_out, "test_pictures": len(test.keys)}
        | {"of_training": of_training(train.held(), test.held())},
    )


@dataclass(frozen=True, slots=True)
class _Scenes:
    """The pictures that are shown in every variant."""

    pictures: Pictures
    rows: Ints
    """[n] their positions in `pictures`."""
    boxes: npt.NDArray[np.int64]
    """[n, 4] left, top, right, bottom."""
    partners: dict[str, Ints]
    """[n] of a mixed variant: whose ground, as a position in `rows`."""

    def image_set(self, variant: str, name: str) -> ImageSet:
        keys = [self.pictures.keys[row] for row in self.rows.tolist()]
        return ImageSet(name=variant, keys=keys, read=self.reader(variant), fingerprint=name)

    def made_of(self, variant: str) -> str:
        """All that decides the pixels, but for the pictures."""
        if variant == "original":
            return fingerprint([self.rows.tobytes()])
        partners = self.partners.get(variant, self.rows)
        return fingerprint([variant, VERSION, self.rows.tobytes(), self.boxes.tobytes(), partners.tobytes()])

    def reader(self, variant: str) -> Callable[[int], bytes]:
        if variant == "original":
            return lambda i: self.pictures.read(int(self.rows[i]))
        if variant == "only_fg":
            return lambda i: _png(on_black(*self.cut(i)))
        if variant == "only_bg_t":
            return lambda i: _png(ground(*self.cut(i)))
        partners = self.partners[variant]
        return lambda i: _png(on_ground(*self.cut(i), *self.cut(int(partners[i]))))

    def cut(self, i: int) -> tuple[npt.NDArray[np.uint8], Box]:
        """A picture and its box. Raises BadImage."""
        image = decode(self.pictures.read(int(self.rows[i])))
        left, top, right, bottom = self.boxes[i].tolist()
        if right > image.shape[1] or bottom > image.shape[0]:
            raise BadImage("it has another size than its first bytes say")
        return image, (left, top, right, bottom)


def _read_boxes(path: Path, within: str) -> tuple[dict[str, Corners], str]:
    """Of paths that begin with `within`, and the first path that is there.

    Of several boxes of one picture the one around all of them. Four empty fields are no box.
    """
    boxes, first = dict[str, Corners](), ""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file, skipinitialspace=True)
            if missing := [name for name in HEAD if name not in (lines.fieldnames or [])]:
                found = ", ".join(lines.fieldnames or []) or "nothing"
                raise UserError(f"{path} has no column {missing[0]} ({found}): its first line must be {','.join(HEAD)}")
            for line in lines:
                first = first or line["path"]
                line["path"] = (line["path"] or "").removeprefix("./")
                if not line["path"].startswith(within) or not any(line[name] for name in HEAD[1:]):
                    continue
                try:
                    box = [float(line[name]) for name in HEAD[1:]]
                except (TypeError, ValueError):
                    raise UserError(f"{path}, line {lines.line_num}: x0, y0, x1, y1 must be numbers") from None
                if not (box[0] <= box[2] and box[1] <= box[3]):  # one that is not a number, too
                    raise UserError(f"{path}, line {lines.line_num}: a box ends before it begins ({box})")
                known = boxes.get(line["path"], box)
                boxes[line["path"]] = (
                    min(box[0], known[0]), min(box[1], known[1]), max(box[2], known[2]), max(box[3], known[3])
                )  # fmt: skip
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: a line {','.join(HEAD)}, then one for each picture, such as "
            "val/cat/1.jpg,12,30,120,200 (pixels, the object's first and last column and row)"
        ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return boxes, first


def _usable(pictures: Pictures, boxes: list[Corners | None]) -> tuple[Ints, npt.NDArray[np.int64], dict[str, int]]:
    """Positions of the pictures whose box will do, their boxes [n, 4] within the picture, and why others are not."""
    rows, cuts = [], []
    left_out = dict.fromkeys(
        ("without a box", "with too small a box", "with too large a box", BEYOND, IN_SHARES, "unreadable"), 0
    )
    slow = len(boxes) > WORTH_A_BAR[1]
    with bar("looking at sizes", len(boxes)) if slow else nullcontext(lambda _: None) as advance:
        for row, box in enumerate(boxes):
            advance(1)
            if box is None:
                left_out["without a box"] += 1
                continue
            try:
                width, height = _size(pictures.read(row))
            except (*DECODERS_RAISE, BadImage):
                left_out["unreadable"] += 1
                continue
            if max(box) <= 1 < min(width, height):
                left_out[IN_SHARES] += 1
                continue
            if min(box) < -OVER or box[2] >= width + OVER or box[3] >= height + OVER:
                left_out[BEYOND] += 1
                continue
            left, right = np.clip(np.floor([box[0], box[2] + 1]), 0, width).astype(int).tolist()
            top, bottom = np.clip(np.floor([box[1], box[3] + 1]), 0, height).astype(int).tolist()
            share = (right - left) * (bottom - top) / (width * height)
            if not LEAST <= share <= MOST:
                left_out["with too small a box" if share < LEAST else "with too large a box"] += 1
                continue
            rows.append(row)
            cuts.append((left, top, right, bottom))
    return np.array(rows, np.int64), np.array(cuts, np.int64).reshape(-1, 4), left_out


def partners(labels: Ints) -> tuple[Ints, Ints]:
    """[n], [n] for each picture another one of its class, each chosen once; and another one of a class at random.

    Its own class among them, as in the challenge: a ground that is of any other would tell which class it is not.
    """
    random = np.random.default_rng(0)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    same, other = np.empty(len(labels), np.int64), np.empty(len(labels), np.int64)
    for own in members:
        mixed = random.permutation(own)
        same[mixed] = np.roll(mixed, 1)
    for i, choice in enumerate(random.integers(len(members), size=len(labels)).tolist()):
        others = members[choice][members[choice] != i]
        other[i] = others[random.integers(len(others))]
    return same, other


def _size(data: bytes) -> tuple[int, int]:
    """(width, height), as a picture's first bytes say; of one that is too large for PIL, as it decodes."""
    try:
        with Image.open(BytesIO(data)) as picture:
            return picture.size
    except Image.DecompressionBombError:
        height, width = decode(data).shape[:2]
        return width, height


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
