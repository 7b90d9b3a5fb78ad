"""What is read of each kind of table: CSV, TSV, JSON, JSON lines, parquet, Flickr's and COCO's own files."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.captions import first_said
from pipeline.sources.columns import BYTES, SEVERAL, Columns, Names, Unreadable, columns, shown, taken
from pipeline.sources.datasets import CAPTIONS, Dataset
from pipeline.sources.delimited import read_delimited
from pipeline.sources.labels import carried_names, label_text
from pipeline.sources.source import check_unpacked
from shards.errors import UserError, first_line

__all__ = ["read_columns"]

TOKEN_LINE = re.compile(rb"[^\t#]+#\d+\t")  # Flickr8k.token.txt: NAME.jpg#0<TAB>caption
ROWS = 1 << 16  # JSON rows turned into Arrow at once
EARLY = 1000  # JSON objects that may lack a column before it is missed


def read_columns(dataset: Dataset, path: Path) -> Columns:
    """Raises UserError for a table that cannot be read, or lacks the columns."""
    try:
        check_unpacked(path, str(path))
        return _reader(dataset, path)(dataset, path)
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        if isinstance(error, UnicodeDecodeError):
            raise UserError(f"{path} is not UTF-8: save it as that (iconv -f LATIN1 -t UTF-8, say)") from None
        raise UserError(f"cannot read {path} as a table ({first_line(error)})") from None


def _reader(dataset: Dataset, path: Path) -> Callable[[Dataset, Path], Columns]:
    if dataset.format == "coco":
        return _coco
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json}
    if path.suffix.lower() in readers:
        return readers[path.suffix.lower()]
    with path.open("rb") as file:
        line = file.readline(1 << 16)
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # a spreadsheet's "Unicode text"
        raise UserError(f"{path} is UTF-16: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return _token_lines if TOKEN_LINE.match(line) else read_delimited


def _parquet(dataset: Dataset, path: Path) -> Columns:
    schema = pq.read_schema(path)
    names = columns(dataset, schema.names, str(path))
    table = pq.read_table(path, columns=names.wanted, partitioning=None)
    return taken(names, table, Unreadable())._replace(classes=carried_names(schema, names.label))


def _json_lines(dataset: Dataset, path: Path) -> Columns:
    """One object a line; lines that are none are counted, and are not the end of the table."""
    found, unreadable = _Rows(dataset, path), Unreadable()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                found.add(row)
            elif line.strip():
                unreadable = Unreadable(unreadable.rows + 1, f"line {number} ({shown(line)})")
    return found.columns(unreadable)


def _json(dataset: Dataset, path: Path) -> Columns:
    """A list of objects."""
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        coco = isinstance(rows, dict) and "annotations" in rows
        hint = ': COCO\'s files need format = "coco"' if coco else ' (pandas: orient="records")'
        raise UserError(f"{path} is no list of objects{hint}")
    found = _Rows(dataset, path)
    unreadable = Unreadable()
    for row in rows:
        if isinstance(row, dict):
            found.add(row)
        else:
            unreadable = Unreadable(unreadable.rows + 1, repr(row)[:60])
    return found.columns(unreadable)


def _coco(_: Dataset, path: Path) -> Columns:
    """{"images": [{id, file_name}], "annotations": [{image_id, caption}]}; images without an id of their own, and
    annotations of no image, are counted."""
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise UserError(f"{path} is no COCO file: it must hold images and annotations")
    names, stray = dict[int | str, str](), list[dict[str, Any]]()
    for row in _objects(path, content["images"]):
        if isinstance(row.get("id"), (int, str)) and isinstance(row.get("file_name"), str) and row["id"] not in names:
            names[row["id"]] = row["file_name"]
        else:
            stray.append(row)
    captions: dict[int | str, list[bytes]] = {image: [] for image in names}
    annotations = list(_objects(path, content["annotations"]))
    if annotations and not any("caption" in row for row in annotations):
        raise UserError(
            f"{path}: its annotations hold no captions, and categories are not read as labels: give captions_*.json"
        )
    for row in annotations:
        image = row.get("image_id")
        if isinstance(image, (int, str)) and image in captions and isinstance(row.get("caption"), str):
            captions[image].append(_encoded(row["caption"]))
        else:
            stray.append(row)
    images = pa.array([_encoded(name) for name in names.values()], BYTES)
    unreadable = Unreadable(len(stray), repr(stray[-1])[:60] if stray else "")
    return Columns(images, pa.array(list(captions.values()), SEVERAL), None, unreadable)


def _objects(path: Path, rows: object) -> Iterator[dict[str, Any]]:
    """What is no object counts as an empty one."""
    if not isinstance(rows, list):
        raise UserError(f"{path} is no COCO captions file: its images and annotations must be lists")
    yield from (row if isinstance(row, dict) else {} for row in rows)


def _token_lines(dataset: Dataset, path: Path) -> Columns:
    """Flickr8k.token.txt, results_20130124.token: NAME.jpg#0<TAB>caption, without a header."""
    if dataset.label:
        raise UserError(f"{path} has no column {dataset.label}: lines of NAME#0 and a caption hold no labels")
    images, captions, unreadable = list[bytes](), list[bytes](), Unreadable()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            name, tab, caption = line.rstrip(b"\r\n").partition(b"\t")
            if tab:
                images.append(name.rpartition(b"#")[0] or name)
                captions.append(caption)
            elif line.strip():
                unreadable = Unreadable(unreadable.rows + 1, f"line {number} ({shown(line)})")
    return Columns(pa.array(images, BYTES), pa.array(captions, BYTES), None, unreadable)


class _Rows:
    """JSON objects, gathered into columns."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self.dataset, self.path = dataset, path
        self.known: dict[str, None] = {}
        self.names: Names | None = None
        self.captions: tuple[str, ...] = ()
        """In the order in which they are asked for: also those that only later rows may have."""
        self.met: dict[str, None] = {}
        """Columns of captions that rows have."""
        self.early: list[dict[str, Any]] = []
        """Rows from before all columns were seen: a row may lack what it has no value for."""
        self.chunks: list[pa.Table] = []
        self.rows: list[tuple[bytes, list[bytes], list[bytes]]] = []
        """Image, captions, labels."""

    def add(self, row: dict[str, Any]) -> None:
        if self.names is None:
            self.early.append(row)
            self.known |= dict.fromkeys(row)
            try:
                self.names = columns(self.dataset, list(self.known), str(self.path))
            except UserError:
                if len(self.early) > EARLY:
                    raise
                return
            self.captions = self._ordered(self.names.captions)
            for earlier in self.early[:-1]:
                self._add(earlier, self.names)
        self._add(row, self.names)

    def _ordered(self, found: tuple[str, ...]) -> tuple[str, ...]:
        if not found or self.dataset.captions == CAPTIONS:
            return found
        alike = {name.strip().lower(): name for name in found}
        wanted = (name if name in found else alike.get(name.strip().lower(), name) for name in self.dataset.captions)
        return tuple(dict.fromkeys(wanted))

    def _add(self, row: dict[str, Any], names: Names) -> None:
        image, labels = row.get(names.image), row.get(names.label)
        self.met |= dict.fromkeys(name for name in self.captions if name in row)
        said = first_said([row.get(name) for name in self.captions])
        texts = said if isinstance(said, list) else [said]
        classes = (labels if isinstance(labels, list) else [labels]) if names.label else []
        self.rows.append(
            (
                _encoded(image) if isinstance(image, str) else b"",
                [_encoded(text) for text in texts if isinstance(text, str)],
                [_encoded(label_text(label)) for label in classes],
            )
        )
        if len(self.rows) == ROWS:
            self._flush()

    def columns(self, unreadable: Unreadable) -> Columns:
        if self.names is None and self.early:
            columns(self.dataset, list(self.known), str(self.path))
        self._flush()
        images, captions, labels = (column.combine_chunks() for column in pa.concat_tables(self.chunks))
        labelled = labels if self.dataset.label else None
        return Columns(images, captions, labelled, unreadable, captions_of=tuple(self.met))

    def _flush(self) -> None:
        columns = zip(*self.rows, strict=True) if self.rows else ([], [], [])
        arrays = [pa.array(list(values), kind) for values, kind in zip(columns, (BYTES, SEVERAL, SEVERAL), strict=True)]
        self.chunks.append(pa.table(arrays, ["images", "captions", "labels"]))
        self.rows = []


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # JSON may hold half a surrogate pair
