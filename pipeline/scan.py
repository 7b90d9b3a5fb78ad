"""Scan a partition: where each usable sample's bytes lie, its text and label, and what was left out and why.

The table is all that later stages see. Nothing is decoded or copied, so indexing 331 GB is a walk over headers.
"""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.captions import joined
from pipeline.images import EXTENSIONS, problem
from pipeline.sources import Partition, Source
from shards.atomic import atomic_file
from shards.errors import TornTar, UserError
from shards.tar import Member, TarWriter, groups
from shards.tar import scan as scan_tar

__all__ = ["NOT_OURS", "SCAN_SCHEMA", "Limits", "Scan", "scan"]

SCAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("file", pa.string()),  # that holds the image
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("extension", pa.string()),
        pa.field("text", pa.string()),  # normalised captions, joined by newlines
        pa.field("label", pa.int32()),
        pa.field("meta", pa.string()),  # content of KEY.json; null: at meta_offset in `file`
        pa.field("meta_offset", pa.int64()),
        pa.field("meta_size", pa.int64()),
    ]
)
MAX_TEXT_MEMBER = 16 << 20  # bytes of a KEY.json or KEY.txt that are looked at
NOT_OURS = "not downloaded"  # counted, but no sign of a bad source: links die


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sample may be at most."""

    max_caption: int = 2000
    """Characters; longer captions are cut."""
    max_pixels: int = 100_000_000
    """Width times height."""
    max_bytes: int = 64 << 20
    """Of an encoded image."""
    use_torn: bool = False
    """Take the whole samples of a torn tar instead of refusing it."""


@dataclass(slots=True, kw_only=True)
class Scan:
    """Rows of SCAN_SCHEMA, and reason -> samples left out."""

    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCAN_SCHEMA.names})
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, **values: Any) -> None:
        for name, column in self.rows.items():
            column.append(values.get(name))

    def table(self) -> pa.Table:
        return pa.Table.from_pydict(self.rows, schema=SCAN_SCHEMA)


def scan(source: Source, partition: Partition, limits: Limits, spool: Path) -> Scan:
    """Scan one partition. Raises UserError for a torn tar, unless limits.use_torn.

    spool: where samples that have no file of their own (generated ones) are put, as a tar.
    """
    if source.dataset.format == "demo":
        return _demo(source, partition, spool)
    if source.dataset.format == "webdataset":
        return _webdataset(source, partition, limits)
    return _class_tar(source, partition, limits) if partition.path.is_file() else _folder(source, partition, limits)


def _webdataset(source: Source, partition: Partition, limits: Limits) -> Scan:
    found, seen = Scan(), set[str]()
    captions, failed = _beside(partition.path, source.dataset.captions)
    if failed:
        found.skipped[NOT_OURS] += failed
    with _mapped(partition.path) as (file, content), _torn(found, limits):
        for key, parts in groups(file):
            extension = next((e for e in EXTENSIONS if e in parts), None)
            if extension is None:
                found.skipped["no image"] += 1
                continue
            if key in seen:
                found.skipped["repeated key"] += 1
                continue
            seen.add(key)
            text = captions.get(key.rpartition("/")[2], ()) or _inside(content, parts, source.dataset.captions)
            image, meta = parts[extension], parts.get("json")
            _keep(
                found,
                limits,
                content,
                image,
                text=joined(text, limits.max_caption),
                key=f"{partition.number:05d}_{_flat(key)}",
                file=str(partition.path),
                extension=extension,
                meta_offset=meta.offset if meta else None,
                meta_size=meta.size if meta else None,
                meta=None if meta else "{}",
            )
    return found


def _class_tar(source: Source, partition: Partition, limits: Limits) -> Scan:
    found = Scan()
    labels = {name.folder: label for label, name in enumerate(source.classes)}
    with _mapped(partition.path) as (file, content), _torn(found, limits):
        for number, member in enumerate(scan_tar(file)):
            path = Path(member.name)
            extension = path.suffix[1:].lower()
            if extension in EXTENSIONS:
                _keep(
                    found,
                    limits,
                    content,
                    member,
                    key=f"{number:07d}",
                    file=str(partition.path),
                    extension=extension,
                    **_of_class(source, labels[path.parent.name], member.name),
                )
    return found


def _folder(source: Source, partition: Partition, limits: Limits) -> Scan:
    """Every image below a class folder, however deep; a class's label is its position among the partitions."""
    found = Scan()
    paths = sorted(path for path in partition.path.rglob("*") if path.suffix[1:].lower() in EXTENSIONS)
    for number, path in enumerate(paths):
        member = Member(path.name, 0, path.stat().st_size)
        with _mapped(path) as (_, content):
            _keep(
                found,
                limits,
                content,
                member,
                key=f"{partition.number:05d}_{number:07d}",
                file=str(path),
                extension=path.suffix[1:].lower(),
                **_of_class(source, partition.number, str(path.relative_to(partition.path.parent))),
            )
    return found


def _demo(source: Source, partition: Partition, spool: Path) -> Scan:
    from pipeline.demo import sample

    found = Scan()
    seed = int(partition.path.name.removeprefix("demo-seed"))
    with atomic_file(spool) as file:
        tar = TarWriter(file)
        for index in range(partition.start, partition.stop):
            drawn = sample(source.dataset.split, index, seed)
            offset = tar.add(f"{drawn.key}.jpg", drawn.jpeg)
            found.add(
                key=drawn.key,
                file=str(spool),
                offset=offset,
                size=len(drawn.jpeg),
                extension="jpg",
                text=drawn.caption,
                label=drawn.label,
                meta=json.dumps(drawn.attributes, sort_keys=True),
            )
        tar.close()
    return found


def _keep(found: Scan, limits: Limits, content: memoryview, image: Member, *, text: str, **values: Any) -> None:
    """Add a sample, or count why not."""
    if not text:
        reason: str | None = "no caption"
    elif image.size > limits.max_bytes:
        reason = "image of too many bytes"
    else:
        reason = problem(content[image.offset : image.offset + image.size], limits.max_pixels)
    if reason:
        found.skipped[reason] += 1
    else:
        found.add(text=text, offset=image.offset, size=image.size, **values)


def _of_class(source: Source, label: int, path: str) -> dict[str, Any]:
    name = source.classes[label]
    meta = json.dumps({"class": name.folder, "names": name.name, "path": path}, sort_keys=True, ensure_ascii=False)
    return {"text": name.caption, "label": label, "meta": meta}


def _beside(tar: Path, columns: Sequence[str]) -> tuple[dict[str, Sequence[object]], int]:
    """Captions by key from img2dataset's parquet file of the same name, and how many of its rows failed.

    Without such a file, or a column of captions in it, the tar's own members have to do.
    """
    path = tar.with_suffix(".parquet")
    if not path.is_file():
        return {}, 0
    try:
        names = pq.read_schema(path).names
        column = next((name for name in columns if name in names), None)
        if column is None or "key" not in names:
            return {}, 0
        table = pq.read_table(path, columns=[c for c in ("key", "status", column) if c in names], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): replace it, or delete it to read the tar's captions"
        ) from None
    status = table["status"].to_pylist() if "status" in names else ["success"] * table.num_rows
    rows = zip(table["key"].to_pylist(), status, table[column].to_pylist(), strict=True)
    captions = {str(key): _listed(value) for key, state, value in rows if state == "success"}
    return captions, sum(state != "success" for state in status)


def _inside(content: memoryview, parts: dict[str, Member], fields: Sequence[str]) -> Sequence[object]:
    """Captions from KEY.json, else KEY.txt; a JSON file that cannot be read counts as none."""
    if "json" in parts and fields:
        with suppress(ValueError, RecursionError):
            values = json.loads(_bytes(content, parts["json"]))
            named = [values[name] for name in fields if values.get(name)] if isinstance(values, dict) else []
            if named:
                return _listed(named[0])
    return next(([_bytes(content, parts[name])] for name in ("txt", "caption") if name in parts), [])


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else [value]


def _bytes(content: memoryview, member: Member) -> bytes:
    return bytes(content[member.offset : member.offset + min(member.size, MAX_TEXT_MEMBER)])


def _flat(key: str) -> str:
    """A key within a folder, or with dots in the folder's name, as one plain name."""
    return key.replace("/", "_").replace(".", "_")


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[BinaryIO, memoryview]]:
    """The file, and its bytes without reading them."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:  # cannot be mapped
            yield file, memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
            yield file, content


@contextmanager
def _torn(found: Scan, limits: Limits) -> Iterator[None]:
    try:
        yield
    except TornTar as error:
        if not limits.use_torn:
            raise UserError(f"{error}. Replace the file, or give --use-torn to take what is whole") from None
        found.skipped["torn tar"] += 1
