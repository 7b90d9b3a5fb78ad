"""ImageNet's classes, ReaL labels, and the labels of a flat val folder.

The devkit numbers its classes 1..1000 in an order of its own, given by meta.mat. Read as positions among the sorted
WordNet ids, its ground truth looks perfectly well formed and scores every model at 0.1%. So the mapping is read from
the devkit, never assumed, and whatever the source, the result is held against ReaL's labels (check_against_real).
"""

from __future__ import annotations

import csv
import re
import tarfile
from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np

from eval.benchmarks.bench import Ints
from shards.class_names import WNID
from shards.errors import UserError

__all__ = [
    "IMAGES",
    "check_against_real",
    "class_index",
    "flat_labels",
    "image_number",
    "real_labels",
    "wnids",
]

IMAGES = 50_000
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE = "LOC_val_solution.csv"
LISTS = ("val.txt", "labels.tsv", "val.tsv")
MAPPINGS = ("meta.mat", "map_clsloc.txt", "synsets.tsv", "synsets.txt")
DEVKIT = "ILSVRC2012_devkit_t12"
NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
# ImageNet's own label is in ReaL's set for about nine images in ten (Beyer et al. 2020); by a wrong mapping for one in
# a thousand. Below so many images the share says little.
AGREEMENT, AGREEMENT_IMAGES = 0.5, 100


@cache
def wnids() -> tuple[str, ...]:
    """The 1000 WordNet ids, sorted: class i is wnids()[i]."""
    from timm.data import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def class_index() -> Mapping[str, int]:
    """WordNet id -> class."""
    return {wnid: number for number, wnid in enumerate(wnids())}


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """[50,000] ReaL's classes of ILSVRC2012_val_00000001.JPEG onwards; some are empty (Beyer et al. 2020, by timm)."""
    from timm.data import RealLabelsImagenet

    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, IMAGES + 1)]
    table = RealLabelsImagenet(names).real_labels
    return tuple(tuple(sorted(table[name])) for name in names)


def image_number(key: str) -> int:
    """1..50,000 of `.../ILSVRC2012_val_NNNNNNNN.JPEG`, 0 for another name."""
    match = NAME.fullmatch(key.rpartition("/")[2])
    number = int(match.group(1)) if match else 0
    return number if number <= IMAGES else 0


def check_against_real(numbers: Ints, labels: Ints, what: str) -> None:
    """Raise UserError if the labels agree so little with ReaL's that classes must have been mixed up.

    numbers [n]: image numbers, 0 for unknown; labels [n].
    """
    pairs = [(real_labels()[n - 1], label) for n, label in zip(numbers.tolist(), labels.tolist(), strict=True) if n]
    agree = [label in right for right, label in pairs if right]
    if len(agree) >= AGREEMENT_IMAGES and np.mean(agree) < AGREEMENT:
        raise UserError(
            f"the labels of {what} agree with ReaL's on {np.mean(agree):.1%} of {len(agree):,} images instead of some "
            "90%: the class numbers belong to another order of classes (the devkit's is in its meta.mat)"
        )


def flat_labels(root: Path, val: Path, names: Sequence[str]) -> tuple[Ints, str]:
    """([n] class of each file name, where that is from). Looks in `root`, `val` and the devkit's folder or tar.gz.

    Known are the devkit's ground truth, Kaggle's LOC_val_solution.csv, and lists of file name and WordNet id or class
    number from 0 (val.txt, labels.tsv). Raises UserError if none is there, or it lacks a picture.
    """
    folders = (root, val, root / DEVKIT / "data", root / "devkit" / "data", root / "data")
    for finder in (_from_kaggle, _from_devkit, _from_list):
        found = finder(folders)
        if found is not None:
            table, source = found
            return _look_up(names, table, source), source
    raise UserError(
        f"{val} holds pictures without class folders, and no labels lie beside them: put the devkit ({DEVKIT}, with "
        f"{TRUTH} and meta.mat), {KAGGLE} or val.txt into {root}"
    )


def _look_up(names: Sequence[str], table: Mapping[str, int], source: str) -> Ints:
    absent = [name for name in names if _stem(name) not in table]
    if absent:
        raise UserError(f"{source} has no label for {absent[0]} ({len(absent):,} such of {len(names):,} pictures)")
    return np.array([table[_stem(name)] for name in names], np.int64)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0].lower()


Table = tuple[dict[str, int], str]


def _from_kaggle(folders: Sequence[Path]) -> Table | None:
    path = _find(folders, (KAGGLE,))
    if path is None:
        return None
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return {_stem(r["ImageId"]): class_index()[r["PredictionString"].split()[0]] for r in rows}, str(path)
    except (KeyError, IndexError, AttributeError):
        raise UserError(
            f"{path} is not Kaggle's: it needs the columns ImageId and PredictionString (WordNet id, box)"
        ) from None


def _from_list(folders: Sequence[Path]) -> Table | None:
    path = _find(folders, LISTS)
    if path is None:
        return None
    table = {}
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        fields = re.split(r"[\s,]+", line.strip())
        if len(fields) < 2 or "." not in fields[0]:  # a header, an empty line
            continue
        table[_stem(fields[0])] = _class_of(fields[1], f"{path}: {line.strip()!r}")
    return table, str(path)


def _class_of(text: str, where: str) -> int:
    """A WordNet id, or a number from 0."""
    if text in class_index():
        return class_index()[text]
    if text.isdigit() and int(text) < len(wnids()):
        return int(text)
    raise UserError(f"{where}: the class must be one of ImageNet's WordNet ids or a number from 0 to 999")


def _from_devkit(folders: Sequence[Path]) -> Table | None:
    """Line i of the ground truth is the devkit's number of picture i's class."""
    files, source = _devkit_files(folders)
    if TRUTH not in files:
        return None
    mapping = next(((name, files[name]) for name in MAPPINGS if name in files), None)
    if mapping is None:
        raise UserError(
            f"{source} has no meta.mat beside it, and the devkit numbers classes in an order of its own: put meta.mat, "
            "map_clsloc.txt or a synsets.tsv (number, WordNet id) there"
        )
    classes = _devkit_classes(*mapping, source)
    try:
        numbers = [int(line) for line in files[TRUTH].split()]
        labels = [classes[number] for number in numbers]
    except (ValueError, KeyError) as error:
        raise UserError(f"{source} must hold numbers from 1 to {len(wnids()):,}: {error}") from None
    if len(labels) != IMAGES:
        raise UserError(f"{source} has {len(labels):,} lines, one for each of the {IMAGES:,} val images is needed")
    table = {f"ilsvrc2012_val_{number:08d}": label for number, label in enumerate(labels, 1)}
    return table, f"{source} with {mapping[0]}"


def _devkit_files(folders: Sequence[Path]) -> tuple[dict[str, bytes], str]:
    """The devkit's files that matter, from the first folder that has the ground truth, or from the devkit's tar.gz."""
    for folder in folders:
        if (folder / TRUTH).is_file():
            present = [name for name in (TRUTH, *MAPPINGS) if (folder / name).is_file()]
            return {name: (folder / name).read_bytes() for name in present}, str(folder / TRUTH)
    archive = _find(folders, (f"{DEVKIT}.tar.gz", f"{DEVKIT}.tar"))
    if archive is None:
        return {}, ""
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if member.isfile() and name in (TRUTH, *MAPPINGS):
                    files[name] = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file has content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} is damaged ({error}): fetch it again") from None
    return files, f"{archive}:{TRUTH}"


def _devkit_classes(name: str, data: bytes, source: str) -> dict[int, int]:
    """The devkit's number -> class. Raises UserError unless it maps 1..1000 to all classes."""
    numbers = _read_meta(data) if name == "meta.mat" else _read_numbered(data.decode("utf-8", "replace"))
    classes = {number: class_index()[wnid] for number, wnid in numbers.items() if wnid in class_index()}
    if sorted(classes) != list(range(1, len(wnids()) + 1)) or len(set(classes.values())) != len(wnids()):
        raise UserError(
            f"{name} beside {source} must give each number from 1 to {len(wnids()):,} one of ImageNet's WordNet ids; "
            f"it does for {len(classes):,}"
        )
    return classes


def _read_meta(data: bytes) -> dict[int, str]:
    """ILSVRC2012_ID -> WNID of meta.mat; numbers over 1000 are inner nodes of the hierarchy."""
    from scipy.io import loadmat  # type: ignore[import-untyped]
    from scipy.io.matlab import MatReadError  # type: ignore[import-untyped]

    try:
        synsets = np.atleast_1d(loadmat(BytesIO(data), squeeze_me=True)["synsets"])
        pairs = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except (MatReadError, ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise UserError(f"meta.mat is not the devkit's ({error}): fetch the devkit again") from None
    return {number: wnid for number, wnid in pairs.items() if number <= len(wnids())}


def _read_numbered(text: str) -> dict[int, str]:
    """Lines with a WordNet id and a number in either order, and perhaps words: `n02119789 1 kit_fox`."""
    pairs = {}
    for line in text.splitlines():
        fields = line.split()[:2]
        wnid = next((field for field in fields if WNID.fullmatch(field)), None)
        number = next((field for field in fields if field.isdigit()), None)
        if wnid and number:
            pairs[int(number)] = wnid
    return pairs


def _find(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)
