"""CSV, TSV and their kin, with a header line, and quotes that may be no quotes."""

from __future__ import annotations

import csv
import mmap
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, reduce
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pc_csv

from pipeline.sources.columns import Columns, Names, Unreadable, columns, shown, taken
from pipeline.sources.datasets import Dataset
from shards.errors import UserError

__all__ = ["read_delimited"]

BLOCK = 64 << 20  # bytes of CSV parsed at once; a row must fit
CELL_LINES = 50  # more in one cell are rows
MARKS = ("\t", "|", ",", ";")
SEPARATOR = re.compile(rb"sep=([\t !-/:-@[-`{-~])", re.IGNORECASE)  # a line that spreadsheets write above the header
NOTHING = b"\t\x0b\x0c |,;"  # a spreadsheet writes an empty row so


def read_delimited(dataset: Dataset, path: Path) -> Columns:
    """CSV and its kin with a header line. Bytes, not text: what is not UTF-8 is the captions' rule to mend."""
    above, delimiter, header = _top(dataset, path)
    # Flickr30k's results.csv has bare quotes within captions, and no quoted ones.
    quoted = delimiter != "|" or b'"' in header
    names, table, bad = _parsed(dataset, path, delimiter, above, quoted=quoted)
    if quoted and (lost := _lines(path, above) - 1 - bad.rows - table.num_rows) > 0:
        # Cells hold line ends: as they may, or because a quote that is a mere character took whole rows for its cell.
        most, like_rows = _longest(names, table, delimiter, header)
        well, place = _quoted_cells(path, delimiter)
        if not well or most > CELL_LINES:
            plain = None if b'"' in header else _parsed(dataset, path, delimiter, above, quoted=False)
            if plain and not plain[2].rows:
                names, table, bad = plain
            elif not well or like_rows:
                raise UserError(
                    f"{path}: a quote is opened and not closed in {_line(path, place)}, so {lost} lines were taken for "
                    'parts of other rows: double the quotes within a cell (""), or save the table as JSON lines'
                )
    return taken(names, table, bad)


def _top(dataset: Dataset, path: Path) -> tuple[int, str, bytes]:
    """How many lines are above the header; the delimiter; the header. Raises UserError where there is none."""
    with path.open("rb") as file:
        lines = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").splitlines()
    marks: Sequence[str] = MARKS
    for above, line in enumerate(lines):
        if said := SEPARATOR.fullmatch(line):
            marks = (said[1].decode(),)
        elif line.strip(NOTHING):
            return above, _delimiter(dataset, path, line, marks), line
    raise UserError(f"{path} is empty: expected a header line such as image,caption")


def _delimiter(dataset: Dataset, path: Path, header: bytes, marks: Sequence[str]) -> str:
    """Of the marks in the header the first by which it names the columns that are wanted; of none the first."""
    there = [m for m in marks if m.encode() in header] or [
        m for m in MARKS if m.encode() in header
    ]  # sep= may be wrong
    if not there:
        raise UserError(f"{path} has one column, {shown(header)}: expected a header line such as image,caption")
    for mark in there:
        with suppress(UserError):
            columns(dataset, next(csv.reader([header.decode("utf-8", "replace")], delimiter=mark)), str(path))
            return mark
    return there[0]


def _parsed(
    dataset: Dataset, path: Path, delimiter: str, above: int, *, quoted: bool
) -> tuple[Names, pa.Table, Unreadable]:
    """Names of the columns that are wanted; these; and rows that have other columns than the header.

    Arrow hands such a row on as text, which fails where it is not UTF-8. So the table is then parsed as Latin-1, in
    which all bytes are text, and its cells are turned back.
    """
    parse = partial(
        pc_csv.ParseOptions, delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
    )
    failed, hook = list[type](), sys.unraisablehook
    sys.unraisablehook = lambda one: failed.append(one.exc_type) if one.exc_type is UnicodeDecodeError else hook(one)
    try:
        return _parsed_as("utf8", dataset, path, parse, above)
    except pa.ArrowInvalid:
        if not failed:
            raise
    finally:
        sys.unraisablehook = hook
    names, table, bad = _parsed_as("latin-1", dataset, path, parse, above)
    cells = ([cell.decode().encode("latin-1") for cell in column.to_pylist()] for column in table.columns)
    return names, pa.table([pa.array(column, pa.large_binary()) for column in cells], table.column_names), bad


def _parsed_as(
    encoding: str, dataset: Dataset, path: Path, parse: Callable[..., pc_csv.ParseOptions], above: int
) -> tuple[Names, pa.Table, Unreadable]:
    """Cells in UTF-8 of what the encoding makes of them."""
    bad: list[bytes] = []

    def skip(row: pc_csv.InvalidRow) -> str:
        bad.append(row.text.encode(encoding))
        return "skip"

    options, reading = parse(invalid_row_handler=skip), partial(pc_csv.ReadOptions, skip_rows=above, encoding=encoding)
    with pc_csv.open_csv(path, reading(block_size=1 << 20), options) as reader:
        header = [name.encode(encoding).decode("utf-8-sig") for name in reader.schema.names]
        names = columns(dataset, header, str(path))
        wanted = [reader.schema.names[header.index(name)] for name in names.wanted]
    bad.clear()
    convert = pc_csv.ConvertOptions(
        check_utf8=False,
        column_types={name: pa.large_binary() for name in wanted},
        include_columns=wanted,
        strings_can_be_null=False,
    )
    table = pc_csv.read_csv(path, reading(block_size=BLOCK), options, convert).rename_columns(names.wanted)
    return names, table, Unreadable(len(bad), shown(bad[-1]) if bad else "")


def _lines(path: Path, above: int) -> int:
    with path.open("rb") as file:
        return sum(1 for line in islice(file, above, None) if line.strip())


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
                return f"line {number} ({shown(line)})"
    raise AssertionError
