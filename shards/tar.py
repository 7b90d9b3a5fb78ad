"""Tar files: scanning headers, grouping members into WebDataset samples, writing with fixed bytes.

`tarfile` would do all of it, but builds a TarInfo of some twenty fields for each member; a scan that only wants
name, offset and size runs several times faster, and indexing 331 GB is a scan. Anything out of the ordinary (pax
headers, GNU long names, base-256 sizes) is handled here too, since img2dataset and GNU tar both write them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict

from shards.errors import TornTar

__all__ = ["Member", "Sample", "TarWriter", "groups", "samples", "scan", "split_key"]

BLOCK = 512
# A header's own data (a long name, a pax record) is small; more than this is damage, not a name.
MAX_HEADER_DATA = 1 << 20


class _Extra(TypedDict, total=False):
    """What other headers say of the member that follows them."""

    path: str
    size: int


class Member(NamedTuple):
    """A regular file in a tar. offset: first data byte. size: data bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A WebDataset sample: all members of one key, in tar order."""

    key: str
    parts: dict[str, bytes]
    """Extension (without the first dot) -> content."""
    offsets: dict[str, Member]
    """Extension -> where it lies."""


def split_key(name: str) -> tuple[str, str]:
    """`a/b.seg.png` -> (`a/b`, `seg.png`): WebDataset's rule, the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def scan(file: BinaryIO) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar, reading headers only.

    Raises TornTar when the file ends inside a member or a header is not one; the members yielded before are whole.
    """
    size_of_file = file.seek(0, 2)
    position, count = 0, 0
    pax: _Extra = {}
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if not header and count == 0:
            raise TornTar(f"{_name(file)} is empty, not a tar: delete it or write it again")
        if not header or header == bytes(BLOCK):
            return  # some writers leave out the closing zero blocks; every member before is whole
        kind, name, size = _parse(header, file, count)
        data = position + BLOCK
        if kind not in b"LxgK":
            size = pax.get("size", size)  # overrides the header's octal one (files of 8 GiB and more)
        end = data + size
        if end > size_of_file:
            raise TornTar(
                f"{_name(file)} is torn: it ends at byte {size_of_file} inside {name!r}, which needs {end}; "
                f"{count} whole members come before"
            )
        position = data + -(-size // BLOCK) * BLOCK
        if kind in b"LxgK":
            if size > MAX_HEADER_DATA:
                raise TornTar(f"{_name(file)} is damaged: a {size}-byte header at byte {data - BLOCK}")
            try:
                _read_extra(kind, file.read(size), pax)
            except ValueError:
                raise TornTar(f"{_name(file)} is damaged: no pax records at byte {data}") from None
            continue
        if kind in b"0\x007":
            yield Member(pax.get("path", name), data, size)
            count += 1
        pax = {}


def groups(file: BinaryIO) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, extension -> member) of each WebDataset sample, reading headers only.

    Members of a key lie together, as WebDataset requires. A torn tar yields its whole samples first, then raises
    TornTar.
    """
    key, offsets = "", dict[str, Member]()
    # On a tear the last key is dropped: members of it may have lain behind the tear.
    for member in scan(file):
        stem, extension = split_key(member.name)
        if not extension:
            continue
        if stem != key and offsets:
            yield key, offsets
            offsets = {}
        key = stem
        offsets[extension.lower()] = member
    if offsets:
        yield key, offsets


def samples(path: Path) -> Iterator[Sample]:
    """Read a tar as WebDataset samples. A torn tar yields its whole samples first, then raises TornTar."""
    with path.open("rb") as file:
        for key, offsets in groups(file):
            parts = {}
            for extension, member in offsets.items():
                file.seek(member.offset)
                parts[extension] = file.read(member.size)
            yield Sample(key=key, parts=parts, offsets=offsets)


class TarWriter:
    """Writes members with fixed metadata, so that equal content gives equal bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.position = 0

    def add(self, name: str, data: bytes) -> int:
        """Append a file; returns the offset of its first data byte."""
        header = _header(name, len(data))
        offset = self.position + len(header)
        padding = -len(data) % BLOCK
        self.file.write(b"".join((header, data, bytes(padding))))
        self.position = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Write the two zero blocks that end an archive, padded to tar's record of 20 blocks."""
        end = self.position + 2 * BLOCK
        self.file.write(bytes(2 * BLOCK + -end % (20 * BLOCK)))


def _header(name: str, size: int) -> bytes:
    """A ustar header as tarfile writes it; with pax records in front where name or size need them.

    Short plain names, as ours are, are set into a ready header: tarfile takes ten times as long for each.
    """
    if name.isascii() and 0 < len(name) <= 100 and size < 1 << 33:
        sized = b"%011o" % size
        checksum = _template_sum() + sum(name.encode()) + sum(sized)
        template = _template()
        return b"".join(
            (
                name.encode().ljust(100, b"\0"),
                template[100:124],
                sized,
                template[135:148],
                b"%06o\0 " % checksum,
                template[156:],
            )
        )
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.PAX_FORMAT)


@cache
def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o644, 0
    return info.tobuf(tarfile.PAX_FORMAT)


@cache
def _template_sum() -> int:
    """Its checksum without name and size; the checksum's own field counts as eight spaces."""
    template = _template()
    return sum(template) - sum(template[124:135]) - sum(template[148:156]) + 8 * ord(" ")


def _parse(header: bytes, file: BinaryIO, count: int) -> tuple[int, str, int]:
    """(type byte, name, size) of a header block."""
    try:
        if len(header) < BLOCK:
            raise ValueError
        stored = int(header[148:156].strip(b"\0 ") or b"0", 8)
        # The checksum counts its own field as spaces; historic writers summed signed bytes, which nobody does now.
        if sum(header) - sum(header[148:156]) + 8 * 32 != stored:
            raise ValueError
        size = (
            int.from_bytes(header[125:136], "big")
            if header[124] & 0x80
            else int(header[124:136].strip(b"\0 ") or b"0", 8)
        )
        if size < 0:  # would lead backwards, for ever
            raise ValueError
    except ValueError:
        raise TornTar(
            f"{_name(file)} is torn or no tar: no header at byte {file.tell() - len(header)}; "
            f"{count} whole members come before"
        ) from None
    name = header[:100].split(b"\0", 1)[0]
    if header[257:262] == b"ustar" and header[345]:
        prefix = header[345:500].split(b"\0", 1)[0]
        if header[257:265] != b"ustar  \0":  # old GNU format keeps other things there
            name = prefix + b"/" + name
    return header[156], name.decode("utf-8", "surrogateescape"), size


def _read_extra(kind: int, data: bytes, pax: _Extra) -> None:
    """Long names (GNU `L`) and pax records (`x`); global pax headers and long links are read over.

    Raises ValueError for records that are none.
    """
    if kind == ord("L"):
        pax["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif kind == ord("x"):
        for keyword, value in _records(data):
            if keyword == b"path":
                pax["path"] = value.decode("utf-8", "surrogateescape")
            elif keyword == b"size":
                if not (value.isdigit() and len(value) < 20):
                    raise ValueError
                pax["size"] = int(value)


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`LENGTH KEY=VALUE\\n`, LENGTH of all of it."""
    position = 0
    while position < len(data) and data[position]:
        head = data[position : position + 20].partition(b" ")[0]
        length = int(head) if head.isdigit() else 0
        if not len(head) + 1 < length <= len(data) - position:
            raise ValueError
        keyword, _, value = data[position + len(head) + 1 : position + length].rstrip(b"\n").partition(b"=")
        yield keyword, value
        position += length


def _name(file: BinaryIO) -> str:
    return str(getattr(file, "name", "tar"))
