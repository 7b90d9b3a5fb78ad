"""Captions to unit vectors: each unique caption once, longest first, in chunks that stay on disk.

Sorting by length, and by tokens within a chunk, keeps padding low (a batch costs its longest caption) and lets memory
run out in the first minute rather than the last. A chunk is a file that is whole or absent, so a stopped run loses at
most one.
"""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode.encoder import Encoder, EncoderSource
from pipeline.encode.load import load_encoder
from pipeline.threads import threaded
from pipeline.work import mapped_zeros
from shards.atomic import write_array, write_json
from shards.bars import bar, say
from shards.errors import UserError, first_line

__all__ = [
    "BATCH",
    "HALF_FROM",
    "Captions",
    "NotFinite",
    "Precision",
    "choose_precision",
    "embed",
    "encode_captions",
    "encode_texts",
    "unique_captions",
]

Vectors = npt.NDArray[np.float32]

CHUNK = 4096  # captions a file: some 5 s of work on two cores, 6 MB at 384 dimensions
BATCH = {"cpu": 32, "cuda": 512}  # two AVX512 cores: 32 as fast as 64, 128 slower
LANES = 8  # batches at once on a CPU; more would wait for Python's lock
# With fewer captions float32 stays: it takes two minutes on two cores at most, the lists are exact to the last digit
# (bfloat16 moves similarities by up to 0.006), and no measurement decides the bytes.
HALF_FROM = 40_000
PROBE = 128  # captions that decide the precision of a longer job
MAX_ERROR = 0.01  # largest error of a similarity that half precision may bring
MIN_SPEEDUP = 1.3  # below it float32 stays: a gain near 1 would make the choice, and so the bytes, a matter of luck


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """The unique captions of n texts, and which text holds which."""

    unique: list[str]
    """Longest first, ties in string order: equal texts give equal batches, so equal bytes."""
    member: npt.NDArray[np.int64]
    """[pairs] positions in `unique`; text i holds member[indptr[i]:indptr[i + 1]]."""
    indptr: npt.NDArray[np.int64]
    """[n + 1]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    precision: str
    """float32, bfloat16 or float16, of the encoder's weights and arithmetic. Embeddings are always float32."""
    similarity_error: float
    """Largest difference from float32's similarities among the probe's captions; 0 for float32 itself."""


FLOAT32 = Precision(precision="float32", similarity_error=0.0)


def unique_captions(texts: Sequence[str]) -> Captions:
    """Split each text at newlines (several captions of one image) and keep every caption once."""
    held = [list(dict.fromkeys(text.split("\n"))) for text in texts]
    unique = sorted({caption for captions in held for caption in captions}, key=lambda c: (-len(c), c))
    position = {caption: i for i, caption in enumerate(unique)}
    indptr = np.zeros(len(held) + 1, np.int64)
    np.cumsum([len(captions) for captions in held], out=indptr[1:])
    member = np.fromiter((position[caption] for captions in held for caption in captions), np.int64, indptr[-1])
    return Captions(unique=unique, member=member, indptr=indptr)


def encode_texts(texts: Sequence[str], source: EncoderSource, work: Path) -> tuple[Vectors, dict[str, Any]]:
    """Embed texts; a text of several captions gets the normalised mean of theirs.

    work: folder for finished chunks. A later call with the same texts and encoder goes on from them; with others it
    starts afresh. Returns [n, dim] unit vectors (memory-mapped, in `work`) and what graph.json says of the encoding.
    """
    captions = unique_captions(texts)
    chunks, record = encode_captions(captions.unique, source, work)
    return _text_means(captions, chunks, work / "embeddings.npy"), record


def encode_captions(
    captions: Sequence[str], source: EncoderSource, work: Path, precision: Precision | None = None
) -> tuple[list[Path], dict[str, Any]]:
    """Encode captions, CHUNK at a time, on every device there is.

    precision: None leaves it to the number of captions and a probe.
    Returns the chunk files (.npy, [CHUNK or fewer, dim] float32, in the order of `captions`) and a record of how.
    """
    devices = _devices()
    precision = _settle(captions, source, work, devices[0], precision)
    try:
        return _encode_all(captions, source, work, precision, devices)
    except NotFinite as error:
        if precision == FLOAT32:
            raise UserError(f"{source.id} gives no finite vector for {error}: use another --encoder") from None
        say(f"{precision.precision} is too narrow for {error}: all are encoded again in float32")
    shutil.rmtree(work)
    return encode_captions(captions, source, work, FLOAT32)


class NotFinite(Exception):
    """A caption's vector holds what is no number; one would spoil the lists of all."""


def _encode_all(
    captions: Sequence[str], source: EncoderSource, work: Path, precision: Precision, devices: Sequence[str]
) -> tuple[list[Path], dict[str, Any]]:
    encoders = [load_encoder(source, device, precision.precision) for device in devices]
    paths = [work / f"chunk-{start // CHUNK:06d}.npy" for start in range(0, len(captions), CHUNK)]
    chunks = [captions[start : start + CHUNK] for start in range(0, len(captions), CHUNK)]
    with bar("encoding captions", len(captions)) as advance:
        todo = []
        for path, chunk in zip(paths, chunks, strict=True):
            if path.exists():
                advance(len(chunk))
            else:
                todo.append((path, chunk))
        _run_all(encoders, todo, advance)
    record = {"captions": len(captions), "dim": encoders[0].dim, "max_tokens": encoders[0].max_tokens}
    return paths, record | asdict(precision)


def choose_precision(captions: Sequence[str], source: EncoderSource, device: str) -> Precision:
    """Half precision where it is faster on this machine and keeps every similarity within MAX_ERROR.

    Both precisions embed a spread of the captions in turn, three times; the quickest time of each counts. A CPU
    without bfloat16 arithmetic can be many times slower in it, so a first try is short.
    """
    sample = [captions[i] for i in np.linspace(0, len(captions) - 1, PROBE).astype(int)]
    half = "float16" if device.startswith("cuda") else "bfloat16"
    encoders = [load_encoder(source, device, name) for name in ("float32", half)]
    vectors = [np.zeros((0, 0), np.float32)] * 2
    for size in (PROBE // 8, PROBE):
        quickest = [np.inf, np.inf]
        for _ in range(3):
            for which, encoder in enumerate(encoders):
                begin = time.perf_counter()
                try:
                    vectors[which] = embed(encoder, sample[:size])
                except NotFinite:  # in float32 too, it may be: then the encoding says so
                    return FLOAT32
                quickest[which] = min(quickest[which], time.perf_counter() - begin)
        if quickest[0] < MIN_SPEEDUP * quickest[1]:
            return FLOAT32
    error = float(np.abs(vectors[0] @ vectors[0].T - vectors[1] @ vectors[1].T).max())
    return Precision(precision=half, similarity_error=round(error, 5)) if error <= MAX_ERROR else FLOAT32


def _settle(
    captions: Sequence[str], source: EncoderSource, work: Path, device: str, precision: Precision | None
) -> Precision:
    """The precision of this work folder: as an earlier, stopped run of the same work chose it, or chosen now."""
    digest = hashlib.sha256("\n".join(captions).encode("utf-8", "surrogatepass")).hexdigest()
    weights = f"{source.sha256} {source.config_sha256}"
    wanted = {"captions": digest, "encoder": weights, "chunk": CHUNK, "device": device}
    state = work / "encoding.json"
    if state.exists():
        found = json.loads(state.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return Precision(**found["precision"])
    shutil.rmtree(work, ignore_errors=True)
    if precision is None:
        precision = choose_precision(captions, source, device) if len(captions) >= HALF_FROM else FLOAT32
    write_json(state, wanted | {"precision": asdict(precision)})
    return precision


def _run_all(
    encoders: Sequence[Encoder], todo: Sequence[tuple[Path, Sequence[str]]], advance: Callable[[int], None]
) -> None:
    """One thread a device; each takes the next chunk when it is done with its last."""
    free: queue.SimpleQueue[Encoder] = queue.SimpleQueue()
    for encoder in encoders:
        free.put(encoder)

    def run(path: Path, chunk: Sequence[str]) -> None:
        encoder = free.get()
        try:
            vectors = embed(encoder, chunk, advance)
        finally:
            free.put(encoder)
        write_array(path, vectors)

    with ThreadPoolExecutor(len(encoders)) as pool:
        futures = [pool.submit(run, path, chunk) for path, chunk in todo]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def embed(encoder: Encoder, captions: Sequence[str], advance: Callable[[int], None] = lambda units: None) -> Vectors:
    """[captions, dim], in batches of equally many tokens: sorted by letters alone a quarter would be padding."""
    order = np.argsort(-np.array(encoder.tokens(captions)), kind="stable")
    batch = BATCH[encoder.device.partition(":")[0]]
    vectors = np.empty((len(captions), encoder.dim), np.float32)

    def batch_of(rows: npt.NDArray[np.intp]) -> None:
        vectors[rows] = found = _embedded(encoder, [captions[i] for i in rows])
        finite = np.isfinite(found).all(1)
        if not finite.all():
            raise NotFinite(repr(captions[rows[np.argmin(finite)]][:80]))
        advance(len(rows))

    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    if encoder.device == "cpu":
        threaded(batch_of, batches, min(LANES, len(batches)))
    else:
        for rows in batches:
            batch_of(rows)
    return vectors


def _embedded(encoder: Encoder, captions: Sequence[str]) -> Vectors:
    """In halves where a GPU has no room for the batch: captions may have thousands of tokens, encoders billions of
    weights."""
    import torch

    try:
        return encoder.embed(captions)
    except torch.OutOfMemoryError as error:
        if len(captions) == 1:
            raise UserError(
                f"{encoder.device} has no room for a single caption beside the encoder ({first_line(error)}): free it, "
                "hide it (CUDA_VISIBLE_DEVICES=), or take a smaller --encoder"
            ) from None
    half = len(captions) // 2  # out of the handler, which would keep what the failed try holds
    return np.concatenate([_embedded(encoder, captions[:half]), _embedded(encoder, captions[half:])])


def _text_means(captions: Captions, chunks: Sequence[Path], path: Path) -> Vectors:
    """[n, dim] the normalised mean of each text's captions, in a memory-mapped file; one chunk in memory at a time."""
    n = len(captions.indptr) - 1
    order = np.argsort(captions.member, kind="stable")  # pairs by caption, so that a chunk's pairs lie together
    text = np.repeat(np.arange(n), np.diff(captions.indptr))[order]
    member = captions.member[order]
    dim = np.load(chunks[0], mmap_mode="r").shape[1]
    sums = mapped_zeros(path, (n, dim))
    for position, chunk in enumerate(chunks):
        vectors = np.load(chunk)
        first, last = np.searchsorted(member, [position * CHUNK, position * CHUNK + len(vectors)])
        np.add.at(sums, text[first:last], vectors[member[first:last] - position * CHUNK])
    for start in range(0, n, CHUNK):
        block = sums[start : start + CHUNK]
        # Captions that cancel each other out exactly would be a zero vector: similarity 0 to everything.
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return sums


def _devices() -> list[str]:
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
