"""Files that are either whole or absent: temp file in the same folder, fsync, os.replace, fsync of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["TEMPORARY", "atomic_file", "json_bytes", "sha256_file", "sweep", "write_array", "write_json", "write_text"]

TEMPORARY = ".partial-"  # prefix of unfinished files; safe to delete whenever no writer runs


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends without an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}{path.suffix}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)  # less the umask
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # of a write: a full disk is told with its place
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def sweep(*folders: Path) -> None:
    """Delete what killed writers left in these folders. Only for whoever holds them alone."""
    for folder in folders:
        for path in folder.glob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    with atomic_file(path) as file:
        file.write(json_bytes(value))


def write_text(path: Path, text: str) -> None:
    """UTF-8, with a question mark for what is no text: paths may hold any bytes."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "replace"))


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """A .npy file. NumPy itself writes to files in C, and of a full disk tells no more than that something failed."""
    import numpy as np  # slow to import

    with atomic_file(path) as file:
        np.save(_Written(file), array)


class _Written:
    """Not a file to NumPy, but something that is written to."""

    def __init__(self, file: BinaryIO) -> None:
        self.write = file.write


def json_bytes(value: object) -> bytes:
    """Sorted keys and a final newline, so that equal values are equal bytes."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # of a path that is no UTF-8 \udc.., which JSON reads again


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
