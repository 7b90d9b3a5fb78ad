"""From a source to verified shards: scan -> texts -> layout -> write -> manifest, each step on disk as it ends.

Layout packed needs the texts' neighbours, so there encoding and search come before the writing (pipeline.packing).
A stopped build goes on from its finished pieces: scanned partitions, then written shards. Scanning and writing run in
processes of their own; what they are given and return is plain data.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.encode.encoder import ENCODER
from pipeline.layout import group_shards, shard_bounds, shuffled
from pipeline.number import number_samples
from pipeline.packing import packed_order
from pipeline.parallel import Workers
from pipeline.room import room_to_fetch, room_to_write
from pipeline.scans import first_other, look_again, scan_all, scan_path
from pipeline.settings import (
    CAPTIONS,
    CLASSES,
    FILES,
    BuildSettings,
    deciding,
    forgiven,
    recorded,
    share_of,
    split_of,
)
from pipeline.skipped import SKIPPED
from pipeline.sources.class_names import ClassName
from pipeline.sources.source import Source
from pipeline.work import WORK, alone, differing, disk_errors, read_settings
from pipeline.write import ShardJob, ShardResult, write_shard
from shards.atomic import sha256_file, sweep, write_json
from shards.bars import bar, say
from shards.errors import UserError
from shards.machine import cores
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.reader import Shards, is_finished

__all__ = ["build_shards", "is_built"]

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
        room_to_fetch(source, out, work / "scan", again)
        with Workers(processes or cores()) as workers:
            skipped = scan_all(source, settings, work, workers)
            scans = [scan_path(work, partition) for partition in source.partitions]
            try:
                samples, classes = number_samples(source, scans, out, work, skipped, settings.held_out)
            except UserError:  # of no usable sample, say
                look_again(source, work)
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
    begun = is_finished(out) or (out / WORK / "settings.json").is_file()
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
            others = f"other source files{first_other(source, settings, work) if what == 'begun' else ''}"
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


def _write_all(
    source: Source, settings: BuildSettings, out: Path, work: Path, samples: pa.Table, workers: Workers
) -> list[ShardResult]:
    if settings.layout != "in-place":
        room_to_write(source, out, samples, settings.image_size)
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
