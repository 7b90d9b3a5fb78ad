"""A source: a data set's files, found but not read, cut into partitions that one process scans alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NoReturn

from pipeline.sources.class_names import ClassName
from pipeline.sources.datasets import Dataset
from shards.atomic import sha256_file
from shards.errors import UserError
from shards.tar import compression

__all__ = ["Partition", "Source", "check_unpacked", "refuse_unread"]

SHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
OFFICE = (b"PK\3\4", b"\xd0\xcf\x11\xe0")  # a zip, and what Excel wrote before; some shops call a CSV .xls


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A piece of a source. Plain data, so it can be sent to any process."""

    number: int
    name: str
    """Relative to the source, for messages."""
    path: Path
    """Tar, table or folder. Generated and remote partitions have none that exists."""
    bytes: int
    """-1: a remote file whose server does not say."""
    start: int = 0
    """demo: first picture. Parquet with images: first row group. Other tables: part `start` of `stop`."""
    stop: int = 0
    """Class folder: files in it."""
    url: str = ""
    """Remote files alone."""
    beside: str = ""
    """URL of the parquet file beside a remote tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set's files, found but not read."""

    dataset: Dataset
    where: str
    """As the user gave it, without passwords."""
    partitions: tuple[Partition, ...]
    classes: tuple[ClassName, ...] = ()
    """In the order of their labels."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Names of labels that samples have beside them, from classes.tsv."""
    tables: tuple[Path, ...] = ()
    """Tables of paths."""
    images: tuple[Path, ...] = ()
    """Folders that the paths of tables are relative to; the first that has a file counts."""

    def fingerprint(self, partition: Partition | None = None) -> str:
        """sha256 over names and sizes (of one partition), and the content of tables: another when a file came, went or
        grew, or a table was mended.

        Equal for a copy of the source. Of images that are files of their own only the number a class folder, or the
        table, counts.
        """
        partitions = [partition] if partition else self.partitions
        lines = [f"{p.name}\t{p.bytes}\t{p.start}\t{p.stop}\n" for p in partitions]
        lines += [f"{path.name}\t{_content(path, path.stat().st_mtime_ns)}\n" for path in self.tables]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def columns_fingerprint(self) -> str:
        """sha256 over the tables, and what is read of them."""
        dataset = self.dataset
        read = (dataset.format, dataset.image, dataset.captions, dataset.label, self.images)
        return hashlib.sha256(f"{self.fingerprint()}\n{read}".encode("utf-8", "surrogateescape")).hexdigest()

    def captions_fingerprint(self, partition: Partition | None = None) -> str:
        """sha256 over the sizes of the parquet files that img2dataset wrote beside local tars; "" without any."""
        if self.dataset.format != "webdataset":
            return ""
        paths = [p.path.with_suffix(".parquet") for p in ([partition] if partition else self.partitions) if not p.url]
        lines = [f"{path.name}\t{path.stat().st_size}\n" for path in paths if path.is_file()]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest() if lines else ""

    def classes_fingerprint(self, partition: Partition | None = None) -> str:
        """sha256 over folders, names and captions of the classes (of one partition); "" without any.

        Names of labels beside samples are given to the whole, after the scans.
        """
        if self.dataset.label and partition is None:
            lines = [f"{label}\t{name}\n" for label, name in self.named.items()]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        if self.dataset.format != "imagefolder":
            return ""
        one = partition is not None and partition.path.is_dir()
        classes = [self.classes[partition.number]] if partition and one else self.classes
        lines = [f"{name.folder}\t{name.name}\t{name.caption}\n" for name in classes]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def check_in_place(self) -> None:
        """Raises UserError where there are no local tars to leave in their place."""
        if any(partition.url for partition in self.partitions):
            raise UserError(f"layout in-place needs tars on a local disk, not {self.where}: use --layout shuffled")
        if any(partition.path.suffix != ".tar" or not partition.path.is_file() for partition in self.partitions):
            raise UserError(f"layout in-place needs tars, and {self.where} has none: use --layout shuffled")


def refuse_unread(error: OSError) -> NoReturn:
    """For os.walk, which passes over folders that it may not list: their images would be lost without a word.

    Raises UserError.
    """
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}): mend it, or take it out of the source")


def check_unpacked(path: Path, where: str) -> None:
    """Raises UserError for a compressed file, and for a spreadsheet: neither tables nor tars are read so."""
    with path.open("rb") as file:
        if path.suffix.lower() in SHEETS and file.read(4) in OFFICE:
            raise UserError(f"{where} is a spreadsheet: save it as CSV (UTF-8)")
    if name := compression(path):
        raise UserError(f"{where} is compressed ({name}): unpack it, and give what comes out")


@cache
def _content(path: Path, changed: int) -> str:
    """sha256, read once for each time that the file was changed: every partition of a table asks for it."""
    return sha256_file(path)
