"""Files that do not lie on this machine: fetched through fsspec, whatever the protocol.

hf:// and http(s):// work as installed, s3:// needs s3fs, gs:// gcsfs; their settings (keys, endpoints, anonymous
access) are fsspec's own, in its configuration files and variables.
"""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from shards.atomic import atomic_file
from shards.errors import UserError

__all__ = [
    "FINAL",
    "below",
    "cause_of",
    "fetch",
    "fetchers",
    "is_remote",
    "is_url",
    "lists_nothing",
    "path_of",
    "read",
    "retried",
    "shown",
    "system_of",
]

T = TypeVar("T")
CHUNK = 16 << 20  # bytes a read: one request
ATTEMPTS = 8  # failures in a row, without a new byte, at which a download is given up: two minutes of an outage
LOOKUPS = 3  # tries of a listing or a size, and of a file of another size: what is wrong should be told at once
WAIT = 1.0  # seconds before the second try; doubled each time
CONNECT, STALLED = 20, 60  # seconds without an answer, without a byte
SOURCE = "give SOURCE= (--source) a local folder of the data"
PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
LOGIN = re.compile(r"//[^/\s]*@")
PASSWORD = re.compile(r"//[^/\s:]*:[^/\s]*@")  # a name alone is part of the address: abfs://CONTAINER@ACCOUNT...
QUERY = re.compile(r"(https?://[^\s?]*)\?.*")
# Never the connection's fault. Network libraries raise whatever they like, many of it plain Exception.
FATAL = (ImportError, MemoryError, TypeError, AttributeError, NameError, AssertionError)
FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
PASSING = {408, 425, 429}  # and 500 or more: what a busy server answers
REFUSED = {401, 403, 407}
GIVEN_UP = threading.Event()
"""Of `fetchers`: no download waits for its next try."""


def is_url(where: str) -> bool:
    return bool(PROTOCOL.match(where))


def is_remote(where: str) -> bool:
    """Whether it is a URL of anything but a local file."""
    return is_url(where) and not where.startswith("file://")


def shown(url: str) -> str:
    """A URL without what may be secret: query (signatures) and password. For whatever is said or kept.

    Paths stay as they are.
    """
    if not is_remote(url):
        return url
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):  # of others a ? may be part of a name
        return PASSWORD.sub("//", url, count=1)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def fetch(url: str, size: int, path: Path, instead: str = SOURCE) -> None:
    """Copy a remote file of `size` bytes (-1: unknown) to `path`, whole or not at all.

    A broken connection is taken up where it broke, or from the start where the server cannot; UserError after
    ATTEMPTS failures without a new byte. instead: what else the user may do then.
    """
    with atomic_file(path) as file:
        for position, chunk in _chunks(url, size, instead):
            file.seek(position)
            file.write(chunk)


@contextmanager
def fetchers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads to fetch in. On an exception here, such as Ctrl-C, they end with their next failure, and not only when an
    outage has lasted two minutes."""
    try:
        with ThreadPoolExecutor(count) as pool:
            try:
                yield pool
            except BaseException:
                GIVEN_UP.set()
                raise
    finally:
        GIVEN_UP.clear()


def _chunks(url: str, size: int, instead: str) -> Iterator[tuple[int, bytes]]:
    """(position, bytes) from start to end; again from an earlier position where a connection broke."""
    position = furthest = failures = 0
    block = CHUNK
    while True:
        try:
            system, path = system_of(url)
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
            most = LOOKUPS if isinstance(error, EOFError) else ATTEMPTS
            if failures >= most or _is_final(error) or GIVEN_UP.wait(WAIT * 2 ** (failures - 1)):
                raise _failed(url, error, instead) from None


def _sought(remote: Any, position: int) -> int:
    """Go on at `position`, or at the start on servers that only send whole files."""
    try:
        if position:
            remote.seek(position)
        return position
    except (ValueError, OSError, NotImplementedError, io.UnsupportedOperation):
        return 0


def read(url: str, instead: str = SOURCE) -> bytes:
    """A small file."""

    def ask() -> bytes:
        system, path = system_of(url)
        return bytes(system.cat_file(path))

    return retried(url, ask, instead)


def retried(url: str, ask: Callable[[], T], instead: str = SOURCE) -> T:
    """ask(), tried again where the connection failed. Raises UserError that ends with `instead`."""
    for attempt in range(LOOKUPS):
        try:
            return ask()
        except (*FATAL, UserError):
            raise
        except Exception as error:
            if attempt == LOOKUPS - 1 or _is_final(error) or "offline" in str(error).lower():
                raise _failed(url, error, instead) from None
            time.sleep(WAIT * 2**attempt)
    raise AssertionError


def system_of(url: str) -> tuple[Any, str]:
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


def below(url: str, name: str) -> str:
    """The URL of a file in the folder at `url`, whose signature, if it has one, goes behind the file's name."""
    path = path_of(url)
    return f"{path.rstrip('/')}/{name}{url[len(path) :]}"


def path_of(url: str) -> str:
    """A URL without its query."""
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


def cause_of(error: Exception) -> BaseException:
    """fsspec's HTTP system calls every failure FileNotFoundError: the broken connection, or busy server, behind it.

    Another answer of the server (it has a status, or a response) is no broken connection.
    """
    cause, status = error.__cause__, _status(error)
    answered = status < 500 and status not in PASSING if status else hasattr(cause, "response")
    return error if cause is None or answered or not isinstance(error, FileNotFoundError) else cause


def _status(error: Exception) -> int:
    """Of HTTP, as the server answered; 0 without an answer."""
    status = getattr(error.__cause__ or error, "status", 0)
    return status if isinstance(status, int) else 0


def lists_nothing(error: Exception) -> bool:
    """Also a server that gives files, but no listing of a folder, answers so."""
    return isinstance(cause_of(error), FINAL) or (400 <= _status(error) < 500 and _status(error) not in PASSING)


def _is_final(error: Exception) -> bool:
    return isinstance(cause_of(error), FINAL) or _status(error) in REFUSED


def _failed(url: str, error: Exception, instead: str) -> UserError:
    cause = cause_of(error)
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0].replace(url, shown(url))
    # Libraries write the address in ways of their own, with %2F and %20 decoded, say: all behind its ? may be secret.
    reason = QUERY.sub(r"\1", LOGIN.sub("//", reason))
    if _status(error) in REFUSED or isinstance(cause, PermissionError):
        reason = f"status {_status(error)}" if _status(error) else reason
        return UserError(f"{shown(url)}: access is refused ({reason}): check its password, keys or signature")
    if isinstance(cause, FileNotFoundError):
        return UserError(f"there is no {shown(url)} ({type(error.__cause__ or error).__name__}): check the address")
    what = "the Hugging Face hub cannot be reached" if url.startswith("hf://") else "it cannot be read"
    return UserError(
        f"{shown(url)}: {what} ({reason}): run the same command again (xclr-train goes on with --resume), or {instead}"
    )
