"""Scan a partition: where each usable sample's bytes lie, its text and label, and what was left out and why.

The table is all that later stages see. Nothing is decoded, and what lies on a local disk is not copied, so indexing
331 GB is a walk over headers. What does not lie there (remote tars, images inside parquet, generated pictures) is
spooled into a local tar first.
"""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.held_out import image_hashes
from pipeline.scan import files, parquet, tars
from pipeline.scan.samples import Limits, Scan
from pipeline.sources.source import Partition, Source
from shards.atomic import atomic_file
from shards.tar import TarWriter

__all__ = ["scan"]


def scan(source: Source, partition: Partition, limits: Limits, spool: Path, *, in_place: bool = False) -> Scan:
    """Scan one partition. Raises UserError for a torn tar (unless limits.use_torn) and for a broken connection.

    spool: where samples that have no local file of their own are put, as a tar. Other files beside it whose names
    begin with its stem may serve the scan. in_place: the tars will stay where they are, and so their keys.
    """
    found = _scan(source, partition, limits, spool, in_place)
    if source.dataset.held_out:
        rows = found.rows
        rows["hash"] = image_hashes(zip(rows["file"], rows["offset"], rows["size"], strict=True))
    return found


def _scan(source: Source, partition: Partition, limits: Limits, spool: Path, in_place: bool) -> Scan:
    match source.dataset.format:
        case "demo":
            return _demo(source, partition, spool)
        case "webdataset":
            return tars.webdataset(source, partition, limits, spool, in_place)
        case "imagefolder" if partition.path.is_file():
            return tars.class_tar(source, partition, limits, in_place)
        case "imagefolder":
            return files.folder(source, partition, limits)
        case "table" | "coco" if source.tables:
            return files.table(source, partition, limits, spool)
        case _:
            return parquet.images_inside(source, partition, limits, spool)


def _demo(source: Source, partition: Partition, spool: Path) -> Scan:
    from pipeline.demo.pictures import sample

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
