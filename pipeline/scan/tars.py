"""Scans of tars: WebDataset shards, local or fetched, and tars of class folders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.scan.files import of_class
from pipeline.scan.samples import NOT_OURS, Limits, Scan, listed, mapped
from pipeline.sources.captions import first_said
from pipeline.sources.datasets import Dataset
from pipeline.sources.labels import Labels
from pipeline.sources.source import Partition, Source, check_unpacked
from shards.class_names import as_text
from shards.errors import TornTar, UserError, first_line
from shards.pictures import EXTENSIONS, usual
from shards.remote import fetch, shown
from shards.tar import Member, class_images, groups, split_key
from shards.tar import scan as scan_tar

__all__ = ["class_tar", "webdataset"]

MAX_TEXT_MEMBER = 4 << 20  # bytes of a KEY.json or KEY.txt; img2dataset's largest, with EXIF, are some 100 KB
TORN = "torn tar"
LOST = "named by the parquet file, not in the tar"
MAX_KEY = 200  # bytes: a file system's longest name is 255, and an extension follows
NOT_IN_KEYS = re.compile(r"[^\w+=@,;()\[\]-]")  # slashes, dots, blanks, control characters, undecodable bytes


def webdataset(source: Source, partition: Partition, limits: Limits, spool: Path, in_place: bool) -> Scan:
    """Samples of a tar: an image by its extension, captions from the parquet beside the tar, KEY.json or KEY.txt.

    Any other member is neither read nor copied.
    """
    tar, beside = _local(partition, spool)
    check_unpacked(tar, shown(partition.url) if partition.url else str(tar))
    dataset = source.dataset
    found, seen = Scan(labels=Labels(dataset.classes)), set[str]()
    rows, failed = _beside(beside, dataset)
    if failed:
        found.skipped[NOT_OURS] += failed
    path, prefix, met = str(tar), f"{partition.number:05d}_", set[str]()
    with mapped(tar) as (file, content), _torn(partition, found, limits):
        for key, parts in groups(file, content):
            stored, name = _own(key, in_place) or prefix + _flat(key), key.rpartition("/")[2]
            met.add(name)
            extension = "jpg" if "jpg" in parts else next((e for e in EXTENSIONS if e in parts), None)
            reason = _unlike_a_sample(parts, extension) or ("repeated key" if stored in seen else None)
            if reason:
                found.skip(reason, f"{as_text(key)} of {partition.name}")
                continue
            seen.add(stored)
            what = f"{as_text(key)} of {partition.name}"
            captions, labels = _words(content, parts, *rows.get(name, ((), ())), dataset)
            values = found.described(dataset, captions, labels, limits, what)
            if values is None:
                continue
            _keep(
                found,
                limits,
                content,
                parts[extension or ""],
                key=stored,
                what=what,
                file=path,
                extension=usual(extension or ""),
                **values,
                **_meta(parts.get("json")),
            )
    lost = len(rows.keys() - met)
    # With none in common its keys are others than the tar's; what a tear took is told by the tear.
    if 0 < lost < len(rows) and TORN not in found.skipped:
        found.skipped[LOST] += lost
    return found


def class_tar(source: Source, partition: Partition, limits: Limits, in_place: bool) -> Scan:
    """Samples of a tar whose members are [TOP/]CLASS/.../IMAGE; other files are passed over."""
    found, members, seen = Scan(), dict[Member, int](), set[str]()
    labels = {name.folder: label for label, name in enumerate(source.classes)}
    with mapped(partition.path) as (file, content):
        with _torn(partition, found, limits):
            for number, member in enumerate(scan_tar(file, content, links=not in_place)):
                members[member] = number
        for name, member in class_images(members):
            own = _own(split_key(member.name)[0], in_place)
            if own and own in seen:
                found.skip("repeated key", f"{own} of {partition.name}")
                continue
            seen.add(own)
            _keep(
                found,
                limits,
                content,
                member,
                key=own or f"{members[member]:07d}",
                what=f"{as_text(member.name)} of {partition.name}",
                file=str(partition.path),
                extension=Path(name).suffix[1:].lower(),
                **of_class(source, labels[as_text(name.split("/", 1)[0])], member.name),
            )
    return found


def _local(partition: Partition, spool: Path) -> tuple[Path, Path]:
    """The tar and the parquet beside it; remote ones are fetched to the spool first, once."""
    if not partition.url:
        return partition.path, partition.path.with_suffix(".parquet")
    if not (spool.exists() and partition.bytes in (-1, spool.stat().st_size)):
        fetch(partition.url, partition.bytes, spool)
    beside = spool.with_suffix(".captions.parquet")
    if partition.beside and not beside.exists():
        fetch(partition.beside, -1, beside)
    return spool, beside


def _unlike_a_sample(parts: dict[str, Member], extension: str | None) -> str | None:
    if extension is None:
        return "no image"
    if "json" in parts and parts["json"].size > MAX_TEXT_MEMBER:
        return "metadata of too many bytes"
    return None


def _keep(
    found: Scan, limits: Limits, content: memoryview, image: Member, *, text: str, what: str, **values: Any
) -> None:
    """Add a sample, or count why not."""
    if found.usable(content[image.offset : image.offset + image.size], text, limits, what):
        found.add(text=text, offset=image.offset, size=image.size, **values)


def _meta(member: Member | None) -> dict[str, Any]:
    return {"meta_offset": member.offset, "meta_size": member.size} if member else {"meta": "{}"}


Words = tuple[Sequence[object], Sequence[object]]  # captions and labels of a sample


def _beside(path: Path, dataset: Dataset) -> tuple[dict[str, Words], int]:
    """Captions and labels by key from img2dataset's parquet file, and how many of its rows failed.

    Of several columns each row takes the first that says something. Without such a file, or these columns in it, the
    tar's own members have to do.
    """
    if not path.is_file():
        return {}, 0
    try:
        names = pq.read_schema(path).names
        held = [name for name in dataset.captions if name in names]
        label = [dataset.label] if dataset.label in names else []
        if not (held or label) or "key" not in names:
            return {}, 0
        wanted = dict.fromkeys(name for name in ("key", "status", *held, *label) if name in names)
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}): replace it, or delete it to read the tar's captions"
        ) from None
    rows = table.num_rows
    if "status" in names:
        table = table.filter(pc.equal(table["status"], "success"))  # null counts as failed
    cells = zip(*(table[name].to_pylist() for name in held), strict=True) if held else [()] * table.num_rows
    captions = (listed(first_said(row)) if held else () for row in cells)
    labels = table[label[0]].to_pylist() if label else [None] * table.num_rows
    words = zip(captions, map(listed, labels), strict=True)
    return dict(zip(map(str, table["key"].to_pylist()), words, strict=True)), rows - table.num_rows


def _words(
    content: memoryview,
    parts: dict[str, Member],
    captions: Sequence[object],
    labels: Sequence[object],
    dataset: Dataset,
) -> Words:
    """What the parquet file beside a tar says of a sample (a null caption there is none); where it has no such row or
    column KEY.json, else KEY.txt (or the member that is named as the label). A JSON file that cannot be read counts as
    none."""
    texts, lacks_label = bool(captions), dataset.label and labels in ((), [None])
    fields: dict[str, object] = {}
    if "json" in parts and ((dataset.captions and not texts) or lacks_label):
        with suppress(ValueError, RecursionError):
            values = json.loads(_bytes(content, parts["json"]))
            fields = values if isinstance(values, dict) else {}
    if not texts and not dataset.by_class:
        named = [fields[name] for name in dataset.captions if fields.get(name)]
        plain = ([_bytes(content, parts[name])] for name in ("txt", "caption") if name in parts)
        captions = listed(first_said(named)) if named else next(plain, [])
    if lacks_label and fields.get(dataset.label) is not None:
        labels = listed(fields[dataset.label])
    elif lacks_label and (extension := dataset.label.removeprefix(".").lower()) in parts:
        labels = [_bytes(content, parts[extension])]
    return captions, labels


def _bytes(content: memoryview, member: Member) -> bytes:
    return bytes(content[member.offset : member.offset + min(member.size, MAX_TEXT_MEMBER)])


def _own(key: str, in_place: bool) -> str:
    """The key that a tar which stays in its place has itself; empty for one that is copied, or is no text."""
    try:
        key.encode()
    except UnicodeEncodeError:
        return ""
    return key if in_place else ""


def _flat(key: str) -> str:
    """A key as one plain name: what could leave a folder, or is no text, becomes an underscore; long ones a digest."""
    flat = key if key.isalnum() else NOT_IN_KEYS.sub("_", key)
    if len(encoded := flat.encode()) <= MAX_KEY:
        return flat
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{encoded[: MAX_KEY - 17].decode(errors='ignore')}_{digest}"


@contextmanager
def _torn(partition: Partition, found: Scan, limits: Limits) -> Iterator[None]:
    try:
        yield
    except TornTar as error:
        if not limits.use_torn:
            where = f"{shown(partition.url)}: " if partition.url else ""
            raise TornTar(f"{where}{error}. Replace the file, or give --use-torn to take what is whole") from None
        found.skipped[TORN] += 1
