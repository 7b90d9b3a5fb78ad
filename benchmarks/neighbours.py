"""The 32 nearest of every caption: this pipeline's search beside FAISS's and others', and how the cost grows.

    python -m benchmarks.neighbours [--only compare|growth]

compare: all captions, copies included, each method in a process of its own on the same vectors. Recall is audited on
1,000 texts against brute force in float64, tie-aware. `pipeline` times all of pipeline.search: choosing by
measuring, searching, ranking in float32. Exact FAISS and inverted lists cost the same for every query, so they search
10,000 queries and are scaled. HNSW's, inverted lists' and PyNNDescent's effort is the least of a few that reaches
recall 0.99.
growth: `descent`, the method for more than 220,000 texts, at 20, 40, 80 and 160 thousand, and at one million vectors
(real ones with noise, cosine 0.9 to their origin). The exponent is the slope of log time over log n.

Results and what they mean: docs/results.md. Captions: see benchmarks/captions.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.captions import embeddings
from pipeline.search import descent, plan
from pipeline.search.exact import TIE, dot_products, largest_similarities, random_texts
from pipeline.search.tiles import quantise

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[Any]
K, TARGET, QUERIES = 32, 0.99, 10_000
SIZES = (20_000, 40_000, 80_000, 160_000, 1_000_000)


def audited(vectors: Vectors, rows: npt.NDArray[np.int64], ids: Ids) -> float:
    """Tie-aware recall of ids [rows, >= K]; the row itself does not count."""
    exact = dot_products(vectors)
    least = largest_similarities(exact, rows, len(vectors), K).min(axis=1) - TIE
    hits = 0
    for row, listed, bound in zip(rows, ids, least, strict=True):
        others = np.unique(listed[(listed >= 0) & (listed != row)]).astype(np.int64)
        hits += min(K, int((exact(row[None], others) >= bound).sum()))
    return hits / (K * len(rows))


def pipeline(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        ids, _, record = plan.nearest(vectors, K, Path(work), target=TARGET)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "recall": audited(vectors, sample, ids[sample]), "how": record["method"]}


def by_descent(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        probe, recall = plan.sample_recall(vectors, K, 0)
        codes = quantise(vectors)
        ids, _, reached = descent.descend(vectors, codes, K, Path(work), probe, recall, TARGET, 0)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "recall": audited(vectors, sample, ids[sample]), "how": f"{len(reached)} passes"}


def exact(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    begin = time.perf_counter()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    queries = vectors[:QUERIES]
    index.search(queries, K + 1)
    seconds = (time.perf_counter() - begin) * len(vectors) / len(queries)
    return {"seconds": seconds, "recall": audited(vectors, sample, index.search(vectors[sample], K + 1)[1]),
            "how": f"{len(queries)} queries, scaled"}  # fmt: skip


def hnsw(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    begin = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    build = time.perf_counter() - begin
    for effort in (40, 48, 64, 80, 96, 128, 192, 256):
        index.hnsw.efSearch = effort
        recall = audited(vectors, sample, index.search(vectors[sample], K + 1)[1])
        if recall >= TARGET:
            break
    begin = time.perf_counter()
    index.search(vectors, K + 1)
    seconds = build + time.perf_counter() - begin
    return {"seconds": seconds, "recall": recall, "how": f"efSearch {effort}, build {build:.0f} s"}


def inverted_lists(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    begin = time.perf_counter()
    lists = int(4 * len(vectors) ** 0.5)
    index = faiss.index_factory(vectors.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:: max(1, len(vectors) // (40 * lists))])
    index.add(vectors)
    build = time.perf_counter() - begin
    for probes in (32, 64, 128, 256, 512):
        index.nprobe = probes
        recall = audited(vectors, sample, index.search(vectors[sample], K + 1)[1])
        if recall >= TARGET:
            break
    queries = vectors[:QUERIES]
    begin = time.perf_counter()
    index.search(queries, K + 1)
    seconds = build + (time.perf_counter() - begin) * len(vectors) / len(queries)
    return {"seconds": seconds, "recall": recall, "how": f"IVF{lists}, nprobe {probes}, queries scaled"}


def pynndescent(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    from pynndescent import NNDescent

    NNDescent(vectors[:2000], metric="dot", n_neighbors=K + 1)  # compiles
    for neighbours in (K + 1, 40, 48, 64):
        begin = time.perf_counter()
        ids, _ = NNDescent(vectors, metric="dot", n_neighbors=neighbours).neighbor_graph
        seconds = time.perf_counter() - begin
        recall = audited(vectors, sample, ids[sample])
        if recall >= TARGET:
            break
    return {"seconds": seconds, "recall": recall, "how": f"n_neighbors {neighbours}"}


def autofaiss(vectors: Vectors, sample: npt.NDArray[np.int64]) -> dict[str, Any]:
    from autofaiss import build_index

    begin = time.perf_counter()
    index, _ = build_index(vectors, save_on_disk=False, metric_type="ip", max_index_query_time_ms=10, verbose=40)
    build = time.perf_counter() - begin
    queries = vectors[:QUERIES]
    begin = time.perf_counter()
    index.search(queries, K + 1)
    seconds = build + (time.perf_counter() - begin) * len(vectors) / len(queries)
    return {"seconds": seconds, "recall": audited(vectors, sample, index.search(vectors[sample], K + 1)[1]),
            "how": f"its own choice, build {build:.0f} s, queries scaled"}  # fmt: skip


METHODS: dict[str, Callable[[Vectors, npt.NDArray[np.int64]], dict[str, Any]]] = {
    "pipeline": pipeline,
    "exact": exact,
    "hnsw": hnsw,
    "inverted_lists": inverted_lists,
    "pynndescent": pynndescent,
    "autofaiss": autofaiss,
    "descent": by_descent,
}


def vectors_of(n: int) -> Vectors:
    """The first n of the shuffled captions' vectors; beyond their number, copies with noise of cosine about 0.9."""
    base, rng = embeddings(), np.random.default_rng(0)
    order = rng.permutation(len(base))
    if n <= len(base):
        return np.ascontiguousarray(base[order[:n]])
    rows = np.empty((n, base.shape[1]), np.float32)
    for start in range(0, n, len(base)):
        part = base[order[: min(len(base), n - start)]]
        noise = 0.48 / base.shape[1] ** 0.5 * rng.standard_normal(part.shape, np.float32) if start else 0
        rows[start : start + len(part)] = part + noise
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def one(method: str, n: int) -> None:
    """In a process of its own, so that its peak memory is its own."""
    vectors = vectors_of(n) if n else embeddings()
    sample = random_texts(len(vectors), 1000, 0, "benchmark")
    result = METHODS[method](vectors, sample)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result | {"method": method, "n": len(vectors), "peak_mb": round(peak)}))


def measure(method: str, n: int = 0) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "benchmarks.neighbours", "--one", method, "--size", str(n)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(f"{method:16}{'did not run (is it installed?)':>40}", flush=True)
        return None
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    figures = f"{row['n']:>10}{row['seconds']:>10.1f}{row['recall']:>9.4f}{row['peak_mb']:>9}"
    print(f"{row['method']:16}{figures}  {row['how']}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["compare", "growth"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS)[:-1])
    parser.add_argument("--one")
    parser.add_argument("--size", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one, arguments.size)
        return
    embeddings()
    print(f"{'method':16}{'vectors':>10}{'seconds':>10}{'recall':>9}{'peak MB':>9}")
    result: dict[str, Any] = {}
    if arguments.only != "growth":
        rows = {method: measure(method) for method in arguments.methods}
        ours = rows.get("pipeline")
        if ours is not None:
            result |= {"recall": round(ours["recall"], 5), "peak_mb": ours["peak_mb"]}
            for method, row in rows.items():
                if row is not None and method != "pipeline":
                    result[f"speedup_{method}"] = round(row["seconds"] / ours["seconds"], 3)
    if arguments.only != "compare":
        grown = [row for row in (measure("descent", n) for n in SIZES) if row is not None]
        slope, level = np.polyfit(np.log([r["n"] for r in grown]), np.log([r["seconds"] for r in grown]), 1)
        memory = np.polyfit([r["n"] for r in grown], [r["peak_mb"] for r in grown], 1)
        estimate = {"hours": float(np.exp(level) * 12e6**slope / 3600), "gb": float(np.polyval(memory, 12e6) / 1024)}
        print(f"descent grows as n^{slope:.2f}; 12 M texts: {estimate['hours']:.1f} h, {estimate['gb']:.0f} GB")
        result |= {"growth_exponent": round(float(slope), 3), "hours_12m": round(estimate["hours"], 2),
                   "gb_12m": round(estimate["gb"], 1)}  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
