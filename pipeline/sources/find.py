"""Where samples come from: a source is cut into partitions, each of which one process scans alone.

    webdataset    one partition a tar, on this machine or wherever fsspec reaches
    imagefolder   one partition a class folder, or the whole tar of class folders
    table, coco   one partition an equal part of the table's images; of parquet with images inside, some row groups
    demo          one partition a range of generated pictures

A scan (pipeline.scan) turns a partition into a table that says of every usable sample where its bytes lie, so whatever
follows knows nothing of sources.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.class_names import ClassName, class_names, tell_numbers, tell_twins
from pipeline.sources.columns import columns, holds_images, tell_lost
from pipeline.sources.datasets import Dataset
from pipeline.sources.remote import RemoteFile, find
from pipeline.sources.source import Partition, Source, check_unpacked, refuse_unread
from pipeline.work import WORK
from shards.bars import say
from shards.class_names import as_text, names_file
from shards.errors import TornTar, UserError, first_line
from shards.pictures import is_image, passed_over
from shards.reader import is_finished
from shards.remote import is_remote, shown
from shards.tar import Member, class_images
from shards.tar import scan as scan_tar

__all__ = ["open_source"]

SPLITS = {"train", "val", "test"}  # folders of these names alone are no classes
DEMO_RANGE = 1000  # pictures a partition: half a second of drawing
TABLE_PART = 4 << 20  # bytes of a table a partition: some 40,000 images, whose headers take some ten seconds
GROUP_PART = 256 << 20  # bytes of parquet with images a partition


def open_source(dataset: Dataset, source: str | None, demo_seed: int = 0) -> Source:
    """Find the partitions of a data set. Raises UserError where there is nothing to read."""
    if dataset.format == "demo":
        if source:
            raise UserError(f"{dataset.name} is generated: leave SOURCE={source} (--source) out")
        return _demo(dataset, demo_seed)
    where = (source or dataset.source).removeprefix("file://")
    if not where:
        raise UserError(
            f"{dataset.name} needs SOURCE=DIR behind `make shards`, or --source DIR behind `xclr-shards build`: the "
            "folder that its files lie in"
        )
    if where.startswith("pipe:"):
        raise UserError(f"source {where!r} would run a shell command, which is never done: fetch the data first")
    if is_remote(where):
        return _remote(dataset, where)
    path = Path(where)
    if dataset.format == "webdataset" and (path.suffix == ".txt" or (set("{*[") & set(where) and not path.exists())):
        return replace(_remote(dataset, f"file://{path.absolute()}"), named=_named(dataset, path.parent))
    if not path.exists():
        raise UserError(f"there is no {where}: give the folder that the files of {dataset.name} lie in")
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise UserError(f"{where!r} is no UTF-8, as paths in tables must be: rename that folder") from None
    finders = {"webdataset": _tars, "imagefolder": _folders, "table": _tables, "coco": _tables}
    return finders[dataset.format](dataset, path)


def _demo(dataset: Dataset, seed: int) -> Source:
    from pipeline.demo.pictures import COUNTS, SHAPES

    count = COUNTS[dataset.split]
    ranges = [(start, min(start + DEMO_RANGE, count)) for start in range(0, count, DEMO_RANGE)]
    partitions = tuple(
        Partition(number=i, name=f"{start}-{stop - 1}", path=Path(f"demo-seed{seed}"), bytes=0, start=start, stop=stop)
        for i, (start, stop) in enumerate(ranges)
    )
    classes = tuple(ClassName(folder=shape, name=shape, caption=shape) for shape in SHAPES)
    return Source(dataset=dataset, where=f"generated, seed {seed}", partitions=partitions, classes=classes)


def _remote(dataset: Dataset, where: str) -> Source:
    """Tars, or parquet files with images inside, by URL, list, braces or glob."""
    if dataset.format not in ("webdataset", "table"):
        raise UserError(f"{dataset.name} is read from a local disk, not from {shown(where)}: fetch it first")
    found = find(where, dataset.patterns, beside=dataset.format == "webdataset")
    unlike = [file.name for file in found if dataset.format == "table" and not file.name.endswith(".parquet")]
    if unlike:
        raise UserError(f"{unlike[0]} of {shown(where)}: only parquet with images inside is read from there")
    partitions = tuple(_fetchable(i, file) for i, file in enumerate(found))
    return Source(dataset=dataset, where=shown(where).removeprefix("file://"), partitions=partitions)


def _fetchable(number: int, file: RemoteFile) -> Partition:
    """A remote file, or a local one of a list or a glob."""
    if not is_remote(file.url):
        path = Path(file.url.removeprefix("file://"))
        return Partition(number=number, name=file.name, path=path, bytes=file.size)
    return Partition(
        number=number, name=file.name, path=Path(file.name), bytes=file.size, url=file.url, beside=file.beside
    )


def _tars(dataset: Dataset, path: Path) -> Source:
    found, root = _files(dataset, path)
    if path.is_dir():
        _tell_lost(found)
    return Source(dataset=dataset, where=str(path), partitions=_partitions(found, root), named=_named(dataset, root))


def _tell_lost(tars: Sequence[Path]) -> None:
    """img2dataset writes NUMBER.parquet beside each tar: one that stands alone is of a tar that was lost on the way."""
    beside = (file for folder in {tar.parent for tar in tars} for file in folder.glob("*.parquet"))
    lone = sorted(file for file in beside if file.stem.isdecimal() and not file.with_suffix(".tar").exists())
    if lone:
        say(
            f"warning: {lone[0]} is there without its tar ({len(lone)} such): if it was lost on the way, fetch it "
            "before you build"
        )


def _named(dataset: Dataset, place: Path) -> dict[str, str]:
    return names_file(place) if dataset.label else {}


def _files(dataset: Dataset, path: Path) -> tuple[list[Path], Path]:
    """The files at or below a path, and the folder that their names are relative to."""
    if path.is_file():
        return [path], path.parent
    matches = {pattern: sorted(f for f in path.glob(pattern) if f.is_file()) for pattern in dataset.patterns}
    found = next((files for files in matches.values() if files), [])
    # Of the usual patterns the first is meant; who writes several may mean all.
    if unread := [file for files in matches.values() for file in files if dataset.files and file not in found]:
        say(
            f"note: {unread[0].relative_to(path)} is not read ({len(unread)} such): of several `files` the first that "
            f"matches counts, {found[0].relative_to(path)}; one pattern such as '*{found[0].suffix}' may match several"
        )
    if not found:
        others = (path.glob(f"{pattern}.*") for pattern in dataset.patterns if pattern[-1] != "*")
        for packed in sorted(file for files in others for file in files if file.is_file()):
            check_unpacked(packed, str(packed))
        what = "tars" if dataset.format == "webdataset" else "table"
        raise UserError(f"{path} holds no file like {' or '.join(dataset.patterns)}: give the folder of the {what}")
    return found, path


def _folders(dataset: Dataset, path: Path) -> Source:
    """SOURCE/train/CLASS/..., SOURCE/train.tar, SOURCE/CLASS/..., or a tar itself. `val` does for test."""
    splits = [dataset.split, *(["val"] if dataset.split == "test" else [])]
    for place in (*(path / name for split in splits for name in (split, f"{split}.tar")), path):
        if place.is_file():
            names = _distinct(class_names(_tar_classes(place), names_file(place.parent), dataset.caption))
            partitions = _partitions([place], place.parent)
        else:
            folders = _class_folders(place) if place.is_dir() and (place == path or _is_class(place)) else []
            if not folders or (place == path and {folder.name for folder in folders} <= SPLITS):
                continue
            names = _distinct(class_names([folder.name for folder in folders], names_file(path), dataset.caption))
            partitions = _partitions(folders, place)
            if len(folders) == 1:
                _check_height(folders[0])
        tell_twins("class folders", [name.folder for name in names])
        tell_numbers(names, "in classes.tsv (docs/sources.md)")
        if place != path and place.stem != dataset.split:
            say(f"{path} has no test/ of class folders and no test.tar: its test split is {place.name}")
        return Source(dataset=dataset, where=str(path), partitions=partitions, classes=tuple(names))
    raise UserError(
        f"{path} holds no class folders: expected {dataset.split}/CLASS/*.jpg, {dataset.split}.tar or CLASS/"
        + (" (or val for test)" if len(splits) > 1 else "")
    )


def _check_height(only: Path) -> None:
    """Raises UserError for a sole class whose images lie deeper: all that follows would be of one class."""
    below = sorted(entry.name for entry in only.iterdir() if entry.is_dir() and entry.name[0] != ".")
    several = len(below) > 1 or set(below) <= SPLITS  # CLASS/images/ is a class of its own
    if below and several and not any(is_image(entry.name) for entry in only.iterdir()):
        raise UserError(
            f"{only.parent} holds one folder, {only.name}, whose images lie in folders of their own "
            f"({', '.join(below[:3])}{', ...' if len(below) > 3 else ''}): if these are the classes, or train and val, "
            f"give {only}; if all are of one class, move them into {only / 'images'}"
        )


def _distinct(names: list[ClassName]) -> list[ClassName]:
    """Raises UserError where two folders, of names that differ in blanks or in how an accent is written, would be one
    text."""
    first: dict[str, ClassName] = {}
    for name in names:
        other = first.setdefault(name.caption, name)
        if other is not name:
            raise UserError(
                f"the class folders {other.folder!r} and {name.folder!r} would both be {name.caption!r}: rename one, "
                "or name them apart in classes.tsv (docs/sources.md)"
            )
    return names


def _class_folders(place: Path) -> list[Path]:
    return sorted(folder for folder in place.iterdir() if _is_class(folder))


def _is_class(folder: Path) -> bool:
    """Shards that were built into their source are none of its classes."""
    if folder.name[0] == "." or not folder.is_dir():
        return False
    return not (is_finished(folder) or (folder / WORK).is_dir())


def _tar_classes(path: Path) -> list[str]:
    """Names of the class folders of a tar, sorted."""
    check_unpacked(path, str(path))
    members = list[Member]()
    with path.open("rb") as file, suppress(TornTar):  # the scan refuses it, or takes what is whole, as it is told
        members.extend(scan_tar(file, links=True))
    names = {name.split("/", 1)[0] for name, _ in class_images(members)}
    if not names:
        raise UserError(f"{path} holds no images in class folders: its members must be named CLASS/IMAGE")
    return sorted(names)


def _tables(dataset: Dataset, path: Path) -> Source:
    found, root = _files(dataset, path)
    named = _named(dataset, root)
    if dataset.format == "table" and all(file.suffix == ".parquet" for file in found) and _holds_images(dataset, found):
        return Source(dataset=dataset, where=str(path), partitions=_row_groups(found, root), named=named)
    size = sum(file.stat().st_size for file in found)
    parts = max(1, -(-size // TABLE_PART))
    partitions = tuple(
        Partition(number=i, name=f"part {i + 1} of {parts}", path=found[0], bytes=size, start=i, stop=parts)
        for i in range(parts)
    )
    roots = _image_roots(dataset, found, root)
    return Source(
        dataset=dataset, where=str(path), partitions=partitions, tables=tuple(found), images=roots, named=named
    )


def _image_roots(dataset: Dataset, tables: Sequence[Path], root: Path) -> tuple[Path, ...]:
    """Existing folders that paths may be relative to. Raises UserError where the data set names some and has none."""
    if dataset.images:
        named = [root / name for name in dataset.images]
    else:
        above = root.parent if root.name == "annotations" else root
        parts = [table.stem.removeprefix("captions_") for table in tables] if dataset.format == "coco" else []
        folders = [above / place / part for part in parts for place in ("", "images")]
        named = [*folders, *(table.parent for table in tables), above, above / "images"]
    there = tuple(dict.fromkeys(folder.absolute() for folder in named if folder.is_dir()))
    if not there:
        raise UserError(f"{root} has no folder {' or '.join(dataset.images)}, where the images of {dataset.name} lie")
    return there


def _holds_images(dataset: Dataset, found: Sequence[Path]) -> bool:
    with _reading(found[0]):
        schema = pq.read_schema(found[0])
    names = columns(dataset, schema.names, str(found[0]))
    inside = holds_images(schema.field(names.image).type)
    if inside:  # of others all are read
        tell_lost(dataset, [(str(found[0]), names.captions)])
    return inside


def _row_groups(found: Sequence[Path], root: Path) -> tuple[Partition, ...]:
    """Neighbouring row groups of a file, of some GROUP_PART bytes together."""
    cuts: list[tuple[Path, int, int, int]] = []
    for path in found:
        with _reading(path):
            meta = pq.read_metadata(path)
        start = size = 0
        for group in range(meta.num_row_groups):
            size += sum(meta.row_group(group).column(i).total_compressed_size for i in range(meta.num_columns))
            if size >= GROUP_PART or group == meta.num_row_groups - 1:
                cuts.append((path, start, group + 1, size))
                start, size = group + 1, 0
    return tuple(
        Partition(number=i, name=str(path.relative_to(root)), path=path, bytes=size, start=start, stop=stop)
        for i, (path, start, stop, size) in enumerate(cuts)
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot read {path} as parquet ({first_line(error)}): replace it") from None


def _partitions(paths: Iterable[Path], root: Path) -> tuple[Partition, ...]:
    found, other, empty = [], list[str](), list[str]()
    for i, path in enumerate(paths):
        walk = os.walk(path, onerror=refuse_unread) if path.is_dir() else ()
        names = [name for _, _, files in walk for name in files]
        other += [name for name in names if not is_image(name) and name[0] != "."]
        if path.is_dir() and not any(map(is_image, names)):
            empty.append(as_text(path.name))
        size = path.stat().st_size if path.is_file() else 0
        found.append(Partition(number=i, name=str(path.relative_to(root)), path=path, bytes=size, stop=len(names)))
    if line := passed_over(other):
        say(f"note: {line}")
    if empty:
        say(
            f"note: class folders without pictures ({len(empty)} of {len(found)}, {empty[0]!r} among them) are classes "
            "all the same: delete those that should be none"
        )
    return tuple(found)
