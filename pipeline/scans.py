"""The scans of a build: one a partition, each on disk as it ends, and made again where what it is of has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.number import NAMES
from pipeline.parallel import Workers
from pipeline.scan.samples import NOT_OURS, SCAN_SCHEMA, Limits
from pipeline.scan.scan import scan
from pipeline.settings import BuildSettings, most_skipped
from pipeline.skipped import SKIPPED, LeftOut, judge
from pipeline.sources.captions import notes
from pipeline.sources.datasets import Dataset
from pipeline.sources.source import Partition, Source
from shards.atomic import atomic_file
from shards.bars import bar, say
from shards.errors import OverBudget, SkipBudget, TornTar, UserError
from shards.remote import shown

__all__ = ["first_other", "look_again", "scan_all", "scan_path"]

EXAMPLES = "examples"  # reason -> samples left out for it, in a scan's metadata
READ = "captions_read"  # what was counted of the captions, in the same place
REMEDIES = {  # where a table leaves out most samples for one reason
    "missing file": "say below which folders the files lie (`images = [...]` in the data set file; absolute paths, as "
    "of another machine, go by none of them: cut them in the table)",
    "no caption": "say which other columns hold captions (`captions = [...]` in the data set file; of each row the "
    "first that says something counts)",
}


def scan_all(source: Source, settings: BuildSettings, work: Path, workers: Workers) -> dict[str, int]:
    """Scan what is not scanned yet; returns reason -> samples left out. Raises OverBudget, and UserError once all is
    scanned but for torn tars."""
    _drop_other_scans(source, settings, work)
    todo = [p for p in source.partitions if not scan_path(work, p).exists()]
    if todo:
        _drop_what_follows(work)
    function = partial(_scan_one, source, settings, work)
    with bar(f"scanning {source.dataset.name}", len(source.partitions)) as advance:
        advance(len(source.partitions) - len(todo))
        torn = dict[str, str]()
        for partition, problem in zip(todo, workers.ordered(function, todo), strict=True):
            if problem:
                torn[partition.name] = problem
            advance(1)
    if torn:
        first, *others = torn
        also = f"; torn too: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''} ({len(torn)} in all)"
        raise UserError(torn[first] + (also if others else ""))
    remedy = "check the source, or raise --max-skipped (max_skipped in a data set file)"
    budget, not_ours = SkipBudget(source.where, most_skipped(source, settings), remedy=remedy), 0
    captions = Counter[str]()
    skips = list[LeftOut]()  # judged once all usable ones are counted: the bad ones may be the first
    for partition in source.partitions:
        schema = pq.read_schema(scan_path(work, partition))
        meta = {key.decode(): value for key, value in schema.metadata.items()}
        examples = json.loads(meta.pop(EXAMPLES, b"{}"))
        captions.update(json.loads(meta.pop(READ, b"{}")))
        meta.pop(NAMES)
        counts = {key: int(value) for key, value in meta.items() if key != "of"}
        budget.ok(counts.pop("rows"))
        not_ours += counts.pop(NOT_OURS, 0)
        skips += [
            LeftOut(partition=partition.name, reason=reason, count=count, names=examples.get(reason, []))
            for reason, count in sorted(counts.items())
        ]
    lost = Counter[str]()
    for left in skips:
        lost[left.reason] += left.count
    for reason, advice in REMEDIES.items():
        if source.dataset.format in ("table", "coco") and lost and lost.most_common(1)[0][0] == reason:
            budget.remedy = f"{advice}, {remedy}"
    try:
        judge(budget, skips, work / SKIPPED)
    except OverBudget:
        look_again(source, work)
        raise
    for line in notes(captions):
        say(line)
    return budget.counts | ({NOT_OURS: not_ours} if not_ours else {})


def look_again(source: Source, work: Path) -> None:
    """Drop the scans that left images out which are files of their own: mended, they are no other source."""
    if (work / "samples.arrow").exists():
        return
    for partition in source.partitions:
        path = scan_path(work, partition)
        left_out = pq.read_schema(path).metadata.get(EXAMPLES.encode(), b"{}") != b"{}"
        if left_out and _is_loose(source, partition):
            path.unlink()


def scan_path(work: Path, partition: Partition) -> Path:
    return work / "scan" / f"{partition.number:06d}.parquet"


def first_other(source: Source, settings: BuildSettings, work: Path) -> str:
    """` (NAME)` of the first file that is not as it was when it was scanned, or was not there."""
    for partition in source.partitions:
        path = scan_path(work, partition)
        if not path.exists() or not _is_scan_of(source, settings, partition, path):
            return f" ({partition.name} has changed, or is new)"
    return " (some are missing)"


def _is_loose(source: Source, partition: Partition) -> bool:
    """Whether its images are files of their own: a class folder, or part of a table of paths."""
    return source.dataset.format in ("table", "coco") or partition.path.is_dir()


def _scan_one(source: Source, settings: BuildSettings, work: Path, partition: Partition) -> str:
    """What is wrong with a torn tar; nothing where the scan is written."""
    path = scan_path(work.absolute(), partition)  # a stopped build may go on from another folder
    here = replace(partition, path=partition.path.absolute())
    in_place = settings.layout == "in-place"
    spool = path.with_name(f"{path.stem}-{_scanned(source, partition)[:8]}.tar")  # of a file once fetched, no other
    try:
        found = scan(source, here, settings.limits, spool, in_place=in_place)
    except TornTar as error:
        return str(error)
    table = found.table()
    counts = {"rows": table.num_rows, **found.skipped}
    meta = {
        "of": _scan_id(source, settings, partition),
        EXAMPLES: json.dumps(found.examples),
        READ: json.dumps(found.captions),
    }
    meta[NAMES] = json.dumps(found.labels.taken)
    meta |= {reason: str(count) for reason, count in counts.items()}
    with atomic_file(path) as file:
        pq.write_table(table.replace_schema_metadata(meta), file, compression="zstd")
    return ""


def _drop_other_scans(source: Source, settings: BuildSettings, work: Path) -> None:
    """Files that were replaced since a stop are scanned again, and fetched again; the others' scans stay, unless they
    were made by other settings."""
    wanted = {scan_path(work, partition).stem: partition for partition in source.partitions}
    for path in sorted((work / "scan").glob("[0-9]*")):
        stem, _, rest = path.name.partition(".")
        number, _, digest = stem.partition("-")
        partition = wanted.get(number)
        if rest == "parquet" and not digest:  # a scan
            kept = partition is not None and _is_scan_of(source, settings, partition, path)
        else:  # what was fetched or written for one
            kept = partition is not None and digest == _scanned(source, partition)[:8]
        if not kept:
            path.unlink()


def _drop_what_follows(work: Path) -> None:
    """What was made of scans that are made again: another sample more or less moves every number that comes after."""
    for name in ("samples.arrow", "texts.arrow", "packed.npy"):
        (work / name).unlink(missing_ok=True)
    shutil.rmtree(work / "written", ignore_errors=True)


def _is_scan_of(source: Source, settings: BuildSettings, partition: Partition, path: Path) -> bool:
    schema = pq.read_schema(path)  # of other columns: by another version
    found: bytes | None = schema.metadata.get(b"of")
    return schema.names == SCAN_SCHEMA.names and found == _scan_id(source, settings, partition).encode()


def _scan_id(source: Source, settings: BuildSettings, partition: Partition) -> str:
    """What decides a scan's rows: what it is of, and how it is read. By time as well: tars are filled up to 10 KB, so
    a mended one often has the size it had."""
    how = _reading(source.dataset, settings.limits, settings.layout == "in-place")
    beside = [] if partition.url else [partition.path, partition.path.with_suffix(".parquet")]
    times = [path.stat().st_mtime_ns for path in beside if path.is_file()]
    return hashlib.sha256(f"{_scanned(source, partition)} {how} {times}".encode()).hexdigest()


@cache
def _reading(dataset: Dataset, limits: Limits, in_place: bool) -> str:
    """Once, not for each of a thousand partitions. Taking torn tars is no other way to read whole ones."""
    read = (dataset.format, dataset.image, dataset.captions, dataset.label, dataset.classes, dataset.held_out > 0)
    return hashlib.sha256(f"{read} {replace(limits, use_torn=False)} {in_place}".encode()).hexdigest()


def _scanned(source: Source, partition: Partition) -> str:
    """What a scan is of: files, and the place where its rows say that they lie."""
    places = [] if partition.url else [str(partition.path.absolute()), *map(str, source.images)]
    fingerprints = [source.fingerprint(partition), source.captions_fingerprint(partition)]
    text = "\n".join([*fingerprints, source.classes_fingerprint(partition), shown(partition.url), *places])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
