"""Tables as Arrow files, which other processes map into memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from shards.atomic import atomic_file

__all__ = ["open_table", "write_table"]


def open_table(path: Path) -> pa.Table:
    """Mapped: no column is read before it is used."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
