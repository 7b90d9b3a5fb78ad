"""Scan of parquet files that hold encoded images, as Hugging Face data sets do: written out as a tar.

Parquet has no random access to a cell, and every later stage wants one. Row by row, so memory is that of a row group.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.images import kind
from pipeline.scan.samples import Limits, Scan, listed
from pipeline.sources.captions import joined
from pipeline.sources.formats import columns, holds_images
from pipeline.sources.source import Partition, Source
from shards.atomic import atomic_file
from shards.errors import UserError
from shards.remote import fetch, shown
from shards.tar import TarWriter

__all__ = ["images_inside"]

ROWS = 64  # decoded at once: some 10 MB of photographs


def images_inside(source: Source, partition: Partition, limits: Limits, spool: Path) -> Scan:
    """Samples of row groups `start` to `stop` (0: all). A row is a sample, also where rows share an image."""
    found = Scan()
    path = _local(partition, spool)
    with atomic_file(spool) as file:
        tar = TarWriter(file)
        since = f", counted from row group {partition.start}" if partition.start else ""
        for number, (image, name, captions) in enumerate(_rows(source, partition, path)):
            what = f"row {number + 1} of {partition.name}{since}"
            text = joined(captions, limits.max_caption, found.captions)
            if image is None:
                found.skip("no image", what)
            elif found.usable(image, text, limits, what):
                key, extension = f"{partition.number:05d}_{number:07d}", kind(image)
                offset = tar.add(f"{key}.{extension}", image)
                meta = json.dumps({"path": name} if name else {}, ensure_ascii=False)
                found.add(
                    key=key, file=str(spool), offset=offset, size=len(image), extension=extension, text=text, meta=meta
                )
        tar.close()
    if partition.url:
        path.unlink()
    return found


def _local(partition: Partition, spool: Path) -> Path:
    if not partition.url:
        return partition.path
    path = spool.with_suffix(".rows.parquet")
    if not (path.exists() and partition.bytes in (-1, path.stat().st_size)):
        fetch(partition.url, partition.bytes, path)
    return path


def _rows(source: Source, partition: Partition, path: Path) -> Iterator[tuple[bytes | None, str, list[Any]]]:
    """(encoded image, its file name or "", captions) of each row."""
    where = shown(partition.url) if partition.url else str(path)
    try:
        with pq.ParquetFile(path) as file:
            image, caption = columns(source.dataset, file.schema_arrow.names, where)
            if not holds_images(file.schema_arrow.field(image).type):
                raise UserError(f"{where}: column {image!r} holds no image bytes; tables of paths must lie beside them")
            groups = range(partition.start, partition.stop or file.num_row_groups)
            for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=[image, caption]):
                for cell, captions in zip(batch[image].to_pylist(), batch[caption].to_pylist(), strict=True):
                    value = cell if isinstance(cell, dict) else {"bytes": cell}
                    yield value.get("bytes") or None, str(value.get("path") or ""), listed(captions)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where} is damaged ({str(error).splitlines()[0]}): replace it") from None
