"""The folder of unfinished work: one builder at a time, and only on with the settings it was begun with."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.bars import say
from shards.config import unlike_values
from shards.errors import NO_LOCKS, UserError

__all__ = ["WORK", "alone", "differing", "disk_errors", "holds_nothing", "mapped_zeros", "read_settings"]

TRIES = 100
WORK = ".work"  # below the folder that is being made; holds what a stopped run had finished
BEGUN = {"lock", "settings.json", "encoding.json"}  # what a run writes there before it computes anything
CHECKSUM = re.compile("[0-9a-f]{64}")
MOST_TOLD = 3  # entries of a list that a message repeats


@contextmanager
def alone(folder: Path, instead: str) -> Iterator[Path]:
    """Hold `folder` against a second builder; yields its work folder. The lock goes with the process, however it ends.

    instead: what the second one may do, besides waiting.
    """
    work = folder / WORK
    with _locked(work / "lock", UserError(f"another process is building {folder}: wait for it, or {instead}")):
        try:
            yield work
        finally:
            _remove_if_idle(work)


@contextmanager
def _locked(path: Path, busy: UserError) -> Iterator[None]:
    for left in range(TRIES, -1, -1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except (FileNotFoundError, FileExistsError):  # a process that was done removes the folder at this moment; or
            if not left:  # a file or a link to nowhere lies there for good
                raise
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                say(f"warning: the disk of {path} has no locks: see to it that nothing else builds there")
            if _is_still(path, file.fileno()):
                yield
                return
            # Of a folder that is gone: a third process may hold the new one's.


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_if_idle(work: Path) -> None:
    """Leave no trace of a run that ended before it had anything to keep."""
    with suppress(OSError):  # another process may begin, or end, at this moment
        if work.is_dir() and holds_nothing(work):
            shutil.rmtree(work)
            if not any(work.parent.iterdir()):
                work.parent.rmdir()


def holds_nothing(work: Path) -> bool:
    """Whether a run that ended had computed nothing yet, which other settings would make useless."""
    return {path.name for path in work.rglob("*") if not path.is_dir()} <= BEGUN


def read_settings(path: Path, key: str | None = None) -> dict[str, Any] | None:
    """The settings in a JSON file (below `key`); None without the file. Raises ValueError for a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content[key] if key else content
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise ValueError(f"no {error}") from None
    if not isinstance(found, dict):
        raise ValueError("no settings")
    return found


def differing(found: dict[str, Any], wanted: dict[str, Any], forgiven: Set[str] = frozenset()) -> list[str]:
    """`name OLD, not NEW` for each setting that differs, besides the forgiven ones; of tables, for each of theirs."""
    unlike = (change for change in unlike_values(found, wanted) if change[0][0] not in forgiven)
    return [f"{' '.join(names)} {_told(old)}, not {_told(new)}" for names, old, new in unlike]


def _told(value: object) -> object:
    if isinstance(value, list) and len(value) > MOST_TOLD:  # ImageNet has a thousand classes
        return f"[{', '.join(map(repr, value[:MOST_TOLD]))}, and {len(value) - MOST_TOLD:,} more]"
    if isinstance(value, str) and CHECKSUM.fullmatch(value):
        return f"{value[:8]}..."
    return "none" if value is None or value in ("", []) else value


def mapped_zeros(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """A new .npy file to be written through memory, its room on the disk taken beforehand."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    if hasattr(os, "posix_fallocate"):
        # A mapped file is sparse, and a page that finds the disk full would end the process by SIGBUS, without a word.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, in words."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise UserError(
                f"a file of {folder} may not grow further: raise the limit (ulimit -f), and run again"
            ) from None
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the disk of {folder} is full: make room and run the same command again, it goes on where it was"
        ) from None
