"""Tar files: scanning headers, grouping members into WebDataset samples, writing with fixed bytes.

`tarfile` would do all of it, but builds a TarInfo of some twenty fields for each member; a scan that only wants
name, offset and size runs several times faster, and indexing 331 GB is a scan. Anything out of the ordinary (pax
headers, GNU long names, base-256 sizes) is handled here too, since img2dataset and GNU tar both write them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from struct import Struct
from typing import BinaryIO, NamedTuple, TypedDict

import numpy as np

from shards.errors import TornTar
from shards.pictures import is_image

__all__ = ["Member", "Sample", "TarWriter", "class_images", "compression", "groups", "samples", "scan", "split_key"]

BLOCK = 512
ZEROS = bytes(BLOCK)
HEADER = Struct("100s 24x 12s 12x 8s c 100x 8s 80x 155s 12x")  # name, size, checksum, type, magic, prefix
PLAIN = Struct("124x 11s 21x c")  # size, type
OCTAL = 8 ** np.arange(5, -1, -1)
RUN = 4096  # headers read at a time
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}
# A header's own data (a long name, a pax record) is small; more than this is damage, not a name.
MAX_HEADER_DATA = 1 << 20


def compression(path: Path) -> str:
    """By what a file is compressed, as its first bytes say; empty for none that is known."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), "")


class _Extra(TypedDict, total=False):
    """What other headers say of the member that follows them."""

    path: str
    linkpath: str
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
    if "/" not in name:  # nearly all, in half the time
        stem, _, extension = name.partition(".")
        return stem, extension
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def scan(file: BinaryIO, content: memoryview | None = None, *, links: bool = False) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar, reading headers only.

    content: the file's bytes, where they are mapped into memory; headers are then read twice as fast. links: hard links
    too, with the bytes of the earlier member that they lead to.
    Raises TornTar when the file ends inside a member or a header is not one; the members yielded before are whole.
    """
    size_of_file = file.seek(0, 2)
    position, count = 0, 0
    pax: _Extra = {}
    earlier: dict[str, Member] | None = None
    while True:
        if content is not None and not pax and (members := _plain_members(content, position)):
            yield from members
            count += len(members)
            position = _after(members[-1].offset, members[-1].size)
            continue
        file.seek(position)
        header = file.read(BLOCK)
        if not header and count == 0:
            raise TornTar(f"{_name(file)} is empty, not a tar: delete it or write it again")
        if header == ZEROS:
            return
        if not header:
            raise TornTar(
                f"{_name(file)} is torn: it ends at byte {size_of_file} without the zero blocks that close a tar; "
                f"{count} whole members come before"
            )
        kind, name, size = _parse(header, file, position, count)
        data = position + BLOCK
        extra = kind in b"LxgK"
        if pax and not extra:
            size = pax.get("size", size)  # overrides the header's octal one (files of 8 GiB and more)
        if kind in b"123456":
            size = 0  # links, devices and folders have no bytes here, whatever their header says
        end = data + size
        if end > size_of_file:
            raise TornTar(
                f"{_name(file)} is torn: it ends at byte {size_of_file} inside {name!r}, which needs {end}; "
                f"{count} whole members come before"
            )
        position = _after(data, size)
        if extra:
            if size > MAX_HEADER_DATA:
                raise TornTar(f"{_name(file)} is damaged: a {size}-byte header at byte {data - BLOCK}")
            try:
                file.seek(data)
                _read_extra(kind, file.read(size), pax)
            except ValueError:
                raise TornTar(f"{_name(file)} is damaged: no pax records at byte {data}") from None
            continue
        if kind in b"0\x007":
            yield Member(pax.get("path", name), data, size)
            count += 1
        if kind == ord("1") and links:
            earlier = _members(file) if earlier is None else earlier
            if member := earlier.get(pax.get("linkpath", _text(header[157:257]))):
                yield Member(pax.get("path", name), member.offset, member.size)
        if pax:
            pax = {}


def groups(file: BinaryIO, content: memoryview | None = None) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, extension -> member) of each WebDataset sample, reading headers only; `content` as for `scan`.

    Members of a key lie together, as WebDataset requires. A torn tar yields its whole samples first, then raises
    TornTar.
    """
    key, offsets = "", dict[str, Member]()
    # On a tear the last key is dropped: members of it may have lain behind the tear.
    for member in scan(file, content):
        stem, extension = split_key(member.name)
        if not extension or not stem.rpartition("/")[2]:  # hidden files (macOS's ._NAME) lie between a sample's own
            continue
        if stem != key and offsets:
            yield key, offsets
            offsets = {}
        key = stem
        offsets[extension.lower()] = member
    if offsets:
        yield key, offsets


def _members(file: BinaryIO) -> dict[str, Member]:
    """By name, up to a tear."""
    found = dict[str, Member]()
    with suppress(TornTar):
        found.update((member.name, member) for member in scan(file))
    return found


def class_images(members: Iterable[Member]) -> list[tuple[str, Member]]:
    """(CLASS/.../IMAGE, member) of a tar of class folders; a folder over all of them is taken off.

    Other members, and images in no folder, are passed over.
    """
    found = [(m.name.removeprefix("./"), m) for m in members if is_image(m.name.rpartition("/")[2])]
    tops = {name.split("/", 1)[0] for name, _ in found}
    if len(tops) == 1 and all(name.count("/") >= 2 for name, _ in found):
        found = [(name.split("/", 1)[1], member) for name, member in found]
    return [(name, member) for name, member in found if "/" in name]


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
        return self.add_all([(name, data)])[0]

    def add_all(self, members: Iterable[tuple[str, bytes]]) -> list[int]:
        """Append files in one write; returns the offset of the first data byte of each."""
        parts, offsets, position = list[bytes](), list[int](), self.position
        for name, data in members:
            header, padding = _header(name, len(data)), -len(data) % BLOCK
            parts += (header, data, ZEROS[:padding])
            position += len(header)
            offsets.append(position)
            position += len(data) + padding
        self.file.write(b"".join(parts))
        self.position = position
        return offsets

    def close(self) -> None:
        """Write the two zero blocks that end an archive, padded to tar's record of 20 blocks."""
        end = self.position + 2 * BLOCK
        self.file.write(bytes(2 * BLOCK + -end % (20 * BLOCK)))


def _header(name: str, size: int) -> bytes:
    """A ustar header as tarfile writes it; with pax records in front where name or size need them.

    Short plain names, as ours are, are set into a ready header: tarfile takes ten times as long for each.
    """
    if name.isascii() and 0 < len(name) <= 100 and size < 1 << 33:
        after_name, after_size, after_check, total = _template()
        encoded, sized = name.encode(), b"%011o" % size
        check = b"%06o\0 " % (total + sum(encoded) + sum(sized))
        return b"".join((encoded, ZEROS[: 100 - len(encoded)], after_name, sized, after_size, check, after_check))
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.PAX_FORMAT)


@cache
def _template() -> tuple[bytes, bytes, bytes, int]:
    """What lies between name, size and checksum, and the sum of it; the checksum's own field counts as eight spaces."""
    info = tarfile.TarInfo("")
    info.mode, info.mtime = 0o644, 0
    header = info.tobuf(tarfile.PAX_FORMAT)
    between = header[100:124], header[135:148], header[156:]
    return *between, sum(map(sum, between)) + 8 * ord(" ")


def _plain_members(content: memoryview, position: int) -> list[Member]:
    """The members from `position` on up to the first whose header is not the plain one of nearly all tars.

    Only sizes are read one by one, since each says where the next header is; the rest by numpy, for all at once.
    """
    positions, sizes = list[int](), list[int]()
    end, unpack = len(content), PLAIN.unpack_from
    while position + BLOCK <= end and len(sizes) < RUN:
        sized, kind = unpack(content, position)
        if kind != b"0" or not sized.isdigit():
            break
        try:
            size = int(sized, 8)
        except ValueError:
            break
        following = position + BLOCK + -(-size // BLOCK) * BLOCK
        if following > end:
            break
        positions.append(position)
        sizes.append(size)
        position = following
    if not positions:
        return []
    blocks = np.frombuffer(content, np.uint8, len(content) // BLOCK * BLOCK).reshape(-1, BLOCK)
    headers = blocks[np.asarray(positions) // BLOCK]
    check = headers[:, 148:156]
    stored = (check[:, :6].astype(np.int64) - ord("0")) @ OCTAL
    total = headers.sum(axis=1, dtype=np.uint32) - check.sum(axis=1, dtype=np.uint32) + 8 * ord(" ")
    ended = np.isin(check[:, 6:], (0, ord(" "))).all(1)
    plain = (stored == total) & ended & (headers[:, 345] == 0)  # no prefix to the name
    count = len(positions) if plain.all() else int(plain.argmin())
    names = np.ascontiguousarray(headers[:count, :100]).view("S100").ravel().tolist()
    return [
        Member(_text(name), start + BLOCK, size) for name, start, size in zip(names, positions, sizes, strict=False)
    ]


def _text(field: bytes) -> str:
    """Up to the first zero byte."""
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _after(data: int, size: int) -> int:
    """Where the next header begins."""
    return data + -(-size // BLOCK) * BLOCK


def _parse(header: bytes, file: BinaryIO, position: int, count: int) -> tuple[int, str, int]:
    """(type byte, name, size) of a header block."""
    try:
        if len(header) < BLOCK:
            raise ValueError
        name, sized, check, kind, magic, prefix = HEADER.unpack(header)
        # The checksum counts its own field as spaces; historic writers summed signed bytes, which nobody does now.
        if sum(header) - sum(check) + 8 * ord(" ") != int(check.strip(b"\0 ") or b"0", 8):
            raise ValueError
        size = int.from_bytes(sized[1:], "big") if sized[0] & 0x80 else int(sized.strip(b"\0 ") or b"0", 8)
        if size < 0:  # would lead backwards, for ever
            raise ValueError
    except ValueError:
        raise TornTar(
            f"{_name(file)} is torn or no tar: no header at byte {position}; {count} whole members come before"
        ) from None
    name = name.partition(b"\0")[0]
    if prefix[0] and magic[:5] == b"ustar" and magic != b"ustar  \0":  # old GNU format keeps other things there
        name = prefix.partition(b"\0")[0] + b"/" + name
    return kind[0], name.decode("utf-8", "surrogateescape"), size


def _read_extra(kind: int, data: bytes, pax: _Extra) -> None:
    """Long names and links (GNU `L`, `K`) and pax records (`x`); global pax headers are read over.

    Raises ValueError for records that are none.
    """
    if kind in b"LK":
        pax["path" if kind == ord("L") else "linkpath"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
    elif kind == ord("x"):
        for keyword, value in _records(data):
            if keyword in (b"path", b"linkpath"):
                pax["path" if keyword == b"path" else "linkpath"] = value.decode("utf-8", "surrogateescape")
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
