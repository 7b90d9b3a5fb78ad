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

import pyarrow as pa

from pipeline.encode.encoder import EncoderSource
from pipeline.graph.estimate import NO_GRAPH, SLOWER, GraphCost, estimate_graph, step_lines
from pipeline.images import resized
from pipeline.ranges import Range, disk_line, size
from pipeline.scan.samples import NOT_OURS, Limits, Scan
from pipeline.scan.scan import scan
from pipeline.sources.source import Partition, Source
from shards.errors import UserError
from shards.tar import TarWriter

__all__ = ["Cost", "estimate", "lines"]

TRIED = 20  # partitions, until one holds anything
WRITTEN = 32 << 20  # bytes of the write probe
SPREAD = 1.1  # of the number of samples, extrapolated from one partition
# A written sample takes this much beside its image: three headers, padding, text, metadata, index. The most is that of
# pipeline.room.room_to_write.
BESIDE = 2500, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Bytes and seconds."""

    source: str
    """What there is to read."""
    probe: str
    """What was looked at."""
    samples: Range
    texts: Range
    skipped: float
    """Share of the probe's samples."""
    reasons: str
    """Why, with numbers."""
    labels: str
    """What the probe shows of labels beside samples; empty without any."""
    disk: Range
    """Of the finished folder."""
    work: float
    """Bytes on disk beside it while it is built, at most."""
    free: int
    scan: Range
    write: Range
    graph: GraphCost
    memory: float

    @property
    def total(self) -> Range:
        return self.scan.plus(self.write).plus(self.graph.total)


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
    share_built: float = 1,
) -> Cost:
    """copy: images are written (not layout in-place). encoder: None for a build whose graph needs none. share_built: of
    the samples; others are held out.

    Raises UserError where the first partition holds no usable sample.
    """
    place = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix="xclr-dry-run-") as spool:
        partition, found, seconds = _probe(source, limits, Path(spool))
        table, rows = found.table(), len(found.rows["key"])
        samples, share = _samples(source, partition, rows)
        if share_built < 1:
            samples = samples.times(share_built / SPREAD, min(1, share_built * SPREAD))
        each = _write_probe(found, place, image_size) if copy else (0.0, 0.0)
    texts = _texts(source, table, samples, len(found.labels.by_number))
    scanned = Range(low=seconds / share / processes, high=SLOWER * seconds / share / max(1, processes / 2))
    graph = (
        estimate_graph(table["text"].unique().to_pylist(), texts, encoder, k, code_dim, texts_file=True)
        if encoder
        else NO_GRAPH
    )
    unusable = sum(count for reason, count in found.skipped.items() if reason != NOT_OURS)
    spooled = sum(max(p.bytes, 0) for p in source.partitions if p.url)
    return Cost(
        source=_source_line(source),
        probe=f"{partition.name}: {rows:,} samples, scanned in {seconds:.1f} s",
        samples=samples,
        texts=texts,
        skipped=unusable / (rows + unusable),
        reasons=_reasons(found),
        labels=_labels(found) if source.dataset.label else "",
        disk=(samples.times(each[0] + BESIDE[0], each[0] + BESIDE[1]) if copy else samples.times(60, 200)).plus(
            graph.disk
        ),
        work=samples.high * 400 + spooled + graph.work,
        free=shutil.disk_usage(place).free,
        scan=scanned,
        write=Range(low=samples.low * each[1] / processes, high=SLOWER * samples.high * each[1]),
        graph=graph,
        memory=max(graph.memory, 500e6 + samples.high * 250),
    )


def lines(cost: Cost, max_skipped: float) -> list[str]:
    """One screen. max_skipped: share of unusable samples at which a build stops."""
    unusable = f"{cost.skipped:.1%} of those looked at are unusable{f' ({cost.reasons})' if cost.reasons else ''}"
    if cost.skipped > max_skipped:
        unusable += f": A BUILD MAY STOP FOR IT (--max-skipped {max_skipped:g})"
    rows = {
        "source": cost.source,
        "looked at": cost.probe,
        "samples": f"{cost.samples.as_count()}; {unusable}",
        **({"labels": cost.labels} if cost.labels else {}),
        "texts": cost.texts.as_count(),
        "disk": disk_line(cost.disk, cost.work, cost.free),
        "memory": f"up to some {cost.memory / 1e9:.1f} GB",
        "scan": cost.scan.as_time(),
        "write": cost.write.as_time(),
        **step_lines(cost.graph),
        "in all": cost.total.as_time(),
    }
    return [*(f"{name:10} {value}" for name, value in rows.items()), "dry run: nothing was built"]


def _source_line(source: Source) -> str:
    if source.dataset.format == "demo":
        return "generated"
    folders = [p for p in source.partitions if not p.url and p.path.is_dir()]
    if folders:  # their files are counted, not measured: that would be a look at each of a million
        return f"{len(folders):,} folders, {sum(p.stop for p in folders):,} files"
    files = len(source.tables) or len({p.url or str(p.path) for p in source.partitions})
    held = sum(path.stat().st_size for path in source.tables) or sum(max(p.bytes, 0) for p in source.partitions)
    return f"{files:,} files, {size(held)}"


def _probe(source: Source, limits: Limits, spool: Path) -> tuple[Partition, Scan, float]:
    """The first partition that holds anything, scanned, and how long that took."""
    if not source.partitions:
        raise UserError(f"{source.where} holds no sample: check the source")
    for partition in source.partitions[:TRIED]:
        begin = time.perf_counter()
        found = scan(source, partition, limits, spool / f"{partition.number}.tar")
        if found.rows["key"]:
            return partition, found, time.perf_counter() - begin
    others = f", nor any up to {partition.name}" if partition.number else ""
    raise UserError(
        f"{source.partitions[0].name}, the first of {source.where}, holds no usable sample{others}"
        f"{f' ({_reasons(found)})' if found.skipped else ''}: check the source"
    )


def _reasons(found: Scan) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in found.skipped.most_common() if reason != NOT_OURS)


def _labels(found: Scan) -> str:
    values = found.rows["label_value"]
    known = f" of {len(found.labels.by_number):,}" if found.labels.by_number else ""
    without = f"; {values.count(None):,} of {len(values):,} samples have none" if None in values else ""
    return f"{len(set(values) - {None}):,}{known} classes among those looked at{without}"


def _samples(source: Source, first: Partition, rows: int) -> tuple[Range, float]:
    """How many samples there are, and one partition's share of the work, which holds `rows` of them."""
    partitions = source.partitions
    if len(partitions) == 1:
        return Range(low=rows, high=rows), 1.0
    if source.dataset.format in ("demo", "imagefolder"):
        counts = [p.stop - p.start for p in partitions]
        known = float(sum(counts))
        own = first.stop - first.start
        share = own / known if own else 1 / len(partitions)
        return Range(low=known * min(1, rows / max(own, 1)), high=known), share
    sizes = [p.bytes for p in partitions]
    share = first.bytes / sum(sizes) if min(sizes) > 0 else 1 / len(partitions)
    return Range(low=rows / share / SPREAD, high=rows / share * SPREAD), share


def _texts(source: Source, table: pa.Table, samples: Range, named: int) -> Range:
    """Classes are known, folders or `named` labels; captions of other partitions may repeat the first's, or not."""
    if source.dataset.by_class and named:
        return Range(low=len(table["text"].unique()), high=named)
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
