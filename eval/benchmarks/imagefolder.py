"""`imagefolder`: any class folders, as folders or as tars of them.

    DIR/train/CLASS/.../picture      DIR/val/CLASS/.../picture        (or test/ for val/)
    DIR/train.tar                    DIR/val.tar                      (members [train/]CLASS/.../picture)

Classes are matched by the name of their folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from eval.benchmarks.bench import Bench, ImageSet, Source, Task, fingerprint
from eval.benchmarks.classes import Classified, Words, class_figures
from eval.benchmarks.overlap import Held, of_training
from shards.bars import bar, say
from shards.class_names import called, names_file
from shards.errors import TornTar, UserError
from shards.pictures import is_image, passed_over
from shards.reader import is_finished
from shards.tar import class_images, compression, scan

__all__ = [
    "WORDS",
    "WORTH_A_BAR",
    "Pictures",
    "contents",
    "list_folder",
    "list_tar",
    "named",
    "open_imagefolder",
    "open_splits",
    "size_of",
    "unpacked",
]

HASHED_WHOLE = 512 << 20  # bytes of pictures, at most, whose content is all part of a fingerprint: a second or two
LOOKED_AT = 64  # pictures of a larger set whose content is part of it
WORTH_A_BAR = (64 << 20, 10_000)  # bytes, files: more may take some seconds on a slow disk
WORDS = Words(truth="the class of the folder", matched="classes are matched by folder name", needs="one folder each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures of class folders, sorted by path."""

    where: Path
    keys: list[str]
    """Path below the class folders' parent: CLASS/.../picture."""
    sizes: list[int]
    read: Callable[[int], bytes]

    def class_names(self) -> list[str]:
        return [key.split("/", 1)[0] for key in self.keys]

    def only(self, rows: Sequence[int]) -> Pictures:
        """Those at `rows`; the others are never read."""
        return Pictures(
            where=self.where,
            keys=[self.keys[row] for row in rows],
            sizes=[self.sizes[row] for row in rows],
            read=lambda position: self.read(rows[position]),
        )

    def classified(self, images: str) -> Classified:
        """The classes of its pictures, as those of the ImageSet that will have this name."""
        of_each = self.class_names()
        names = sorted(set(of_each))
        number = {name: label for label, name in enumerate(names)}
        labels = np.array([number[name] for name in of_each], np.int64)
        return Classified(images=images, where=self.where, names=names, labels=labels)

    def held(self) -> Held:
        return Held(where=self.where, sizes=np.array(self.sizes, np.int64), read=self.read)

    def image_set(self, name: str, *, may_train: bool) -> ImageSet:
        return ImageSet(
            name=name, keys=self.keys, read=self.read, fingerprint=self.fingerprint(self.keys), may_train=may_train
        )

    def fingerprint(self, keys: Sequence[str], *more: str) -> str:
        """Of names, sizes and contents; of a set above HASHED_WHOLE the contents of some, for it would take minutes."""
        count, size = len(self.keys), sum(self.sizes)
        looked_at = range(0, count, 1 if size < HASHED_WHOLE else max(1, -(-count // LOOKED_AT)))
        sizes = (f"{key} {size}" for key, size in zip(keys, self.sizes, strict=True))
        slow = len(looked_at) == count and (size > WORTH_A_BAR[0] or count > WORTH_A_BAR[1])
        with bar(f"hashing {self.where}", count) if slow else nullcontext(lambda _: None) as advance:
            return fingerprint([*more, *sizes, *(self._content(i, advance) for i in looked_at)])

    def _content(self, position: int, advance: Callable[[int], None]) -> str:
        advance(1)
        return hashlib.sha256(self.read(position)).hexdigest()


def open_imagefolder(source: Source) -> Bench:
    """Train on train, test on val (or test). Raises UserError naming what is missing."""
    train, test = open_splits(source.root)
    task, columns, notes = class_figures(train.classified("train"), test.classified("val"), WORDS)
    return Bench(
        name="imagefolder",
        root=source.root,
        sets=(train.image_set("train", may_train=True), test.image_set("val", may_train=False)),
        tasks=(named(task, source.root),),
        columns=columns,
        notes={**notes, "of_training": of_training(train.held(), test.held())},
    )


def named(task: Task, root: Path) -> Task:
    """Its classes by the names that captions give them (classes.tsv, ImageNet's, or the folder's): the report shows
    them beside pictures, where n01443537 says nothing."""
    return replace(task, classes=[words for _, words in called(task.classes, names_file(root))])


def open_splits(root: Path) -> tuple[Pictures, Pictures]:
    """train and val (or test). Raises UserError naming what is missing."""
    if is_finished(root):
        raise UserError(f"{root} holds shards: --bench shards scores such, where they have labels and test shards")
    if not root.is_dir():
        what = f"{root} is a file" if root.is_file() else f"there is no folder {root}"
        raise UserError(f"{what}: give --data DIR that holds train/ and val/, or train.tar and val.tar")
    train, test = _split(root, ("train",)), _split(root, ("val", "test"))
    if test.where.stem == "val" and any((root / name).exists() for name in ("test", "test.tar")):
        say(f"note: {test.where} is scored, and not the test split beside it: of both val is taken")
    return train, test


def list_folder(folder: Path) -> Pictures:
    """Every picture below the class folders of `folder`; hidden files (macOS writes ._NAME beside NAME) are none."""
    with os.scandir(folder) as entries:
        classes = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    prefix, other = len(os.path.join(folder, "")), list[str]()
    found = sorted((path[prefix:], size) for start in classes for path, size in _walk(start, other))
    if line := passed_over(other):
        say(f"note: {folder}: {line}")
    keys = [key for key, _ in found]
    return Pictures(
        where=folder, keys=keys, sizes=[size for _, size in found], read=lambda i: contents(folder / keys[i])
    )


def list_tar(path: Path) -> Pictures:
    """Every picture in a tar of class folders; a folder over all of them is taken off. Raises UserError for no tar."""
    with path.open("rb") as file:
        try:
            found = sorted(class_images(scan(file)), key=lambda pair: pair[0])
        except TornTar:
            if kind := compression(path):
                raise UserError(f"{path} is compressed ({kind}): unpack it, or give the tar within") from None
            raise
    places = [(member.offset, member.size) for _, member in found]
    descriptor = os.open(path, os.O_RDONLY)  # kept for the life of the process; pread shares no position
    return Pictures(
        where=path,
        keys=[name for name, _ in found],
        sizes=[size for _, size in places],
        read=lambda i: os.pread(descriptor, places[i][1], places[i][0]),
    )


def unpacked(*places: Path) -> Path:
    """The first that is a folder; the last is the benchmark's own. Raises UserError."""
    folder = next((path for path in places if path.is_dir()), None)
    if folder is None:
        raise UserError(f"{places[-1]} is no folder: unpack it, and give the folder")
    return folder


def contents(path: Path) -> bytes:
    """Of a picture; nothing, which does not decode, where it was deleted since it was listed."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def size_of(entry: os.DirEntry[str]) -> int:
    """Bytes of a picture. Raises UserError for a link that leads nowhere."""
    try:
        return entry.stat().st_size
    except OSError as error:
        raise UserError(f"{entry.path} cannot be looked at ({error.strerror}): mend or delete it") from None


def _walk(folder: str, other: list[str]) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every picture below a folder; adds names of files that are none, but hidden ones, to `other`.
    scandir, since ImageNet has 1.3 million of them to look at."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and not entry.is_dir():
                yield entry.path, size_of(entry)
            elif not entry.name.startswith(".") and entry.is_dir():
                if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
                    raise UserError(f"{entry.path} is a link to a folder that it lies in: delete it")
                yield from _walk(entry.path, other)
            elif not entry.name.startswith("."):
                other.append(entry.name)


def _split(root: Path, names: tuple[str, ...]) -> Pictures:
    for name in names:
        for path, lister in ((root / name, list_folder), (root / f"{name}.tar", list_tar)):
            if path.exists():
                pictures = lister(path)
                if not pictures.keys:
                    raise UserError(f"{path} holds no pictures in class folders: it must look like {path}/CLASS/*.jpg")
                return pictures
    wanted = " or ".join(f"{name}/, {name}.tar" for name in names)
    raise UserError(f"{root} has no {wanted}: give --data DIR that holds these, with a folder for each class in them")
