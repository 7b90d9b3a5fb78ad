"""Files that do not lie on this machine: found and fetched through fsspec, whatever the protocol.

hf:// comes with huggingface_hub, http(s):// needs aiohttp, s3:// needs s3fs, gs:// gcsfs; their settings (keys,
endpoints, anonymous access) are fsspec's own, in its configuration files and variables. A file is fetched once, into
the work folder, in one sequential read: scanning, shuffling and a stopped build would otherwise read it many times.
"""

from __future__ import annotations

import io
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from shards.atomic import atomic_file
from shards.errors import UserError

__all__ = ["RemoteFile", "fetch", "find", "is_remote", "shown"]

T = TypeVar("T")
CHUNK = 16 << 20  # bytes a read: one request
ATTEMPTS = 5  # failures in a row, without a new byte, at which a download is given up
LOOKUPS = 3  # tries of a listing or a size: a wrong address should be told at once
WAIT = 1.0  # seconds before the second try; doubled each time
THREADS = 16  # sizes asked for at once
CONNECT, STALLED = 20, 60  # seconds without an answer, without a byte
PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Never the connection's fault. Network libraries raise whatever they like, many of it plain Exception.
FATAL = (ImportError, MemoryError, TypeError, AttributeError, NameError, AssertionError)
FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    url: str
    name: str
    """Relative to the folder that all files of the source share."""
    size: int
    """Bytes; -1 where the server does not say."""
    beside: str = ""
    """URL of the parquet file of the same name; empty without one."""


def is_remote(where: str) -> bool:
    """Whether it is a URL of anything but a local file."""
    return bool(PROTOCOL.match(where)) and not where.startswith("file://")


def shown(url: str) -> str:
    """A URL without what may be secret: query (signatures) and password. For messages and the manifest."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


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
        probes = [_path(url).removesuffix(".tar") + ".parquet" for url in urls]
        known = beside and parquets is None
        there = list(pool.map(_exists, probes)) if known else [url in (parquets or ()) for url in probes]
    parts = [_path(url).split("/") for url in urls]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*(folders[:-1] for folders in parts), strict=False))
    root = sum(1 for _ in shared)
    return [
        RemoteFile(url=url, name="/".join(path[root:]), size=size, beside=probe if has and beside else "")
        for url, path, size, probe, has in zip(urls, parts, sizes, probes, there, strict=True)
    ]


def fetch(url: str, size: int, path: Path) -> None:
    """Copy a remote file of `size` bytes (-1: unknown) to `path`, whole or not at all.

    A broken connection is taken up where it broke, or from the start where the server cannot; UserError after
    ATTEMPTS failures without a new byte.
    """
    with atomic_file(path) as file:
        for position, chunk in _chunks(url, size):
            file.seek(position)
            file.write(chunk)


def _chunks(url: str, size: int) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) from start to end; again from an earlier position where a connection broke."""
    position = furthest = failures = 0
    block = CHUNK
    while True:
        try:
            system, path = _system(url)
            # No read-ahead: what is asked for is what is fetched.
            with system.open(path, "rb", block_size=block, cache_type="none") as remote:
                position = _sought(remote, position)
                while chunk := remote.read(CHUNK):
                    yield position, chunk
                    position += len(chunk)
            if size in (-1, position):
                return
            raise EOFError(f"{position} bytes came of {size}")
        except FATAL:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and block:  # a server without byte ranges: one stream, from the start
                position = block = 0
                continue
            failures = 1 if position > furthest else failures + 1
            furthest = max(furthest, position)
            if failures >= ATTEMPTS or isinstance(_cause(error), FINAL):
                raise _failed(url, error) from None
            time.sleep(WAIT * 2 ** (failures - 1))


def _sought(remote: Any, position: int) -> int:
    """Go on at `position`, or at the start on servers that only send whole files."""
    try:
        if position:
            remote.seek(position)
        return position
    except (ValueError, OSError, NotImplementedError, io.UnsupportedOperation):
        return 0


def _urls(where: str, patterns: Sequence[str]) -> tuple[list[str], set[str] | None]:
    """URLs of the files, and of the parquet files in the same listing; None where nothing was listed."""
    path = _path(where)
    if path.endswith(".txt"):
        lines = [line.strip() for line in _retried(where, lambda: _read_text(where)).splitlines()]
        named = [_listed_url(line, path) for line in lines if line and line[0] != "#"]
        return sorted({url for line in named for url in _braced(line)}, key=_path), None
    if "{" in path:
        return sorted(_braced(where), key=_path), None
    if not re.search(r"[*\[]", path):
        if posixpath.splitext(path)[1] in {posixpath.splitext(pattern)[1] for pattern in patterns}:
            return [where], None
        globs = [f"{where.rstrip('/')}/{pattern}" for pattern in patterns]
    else:
        globs = [where]
    for pattern in globs:
        if urls := _retried(where, partial(_glob, pattern)):
            return urls, set(_retried(where, partial(_glob, posixpath.splitext(pattern)[0] + ".parquet")))
    return [], None


def _listed_url(line: str, path: str) -> str:
    """A line of a list: a URL, or a path from the list's folder. Only local lists may name local files."""
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
    system, path = _system(pattern)
    try:
        return sorted(system.unstrip_protocol(name) for name in system.glob(path))
    except FileNotFoundError:
        return []


def _read_text(url: str) -> str:
    system, path = _system(url)
    return str(system.cat_file(path).decode("utf-8"))


def _size(url: str) -> int:
    def ask() -> int:
        system, path = _system(url)
        size = system.info(path)["size"]
        return -1 if size is None else int(size)

    return _retried(url, ask)


def _exists(url: str) -> bool:
    """A file that may be missing; servers that refuse to say count as not having it."""

    def ask() -> bool:
        system, path = _system(url)
        try:
            return bool(system.info(path))
        except FINAL as error:
            if isinstance(_cause(error), FINAL):
                return False
            raise

    return _retried(url, ask)


def _retried(url: str, ask: Callable[[], T]) -> T:
    for attempt in range(LOOKUPS):
        try:
            return ask()
        except (*FATAL, UserError):
            raise
        except Exception as error:
            if attempt == LOOKUPS - 1 or isinstance(_cause(error), FINAL) or "offline" in str(error).lower():
                raise _failed(url, error) from None
            time.sleep(WAIT * 2**attempt)
    raise AssertionError


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in its terms."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        system, path = url_to_fs(url, **(_http_options() if protocol in ("http", "https") else {}))
        return system, path
    except ImportError as error:
        needs = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}.get(protocol)
        mend = f"pip install {needs}" if needs else str(error)
        raise UserError(f"{protocol}:// needs a package that is not installed: {mend}") from None
    except ValueError as error:
        raise UserError(f"cannot open {shown(url)}: {error}") from None


def _http_options() -> dict[str, Any]:
    import aiohttp

    # aiohttp's own limit is five minutes a request, which a large tar outlasts.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=STALLED)
    return {"client_kwargs": {"timeout": timeout}, "use_listings_cache": False}


def _path(url: str) -> str:
    """A URL without its query."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def _cause(error: Exception) -> BaseException:
    """fsspec's HTTP system calls every failure FileNotFoundError: the broken connection behind it, if that it was.

    An answer of the server (it has a status, or a response) is no broken connection.
    """
    cause = error.__cause__
    answered = hasattr(cause, "status") or hasattr(cause, "response")
    return error if cause is None or answered or not isinstance(error, FileNotFoundError) else cause


def _failed(url: str, error: Exception) -> UserError:
    cause = _cause(error)
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].replace(url, shown(url))
    if isinstance(cause, FileNotFoundError):
        return UserError(f"there is no {shown(url)} ({type(error.__cause__ or error).__name__}): check the address")
    what = "the Hugging Face hub cannot be reached" if url.startswith("hf://") else "it cannot be read"
    return UserError(
        f"{shown(url)}: {what} ({reason}): run the same command again, or give SOURCE= (--source) a local folder "
        "of the data"
    )
