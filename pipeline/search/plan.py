"""Which search, decided by measuring, and the search itself in parts that stay on disk.

    exact     FAISS IndexFlatIP: up to SMALL texts, where it takes a second or two
    tiles     brute force in int8 tiles with float32 ranking: up to LARGE texts on a CPU that multiplies int8 quickly
    descent   neighbours of neighbours in groups: beyond
    gpu       brute force in half precision with float32 ranking

What a method costs and recalls is first measured on a few hundred texts against brute force. Tiles are tried on all
dimensions and on the leading principal ones; the margin of candidates is doubled until the recall reaches the target,
and passes of `descent` go on until it does.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from pipeline.search import exact
from pipeline.search.descent import descend
from pipeline.search.gpu import gpu_search, has_room
from pipeline.search.neighbours import MARGIN, Ids, Vectors, pair_similarities, rank, search_exact
from pipeline.search.tiles import quantise, search_rows
from shards.atomic import write_array, write_json
from shards.bars import bar, say
from shards.errors import UserError
from shards.machine import peak_memory

__all__ = [
    "LARGE",
    "METHODS",
    "SMALL",
    "Plan",
    "exact_seconds",
    "nearest",
    "plan_search",
    "sample_recall",
    "search_bytes",
]

METHODS = ("exact", "tiles", "descent", "gpu")
SMALL = 20_000  # exact search of so many takes 2 s on two cores
LARGE = 220_000  # so many captions, two Zen 4 cores: tiles 49 s, descent 51 s, which grows linearly; 2026-11-24
PROBE = 512  # texts that method, dimensions and margin are measured on
SHARES = (1.0, 2 / 3, 1 / 2)  # of the dimensions that candidates are found by; MOST: their margin at most
MOST = 64  # 160,840 captions of 384 dimensions: all 35 s; 256 at margin 8, 26 s; 192 at 32, 24 s; 128 at 160, 32 s
PART = 1 << 14  # texts a file of finished neighbours
Recall = Callable[[Ids], float]
Rows = npt.NDArray[np.int64]
Search = Callable[[Rows, int], tuple[Ids, Vectors]]
"""(rows, margin) -> ids and similarities [rows, k]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    method: str
    margin: int
    """Candidates beyond k that are ranked again in float32."""
    dim: int | None = None
    """Leading principal directions of the vectors that tiles find candidates by; None: all dimensions."""
    seconds: float
    """Estimate from the probe."""
    bytes: int
    """Estimate of the largest memory at once, without the embeddings, which are mapped from a file."""


def nearest(
    vectors: Vectors, k: int, work: Path, *, target: float = 0.99, memory: int | None = None, seed: int = 0
) -> tuple[Ids, Vectors, dict[str, Any]]:
    """The k nearest other texts of each: ids and similarities [n, k], and what graph.json says of the search.

    work: folder for finished parts, and for cost.json, the estimate beside the real figures. A later call for the same
    vectors and settings goes on from them; with others it starts afresh. memory: bytes that must suffice; raises
    UserError, with the numbers, where they do not.
    """
    k = min(k, len(vectors) - 1)
    plan = _settle(vectors, work, {"k": k, "target": target, "seed": seed}, memory)
    say(f"search: {plan.method}, about {plan.seconds:.0f} s and {plan.bytes / 1e6:.0f} MB beside the embeddings")
    begin = time.perf_counter()
    record: dict[str, Any] = {"method": plan.method, "margin": plan.margin, "target": target}
    if plan.method == "tiles":
        record["dim"] = plan.dim or vectors.shape[1]
    if plan.method == "exact":
        ids, similarities = search_exact(vectors, k)
    elif plan.method == "descent":
        sample, recall = sample_recall(vectors, k, seed)
        ids, similarities, reached = descend(vectors, quantise(vectors), k, work, sample, recall, target, seed)
        record["recall_by_pass"] = reached
    else:
        search = _row_search(plan.method, vectors, k, plan.dim)
        ids, similarities = _in_parts(vectors, k, work, lambda rows: search(rows, plan.margin))
    peak = peak_memory() / 1e6
    seconds = time.perf_counter() - begin
    say(f"search took {seconds:.0f} s; the process's peak memory so far is {peak:.0f} MB")
    _note(work, plan, seconds, peak)
    return ids, similarities, record


def plan_search(vectors: Vectors, k: int, *, target: float, memory: int | None, seed: int) -> Plan:
    """Measure the methods that fit this machine, size and memory, and take the quickest."""
    n, dim = vectors.shape
    k = min(k, n - 1)
    sizes = {way: search_bytes(way[0], n, way[1] or dim, k) for way in _ways(n, dim)}
    fitting = [way for way, size in sizes.items() if memory is None or size <= memory]
    if n <= SMALL:
        plans = [
            Plan(method=method, margin=MARGIN, seconds=exact_seconds(n, dim), bytes=sizes[method, part])
            for method, part in fitting
        ]
    else:
        probe = sample_recall(vectors, k, seed)
        found = [_measured(method, vectors, k, target, *probe, dim=part) for method, part in fitting]
        plans = [plan for plan in found if plan is not None]
        tiles = min((plan.seconds for plan in plans if plan.method == "tiles"), default=None)
        size = search_bytes("descent", n, dim, k)
        if n > LARGE and tiles is not None and (memory is None or size <= memory):
            # Per text descent costs as much as a brute-force row of LARGE texts, whatever n is.
            plans.append(Plan(method="descent", margin=MARGIN, seconds=tiles * LARGE / n, bytes=size))
    if not plans:
        # None fits; or those of fewer dimensions alone, which do not reach the recall.
        needed = max(sizes.values()) if fitting else min(sizes.values())
        raise UserError(
            f"searching {n} texts needs {needed / 1e6:.0f} MB beside the embeddings, --memory allows"
            f" {(memory or 0) / 1e6:.0f}: raise it, or search on a larger machine"
        )
    return min(plans, key=lambda plan: plan.seconds)


def _ways(n: int, dim: int) -> list[tuple[str, int | None]]:
    """(method, leading dimensions) to measure; None: all."""
    if n <= SMALL:
        return [("exact", None)]
    if has_room(n, dim):
        return [("gpu", None)]
    tiles: list[tuple[str, int | None]] = [("tiles", part) for part in dict.fromkeys(_share_of(dim, s) for s in SHARES)]
    # Beyond LARGE an exact search never wins, and copies all vectors.
    return [("exact", None), *tiles] if n <= LARGE else tiles


def sample_recall(vectors: Vectors, k: int, seed: int) -> tuple[Rows, Recall]:
    """PROBE random rows, and a function from their ids [PROBE, k] to tie-aware recall against float64.

    It returns what recall is at least: two standard errors below the sample's, so that the audit, which takes other
    rows, does not find less than the target.
    """
    n = len(vectors)
    sample = exact.random_texts(n, PROBE, seed, "search")
    similarity = exact.dot_products(vectors)
    least = exact.largest_similarities(similarity, sample, n, k).min(axis=1) - exact.TIE

    def recall(ids: Ids) -> float:
        near = np.stack(
            [similarity(row[None], np.maximum(listed, 0))[0] for row, listed in zip(sample, ids, strict=True)]
        )
        rows = ((near >= least[:, None]) & (ids >= 0)).mean(axis=1)
        return float(rows.mean() - 2 * rows.std() / len(rows) ** 0.5)

    return sample, recall


def _measured(
    method: str, vectors: Vectors, k: int, target: float, rows: Rows, recall: Recall, dim: int | None = None
) -> Plan | None:
    """Search PROBE texts, doubling the margin until their recall reaches the target; None: fewer dimensions than the
    vectors' do not reach it with a margin that would still be quick."""
    n, margin, search = len(vectors), MARGIN, _row_search(method, vectors, k, dim)
    while True:
        search(rows[:8], margin)  # what is only paid once: thread pools, buffers
        begin = time.perf_counter()
        ids, _ = search(rows, margin)
        seconds = (time.perf_counter() - begin) * n / len(rows)
        if method == "exact" or recall(ids) >= target or margin >= n:
            held = search_bytes(method, n, dim or vectors.shape[1], k)
            return Plan(method=method, margin=margin, dim=dim, seconds=seconds, bytes=held)
        margin *= 2
        if dim is not None and margin > MOST:
            return None


def _share_of(dim: int, share: float) -> int | None:
    """Rounded up to the 64 that an int8 instruction multiplies at once."""
    part = 64 * math.ceil(share * dim / 64)
    return part if part < dim else None


def _row_search(method: str, vectors: Vectors, k: int, dim: int | None = None) -> Search:
    if method == "tiles":
        codes = quantise(vectors, dim)
        return lambda rows, margin: search_rows(vectors, codes, rows, k, margin)
    if method == "gpu":
        find = gpu_search(vectors, "cuda:0")
    else:
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(np.ascontiguousarray(vectors))

        def find(part: Rows, keep: int) -> npt.NDArray[np.int64]:
            ids: npt.NDArray[np.int64] = index.search(np.ascontiguousarray(vectors[part]), keep)[1]
            return ids

    return lambda rows, margin: _ranked_blocks(vectors, rows, k, margin, find)


def _ranked_blocks(
    vectors: Vectors, rows: Rows, k: int, margin: int, find: Callable[[Rows, int], npt.NDArray[np.int64]]
) -> tuple[Ids, Vectors]:
    keep = min(k + 1 + margin, len(vectors))
    blocks = [rows[start : start + 4096] for start in range(0, len(rows), 4096)]
    found = [rank(vectors, block, find(block, keep), k) for block in blocks]
    return np.concatenate([ids for ids, _ in found]), np.concatenate([near for _, near in found])


def _in_parts(
    vectors: Vectors, k: int, work: Path, search: Callable[[Rows], tuple[Ids, Vectors]]
) -> tuple[Ids, Vectors]:
    """Every row, PART at a time, each part a file once it is found."""
    n = len(vectors)
    ids, similarities = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    with bar(f"searching, k = {k}", n) as advance:
        for start in range(0, n, PART):
            rows = np.arange(start, min(start + PART, n))
            path = work / f"neighbours-{start // PART:06d}.npy"
            if path.exists():
                ids[rows] = np.load(path)
                similarities[rows] = pair_similarities(vectors, rows, ids[rows])
            else:
                ids[rows], similarities[rows] = search(rows)
                write_array(path, ids[rows])
            advance(len(rows))
    return ids, similarities


def _settle(vectors: Vectors, work: Path, wanted: dict[str, Any], memory: int | None) -> Plan:
    """The plan of this work folder: as an earlier, stopped run of the same search made it, or made now."""
    # Reading 12 M embeddings for their checksum takes seconds; parts of another search would be wrong for ever.
    wanted = wanted | {"vectors_sha256": hashlib.sha256(np.ascontiguousarray(vectors).data).hexdigest()}
    state = work / "search.json"
    if state.exists():
        found = json.loads(state.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            plan = Plan(**found["plan"])
            if plan.method != "gpu" or has_room(*vectors.shape):
                return plan
            say("note: this search began on a GPU, which now is not here or is full: it goes on by another method")
        else:
            shutil.rmtree(work, ignore_errors=True)
    plan = plan_search(vectors, wanted["k"], target=wanted["target"], memory=memory, seed=wanted["seed"])
    write_json(state, wanted | {"plan": asdict(plan)})
    return plan


def _note(work: Path, plan: Plan, seconds: float, peak: float) -> None:
    """work/cost.json: the estimate beside the real figures. A search that went on from its parts adds its time."""
    path = work / "cost.json"
    earlier = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else 0.0
    figures = {"method": plan.method, "estimated_seconds": plan.seconds, "seconds": earlier + seconds}
    write_json(path, figures | {"estimated_mb": plan.bytes / 1e6, "peak_mb": peak})


def exact_seconds(n: int, dim: int) -> float:
    return 1 + 2 * dim * n * n / 1e11  # some 100 GFLOP/s of two cores


def search_bytes(method: str, n: int, dim: int, k: int) -> int:
    """What a search holds at once: its copy of the vectors, its lists, and the lists that leave it."""
    result = 8 * n * k
    own = {
        "exact": 4 * n * dim,
        "tiles": n * dim + (1 << 28),
        "gpu": 1 << 30,  # of the machine's memory; the vectors are the device's
        "descent": n * (dim + 4 * 32) + 2 * 8 * n * (k + MARGIN) + (1 << 28),
    }
    return result + own[method]
