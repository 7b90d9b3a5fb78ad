"""What a graph of vectors will cost: some captions are encoded, some random vectors searched; nothing of it stays."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.encode.encoder import EncoderSource, resolve_encoder
from pipeline.graph.by_text import names_texts, width
from pipeline.graph.file import holds_vectors, of_classes, open_array
from pipeline.ranges import Range, disk_line
from shards.errors import UserError
from shards.reader import Shards

__all__ = ["NO_GRAPH", "SLOWER", "GraphCost", "estimate_graph", "lines", "step_lines"]

TEXTS = 4096  # of finished shards, whose captions are counted
BATCHES = 4  # of the encoding probe
SEARCHED = 1 << 14  # random vectors of the search probe, of which PROBE are searched
PROBE = 256
ON_GPU = 1 << 18, 4096  # the same on a GPU, which fewer would not fill
SLOWER = 1.5  # a long run beside a short probe: caches that no longer hold, other work on the machine


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """Bytes and seconds; None where there is no such step."""

    disk: Range
    work: float
    """Bytes on disk beside it while it is made, at most."""
    encode: Range | None
    search: Range | None
    method: str
    memory: float

    @property
    def total(self) -> Range:
        steps = [step for step in (self.encode, self.search) if step]
        return Range(low=sum(step.low for step in steps), high=sum(step.high for step in steps))


NO_GRAPH = GraphCost(disk=Range(low=0, high=0), work=0, encode=None, search=None, method="", memory=0)


def estimate_graph(
    texts: Sequence[str], count: Range, source: EncoderSource, k: int, code_dim: int, *, texts_file: bool
) -> GraphCost:
    """texts: some of the `count` unique ones, of one caption a line. texts_file: texts.parquet is to be written too."""
    captions = [caption for text in texts for caption in text.split("\n")]
    per_text = len(captions) / len(texts)
    dim, seconds = _encode_probe(captions, source, count.high * per_text)
    counts = count.times(per_text)
    characters = sum(map(len, captions)) / len(captions) * per_text
    return _cost(
        count,
        dim,
        k,
        code_dim,
        encode=Range(low=counts.low * seconds.low, high=SLOWER * counts.high * seconds.high),
        work=8.0 * count.high * dim * max(1.0, per_text),
        characters=characters,
        written=characters if texts_file else 0.0,
    )


def _cost(
    count: Range,
    dim: int,
    k: int,
    code_dim: int,
    *,
    encode: Range | None,
    work: float,
    characters: float = 0.0,
    written: float = 0.0,
) -> GraphCost:
    """work: bytes of all vectors. characters, written: of a text, in memory and in texts.parquet."""
    search, method, held = _search_probe(count, dim, k)
    listed = Range(low=1.0, high=2.0).times(k * 6.0)  # union of lists; ids compress to some 4 bytes, similarities 2
    row = min(code_dim, dim) + 20
    return GraphCost(
        disk=Range(low=count.low * (row + listed.low), high=count.high * (row + listed.high + written)),
        work=work + 4.0 * count.high * k,
        encode=encode,
        search=search,
        method=method,
        memory=1.5e9 + held + count.high * (characters + 100 + 2 * k * 14 + dim),
    )


def step_lines(cost: GraphCost) -> dict[str, str]:
    return {
        "encode": cost.encode.as_time() if cost.encode else "nothing to encode",
        "search": f"{cost.search.as_time()}, method {cost.method}" if cost.search else "nothing to search",
    }


def lines(root: Path, kind: str, encoder: str | None, source: Path | None, k: int, code_dim: int) -> list[str]:
    """One screen on a graph of finished shards, whose options have been checked (graph.build.check_options)."""
    shards = Shards.open(root)
    file = source if kind == "file" else None
    vectors = file if file and (names_texts(file) or holds_vectors(file)) else None
    if file and file.suffix == ".npy":
        of_classes(file, open_array(file), shards)
    if kind != "encoder" and vectors is None:
        return [f"a graph of kind {kind} has nothing to encode or search"]
    n = shards.manifest.texts
    if not n:
        raise UserError(f"{root} has no texts, so it can have no graph: build it from a source with captions")
    count, k = Range(low=n, high=n), min(k, n - 1)
    if vectors is not None:
        dim = width(vectors) if vectors.suffix == ".parquet" else open_array(vectors).shape[1]
        cost = _cost(count, dim, k, code_dim, encode=None, work=4.0 * n * dim)
    else:
        texts = shards.texts()
        chosen = [texts[i] for i in np.unique(np.linspace(0, n - 1, TEXTS).astype(int))]
        del texts
        cost = estimate_graph(chosen, count, resolve_encoder(encoder), k, code_dim, texts_file=False)
    rows = {
        "texts": count.as_count(),
        "disk": disk_line(cost.disk, cost.work, shutil.disk_usage(root).free),
        "memory": f"up to some {cost.memory / 1e9:.1f} GB",
        **step_lines(cost),
        "in all": cost.total.as_time(),
    }
    return [*(f"{name:10} {value}" for name, value in rows.items()), "dry run: nothing was built"]


def _encode_probe(captions: list[str], source: EncoderSource, count: float) -> tuple[int, Range]:
    """The encoder's dimensions, and seconds a caption in the precisions that the build may choose."""
    import torch

    from pipeline.encode.embed import BATCH, HALF_FROM, NotFinite, embed
    from pipeline.encode.load import load_encoder

    kind, devices = ("cuda", torch.cuda.device_count()) if torch.cuda.is_available() else ("cpu", 1)
    half = ["float16" if kind == "cuda" else "bfloat16"] if count >= HALF_FROM else []
    most = min(BATCHES * BATCH[kind], len(captions))
    chosen = [captions[i] for i in np.linspace(0, len(captions) - 1, most).astype(int)]
    seconds, dim = [], 0
    for precision in ["float32", *half]:
        encoder = load_encoder(source, "cuda:0" if kind == "cuda" else kind, precision)
        dim = encoder.dim
        try:
            embed(encoder, chosen[:4])
            begin = time.perf_counter()
            embed(encoder, chosen)
        except NotFinite as error:
            if precision != "float32":
                break  # too narrow: float32 stays
            raise UserError(f"{source.id} gives no finite vector for {error}: use another --encoder") from None
        seconds.append(time.perf_counter() - begin)
    quickest = [value / len(chosen) / devices for value in seconds]
    # Half precision is taken only where it is quicker, so float32 is the most that a caption takes.
    return dim, Range(low=min(quickest), high=quickest[0])


def _search_probe(texts: Range, dim: int, k: int) -> tuple[Range, str, float]:
    """Seconds, method, and bytes beside the embeddings, by the formulae of pipeline.search.plan."""
    from pipeline.search.gpu import has_room
    from pipeline.search.neighbours import MARGIN
    from pipeline.search.plan import LARGE, SMALL, exact_seconds, search_bytes
    from pipeline.search.tiles import quantise, search_rows

    n = int(texts.high)
    if n <= SMALL:
        seconds = Range(low=exact_seconds(int(texts.low), dim), high=exact_seconds(n, dim))
        return seconds, "exact", search_bytes("exact", n, dim, min(k, n))
    if has_room(n, dim):
        pair = _gpu_probe(dim, k + 1 + MARGIN)
        seconds = Range(low=pair * texts.low**2, high=SLOWER * pair * texts.high**2)
        return seconds, "gpu", search_bytes("gpu", n, dim, k)
    vectors = _random_vectors(SEARCHED, dim)
    codes = quantise(vectors)
    search_rows(vectors, codes, np.arange(8), k, MARGIN)
    begin = time.perf_counter()
    search_rows(vectors, codes, np.arange(PROBE), k, MARGIN)
    pair = (time.perf_counter() - begin) / (PROBE * SEARCHED)
    method = "tiles" if n <= LARGE else "descent"
    pairs = [count * min(count, LARGE) for count in (texts.low, texts.high)]
    return Range(low=pair * pairs[0] / 2, high=SLOWER * pair * pairs[1]), method, search_bytes(method, n, dim, k)


def _gpu_probe(dim: int, keep: int) -> float:
    """Seconds a pair."""
    from pipeline.search.gpu import gpu_search

    n, rows = ON_GPU
    find = gpu_search(_random_vectors(n, dim), "cuda:0")
    find(np.arange(8), keep)  # what is only paid once
    begin = time.perf_counter()
    find(np.arange(rows), keep)
    return (time.perf_counter() - begin) / (rows * n)


def _random_vectors(n: int, dim: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(0).standard_normal((n, dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
