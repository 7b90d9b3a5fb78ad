"""Finding the files of a remote source, whatever the protocol; shards/remote.py fetches them.

A file is fetched once, into the work folder, in one sequential read: scanning, shuffling and a stopped build would
otherwise read it many times.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

from shards.errors import UserError
from shards.remote import FINAL, cause_of, is_remote, path_of, read, retried, shown, system_of

__all__ = ["RemoteFile", "find"]

THREADS = 16  # sizes asked for at once


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    url: str
    name: str
    """Relative to the folder that all files of the source share."""
    size: int
    """Bytes; -1 where the server does not say."""
    beside: str = ""
    """URL of the parquet file of the same name; empty without one."""


def find(where: str, patterns: Sequence[str], beside: bool = False) -> list[RemoteFile]:
    """Files of a remote source, sorted by name: one URL, braces {00000..00331}, a glob, a .txt list of URLs, or a
    folder, of which the first pattern counts that matches anything.

    beside: look for parquet files beside the files. Raises UserError where nothing is found or reached.
    """
    urls, parquets = _urls(where, patterns)
    if not urls:
        raise UserError(f"{shown(where)} holds no file like {' or '.join(patterns)}: give the files' folder, or URLs")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(_size, urls))
        # With the tar's query: a signature may hold for the folder.
        probes = [f"{path_of(url).removesuffix('.tar')}.parquet{url[len(path_of(url)) :]}" for url in urls]
        known = beside and parquets is None
        there = list(pool.map(_exists, probes)) if known else [url in (parquets or ()) for url in probes]
    parts = [path_of(url).split("/") for url in urls]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*(folders[:-1] for folders in parts), strict=False))
    root = sum(1 for _ in shared)
    return [
        RemoteFile(url=url, name="/".join(path[root:]), size=size, beside=probe if has and beside else "")
        for url, path, size, probe, has in zip(urls, parts, sizes, probes, there, strict=True)
    ]


def _urls(where: str, patterns: Sequence[str]) -> tuple[list[str], set[str] | None]:
    """URLs of the files, and of the parquet files in the same listing; None where nothing was listed."""
    path = path_of(where)
    if path.endswith(".txt"):
        try:
            lines = [line.strip() for line in read(where).decode("utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise UserError(f"{shown(where)} is no UTF-8, as a list of tars must be: save it as that") from None
        named = [_listed_url(line, path) for line in lines if line and line[0] != "#"]
        return sorted({url for line in named for url in _braced(line)}, key=path_of), None
    if "{" in path:
        return sorted(_braced(where), key=path_of), None
    starred = bool(re.search(r"[*\[]", path))
    if not starred:
        if posixpath.splitext(path)[1] in {posixpath.splitext(pattern)[1] for pattern in patterns}:
            return [where], None
        globs = [f"{where.rstrip('/')}/{pattern}" for pattern in patterns]
    else:
        globs = [where]
    if path != where:  # the server's page of a folder, and a glob, are asked for without it
        raise UserError(
            f"{shown(where)} is a {'glob' if starred else 'folder'}, which a URL with a query (?...) cannot list: give "
            "one file, braces ({00000..00331}.tar?...), or a .txt of URLs"
        )
    for pattern in globs:
        if urls := retried(where, partial(_glob, pattern)):
            return urls, set(retried(where, partial(_glob, posixpath.splitext(pattern)[0] + ".parquet")))
    return [], None


def _listed_url(line: str, path: str) -> str:
    """A line of a list: a URL, or a path from the list's folder. Only local lists may name local files."""
    while line.startswith("./"):
        line = line[2:]
    if line.startswith("pipe:"):
        raise UserError(f"{shown(path)} names {line[:60]!r}: commands are not run")
    local = path.startswith("file://")
    if is_remote(line) or (local and line.startswith("file://")):
        return line
    if local and line.startswith("/"):
        return f"file://{line}"
    return f"{path.rpartition('/')[0]}/{line.lstrip('/')}"


def _braced(url: str) -> list[str]:
    from braceexpand import braceexpand

    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}: braces go like {{00000..00331}} or {{a,b}}") from None


def _glob(pattern: str) -> list[str]:
    system, path = system_of(pattern)
    try:
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))
    except FileNotFoundError:
        return []


def _size(url: str) -> int:
    def ask() -> int:
        system, path = system_of(url)
        size = system.info(path)["size"]
        return -1 if size is None else int(size)

    return retried(url, ask)


def _exists(url: str) -> bool:
    """A file that may be missing; servers that refuse to say count as not having it."""

    def ask() -> bool:
        system, path = system_of(url)
        try:
            return bool(system.info(path))
        except FINAL as error:
            if isinstance(cause_of(error), FINAL):
                return False
            raise

    return retried(url, ask)
