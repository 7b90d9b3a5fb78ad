"""Write one shard: tar and index, hashed on the way. Any process can write any shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.arrow import open_table
from pipeline.images import resized
from shards.atomic import atomic_file, sha256_file
from shards.errors import UserError
from shards.index import write_index
from shards.manifest import FileEntry
from shards.tar import TarWriter

__all__ = ["ShardJob", "ShardResult", "write_shard"]

FLUSH = 32 << 20  # bytes
OPEN_FILES = 128  # sources that a process keeps open at once
AGAIN = "delete the unfinished folder and build again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardJob:
    """Plain data: what a process needs to write a shard."""

    name: str
    out: Path
    samples: Path
    """Arrow file of all samples (SCAN_SCHEMA without text, with text_id)."""
    texts: Path
    """Arrow file of all texts."""
    positions: npt.NDArray[np.int64]
    """Rows of `samples`, in the order of the shard."""
    groups: npt.NDArray[np.int32] | None
    """[samples] neighbour group of each, of layout packed."""
    image_size: int | None
    copy: bool
    """False: only the index is written, and the tar stays where it is (layout in-place)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    name: str
    tar: str
    samples: int
    bytes: int
    files: dict[str, FileEntry]


def write_shard(job: ShardJob) -> ShardResult:
    """Raises UserError where a source file has changed or gone since it was scanned."""
    rows = open_table(job.samples).take(pa.array(job.positions)).to_pydict()
    index = f"index/{job.name}.parquet"
    if job.copy:
        tar = f"{job.name}.tar"
        entry, rows["offset"], rows["size"] = _write_tar(job, rows)
    else:
        tar = os.path.abspath(rows["file"][0])
        entry = FileEntry(sha256=sha256_file(Path(tar)), bytes=Path(tar).stat().st_size)
    write_index(
        job.out / index,
        key=rows["key"],
        offset=rows["offset"],
        size=rows["size"],
        text_id=rows["text_id"],
        label=rows["label"],
        group=None if job.groups is None else job.groups.tolist(),
    )
    path = job.out / index
    files = {tar: entry, index: FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)}
    return ShardResult(name=job.name, tar=tar, samples=len(job.positions), bytes=entry.bytes, files=files)


def _write_tar(job: ShardJob, rows: dict[str, list[Any]]) -> tuple[FileEntry, list[int], list[int]]:
    texts = open_table(job.texts)["text"].take(pa.array(rows["text_id"])).to_pylist()
    offsets, sizes = [], []
    with atomic_file(job.out / f"{job.name}.tar") as file, _Hashing(file) as hashing, _sources() as read:
        tar = TarWriter(cast(BinaryIO, hashing))
        for i, key in enumerate(rows["key"]):
            image, extension = read(rows["file"][i], rows["offset"][i], rows["size"][i]), rows["extension"][i]
            if job.image_size:
                image, extension = _smaller(image, extension, job.image_size)
            meta = rows["meta"][i]
            if meta is None:
                content = read(rows["file"][i], rows["meta_offset"][i], rows["meta_size"][i])
            else:
                content = meta.encode("utf-8", "surrogateescape")
            members = ((f"{key}.{extension}", image), (f"{key}.txt", texts[i].encode()), (f"{key}.json", content))
            offsets.append(tar.add_all(members)[0])
            sizes.append(len(image))
        tar.close()
    return FileEntry(sha256=hashing.digest.hexdigest(), bytes=hashing.size), offsets, sizes


def _smaller(image: bytes, extension: str, side: int) -> tuple[bytes, str]:
    """What does not decode is kept as it is: training counts it, and positions are settled by now."""
    try:
        small = resized(image, side)
    except ValueError:
        return image, extension
    return small, extension if small is image else "jpg"


class _Hashing:
    """A file that is hashed as it is written, so that no shard is read again for its checksum; a context manager.

    What is written goes to the disk as it comes, in a thread: at the end fsync would let the processor wait for all.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.size = file, hashlib.sha256(), 0
        self.flushed = 0
        self.thread = ThreadPoolExecutor(1)
        self.flush: Future[None] | None = None

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        if self.size - self.flushed >= FLUSH and (self.flush is None or self.flush.done()):
            self._join()
            self.file.flush()
            self.flush, self.flushed = self.thread.submit(os.fsync, self.file.fileno()), self.size

    def __enter__(self) -> _Hashing:
        return self

    def __exit__(self, *error: object) -> None:
        with self.thread:
            self._join()

    def _join(self) -> None:
        """An error of the disk is told once, so it must not stay in the thread."""
        if self.flush:
            self.flush.result()


@contextmanager
def _sources() -> Iterator[Callable[[str, int, int], bytes]]:
    """read(path, offset, size), which keeps the files used last open."""
    descriptors: dict[str, int] = {}

    def read(path: str, offset: int, size: int) -> bytes:
        descriptor = descriptors.pop(path, None)
        if descriptor is None:
            if len(descriptors) >= OPEN_FILES:
                os.close(descriptors.pop(next(iter(descriptors))))
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise UserError(f"{path} is gone since it was scanned: {AGAIN}") from None
        descriptors[path] = descriptor  # the last place of the dict: used last
        data = os.pread(descriptor, size, offset)
        # In a tar nothing lies at 0, so what does is a file of its own.
        if len(data) != size or (offset == 0 and os.fstat(descriptor).st_size != size):
            raise UserError(f"{path} has changed since it was scanned: {AGAIN}")
        return data

    try:
        yield read
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
