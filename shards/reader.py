"""Random access to the samples of a folder of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from shards.errors import UserError
from shards.graph import Graph, read_graph, unlike
from shards.index import Index, read_index, read_texts
from shards.manifest import Manifest
from shards.tar import Sample, samples

__all__ = ["TEST", "Shards", "is_finished", "latest_shards", "test_folder", "training_folder"]

# A process may hold 1024 files by default; two windows of the recipes' 64 shards, which one batch may need, are these.
MAX_OPEN_TARS = 128
TEST = "-test"  # the test shards of NAME lie beside them, in NAME-test


class Shards:
    """A finished folder of shards. Cheap to open; the index is read on first use.

    An instance may be pickled to, or forked into, worker processes: reading is by offset (pread), which shares no
    file position, and open files are not pickled.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._files: dict[int, int] = {}

    @classmethod
    def open(cls, root: Path) -> Shards:
        """Raises UserError where `root` has no readable manifest, and for a path that Arrow cannot be given."""
        try:
            os.path.abspath(root).encode()
        except UnicodeEncodeError:
            raise UserError(f"the path {root} is not UTF-8: rename its folder") from None
        return cls(Path(root), Manifest.load(Path(root)))

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.root)

    def __len__(self) -> int:
        return self.manifest.samples

    def __repr__(self) -> str:
        graphs = ", ".join(self.graph_names()) or "none"
        return f"Shards({str(self.root)!r}: {len(self):,} samples, {self.manifest.texts:,} texts, graphs: {graphs})"

    def check_sizes(self) -> None:
        """Whether every file of the manifest is there, in its size. Raises UserError naming the first that is not."""
        for name, entry in self.manifest.files.items():
            path = self.root / name
            found = path.stat().st_size if path.is_file() else None
            if found != entry.bytes:
                what = "is missing" if found is None else f"has {found:,} bytes, not {entry.bytes:,}"
                raise UserError(f"{path} {what}: run `xclr-shards verify {self.root}`")

    @cached_property
    def index(self) -> Index:
        return read_index(self.root, self.manifest)

    def texts(self) -> list[str]:
        """Text of text_id 0, 1, ...; a node of several captions holds them joined by a newline."""
        return read_texts(self.root)

    def image(self, sample: int) -> bytes:
        """The encoded image of a sample. Raises UserError where the tar is missing or shorter than the index says."""
        return self._read(self._descriptor(int(self.index.shard[sample])), sample)

    def tar_path(self, shard: int) -> Path:
        """Absolute entries (layout in-place) stay as they are."""
        return self.root / self.manifest.shards[shard].tar

    def local_tar(self, shard: int) -> Path:
        """Its tar, once it is here."""
        return self.tar_path(shard)

    def samples(self) -> Iterator[Sample]:
        """Every sample with all its members, in index order, read sequentially."""
        for shard in range(len(self.manifest.shards)):
            yield from samples(self.local_tar(shard))

    def graph_names(self) -> list[str]:
        """Finished graphs, sorted by name."""
        return sorted(path.parent.name for path in self.root.glob("graphs/*/graph.json"))

    def graph_name(self, name: str | None = None) -> str:
        """The name, if such a graph is there; without one, the only graph's. Raises UserError naming what is there."""
        names = self.graph_names()
        if not names:
            raise UserError(self._without_graphs(name))
        if name is None and len(names) > 1:
            several = ", ".join(names)
            raise UserError(
                f"{self.where} has several graphs ({several}): say which with --graph (of make, ARGS='--graph "
                f"{names[0]}'), in Python graph(NAME)"
            )
        if name is not None and name not in names:
            raise UserError(f"{self.where} has no graph {name!r}, only {', '.join(names)}")
        return name or names[0]

    def _without_graphs(self, name: str | None) -> str:
        """What to say where there is none. name: what was asked for."""
        return (
            f"{self.where} has no graph: run the build again if it was stopped (or wait for it), or make one with "
            f"`xclr-shards graph {self.root}`"
        )

    def fetch_graph(self, name: str | None = None) -> None:
        """Of shards elsewhere: copy the graph, as far as it is not here."""

    def graph(self, name: str | None = None) -> Graph:
        """A graph by name; without one, the only graph. Raises UserError naming what is there."""
        name = self.graph_name(name)
        graph = read_graph(self.root / "graphs" / name)
        if foreign := unlike(graph, self.manifest):
            folder = self.root / "graphs" / name
            raise UserError(f"{folder} {foreign}: delete it and run `xclr-shards graph` again")
        return graph

    def _read(self, descriptor: int, sample: int) -> bytes:
        index = self.index
        shard, offset, size = int(index.shard[sample]), int(index.offset[sample]), int(index.size[sample])
        try:
            data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise UserError(f"{self.tar_path(shard)} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise UserError(
                f"{self.tar_path(shard)} ends before byte {offset + size}: run `xclr-shards verify {self.root}`"
            )
        return data

    def _descriptor(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN_TARS:
                os.close(self._files.pop(next(iter(self._files))))
            path = self.tar_path(shard)
            try:
                self._files[shard] = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                raise UserError(f"{path} is missing: run `xclr-shards verify {self.root}`") from None
            except OSError as error:
                raise UserError(f"{path} cannot be opened: {error.strerror}") from None
        return self._files[shard]

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "manifest": self.manifest, "_files": {}}

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def is_finished(folder: Path) -> bool:
    """Whether a folder of shards is there whole: its manifest is written last."""
    return (folder / "manifest.json").is_file()


def test_folder(train: Path) -> Path:
    """Where the test shards of a folder of training shards lie."""
    named = train if train.name not in ("", "..") else Path(os.path.abspath(train))
    return named.with_name(named.name + TEST)


def training_folder(test: Path) -> Path:
    """Where the training shards of a folder of test shards lie; of others, themselves."""
    named = test if test.name not in ("", "..") else Path(os.path.abspath(test))
    name = named.name.removesuffix(TEST)
    return named.with_name(name) if name not in ("", named.name) else test


def latest_shards(data: Path = Path("data")) -> Path:
    """The folder of training shards that was finished last below `data`."""
    manifests = sorted(data.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in manifests:
        if Manifest.load(path.parent).split == "train":
            return path.parent
    raise UserError(f"no shards below {data}/: build some with `make shards DATASET=...`, or see the demo, `make demo`")
