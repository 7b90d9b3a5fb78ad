"""Where samples come from: a source is cut into partitions, each of which one process scans alone.

    webdataset    one partition a tar
    imagefolder   one partition a class folder, or the whole tar of class folders
    demo          one partition a range of generated pictures

A scan (pipeline.scan) turns a partition into a table that says of every usable sample where its bytes lie, so whatever
follows knows nothing of sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.class_names import ClassName, class_names
from pipeline.datasets import Dataset
from shards.errors import UserError
from shards.tar import scan as scan_tar

__all__ = ["Partition", "Source", "open_source"]

DEMO_RANGE = 1000  # pictures a partition: half a second of drawing


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A piece of a source. Plain data, so it can be sent to any process."""

    number: int
    name: str
    """Relative to the source, for messages."""
    path: Path
    """Tar or folder. Generated partitions have none that exists."""
    bytes: int
    start: int = 0
    """demo: first picture."""
    stop: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set's files, found but not read."""

    dataset: Dataset
    where: str
    """As the user gave it."""
    partitions: tuple[Partition, ...]
    classes: tuple[ClassName, ...] = ()
    """In the order of their labels."""

    def fingerprint(self) -> str:
        """sha256 over names and sizes: equal for a copy of the source, another when a file came, went or grew."""
        lines = (f"{p.name}\t{p.bytes}\t{p.start}\t{p.stop}\n" for p in self.partitions)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def open_source(dataset: Dataset, source: str | None, demo_seed: int = 0) -> Source:
    """Find the partitions of a data set. Raises UserError where there is nothing to read."""
    if dataset.format == "demo":
        return _demo(dataset, demo_seed)
    where = source or dataset.source
    if not where:
        raise UserError(
            f"{dataset.name} needs SOURCE=, the folder that its files lie in: "
            f"make shards DATASET={dataset.name} SOURCE=DIR (xclr-shards build {dataset.name} --source DIR)"
        )
    if where.startswith("pipe:"):
        raise UserError(f"source {where!r} would run a shell command, which is never done: fetch the data first")
    path = Path(where)
    if not path.exists():
        raise UserError(f"there is no {where}: give the folder that the files of {dataset.name} lie in")
    return {"webdataset": _tars, "imagefolder": _folders}[dataset.format](dataset, path)


def _demo(dataset: Dataset, seed: int) -> Source:
    from pipeline.demo import COUNTS, SHAPES

    count = COUNTS[dataset.split]
    ranges = [(start, min(start + DEMO_RANGE, count)) for start in range(0, count, DEMO_RANGE)]
    partitions = tuple(
        Partition(number=i, name=f"{start}-{stop - 1}", path=Path(f"demo-seed{seed}"), bytes=0, start=start, stop=stop)
        for i, (start, stop) in enumerate(ranges)
    )
    classes = tuple(ClassName(folder=shape, name=shape, caption=shape) for shape in SHAPES)
    return Source(dataset=dataset, where=f"generated, seed {seed}", partitions=partitions, classes=classes)


def _tars(dataset: Dataset, path: Path) -> Source:
    if path.is_file():
        found, root = [path], path.parent
    else:
        matches = (sorted(path.glob(pattern)) for pattern in dataset.files)
        found, root = next((files for files in matches if files), []), path
    if not found:
        raise UserError(f"{path} holds no file like {' or '.join(dataset.files)}: give the folder of the tars")
    return Source(dataset=dataset, where=str(path), partitions=_partitions(found, root))


def _folders(dataset: Dataset, path: Path) -> Source:
    """SOURCE/train/CLASS/..., SOURCE/train.tar, SOURCE/CLASS/..., or a tar itself."""
    for place in (path / dataset.split, path / f"{dataset.split}.tar", path):
        if place.is_dir():
            folders = sorted(folder for folder in place.iterdir() if folder.is_dir() and folder.name[0] != ".")
            if folders:
                names = class_names([folder.name for folder in folders], path, dataset.caption)
                return Source(
                    dataset=dataset, where=str(path), partitions=_partitions(folders, place), classes=tuple(names)
                )
        elif place.is_file():
            names = class_names(_tar_classes(place), place.parent, dataset.caption)
            return Source(
                dataset=dataset, where=str(path), partitions=_partitions([place], place.parent), classes=tuple(names)
            )
    raise UserError(
        f"{path} holds no class folders: expected {dataset.split}/CLASS/*.jpg, {dataset.split}.tar or CLASS/"
    )


def _tar_classes(path: Path) -> list[str]:
    """Names of the folders that hold the images of a tar, sorted."""
    with path.open("rb") as file:
        names = {Path(member.name).parent.name for member in scan_tar(file)} - {""}
    if not names:
        raise UserError(f"{path} holds no class folders: its members must be named CLASS/IMAGE")
    return sorted(names)


def _partitions(paths: Iterable[Path], root: Path) -> tuple[Partition, ...]:
    return tuple(
        Partition(
            number=i, name=str(path.relative_to(root)), path=path, bytes=path.stat().st_size if path.is_file() else 0
        )
        for i, path in enumerate(paths)
    )
