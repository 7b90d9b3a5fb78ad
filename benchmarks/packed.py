"""Listed neighbours that a row meets in a batch of 1024: packed groups beside random order, and what packing costs.

    XCLR_TEST_DATA=... python -m benchmarks.packed [--captions N]

Every caption is a sample, copies included; its text's neighbours are the graph's (k = 32, found by
pipeline.search). `packed` draws whole groups of 32 at random, as training does with data.grouped = 1, `random`
draws samples. Beside them: groups of the first text's own nearest neighbours alone, the plain way. `seconds` is
pipeline.packing alone (groups and order); encoding and search are the graph's own and are not paid twice.
The embeddings are made once and kept (benchmarks/captions.py). Results: docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from benchmarks.captions import embeddings, read_captions
from pipeline import packing
from pipeline.search.neighbours import symmetric_lists
from pipeline.search.plan import nearest

Ints = npt.NDArray[Any]
BATCH, SIZE, K, BATCHES = 1024, 32, 32, 100


def edges(lists: tuple[Ints, Ints, Ints], texts: Ints, size: int) -> float:
    """Per row of batches made of whole groups: `size` texts in a row of `texts`."""
    rng = np.random.default_rng(0)
    groups = texts[: len(texts) // size * size].reshape(-1, size)
    chosen = (rng.choice(len(groups), min(BATCH // size, len(groups)), replace=False) for _ in range(BATCHES))
    return float(np.mean([packing.batch_edges(lists[0], lists[1], groups[rows].ravel()) for rows in chosen]))


def packed(lists: tuple[Ints, Ints, Ints], text_ids: Ints, growth: float) -> tuple[Ints, float]:
    """Texts in packed order, and the seconds it took."""
    counts = np.bincount(text_ids)
    begin = time.perf_counter()
    with mock.patch.object(packing, "GROWTH", growth):
        sequence = packing.neighbour_groups(*lists, counts, SIZE, 0)
        order = packing.in_groups(text_ids, sequence, SIZE, 0)
    return text_ids[order], time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, help="only so many, spread over all")
    wanted = parser.parse_args().captions
    captions, vectors = read_captions(), embeddings()
    wanted = wanted or len(captions)
    rows = np.unique(np.linspace(0, len(captions) - 1, wanted).astype(int))
    texts = list(dict.fromkeys(captions[row] for row in rows))
    number = {text: i for i, text in enumerate(texts)}
    text_ids = np.array([number[captions[row]] for row in rows])
    _, first = np.unique(text_ids, return_index=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        ids, near, _ = nearest(np.ascontiguousarray(vectors[rows[first]]), K, Path(work))
    lists = symmetric_lists(ids, near)
    search = time.perf_counter() - begin
    print(f"{len(rows):,} captions, {len(texts):,} different, {len(lists[1]) / len(texts):.1f} listed a text")
    plain = edges(lists, np.random.default_rng(1).permutation(text_ids), 1)
    print(f"{'order':28} {'edges a row':>12} {'ratio':>7} {'seconds':>8}")
    print(f"{'random':28} {plain:12.2f} {1:7.1f}")
    ways = {"packed, first text's list": 1e9, "packed, growth 2": 2.0, "packed": packing.GROWTH}
    for name, growth in ways.items():
        order, seconds = packed(lists, text_ids, growth)
        found = edges(lists, order, SIZE)
        print(f"{name:28} {found:12.2f} {found / plain:7.1f} {seconds:8.1f}")
    print(f"search for the same lists: {search:.1f} s")
    result = {"captions": len(rows), "edges_random": plain, "edges_packed": found, "ratio": found / plain}
    print(json.dumps(result | {"seconds": seconds, "search_seconds": search}))


if __name__ == "__main__":
    main()
