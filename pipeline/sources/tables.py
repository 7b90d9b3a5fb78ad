"""Tables of (image, caption), of whatever format, grouped by image.

Rows of one image may lie anywhere in a table and are captions of one sample, so the whole is read and grouped once,
into an Arrow file that every partition's process maps. Held in memory while grouping: the texts, as later stages do.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.arrow import open_table, write_table
from pipeline.sources.columns import Columns, Unreadable, tell_lost
from pipeline.sources.formats import read_columns
from pipeline.sources.source import Source
from shards.errors import UserError
from shards.machine import lock_file

__all__ = ["URL", "find_image", "grouped_rows"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ROWS = 1 << 16  # images handed on at once
UNREADABLE = b"unreadable"
EXAMPLE = b"unreadable_example"
CLASSES = b"classes"


def grouped_rows(
    source: Source, cache: Path, part: int, parts: int
) -> tuple[int, Iterator[tuple[bytes, list[Any], list[Any]]], Unreadable, tuple[str, ...]]:
    """Number of the part's first image; (name, captions, labels) of each of its images; of the whole, unreadable rows,
    and names of labels 0, 1, ... where the tables carry these."""
    if not cache.exists():
        with _alone(cache.with_suffix(".lock")):
            if not cache.exists():
                read = [read_columns(source.dataset, path) for path in source.tables]
                has = [table.captions_of for table in read]
                tell_lost(source.dataset, list(zip(map(str, source.tables), has, strict=True)))
                write_table(cache, _grouped(read, source))
    table = open_table(cache)
    first, last = (table.num_rows * i // parts for i in (part, part + 1))
    meta = table.schema.metadata
    unreadable = Unreadable(int(meta[UNREADABLE]), meta[EXAMPLE].decode())
    return first, _images(table.slice(first, last - first)), unreadable, tuple(json.loads(meta[CLASSES]))


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


def _images(table: pa.Table) -> Iterator[tuple[bytes, list[Any], list[Any]]]:
    for batch in table.to_batches(ROWS):
        yield from zip(*(batch[name].to_pylist() for name in ("image", "captions", "labels")), strict=True)


def find_image(name: str, roots: Sequence[Path]) -> Path | None:
    """The file of that name below the first root that has it, or that may not be asked.

    Where none has: of the name as other systems write it, with blanks around it, Windows' separators, accents as macOS
    composes them, or an extension in other letters.
    """
    if not name or "\0" in name or URL.match(name):
        return None
    forms = dict.fromkeys((name, *_other_forms(name)))
    return next((path for form in forms for path in (root / form for root in roots) if _is_file(path)), None)


def _other_forms(name: str) -> Iterator[str]:
    plain = name.strip()
    for path in dict.fromkeys((plain, plain.replace("\\", "/"))):
        stem, dot, extension = path.rpartition(".")
        for end in dict.fromkeys((extension, extension.lower(), extension.upper())):
            for form in ("NFC", "NFD"):
                yield unicodedata.normalize(form, f"{stem}{dot}{end}")


def _is_file(path: Path) -> bool:
    """Or one in a folder that may not be looked into: what opens it will say so."""
    try:
        return path.is_file()
    except PermissionError:
        return True
    except (OSError, ValueError):  # a name longer than any file's
        return False


def _grouped(tables: Sequence[Columns], source: Source) -> pa.Table:
    """One row an image, in the order of its first appearance, with all its captions and labels in the order of the
    rows, empty ones and all; what is known of the whole in its metadata."""
    images = pa.chunked_array([table.images.cast(pa.large_binary()) for table in tables], pa.large_binary())
    encoded = pc.dictionary_encode(images.combine_chunks() if images.num_chunks > 1 else images.chunk(0))
    spellings, image = _spellings(encoded.dictionary, source.images)
    ids = np.split(image[encoded.indices.to_numpy()], np.cumsum([len(table.images) for table in tables])[:-1])
    captions = _of_images([table.captions for table in tables], ids, len(spellings))
    labels = _of_images([table.labels for table in tables], ids, len(spellings))
    unread = [table.unreadable for table in tables]
    classes = {table.classes for table in tables}
    if len(classes) > 1:
        raise UserError(
            f"the tables of {source.where} number their classes differently: write the classes' names into the column "
            f"{source.dataset.label}, or build each table alone"
        )
    meta = {
        UNREADABLE: str(sum(one.rows for one in unread)),
        EXAMPLE: next((one.last for one in reversed(unread) if one.rows), ""),
        CLASSES: json.dumps(classes.pop()),
    }
    return pa.table({"image": spellings, "captions": captions, "labels": labels}).replace_schema_metadata(meta)


def _of_images(columns: Sequence[pa.Array | None], ids: Sequence[npt.NDArray[np.int64]], images: int) -> pa.Array:
    """[images] lists of a column's cells, in the order of the rows. ids: of each table's rows, the image."""
    cells, parents = [pa.array([], pa.large_binary())], [np.zeros(0, np.int64)]
    for column, image in zip(columns, ids, strict=True):
        if column is None:
            continue
        several = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        cells.append((pc.list_flatten(column) if several else column).cast(pa.large_binary()))
        parents.append(image[pc.list_parent_indices(column).to_numpy()] if several else image)
    groups = np.concatenate(parents)
    order = np.argsort(groups, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=images))])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.concat_arrays(cells).take(pa.array(order)))


def _spellings(names: pa.Array, roots: Sequence[Path]) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The first name of each image, and [names] which of them each is another spelling of: a.jpg, .\\a.JPG, /in/a.jpg.

    Files are looked for only where such spellings are met. Where `..` leads, links decide, so such names stay.
    """
    keys = _keys(names)
    dotted = pc.any(pc.match_substring_regex(keys, r"(^|/)\./|(^|[^:])//")).as_py()
    absolute = pc.sum(pc.starts_with(keys, "/")).as_py() or 0
    mixed = dotted or absolute not in (0, len(names))
    positions = np.arange(len(names)) if mixed else _shared(names, keys)
    image, images = np.arange(len(names)), dict[str, int]()
    for position, name in zip(positions.tolist(), names.take(pa.array(positions)).to_pylist(), strict=True):
        text = os.fsdecode(name)
        found = None if ".." in text else find_image(text, roots)
        key = os.path.normpath(found) if found else f"\0{text}"  # no path: named, and not there
        image[position] = images.setdefault(key, position)
    if not len(positions):  # nearly always
        return names, image
    first, image = np.unique(image, return_inverse=True)
    return names.take(pa.array(first)), image


def _keys(names: pa.Array) -> pa.Array:
    """[names] bytes that are equal wherever `find_image` may find one file by two of the names."""
    text = names.view(pa.large_string())  # of any bytes: these kernels look at ASCII alone
    keys = pc.ascii_lower(pc.replace_substring(pc.ascii_trim_whitespace(text), "\\", "/")).view(pa.large_binary())
    other = pc.invert(pc.string_is_ascii(text))
    if not pc.any(other).as_py():
        return keys
    forms = (os.fsdecode(name).strip().replace("\\", "/") for name in names.filter(other).to_pylist())
    composed = [os.fsencode(unicodedata.normalize("NFC", form).lower()) for form in forms]
    return pc.replace_with_mask(keys, other, pa.array(composed, pa.large_binary()))


def _shared(names: pa.Array, keys: pa.Array) -> npt.NDArray[np.int64]:
    """Positions of the keys that are there more than once."""
    if keys.equals(names):  # which differ
        return np.zeros(0, np.int64)
    ids = pc.dictionary_encode(keys).indices.to_numpy()
    return np.flatnonzero(np.bincount(ids)[ids] > 1)
