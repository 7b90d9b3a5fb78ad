"""Shards on object storage, read through a folder of this machine.

    $XCLR_CACHE/cc12m-0d3f9a61c2e4/                          by default in ~/.cache/xclr; one for each manifest
      manifest.json, index/, texts.parquet, graphs/NAME/     copied when they are opened
      train-000000.tar                                       fetched by the first process that needs it

Every file is checked against the sha256 that the manifest (for a graph, its graph.json) names. Any number of processes
may share the folder: a lock for each file makes the others wait for the one that fetches it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from shards.atomic import atomic_file, sha256_file, sweep
from shards.bars import bar
from shards.errors import UserError
from shards.graph import Graph
from shards.machine import lock_file
from shards.manifest import FileEntry, Manifest
from shards.reader import Shards
from shards.remote import below, cause_of, fetch, fetchers, is_remote, lists_nothing, read, retried, shown, system_of

__all__ = ["THREADS", "RemoteShards", "cache_folder", "local_folder", "open_shards"]

THREADS = 4  # files fetched at once
INSTEAD = "copy the shards to this machine and give that folder"
WORK = ".fetching"  # below the folder: locks, and files on their way


def open_shards(where: str) -> Shards:
    """A folder of shards by its path, or by its URL on object storage. Raises UserError where there is none."""
    folder = local_folder(where)
    return RemoteShards.mirror(where) if folder is None else Shards.open(folder)


def local_folder(where: str) -> Path | None:
    """Of a path, or a file:// URL; None for object storage."""
    return None if is_remote(where) else Path(where.removeprefix("file://"))


def cache_folder() -> Path:
    """Where mirrors lie."""
    return Path(os.environ.get("XCLR_CACHE") or Path.home() / ".cache" / "xclr")


class RemoteShards(Shards):
    """Shards whose tars come when they are needed. `drop` gives up a tar; what needs it again fetches it again."""

    def __init__(self, root: Path, manifest: Manifest, url: str) -> None:
        super().__init__(root, manifest)
        self.url = url

    @classmethod
    def mirror(cls, url: str) -> RemoteShards:
        """Copy manifest, index and texts of the folder at `url`, as far as they are not here."""
        content = read(below(url, "manifest.json"), INSTEAD)
        if not content.lstrip().startswith(b"{"):  # a page to log in at, say
            raise UserError(f"{shown(below(url, 'manifest.json'))} is no manifest of shards: check the address")
        known = shown(url).rstrip("/")  # another password, or a fresh signature, leads to the same shards
        digest = hashlib.sha256(known.encode() + b"\n" + content).hexdigest()[:12]
        root = cache_folder() / f"{PurePosixPath(known).name}-{digest}"
        if not (root / "manifest.json").exists():
            with atomic_file(root / "manifest.json") as file:
                file.write(content)
        shards = cls(root, Manifest.load(root), url)
        tars = {shard.tar for shard in shards.manifest.shards}
        # Layout in-place names tars by their absolute paths: such a file here would be somebody's own, and `drop` would
        # delete it.
        if strange := [tar for tar in tars if tar not in shards.manifest.files or not _inside(tar)]:
            raise UserError(
                f"{shown(url)} names tars elsewhere ({strange[0]}; layout {shards.manifest.layout}): only shards that "
                "hold their own tars can be read from another machine; build them with --layout shuffled"
            )
        shards._copy(
            {name: entry for name, entry in shards.manifest.files.items() if name not in tars}, "fetching index"
        )
        return shards

    def __repr__(self) -> str:  # not of graphs, which the server would be asked for
        return f"RemoteShards({self.where!r}: {len(self):,} samples, {self.manifest.texts:,} texts)"

    @property
    def where(self) -> str:
        return shown(self.url)

    def bytes_of(self, shard: int) -> int:
        return self._entry(shard).bytes

    def here(self) -> list[int]:
        """Shards whose tars lie in the folder."""
        return [shard for shard in range(len(self.manifest.shards)) if self.tar_path(shard).exists()]

    def local_tar(self, shard: int) -> Path:
        path = self.tar_path(shard)
        if not path.exists():
            self._fetch(self.manifest.shards[shard].tar, self._entry(shard))
        return path

    def check_sizes(self) -> None:
        """Nothing: what is fetched is checked as it comes, and tars come as they are needed."""

    def drop(self, shard: int) -> None:
        self.tar_path(shard).unlink(missing_ok=True)

    def image(self, sample: int) -> bytes:
        shard = int(self.index.shard[sample])
        while True:
            # Opened anew each time: a file kept open would hold its bytes on the disk after it is dropped.
            try:
                descriptor = os.open(self.local_tar(shard), os.O_RDONLY)
            except FileNotFoundError:
                continue  # dropped in between
            try:
                return self._read(descriptor, sample)
            finally:
                os.close(descriptor)

    def graph_names(self) -> list[str]:
        def ask() -> list[str]:
            system, path = system_of(below(self.url, "graphs/*/graph.json"))
            try:
                return sorted(PurePosixPath(name).parent.name for name in system.glob(path))
            except Exception as error:
                if lists_nothing(error):
                    return []
                raise

        return retried(self.url, ask, INSTEAD) or super().graph_names()

    def graph_name(self, name: str | None = None) -> str:
        if name is not None and self._graph_meta(name):
            return name  # also of servers that list nothing
        return super().graph_name(name)

    def _without_graphs(self, name: str | None) -> str:
        which = f"has no graph {name!r}" if name else "has no graphs, or the server lists none"
        return (
            f"{self.where} {which}: name one that is there with --graph (graphs/NAME; a build's own is minilm-k32 "
            "where there are captions), or copy the folder graphs/ there"
        )

    def graph(self, name: str | None = None) -> Graph:
        self.fetch_graph(name)
        return super().graph(name)

    def fetch_graph(self, name: str | None = None) -> None:
        name = self.graph_name(name)
        meta = self._graph_meta(name, listed=True)
        if not meta:
            raise UserError(f"{shown(self.url)} has no graph {name!r} any more: choose another --graph")
        try:
            files = {f"graphs/{name}/{file}": FileEntry(**entry) for file, entry in json.loads(meta)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{shown(self.url)}/graphs/{name}/graph.json is damaged ({error})") from None
        folder, begun = self.root / "graphs" / name, self.root / WORK / "graphs" / name / "begun.json"
        begun.parent.mkdir(parents=True, exist_ok=True)
        with _locked(begun.with_name("begun.lock")):
            # The manifest does not name graphs, so one may have been made again under the same name.
            if not begun.exists() or begun.read_bytes() != meta:
                shutil.rmtree(folder, ignore_errors=True)
                with atomic_file(begun) as file:
                    file.write(meta)
            self._copy(files, f"fetching graph {name}")
            with atomic_file(folder / "graph.json") as file:
                file.write(meta)

    def _graph_meta(self, name: str, *, listed: bool = False) -> bytes:
        """graph.json; empty without one. listed: the server, or the folder here, says that there is one."""
        if not _inside(name) or "/" in name:
            return b""

        def ask() -> bytes:
            system, where = system_of(below(self.url, f"graphs/{name}/graph.json"))
            try:
                return bytes(system.cat_file(where))
            except Exception as error:
                # By 403, too, which S3 says of a missing file to who may not list.
                if isinstance(cause_of(error), FileNotFoundError) or (not listed and lists_nothing(error)):
                    return b""
                raise

        return retried(below(self.url, f"graphs/{name}/graph.json"), ask, INSTEAD)

    def _entry(self, shard: int) -> FileEntry:
        return self.manifest.files[self.manifest.shards[shard].tar]

    def _copy(self, files: dict[str, FileEntry], title: str) -> None:
        missing = {name: entry for name, entry in files.items() if not (self.root / name).exists()}
        if missing:
            with bar(title, len(missing)) as advance, fetchers(THREADS) as pool:
                for _ in pool.map(lambda item: self._fetch(*item), missing.items()):
                    advance(1)

    def _fetch(self, name: str, entry: FileEntry) -> None:
        """One file, whole and as it was written, or not at all."""
        if not _inside(name):
            raise UserError(f"{shown(self.url)} names a file outside its folder ({name}): it is not used")
        path, url = self.root / name, below(self.url, name)
        work = self.root / WORK / name
        try:
            work.mkdir(parents=True, exist_ok=True)
            with _locked(work / "lock"):
                if path.exists():
                    return  # another process was quicker
                sweep(work)
                fetched = work / path.name
                try:
                    fetch(url, entry.bytes, fetched, INSTEAD)
                except UserError:
                    self._check_manifest()
                    raise
                if sha256_file(fetched) != entry.sha256:
                    fetched.unlink()
                    self._check_manifest()
                    raise UserError(
                        f"{shown(url)} is not the file that its manifest names (sha256 differs): "
                        "copy the shards there again"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(fetched, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"{self.root}: no room for {name} ({entry.bytes / 1e6:.0f} MB): make room, lower --cache-gib, or set "
                "XCLR_CACHE to a larger disk"
            ) from None

    def _check_manifest(self) -> None:
        """Raises UserError where other shards lie at the URL by now: their files are not those that are asked for."""
        try:
            now = read(below(self.url, "manifest.json"))
        except UserError:  # the error that is on its way says more
            return
        if now != (self.root / "manifest.json").read_bytes():
            raise UserError(
                f"{self.where} holds other shards than when they were opened (they were built anew?): a run goes on "
                "with its own alone; copy those there again, or begin another run (--out)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "url": self.url}


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and path.parts[0] != WORK


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among all threads and processes of this machine."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_file(descriptor)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough where a forked process holds it too
        os.close(descriptor)
