"""What a build will cost, before it is paid for: a part of it is done in earnest, nothing of it stays.

One partition is scanned, some of its samples are written to a file without a name, some of its captions are encoded,
and some random vectors are searched. What cannot be known from a part is given as a range.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.encode.encoder import EncoderSource
from pipeline.images import resized
from pipeline.scan.samples import NOT_OURS, Scan
from pipeline.scan.scan import Limits, scan
from pipeline.sources.source import Source
from shards.errors import UserError
from shards.tar import TarWriter

__all__ = ["Cost", "Range", "estimate", "lines"]

WRITTEN = 32 << 20  # bytes of the write probe
CAPTIONS = 96  # of the encoding probe
SEARCHED = 1 << 14  # random vectors of the search probe, of which PROBE are searched
PROBE = 256
SPREAD = 1.1  # of the number of samples, extrapolated from one partition
SLOWER = 1.5  # a long run beside a short probe: caches that no longer hold, other work on the machine
# A written sample takes this much beside its image: three headers, padding, text, metadata, index. The most is that of
# pipeline.build._check_room.
BESIDE = 2500, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    low: float
    high: float

    def times(self, low: float, high: float | None = None) -> Range:
        return Range(low=self.low * low, high=self.high * (low if high is None else high))

    def plus(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes and seconds; None where a step is not part of the build."""

    files: int
    source_bytes: int
    probe: str
    """What was looked at."""
    samples: Range
    texts: Range
    skipped: float
    """Share of the probe's samples."""
    disk: Range
    """Of the finished folder."""
    work: float
    """Bytes on disk beside it while it is built, at most."""
    free: int
    scan: Range
    write: Range
    encode: Range | None
    search: Range | None
    search_method: str
    memory: float

    @property
    def total(self) -> Range:
        steps = [step for step in (self.scan, self.write, self.encode, self.search) if step]
        return Range(low=sum(step.low for step in steps), high=sum(step.high for step in steps))


def estimate(
    source: Source,
    out: Path,
    limits: Limits,
    *,
    copy: bool,
    image_size: int | None,
    encoder: EncoderSource | None,
    k: int,
    code_dim: int,
    processes: int,
) -> Cost:
    """copy: images are written (not layout in-place). encoder: None for a build whose graph needs none.

    Raises UserError where the first partition holds no usable sample.
    """
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix="xclr-dry-run-") as spool:
        begin = time.perf_counter()
        partition = source.partitions[0]
        found = scan(source, partition, limits, Path(spool) / "spool.tar")
        seconds = time.perf_counter() - begin
        rows, table = len(found.rows["key"]), found.table()
        if not rows:
            raise UserError(f"{partition.name}, the first of {source.where}, holds no usable sample: check the source")
        samples, share = _samples(source, rows)
        each = _write_probe(found, place, image_size) if copy else (0.0, 0.0)
    texts = _texts(source, table, samples)
    scanned = Range(low=seconds / share / processes, high=SLOWER * seconds / share / max(1, processes / 2))
    graph = _graph(table, encoder, texts, k, code_dim) if encoder else _Graph()
    unusable = sum(count for reason, count in found.skipped.items() if reason != NOT_OURS)
    spooled = sum(max(p.bytes, 0) for p in source.partitions if p.url)
    return Cost(
        files=len(source.partitions) + len(source.tables),
        source_bytes=sum(max(p.bytes, 0) for p in source.partitions),
        probe=f"{partition.name}: {rows:,} samples, scanned in {seconds:.1f} s",
        samples=samples,
        texts=texts,
        skipped=unusable / (rows + unusable),
        disk=(samples.times(each[0] + BESIDE[0], each[0] + BESIDE[1]) if copy else samples.times(60, 200)).plus(
            graph.disk
        ),
        work=samples.high * 400 + spooled + graph.work,
        free=shutil.disk_usage(place).free,
        scan=scanned,
        write=Range(low=samples.low * each[1] / processes, high=SLOWER * samples.high * each[1]),
        encode=graph.encode,
        search=graph.search,
        search_method=graph.method,
        memory=max(graph.memory, 500e6 + samples.high * 250),
    )


def lines(cost: Cost) -> list[str]:
    """One screen."""
    disk = f"{_bytes(cost.disk)}, and up to {_size(cost.work)} while building; {_size(cost.free)} are free"
    if cost.disk.high + cost.work > cost.free:
        disk += ": MAY NOT FIT" if cost.disk.low < cost.free else ": DOES NOT FIT"
    rows = {
        "source": f"{cost.files:,} files, {_size(cost.source_bytes)}",
        "looked at": cost.probe,
        "samples": f"{_count(cost.samples)}; {cost.skipped:.1%} of those looked at are unusable",
        "texts": _count(cost.texts),
        "disk": disk,
        "memory": f"up to some {cost.memory / 1e9:.1f} GB",
        "scan": _time(cost.scan),
        "write": _time(cost.write),
        "encode": _time(cost.encode) if cost.encode else "nothing to encode",
        "search": f"{_time(cost.search)}, method {cost.search_method}" if cost.search else "nothing to search",
        "in all": _time(cost.total),
    }
    return [*(f"{name:10} {value}" for name, value in rows.items()), "dry run: nothing was built"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    disk: Range = Range(low=0, high=0)
    work: float = 0
    encode: Range | None = None
    search: Range | None = None
    method: str = ""
    memory: float = 0


def _samples(source: Source, rows: int) -> tuple[Range, float]:
    """How many samples there are, and the first partition's share of the work."""
    partitions, first = source.partitions, source.partitions[0]
    if len(partitions) == 1:
        return Range(low=rows, high=rows), 1.0
    if source.dataset.format in ("demo", "imagefolder"):
        counts = [p.stop - p.start for p in partitions]
        known = float(sum(counts))
        share = counts[0] / known if counts[0] else 1 / len(partitions)
        return Range(low=known * min(1, rows / max(counts[0], 1)), high=known), share
    sizes = [p.bytes for p in partitions]
    share = first.bytes / sum(sizes) if min(sizes) > 0 else 1 / len(partitions)
    return Range(low=rows / share / SPREAD, high=rows / share * SPREAD), share


def _texts(source: Source, table: pa.Table, samples: Range) -> Range:
    """Classes are known; captions of other partitions may repeat the first's, or not."""
    if source.classes and source.dataset.format != "demo":
        count = float(len({name.caption for name in source.classes}))
        return Range(low=count, high=count)
    unique = len(table["text"].unique())
    share = unique / table.num_rows
    # Heaps' law with the exponent 0.5 of heavily repeated captions is the least that is seen.
    least = unique * (samples.low / table.num_rows) ** (1.0 if share > 0.98 else 0.5)
    return Range(low=min(least, samples.low * share), high=samples.high * share)


def _write_probe(found: Scan, place: Path, image_size: int | None) -> tuple[float, float]:
    """Bytes of an image, and seconds to read and write a sample, from a file that no name ever leads to."""
    count, size, begin = 0, 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=place) as file:
        tar, digest = TarWriter(file), hashlib.sha256()
        rows = zip(*(found.rows[name] for name in ("file", "offset", "size", "text")), strict=True)
        for path, offset, length, text in rows:
            with Path(path).open("rb") as source:
                source.seek(offset)
                image = source.read(length)
            digest.update(image)
            small = _smaller(image, image_size)
            tar.add("image.jpg", small)
            tar.add("image.txt", text.encode("utf-8", "surrogatepass"))
            tar.add("image.json", b"{}")
            count, size = count + 1, size + len(small)
            if size > WRITTEN:
                break
        file.flush()
    return size / count, (time.perf_counter() - begin) / count


def _smaller(image: bytes, side: int | None) -> bytes:
    try:
        return resized(image, side) if side else image
    except ValueError:
        return image


def _graph(table: pa.Table, source: EncoderSource, texts: Range, k: int, code_dim: int) -> _Graph:
    captions = [caption for text in table["text"].unique().to_pylist() for caption in text.split("\n")]
    per_text = len(captions) / len(table["text"].unique())
    dim, seconds = _encode_probe(captions, source, texts.high * per_text)
    counts = texts.times(per_text)
    search, method, held = _search_probe(texts, dim, k)
    characters = sum(map(len, captions)) / len(captions) * per_text
    listed = Range(low=1.0, high=2.0).times(k * 6.0)  # union of lists; ids compress to some 4 bytes, similarities 2
    row = min(code_dim, dim) + 20
    return _Graph(
        disk=Range(low=texts.low * (row + listed.low), high=texts.high * (row + listed.high + characters)),
        work=8.0 * texts.high * dim * max(1.0, per_text) + 4.0 * texts.high * k,
        encode=Range(low=counts.low * seconds.low, high=SLOWER * counts.high * seconds.high),
        search=search,
        method=method,
        memory=1.5e9 + held + texts.high * (characters + 100 + 2 * k * 14 + dim),
    )


def _encode_probe(captions: list[str], source: EncoderSource, count: float) -> tuple[int, Range]:
    """The encoder's dimensions, and seconds a caption in the precisions that the build may choose."""
    import torch

    from pipeline.encode.embed import HALF_FROM
    from pipeline.encode.load import load_encoder

    device, devices = ("cuda:0", torch.cuda.device_count()) if torch.cuda.is_available() else ("cpu", 1)
    half = ["float16" if device != "cpu" else "bfloat16"] if count >= HALF_FROM else []
    chosen = [captions[i] for i in np.linspace(0, len(captions) - 1, min(CAPTIONS, len(captions))).astype(int)]
    chosen.sort(key=len)
    seconds, dim = [], 0
    for precision in ["float32", *half]:
        encoder = load_encoder(source, device, precision)
        dim = encoder.dim
        encoder.embed(chosen[:4])
        begin = time.perf_counter()
        for start in range(0, len(chosen), 32):
            encoder.embed(chosen[start : start + 32])
        seconds.append(time.perf_counter() - begin)
    quickest = [value / len(chosen) / devices for value in seconds]
    # Half precision is taken only where it is quicker, so float32 is the most that a caption takes.
    return dim, Range(low=min(quickest), high=quickest[0])


def _search_probe(texts: Range, dim: int, k: int) -> tuple[Range, str, float]:
    """Seconds, method, and bytes beside the embeddings, by the formulae of pipeline.search.plan."""
    from pipeline.search.neighbours import MARGIN
    from pipeline.search.plan import LARGE, SMALL, exact_seconds, search_bytes
    from pipeline.search.tiles import quantise, search_rows

    n = int(texts.high)
    if n <= SMALL:
        seconds = Range(low=exact_seconds(int(texts.low), dim), high=exact_seconds(n, dim))
        return seconds, "exact", search_bytes("exact", n, dim, min(k, n))
    vectors = np.random.default_rng(0).normal(size=(SEARCHED, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = quantise(vectors)
    search_rows(vectors, codes, np.arange(8), k, MARGIN)
    begin = time.perf_counter()
    search_rows(vectors, codes, np.arange(PROBE), k, MARGIN)
    pair = (time.perf_counter() - begin) / (PROBE * SEARCHED)
    method = "tiles" if n <= LARGE else "descent"
    pairs = [count * min(count, LARGE) for count in (texts.low, texts.high)]
    return Range(low=pair * pairs[0] / 2, high=SLOWER * pair * pairs[1]), method, search_bytes(method, n, dim, k)


def _count(value: Range) -> str:
    low, high = (f"{round(x):,}" for x in (value.low, value.high))
    return low if low == high else f"{low} to {high}"


def _bytes(value: Range) -> str:
    return f"{_size(value.low)} to {_size(value.high)}"


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(value: Range) -> str:
    low, high = _spoken(value.low), _spoken(value.high)
    return low if low == high else f"{low} to {high}"


def _spoken(seconds: float) -> str:
    for unit, length, next_length in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < next_length:
            return f"{max(1, round(seconds / length))} {unit}" if unit == "s" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86_400:.1f} days"
