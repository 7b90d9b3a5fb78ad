"""From a source to verified shards: scan -> texts -> layout -> write -> manifest, each step on disk as it ends.

Layout packed needs the texts' neighbours, so there encoding and search come before the writing (pipeline.packing).
A stopped build goes on from its finished pieces: scanned partitions, then written shards. Scanning and writing run in
processes of their own; what they are given and return is plain data.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encode.encoder import ENCODER
from pipeline.layout import group_shards, shard_bounds, shuffled
from pipeline.number import NAMES, number_samples
from pipeline.packing import packed_order
from pipeline.parallel import Workers
from pipeline.ranges import size
from pipeline.scan.scan import NOT_OURS, SCAN_SCHEMA, Limits, check_room, scan
from pipeline.settings import (
    CAPTIONS,
    CLASSES,
    FILES,
    BuildSettings,
    deciding,
    forgiven,
    most_skipped,
    recorded,
    share_of,
    split_of,
)
from pipeline.skipped import SKIPPED, LeftOut, judge
from pipeline.sources.captions import notes
from pipeline.sources.class_names import ClassName
from pipeline.sources.datasets import Dataset
from pipeline.sources.source import Partition, Source
from pipeline.work import WORK, alone, differing, disk_errors, read_settings
from pipeline.write import ShardJob, ShardResult, write_shard
from shards.atomic import atomic_file, sha256_file, sweep, write_json
from shards.bars import bar, say
from shards.errors import OverBudget, SkipBudget, UserError
from shards.machine import cores
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.reader import Shards
from shards.remote import shown

__all__ = ["build_shards", "is_built"]

EXAMPLES = "examples"  # reason -> samples left out for it, in a scan's metadata
DENSEST = 5  # bytes of a resized JPEG for each pixel of the square: 1.5 a pixel, of pictures three times as long
REMEDIES = {  # where a table leaves out most samples for one reason
    "missing file": "say below which folders the files lie (`images = [...]` in the data set file)",
    "no caption": "say which other columns hold captions (`captions = [...]` in the data set file; of each row the "
    "first that says something counts)",
}
READ = "captions_read"  # what was counted of the captions, there too
Positions = npt.NDArray[np.int64]


def build_shards(source: Source, out: Path, settings: BuildSettings, processes: int | None = None) -> bool:
    """Write a finished folder of shards at `out`, without graphs; False when it was there already.

    Raises UserError where `out` holds, or was begun with, another source or other settings, where too many samples are
    unusable, and where the disk is full.
    """
    if settings.layout == "in-place":
        source.check_in_place()
    wanted = recorded(source, settings)
    _check_ours(out)
    if not (out / WORK).exists() and _finished(source, settings, out, out / WORK, wanted):
        Shards.open(out).check_sizes()
        return False
    with disk_errors(out), alone(out, "choose another OUT= (--out)") as work:
        if _finished(source, settings, out, work, wanted):
            shutil.rmtree(work, ignore_errors=True)
            return False
        sweep(out, out / "index", work, work / "scan", work / "written")
        write_json(work / "settings.json", wanted)
        again = 0 if settings.image_size else share_of(source, settings)
        check_room(source, out, work / "scan", again)
        with Workers(processes or cores()) as workers:
            skipped = _scan_all(source, settings, work, workers)
            scans = [_scan_path(work, partition) for partition in source.partitions]
            try:
                samples, classes = number_samples(source, scans, out, work, skipped, settings.held_out)
            except UserError:  # of no usable sample, say
                _look_again(source, work)
                raise
            results = _write_all(source, settings, out, work, samples, workers)
        if source.dataset.label:
            wanted["wnids"] = [name.folder for name in classes]
        _finish(source, settings, out, work, wanted, results, skipped, classes)
        shutil.rmtree(work, ignore_errors=True)
    return True


def is_built(source: Source, out: Path, settings: BuildSettings) -> bool:
    """Whether build_shards would return at once. Raises UserError where it would for what `out` holds."""
    _check_ours(out)
    return _finished(source, settings, out, out / WORK, recorded(source, settings))


def _check_ours(out: Path) -> None:
    """Raises UserError for a folder of other things, whose files would be written over, the source's own tars even."""
    begun = (out / "manifest.json").is_file() or (out / WORK / "settings.json").is_file()
    others = sorted(path.name for path in out.iterdir() if path.name[0] != ".") if out.is_dir() and not begun else []
    if others:
        raise UserError(
            f"{out} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}): choose a new or "
            "an empty folder as OUT= (--out)"
        )


def _finished(source: Source, settings: BuildSettings, out: Path, work: Path, wanted: dict[str, Any]) -> bool:
    """Whether the shards are there. Raises UserError where they are there, or begun, with other settings."""
    for path, key, what in ((out / "manifest.json", "settings", "built"), (work / "settings.json", None, "begun")):
        try:
            found = read_settings(path, key)
        except ValueError as error:
            raise UserError(
                f"{path} is damaged, or no manifest of shards ({error}): choose another OUT= (--out), or delete that "
                "folder if it holds nothing else"
            ) from None
        if found is None:
            continue
        found["dataset"] = deciding(found.get("dataset", {}))
        if what == "begun" and not (work / "samples.arrow").exists():
            return False  # only scans so far, of which those that do not fit go
        spared = ENCODER if what == "begun" and not _encoded(out, work) else set[str]()
        unlike = differing(found, wanted, forgiven(found, wanted) | spared)
        unlike = ["other class names" if line.startswith(CLASSES) else line for line in unlike]
        if any(line.startswith((FILES, CAPTIONS)) for line in unlike):
            others = f"other source files{_first_other(source, settings, work) if what == 'begun' else ''}"
            unlike = [others, *(line for line in unlike if not line.startswith((FILES, CAPTIONS)))]
        if unlike:
            raise UserError(
                f"{out} was {what} with {'; '.join(unlike)}: choose another OUT= (--out), or delete that folder first"
            )
        return what == "built"
    return False


def _encoded(out: Path, work: Path) -> bool:
    """Whether layout packed has come as far as any vectors, which another encoder would make useless."""
    return (work / "packed.npy").exists() or any(out.glob(f"graphs/*/{WORK}/**/*.npy"))


def _scan_all(source: Source, settings: BuildSettings, work: Path, workers: Workers) -> dict[str, int]:
    """Scan what is not scanned yet; returns reason -> samples left out. Raises OverBudget."""
    _drop_other_scans(source, settings, work)
    todo = [p for p in source.partitions if not _scan_path(work, p).exists()]
    if todo:
        _drop_what_follows(work)
    function = partial(_scan_one, source, settings, work)
    with bar(f"scanning {source.dataset.name}", len(source.partitions)) as advance:
        advance(len(source.partitions) - len(todo))
        for _ in workers.ordered(function, todo):
            advance(1)
    remedy = "check the source, or raise --max-skipped (max_skipped in a data set file)"
    budget, not_ours = SkipBudget(source.where, most_skipped(source, settings), remedy=remedy), 0
    captions = Counter[str]()
    skips = list[LeftOut]()  # judged once all usable ones are counted: the bad ones may be the first
    for partition in source.partitions:
        schema = pq.read_schema(_scan_path(work, partition))
        meta = {key.decode(): value for key, value in schema.metadata.items()}
        examples = json.loads(meta.pop(EXAMPLES, b"{}"))
        captions.update(json.loads(meta.pop(READ, b"{}")))
        meta.pop(NAMES)
        counts = {key: int(value) for key, value in meta.items() if key != "of"}
        budget.ok(counts.pop("rows"))
        not_ours += counts.pop(NOT_OURS, 0)
        skips += [
            LeftOut(partition=partition.name, reason=reason, count=count, names=_names(examples.get(reason, [])))
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
        _look_again(source, work)
        raise
    for line in notes(captions):
        say(line)
    return budget.counts | ({NOT_OURS: not_ours} if not_ours else {})


def _look_again(source: Source, work: Path) -> None:
    """Drop the scans that left images out which are files of their own: mended, they are no other source."""
    if (work / "samples.arrow").exists():
        return
    for partition in source.partitions:
        path = _scan_path(work, partition)
        left_out = pq.read_schema(path).metadata.get(EXAMPLES.encode(), b"{}") != b"{}"
        if left_out and _is_loose(source, partition):
            path.unlink()


def _is_loose(source: Source, partition: Partition) -> bool:
    """Whether its images are files of their own: a class folder, or part of a table of paths."""
    return source.dataset.format in ("table", "coco") or partition.path.is_dir()


def _names(known: str | list[str]) -> list[str]:
    """A scan of an earlier version knows one."""
    return [known] if isinstance(known, str) else known


def _scan_one(source: Source, settings: BuildSettings, work: Path, partition: Partition) -> None:
    path = _scan_path(work.absolute(), partition)  # a stopped build may go on from another folder
    here = replace(partition, path=partition.path.absolute())
    in_place = settings.layout == "in-place"
    spool = path.with_name(f"{path.stem}-{_scanned(source, partition)[:8]}.tar")  # of a file once fetched, no other
    found = scan(source, here, settings.limits, spool, in_place=in_place)
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


def _drop_other_scans(source: Source, settings: BuildSettings, work: Path) -> None:
    """Files that were replaced since a stop are scanned again, and fetched again; the others' scans stay, unless they
    were made by other settings."""
    wanted = {_scan_path(work, partition).stem: partition for partition in source.partitions}
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


def _first_other(source: Source, settings: BuildSettings, work: Path) -> str:
    """` (NAME)` of the first file that is not as it was when it was scanned, or was not there."""
    for partition in source.partitions:
        path = _scan_path(work, partition)
        if not path.exists() or not _is_scan_of(source, settings, partition, path):
            return f" ({partition.name} has changed, or is new)"
    return " (some are missing)"


def _scan_path(work: Path, partition: Partition) -> Path:
    return work / "scan" / f"{partition.number:06d}.parquet"


def _write_all(
    source: Source, settings: BuildSettings, out: Path, work: Path, samples: pa.Table, workers: Workers
) -> list[ShardResult]:
    if settings.layout != "in-place":
        _check_room(source, out, samples, settings.image_size)
    places, groups = _places(settings, out, work, samples)
    say(f"{samples.num_rows:,} samples, {len(places)} shards")
    jobs = [
        ShardJob(
            name=f"{split_of(source, settings)}-{number:06d}",
            out=out,
            samples=work / "samples.arrow",
            texts=work / "texts.arrow",
            positions=positions,
            groups=groups[number] if groups else None,
            image_size=settings.image_size,
            copy=settings.layout != "in-place",
        )
        for number, positions in enumerate(places)
    ]
    done = {job.name: _written(work, job.name) for job in jobs}
    todo = [job for job in jobs if done[job.name] is None]
    verb = "writing" if settings.layout != "in-place" else "indexing"
    with bar(f"{verb} {len(jobs)} shards", samples.num_rows) as advance:
        advance(sum(result.samples for result in done.values() if result))
        for result in workers.ordered(write_shard, todo):
            write_json(work / "written" / f"{result.name}.json", asdict(result))
            done[result.name] = result
            advance(result.samples)
    return [result for result in done.values() if result is not None]


def _places(
    settings: BuildSettings, out: Path, work: Path, samples: pa.Table
) -> tuple[list[Positions], list[npt.NDArray[np.int32]]]:
    """Rows of `samples` of each shard, in its order; and, of layout packed alone, the group of each."""
    if settings.layout == "in-place":
        return _in_place(samples), []
    if settings.packing is None:
        order = shuffled(samples.num_rows, settings.seed)
        return [order[start:stop] for start, stop in shard_bounds(samples.num_rows, settings.shard_size)], []
    order = packed_order(out, work, samples["text_id"].to_numpy(), settings.packing, settings.seed)
    size = settings.packing.group_size
    bounds = group_shards(samples.num_rows, size, settings.shard_size)
    numbers = (np.arange(samples.num_rows) // size).astype(np.int32)
    return [order[start:stop] for start, stop in bounds], [numbers[start:stop] for start, stop in bounds]


def _in_place(samples: pa.Table) -> list[Positions]:
    """One shard a tar, in the order of the tar; tars without a usable sample have none."""
    files = samples["file"].chunk(0).dictionary_encode()
    ids = files.indices.to_numpy()
    return np.split(np.argsort(ids, kind="stable"), np.cumsum(np.bincount(ids))[:-1])


def _written(work: Path, name: str) -> ShardResult | None:
    found = read_settings(work / "written" / f"{name}.json")
    if found is None:
        return None
    files = {path: FileEntry(**entry) for path, entry in found.pop("files").items()}
    whole = all(_bytes_of(work.parent / path) == entry.bytes for path, entry in files.items())
    return ShardResult(files=files, **found) if whole else None


def _bytes_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _check_room(source: Source, out: Path, samples: pa.Table, image_size: int | None) -> None:
    """Images and 4 KB of headers and texts a sample, less what is already there."""
    sizes = samples["size"].to_numpy()
    if image_size:
        sizes = np.minimum(sizes, DENSEST * image_size**2)
    needed = int(np.sum(sizes)) + 4096 * samples.num_rows
    there = sum(path.stat().st_size for path in out.glob("*.tar"))
    free = shutil.disk_usage(out).free
    say(f"the shards take some {size(needed)}; {size(free)} are free")
    if needed - there > free:
        remedies = ["make room", "choose another OUT= (--out)", "shrink images with --image-size"]
        if source.dataset.format == "webdataset":
            remedies.append("leave the tars where they are with --layout in-place")
        raise UserError(
            f"{out} needs some {size(needed - there)} more, its disk has {size(free)} free: "
            f"{', '.join(remedies[:-1])}, or {remedies[-1]}"
        )


def _finish(
    source: Source,
    settings: BuildSettings,
    out: Path,
    work: Path,
    wanted: dict[str, Any],
    results: list[ShardResult],
    skipped: dict[str, int],
    classes: Sequence[ClassName],
) -> None:
    texts = out / "texts.parquet"
    if (work / SKIPPED).exists():
        (work / SKIPPED).replace(out / SKIPPED)
    files = {"texts.parquet": FileEntry(sha256=sha256_file(texts), bytes=texts.stat().st_size)}
    for result in results:
        files |= result.files
    Manifest(
        dataset=source.dataset.name,
        split=split_of(source, settings),
        source=source.where,
        layout=settings.layout,
        seed=settings.seed,
        samples=sum(result.samples for result in results),
        texts=pq.read_metadata(texts).num_rows,
        classes=tuple(name.name for name in classes),
        skipped=skipped,
        settings=wanted,
        shards=tuple(ShardEntry(name=r.name, samples=r.samples, tar=r.tar) for r in results),
        files=files,
    ).save(out)
