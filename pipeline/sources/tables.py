"""Tables of (image, caption), of whatever format, grouped by image.

Rows of one image may lie anywhere in a table and are captions of one sample, so the whole is read and grouped once,
into an Arrow file that every partition's process maps. Held in memory while grouping: the texts, as later stages do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.formats import Columns, Unreadable, read_columns
from pipeline.sources.source import Source
from shards.atomic import atomic_file
from shards.machine import lock_file

__all__ = ["URL", "find_image", "grouped_rows"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ROWS = 1 << 16  # pairs handed on at once
UNREADABLE = b"unreadable"
EXAMPLE = b"unreadable_example"


def grouped_rows(
    source: Source, cache: Path, part: int, parts: int
) -> tuple[int, Iterator[tuple[bytes, list[Any]]], Unreadable]:
    """Number of the part's first image; (name, captions) of each of its images; unreadable rows of the whole."""
    if not cache.exists():
        with _alone(cache.with_suffix(".lock")):
            if not cache.exists():
                _write(cache, *_grouped([read_columns(source.dataset, path) for path in source.tables], source.images))
    with pa.memory_map(str(cache)) as file:
        table = pa.ipc.open_file(file).read_all()
    first, last = (table.num_rows * i // parts for i in (part, part + 1))
    meta = table.schema.metadata
    unreadable = Unreadable(int(meta[UNREADABLE]), meta.get(EXAMPLE, b"").decode())
    return first, _pairs(table.slice(first, last - first)), unreadable


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process groups, the others wait. A failure leaves no trace: a mended data set file may begin anew."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock.open("w") as file:
            lock_file(file)
            yield
    except BaseException:
        lock.unlink(missing_ok=True)
        with suppress(OSError):
            lock.parent.rmdir()
        raise


def _pairs(table: pa.Table) -> Iterator[tuple[bytes, list[Any]]]:
    for batch in table.to_batches(ROWS):
        yield from zip(batch["image"].to_pylist(), batch["captions"].to_pylist(), strict=True)


def find_image(name: str, roots: Sequence[Path]) -> Path | None:
    """The file of that name below the first root that has it."""
    if not name or "\0" in name or URL.match(name):
        return None
    try:
        return next((path for path in (root / name for root in roots) if path.is_file()), None)
    except OSError:  # a name longer than any file's
        return None


def _grouped(tables: Sequence[Columns], roots: Sequence[Path]) -> tuple[pa.Table, Unreadable]:
    """One row an image, in the order of its first appearance, with all its captions in the order of the rows."""
    images = pa.chunked_array([names.cast(pa.large_binary()) for names, _, _ in tables], pa.large_binary())
    encoded = pc.dictionary_encode(images.combine_chunks() if images.num_chunks > 1 else images.chunk(0))
    spellings, image = _spellings(encoded.dictionary, roots)
    ids = image[encoded.indices.to_numpy()]
    texts, parents, start = [], [], 0
    for names, captions, _ in tables:
        several = pa.types.is_list(captions.type) or pa.types.is_large_list(captions.type)
        rows = pc.list_parent_indices(captions).to_numpy() if several else np.arange(len(names))
        texts.append((pc.list_flatten(captions) if several else captions).cast(pa.large_binary()))
        parents.append(ids[start + rows])
        start += len(names)
    groups = np.concatenate(parents)
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=len(spellings))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int64())
    flat = pa.concat_arrays(texts).take(pa.array(order))
    table = pa.table({"image": spellings, "captions": pa.LargeListArray.from_arrays(offsets, flat)})
    unread = [unreadable for _, _, unreadable in tables]
    last = next((one.last for one in reversed(unread) if one.rows), "")
    return table, Unreadable(sum(one.rows for one in unread), last)


def _spellings(names: pa.Array, roots: Sequence[Path]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The first name of each image, and [names] which of them each is another spelling of: a.jpg, ./a.jpg, /in/a.jpg.

    Files are looked for only where such spellings are met. Where `..` leads, links decide, so such names stay.
    """
    dotted = pc.any(pc.match_substring_regex(names, r"(^|/)\./|(^|[^:])//")).as_py()
    absolute = pc.sum(pc.starts_with(names, "/")).as_py() or 0
    if not dotted and absolute in (0, len(names)):
        return names, np.arange(len(names))
    images: dict[str, int] = {}
    first, image = list[int](), np.empty(len(names), np.int64)
    for position, name in enumerate(map(os.fsdecode, names.to_pylist())):
        found = None if ".." in name else find_image(name, roots)
        key = os.path.normpath(found) if found else f"\0{name}"  # no path: named, and not there
        image[position] = number = images.setdefault(key, len(images))
        if number == len(first):
            first.append(position)
    return names.take(pa.array(first, pa.int64())), image


def _write(path: Path, table: pa.Table, unreadable: Unreadable) -> None:
    table = table.replace_schema_metadata({UNREADABLE: str(unreadable.rows), EXAMPLE: unreadable.last})
    with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=ROWS)
