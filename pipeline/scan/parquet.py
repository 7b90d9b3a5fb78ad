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
from pipeline.sources.captions import first_said
from pipeline.sources.columns import columns, holds_images, label_cells
from pipeline.sources.labels import Labels, carried_names
from pipeline.sources.source import Partition, Source
from shards.atomic import atomic_file
from shards.errors import UserError, first_line
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
        for number, (image, name, captions, labels) in enumerate(_rows(source, partition, path, found)):
            what = f"row {number + 1} of {partition.name}{since}"
            if image is None:
                found.skip("no image", what)
                continue
            values = found.described(source.dataset, captions, labels, limits, what)
            if values and found.usable(image, values["text"], limits, what):
                key, extension = f"{partition.number:05d}_{number:07d}", kind(image)
                offset = tar.add(f"{key}.{extension}", image)
                meta = json.dumps({"path": name} if name else {}, ensure_ascii=False)
                place = {"file": str(spool), "offset": offset, "size": len(image)}
                found.add(key=key, extension=extension, meta=meta, **place, **values)
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


def _rows(
    source: Source, partition: Partition, path: Path, found: Scan
) -> Iterator[tuple[bytes | None, str, list[Any], list[Any]]]:
    """(encoded image, its file name or "", captions, labels) of each row. Tells `found` the classes' names."""
    where = shown(partition.url) if partition.url else str(path)
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            image, captions_in, label = named = columns(source.dataset, schema.names, where)
            found.labels = Labels(source.dataset.classes, carried_names(schema, label))
            if not holds_images(schema.field(image).type):
                raise UserError(f"{where}: column {image!r} holds no image bytes; tables of paths must lie beside them")
            groups = range(partition.start, partition.stop or file.num_row_groups)
            for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=named.wanted):
                cells = zip(*(batch[name].to_pylist() for name in captions_in), strict=True)
                captions = list(map(first_said, cells)) if captions_in else [None] * len(batch)
                labels = label_cells(pa.chunked_array([batch[label]])).to_pylist() if label else [None] * len(batch)
                for cell, *texts in zip(batch[image].to_pylist(), captions, labels, strict=True):
                    value = cell if isinstance(cell, dict) else {"bytes": cell}
                    yield value.get("bytes") or None, str(value.get("path") or ""), listed(texts[0]), listed(texts[1])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{where} is damaged ({first_line(error)}): replace it") from None
