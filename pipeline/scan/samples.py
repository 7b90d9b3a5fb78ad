"""What a scan finds: a row for every usable sample, a count for every other, and the caps that decide which."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.images import problem
from pipeline.sources.captions import joined
from pipeline.sources.datasets import Dataset
from pipeline.sources.labels import NO_LABEL, Labels

__all__ = ["NOT_OURS", "SCAN_SCHEMA", "Limits", "Scan", "listed", "mapped"]

SCAN_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("file", pa.string()),  # that holds the image
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("extension", pa.string()),
        pa.field("text", pa.string()),  # normalised captions, joined by newlines
        pa.field("label", pa.int32()),
        pa.field("label_value", pa.string()),  # what stands beside the sample instead: numbered once all are known
        pa.field("meta", pa.string()),  # content of KEY.json; null: at meta_offset in `file`
        pa.field("meta_offset", pa.int64()),
        pa.field("meta_size", pa.int64()),
        pa.field("hash", pa.uint64()),  # of the image's bytes; null: no samples are held out
    ]
)
NOT_OURS = "not downloaded"  # counted, but no sign of a bad source: links die


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a sample may be at most."""

    max_caption: int = 2000
    """Characters; longer captions are cut."""
    max_pixels: int = 100_000_000
    """Width times height."""
    max_bytes: int = 64 << 20
    """Of an encoded image."""
    use_torn: bool = False
    """Take the whole samples of a torn tar instead of refusing it."""


NAMED = 100  # of a partition and a reason, are kept by name


@dataclass(slots=True, kw_only=True)
class Scan:
    """Rows of SCAN_SCHEMA, and what was left out."""

    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in SCAN_SCHEMA.names})
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> the first samples that were left out for it, and the last."""
    captions: Counter[str] = field(default_factory=Counter)
    """How many were read, and of them those that lost something on the way (pipeline.sources.captions)."""
    labels: Labels = field(default_factory=Labels)
    """How those beside samples are read."""

    def add(self, **values: Any) -> None:
        for name, column in self.rows.items():
            column.append(values.get(name))

    def skip(self, reason: str, what: str, count: int = 1) -> None:
        self.skipped[reason] += count
        names = self.examples.setdefault(reason, [])
        names[NAMED - 1 :] = [what]

    def described(
        self, dataset: Dataset, captions: Iterable[object], labels: Iterable[object], limits: Limits, what: str
    ) -> dict[str, Any] | None:
        """Text and label of a sample, as columns of it; None, counted, where it has no label that it needs, or several.

        A text that is to be made of the label is the label, until the classes of all samples are known.
        """
        if not dataset.label:
            return {"text": joined(captions, limits.max_caption, self.captions)}
        label, problem = self.labels.one(labels)
        if problem:
            self.skip(problem, f"{what}: {label}")
            return None
        if not label and dataset.by_class:
            self.skip(NO_LABEL, what)
            return None
        text = label if dataset.by_class else joined(captions, limits.max_caption, self.captions)
        return {"text": text, "label_value": label or None}

    def usable(self, image: bytes | memoryview, text: str, limits: Limits, what: str) -> bool:
        """Whether a sample, which messages call `what`, can be used; counts why not."""
        if not text:
            reason: str | None = "no caption"
        elif len(image) > limits.max_bytes:
            reason = "image of too many bytes"
        else:
            reason = problem(image, limits.max_pixels)
        if reason:
            self.skip(reason, what)
        return reason is None

    def table(self) -> pa.Table:
        return pa.Table.from_pydict(self.rows, schema=SCAN_SCHEMA)


def listed(value: object) -> list[object]:
    """One caption or several, as a list."""
    return value if isinstance(value, list) else [value]


@contextmanager
def mapped(path: Path) -> Iterator[tuple[BinaryIO, memoryview]]:
    """The file, and its bytes without reading them."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:  # cannot be mapped
            yield file, memoryview(b"")
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            yield file, view
