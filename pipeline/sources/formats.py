"""What is read of each kind of table: CSV, TSV, JSON, JSON lines, parquet, Flickr's and COCO's own files."""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv
import pyarrow.parquet as pq

from pipeline.sources.datasets import CAPTIONS, Dataset
from pipeline.sources.labels import carried_names, label_text
from pipeline.sources.source import check_unpacked
from shards.errors import UserError, first_line

__all__ = ["Columns", "Names", "Unreadable", "columns", "holds_images", "read_columns"]

IMAGE_NAMES = ("image", "path", "filepath", "file_path", "file_name", "filename", "image_path", "image_name", "img")
CAPTION_NAMES = ("caption", "captions", "text", "title", "sentence", "sentences", "comment")
TOKEN_LINE = re.compile(rb"[^\t#]+#\d+\t")  # Flickr8k.token.txt: NAME.jpg#0<TAB>caption
BLOCK = 64 << 20  # bytes of CSV parsed at once; a row must fit
ROWS = 1 << 16  # JSON rows turned into Arrow at once
EARLY = 1000  # JSON objects that may lack a column before it is missed
BYTES, SEVERAL = pa.large_binary(), pa.large_list(pa.large_binary())
CELL_LINES = 50  # more in one cell are rows


class Unreadable(NamedTuple):
    """Rows that could not be read: how many, and the last of them."""

    rows: int = 0
    last: str = ""


class Columns(NamedTuple):
    """Image names, and of each its caption or list of captions, and its label; None where no column holds these."""

    images: pa.Array
    captions: pa.Array | None
    labels: pa.Array | None = None
    unreadable: Unreadable = Unreadable()
    classes: tuple[str, ...] = ()
    """Names of labels 0, 1, ..., where the table carries them."""


class Names(NamedTuple):
    """Of columns; "" for one that is not wanted."""

    image: str
    caption: str
    label: str

    @property
    def wanted(self) -> list[str]:
        """Each once: a class may be the caption too."""
        return list(dict.fromkeys(filter(None, self)))


def columns(dataset: Dataset, names: Sequence[str], where: str) -> Names:
    """The columns of images, captions and labels: those that the data set file names, else those that are called so.

    Raises UserError where there is none.
    """
    wanted = (dataset.image,) if dataset.image else ()
    given = dataset.captions if dataset.captions != CAPTIONS else ()
    return Names(
        _column("image", wanted, IMAGE_NAMES, names, where),
        ""
        if dataset.by_class
        else _column("captions", given, CAPTION_NAMES, names, where, labelled=bool(dataset.label)),
        _column("label", (dataset.label,), (), names, where) if dataset.label else "",
    )


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column's cells are encoded images: bytes, or Hugging Face's {bytes, path}."""
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _column(
    what: str, given: Sequence[str], usual: Sequence[str], names: Sequence[str], where: str, labelled: bool = False
) -> str:
    for name in given or usual:
        exact = [one for one in names if one == name]
        alike = exact or [one for one in names if one.strip().lower() == name.strip().lower()]
        if len(alike) > 1:
            raise UserError(f"{where} has {len(alike)} columns {name}; it has {', '.join(names)}: rename all but one")
        if alike:
            return alike[0]
    key = 'captions = ["..."]' if what == "captions" else f'{what} = "..."'
    hint = ", or captions = [] for captions made of the labels" if labelled else ""
    raise UserError(
        f"{where} has no column {' or '.join(given or usual)}; it has {', '.join(map(str.strip, names))}: "
        f"name one in the data set file, {key}{hint}"
    )


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
    return _token_lines if TOKEN_LINE.match(line) else _delimited


def _delimited(dataset: Dataset, path: Path) -> Columns:
    """CSV and its kin with a header line. Bytes, not text: what is not UTF-8 is the captions' rule to mend."""
    with path.open("rb") as file:
        header = file.readline(1 << 16).removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
    delimiter = next((mark for mark in ("\t", "|", ",", ";") if mark.encode() in header), None)
    if delimiter is None:
        raise UserError(f"{path} has one column, {header[:60]!r}: expected a header line such as image,caption")
    # Flickr30k's results.csv has bare quotes within captions, and no quoted ones.
    quoted = delimiter != "|"
    names, table, bad = _parsed(dataset, path, delimiter, quoted=quoted)
    if quoted and (lost := _lines(path) - 1 - bad.rows - table.num_rows) > 0:
        # Cells hold line ends: as they may, or because a quote that is a mere character took whole rows for its cell.
        most, like_rows = _longest(names, table, delimiter, header)
        well, place = _quoted_cells(path, delimiter)
        if not well or most > CELL_LINES:
            plain = None if b'"' in header else _parsed(dataset, path, delimiter, quoted=False)
            if plain and not plain[2].rows:
                names, table, bad = plain
            elif not well or like_rows:
                raise UserError(
                    f"{path}: a quote is opened and not closed in {_line(path, place)}, so {lost} lines were taken for "
                    'parts of other rows: double the quotes within a cell (""), or save the table as JSON lines'
                )
    return _taken(names, table, bad)


def _parsed(dataset: Dataset, path: Path, delimiter: str, *, quoted: bool) -> tuple[Names, pa.Table, Unreadable]:
    """Names of the columns that are wanted; these; and rows that have other columns than the header."""
    bad: list[str] = []

    def skip(row: pc_csv.InvalidRow) -> str:
        bad.append(row.text)
        return "skip"

    parse = pc_csv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
        invalid_row_handler=skip,
    )
    with pc_csv.open_csv(path, pc_csv.ReadOptions(block_size=1 << 20), parse) as reader:
        names = columns(dataset, reader.schema.names, str(path))
    bad.clear()
    convert = pc_csv.ConvertOptions(
        check_utf8=False,
        column_types={name: pa.large_binary() for name in names.wanted},
        include_columns=names.wanted,
        strings_can_be_null=False,
    )
    table = pc_csv.read_csv(path, pc_csv.ReadOptions(block_size=BLOCK), parse, convert)
    return names, table, Unreadable(len(bad), _shown(bad[-1].encode()) if bad else "")


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _longest(names: Names, table: pa.Table, delimiter: str, header: bytes) -> tuple[int, bool]:
    """Line ends of the row that has the most, and whether its lines are like the table's rows."""
    ends = reduce(pc.add, (pc.count_substring(table[name], "\n") for name in names.wanted))
    most = pc.max(ends).as_py() or 0
    row = pc.index(ends, most).as_py() if most else 0
    cells = [table[name][row].as_py() if table.num_rows else b"" for name in names.wanted]
    inner = max(cells, key=lambda cell: cell.count(b"\n")).splitlines()[1:-1]
    mark = delimiter.encode()
    alike = sum(line.count(mark) == header.count(mark) for line in inner)
    return most, alike > 0.9 * len(inner)


def _quoted_cells(path: Path, delimiter: str) -> tuple[bool, int]:
    """Whether every cell that begins with a quote ends with one, before a delimiter or the end of its line; and the
    first byte of the first that does not, or of the one with the most line ends."""
    mark = re.escape(delimiter.encode())
    cell = re.compile(rb"(?:\A|(?<=[\n\r" + mark + rb']))"(?:[^"]|"")*+("?)(?=(' + mark + rb"|\r|\n|\Z)?)")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        longest = place = 0
        for found in cell.finditer(content):
            if not found[1] or found[2] is None:
                return False, found.start()
            if (ends := found[0].count(b"\n")) > longest:
                longest, place = ends, found.start()
        return True, place


def _line(path: Path, place: int) -> str:
    """`line 3 ('a.jpg,"a ca')`: where a byte lies."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place -= len(line)
            if place < 0:
                return f"line {number} ({_shown(line)})"
    raise AssertionError


def _shown(row: bytes) -> str:
    return repr(row.strip().decode("utf-8", "replace")[:60])


def _parquet(dataset: Dataset, path: Path) -> Columns:
    schema = pq.read_schema(path)
    names = columns(dataset, schema.names, str(path))
    table = pq.read_table(path, columns=names.wanted, partitioning=None)
    return _taken(names, table, Unreadable())._replace(classes=carried_names(schema, names.label))


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
                unreadable = Unreadable(unreadable.rows + 1, f"line {number} ({_shown(line)})")
    return found.columns(unreadable)


def _json(dataset: Dataset, path: Path) -> Columns:
    """A list of objects."""
    rows = json.loads(path.read_bytes())
    if not isinstance(rows, list):
        hint = ': COCO\'s files need format = "coco"' if isinstance(rows, dict) and "annotations" in rows else ""
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
    for row in _objects(path, content["annotations"]):
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
                unreadable = Unreadable(unreadable.rows + 1, f"line {number} ({_shown(line)})")
    return Columns(pa.array(images, BYTES), pa.array(captions, BYTES), None, unreadable)


class _Rows:
    """JSON objects, gathered into columns."""

    def __init__(self, dataset: Dataset, path: Path) -> None:
        self.dataset, self.path = dataset, path
        self.known: dict[str, None] = {}
        self.names: Names | None = None
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
            for earlier in self.early[:-1]:
                self._add(earlier, self.names)
        self._add(row, self.names)

    def _add(self, row: dict[str, Any], names: Names) -> None:
        image, captions, labels = (row.get(name) for name in names)
        texts = captions if isinstance(captions, list) else [captions]
        given = labels if isinstance(labels, list) else [labels]
        self.rows.append(
            (
                _encoded(image) if isinstance(image, str) else b"",
                [_encoded(text) for text in texts if isinstance(text, str)],
                [_encoded(label_text(label)) for label in given],
            )
        )
        if len(self.rows) == ROWS:
            self._flush()

    def columns(self, unreadable: Unreadable) -> Columns:
        if self.names is None and self.early:
            columns(self.dataset, list(self.known), str(self.path))
        self._flush()
        images, captions, labels = (column.combine_chunks() for column in pa.concat_tables(self.chunks))
        return Columns(images, captions, labels if self.dataset.label else None, unreadable)

    def _flush(self) -> None:
        columns = zip(*self.rows, strict=True) if self.rows else ([], [], [])
        arrays = [pa.array(list(values), kind) for values, kind in zip(columns, (BYTES, SEVERAL, SEVERAL), strict=True)]
        self.chunks.append(pa.table(arrays, ["images", "captions", "labels"]))
        self.rows = []


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # JSON may hold half a surrogate pair


def _taken(names: Names, table: pa.Table, unreadable: Unreadable) -> Columns:
    captions, labels = (_whole(table[name]) if name else None for name in (names.caption, names.label))
    return Columns(_whole(table[names.image]), captions, labels, unreadable)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """One array of bytes (or lists of them), nulls as empty; numbers as they are written."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_boolean(column.type):
        column = pc.if_else(column, "True", "False")  # as pandas writes CSV
    kind = SEVERAL if pa.types.is_nested(column.type) else BYTES
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    inner = column.type.value_type if lists else column.type
    if not any(of(inner) for of in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)):
        column = column.cast(pa.large_list(pa.large_string()) if kind == SEVERAL else pa.large_string())
    cast = column.cast(kind)
    array = cast.combine_chunks() if cast.num_chunks != 1 else cast.chunk(0)
    return pc.fill_null(array, b"") if kind == BYTES else array
