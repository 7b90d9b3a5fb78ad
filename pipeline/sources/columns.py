"""The columns of a table that are wanted, by whatever names, and what was read of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.sources.captions import MISSING, first_said
from pipeline.sources.datasets import CAPTIONS, Dataset
from pipeline.sources.labels import label_text
from shards.bars import say
from shards.errors import UserError

__all__ = [
    "BYTES",
    "SEVERAL",
    "Columns",
    "Names",
    "Unreadable",
    "columns",
    "holds_images",
    "label_cells",
    "shown",
    "taken",
    "tell_lost",
]

IMAGE_NAMES = ("image", "path", "filepath", "file_path", "file_name", "filename", "image_path", "image_name", "img")
CAPTION_NAMES = ("caption", "captions", "text", "title", "sentence", "sentences", "comment")
# Cells that may say nothing: of no more letters than the longest word for nothing, or lists that were written as text.
DOUBTFUL = rf"^[^!-~]*(?:[!-~][^!-~]*){{0,{max(map(len, MISSING))}}}$|^[^!-~]*\["
BYTES, SEVERAL = pa.large_binary(), pa.large_list(pa.large_binary())


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
    captions_of: tuple[str, ...] = ()
    """The columns of the captions, where columns have names."""


class Names(NamedTuple):
    """Of columns; "" for one that is not wanted."""

    image: str
    captions: tuple[str, ...]
    """A row's caption is in the first of them that says something."""
    label: str

    @property
    def wanted(self) -> list[str]:
        """Each once: a class may be the caption too."""
        return list(dict.fromkeys(filter(None, (self.image, *self.captions, self.label))))


def columns(dataset: Dataset, names: Sequence[str], where: str) -> Names:
    """The columns of images, captions and labels: those that the data set file names, else those that are called so.

    Raises UserError where there is none.
    """
    wanted = (dataset.image,) if dataset.image else ()
    given = dataset.captions if dataset.captions != CAPTIONS else ()
    image = _columns("image", wanted, IMAGE_NAMES, names, where)[0]
    captions: list[str] = []
    if not dataset.by_class:
        captions = _columns("captions", given, CAPTION_NAMES, names, where, labelled=bool(dataset.label))
    return Names(
        image,
        tuple(captions if given else captions[:1]),
        _columns("label", (dataset.label,), (), names, where)[0] if dataset.label else "",
    )


def holds_images(kind: pa.DataType) -> bool:
    """Whether a column's cells are encoded images: bytes, or Hugging Face's {bytes, path}."""
    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _columns(
    what: str, given: Sequence[str], usual: Sequence[str], names: Sequence[str], where: str, labelled: bool = False
) -> list[str]:
    """Those that are there, in the order in which they are asked for; one at least."""
    found = []
    for name in given or usual:
        exact = [one for one in names if one == name]
        alike = exact or [one for one in names if one.strip().lower() == name.strip().lower()]
        if len(alike) > 1:
            raise UserError(f"{where} has {len(alike)} columns {name}; it has {', '.join(names)}: rename all but one")
        found += alike
    if found:
        return found
    key = 'captions = ["..."]' if what == "captions" else f'{what} = "..."'
    hint = ", or captions = [] for captions made of the labels" if labelled else ""
    held = ", ".join(name.strip()[:60] for name in names)  # without a header line it may be anything
    raise UserError(
        f"{where} has no column {' or '.join(given or usual)}; it has {held}: "
        f"name one in the data set file, {key}{hint}"
    )


def tell_lost(dataset: Dataset, tables: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Of several caption columns, those that tables lack, whichever others have: they may be misspelt.

    tables: (where it lies, columns of its captions); nothing is said of tables without such columns.
    """
    if dataset.captions == CAPTIONS:
        return
    for name in dataset.captions:
        alike = name.strip().lower()
        lacking = [(where, has) for where, has in tables if has and alike not in [one.strip().lower() for one in has]]
        if lacking:
            where, has = lacking[0]
            count = f" ({len(lacking)} of {len(tables)} tables)" if len(lacking) > 1 else ""
            say(f"note: {where} has no column {name}{count}: its captions are of {', '.join(has)} alone")


def taken(names: Names, table: pa.Table, unreadable: Unreadable) -> Columns:
    captions = _first([_whole(table[name]) for name in names.captions]) if names.captions else None
    labels = label_cells(table[names.label]) if names.label else None
    return Columns(_whole(table[names.image]), captions, labels, unreadable, captions_of=names.captions)


def _first(columns: Sequence[pa.Array]) -> pa.Array:
    """Of each row the first cell that says something."""
    if len(columns) == 1:
        return columns[0]
    if any(column.type != BYTES for column in columns):
        cells = map(first_said, zip(*(column.to_pylist() for column in columns), strict=True))
        return pa.array([_listed(cell) for cell in cells], SEVERAL)
    # The rule is `first_said`; Arrow only finds the few cells that it has to be asked for.
    doubtful = pc.match_substring_regex(columns[0], DOUBTFUL)
    rows = zip(*(column.filter(doubtful).to_pylist() for column in columns), strict=True)
    return pc.replace_with_mask(columns[0], doubtful, pa.array(map(first_said, rows), BYTES))


def _listed(cell: object) -> list[bytes]:
    return cell if isinstance(cell, list) else [cell] if isinstance(cell, bytes) else []


def label_cells(column: pa.ChunkedArray) -> pa.Array:
    """Labels as text, or lists of such, of a column of any type."""
    if not pa.types.is_nested(column.type):
        return _whole(column)
    cells = (cell if isinstance(cell, list) else [cell] for cell in column.to_pylist())
    return pa.array([[label_text(one).encode() for one in cell] for cell in cells], SEVERAL)


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


def shown(row: bytes) -> str:
    """A row as messages name it."""
    return repr(row.strip().decode("utf-8", "replace")[:60])
