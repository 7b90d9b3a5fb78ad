"""index/NAME.parquet (one row a sample, in tar order) and texts.parquet (one row a unique text)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shards.atomic import atomic_file
from shards.errors import UserError, first_line
from shards.manifest import Manifest

__all__ = [
    "INDEX_SCHEMA",
    "TEXTS_SCHEMA",
    "Index",
    "read_index",
    "read_text_table",
    "read_texts",
    "unlabelled",
    "write_index",
    "write_rows",
    "write_texts",
]

INDEX_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("text_id", pa.int64(), nullable=False),
        pa.field("label", pa.int32()),
        pa.field("group", pa.int32()),
    ]
)
TEXTS_SCHEMA = pa.schema(
    [
        pa.field("text_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
ROWS = 1 << 16  # of a row group
NONE = -1  # stands for null in the arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """All samples of a folder of shards, in shard order, then tar order."""

    key: pa.ChunkedArray
    """Keys, strings; an Arrow array, since 12 M Python strings would take a gigabyte."""
    shard: npt.NDArray[np.int32]
    """[n] position of the shard in the manifest."""
    offset: npt.NDArray[np.int64]
    """[n] first byte of the image within its tar."""
    size: npt.NDArray[np.int64]
    """[n] bytes of the image."""
    text_id: npt.NDArray[np.int64]
    label: npt.NDArray[np.int32]
    """[n] class, -1 without."""
    group: npt.NDArray[np.int32]
    """[n] neighbour group of a packed layout, -1 without."""

    def __len__(self) -> int:
        return len(self.offset)


def write_rows(path: Path, schema: pa.Schema, count: int, rows: Callable[[int, int], pa.Table]) -> None:
    """Parquet of rows(start, stop) in turn, with settings that give equal bytes for equal rows.

    In turn, since an Arrow array of all of them would end at 2 GiB of strings, or 2 G listed pairs.
    """
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", store_schema=False) as writer,
    ):
        for start in range(0, max(count, 1), ROWS):
            writer.write_table(rows(start, min(start + ROWS, count)), row_group_size=ROWS)


def write_index(
    path: Path,
    *,
    key: Sequence[str],
    offset: Sequence[int],
    size: Sequence[int],
    text_id: Sequence[int],
    label: Sequence[int | None],
    group: Sequence[int | None] | None = None,
) -> None:
    """One shard's index. label and group may hold None."""
    columns = [key, offset, size, text_id, label, group if group is not None else [None] * len(key)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)
    write_rows(path, INDEX_SCHEMA, len(table), lambda start, stop: table.slice(start, stop - start))


def write_texts(path: Path, texts: Sequence[str] | pa.Array, counts: npt.ArrayLike) -> None:
    """texts.parquet; row i is text_id i."""
    strings, numbers = pa.array(texts, pa.large_string()), np.asarray(counts, np.int64)

    def rows(start: int, stop: int) -> pa.Table:
        ids = pa.array(np.arange(start, stop))
        text = strings.take(ids).cast(pa.string())  # of a slice, offsets past 2 GiB would be refused
        return pa.Table.from_arrays([ids, text, pa.array(numbers[start:stop])], schema=TEXTS_SCHEMA)

    write_rows(path, TEXTS_SCHEMA, len(strings), rows)


def read_index(root: Path, manifest: Manifest) -> Index:
    """The index of every shard. Raises UserError where a file is missing or disagrees with the manifest."""
    tables = [_read(root / "index" / f"{shard.name}.parquet", INDEX_SCHEMA) for shard in manifest.shards]
    for shard, table in zip(manifest.shards, tables, strict=True):
        if table.num_rows != shard.samples:
            raise UserError(
                f"{root}/index/{shard.name}.parquet has {table.num_rows} rows, the manifest says {shard.samples}: "
                f"run `xclr-shards verify {root}`"
            )
    table = pa.concat_tables(tables) if tables else INDEX_SCHEMA.empty_table()
    counts = [table.num_rows for table in tables]
    index = Index(
        key=table["key"],
        shard=np.repeat(np.arange(len(tables), dtype=np.int32), counts),
        offset=table["offset"].to_numpy(),
        size=table["size"].to_numpy(),
        text_id=table["text_id"].to_numpy(),
        label=_filled(table["label"]),
        group=_filled(table["group"]),
    )
    del tables, table
    pa.default_memory_pool().release_unused()  # of 12 M samples' 1.3 GB, Arrow kept 0.4 in every process
    return index


def read_texts(root: Path) -> list[str]:
    """Text of text_id 0, 1, ..."""
    texts: list[str] = read_text_table(root)["text"].to_pylist()
    return texts


def read_text_table(root: Path) -> pa.Table:
    """texts.parquet whole, TEXTS_SCHEMA."""
    return _read(root / "texts.parquet", TEXTS_SCHEMA)


def _filled(column: pa.ChunkedArray) -> npt.NDArray[np.int32]:
    filled: npt.NDArray[np.int32] = column.fill_null(NONE).to_numpy()
    return filled


def unlabelled(root: Path, manifest: Manifest) -> int:
    """Samples without a label, by the statistics of the index's files: none of their rows is read."""
    count = 0
    for shard in manifest.shards:
        try:
            meta = pq.read_metadata(root / "index" / f"{shard.name}.parquet")
        except (pa.ArrowException, OSError):
            continue  # `xclr-shards verify` says so
        place = meta.schema.names.index("label")
        statistics = [meta.row_group(group).column(place).statistics for group in range(meta.num_row_groups)]
        count += sum(one.null_count for one in statistics if one is not None)
    return count


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, columns=schema.names, partitioning=None).cast(schema)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: build the shards again") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): build the shards again") from None
