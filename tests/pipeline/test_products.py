"""Integer products by two ways: the same numbers, by the quicker one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pipeline.search.products
from pipeline.search.descent import descend
from pipeline.search.plan import sample_recall
from pipeline.search.products import EXACT, by_floats, by_integers, dot_products
from pipeline.search.tiles import quantise, search_rows

Codes = npt.NDArray[np.int8]
Way = Callable[[Codes, Codes, npt.NDArray[np.int32]], None]


@pytest.fixture(autouse=True)
def _chosen_anew() -> Iterator[None]:
    pipeline.search.products._quicker.cache_clear()
    yield
    pipeline.search.products._quicker.cache_clear()


def codes(n: int, dim: int, seed: int) -> Codes:
    """The largest and smallest numbers among them, whose sums are the first that float32 would round."""
    found = np.random.default_rng(seed).integers(-128, 128, (n, dim), dtype=np.int8)
    found[0], found[-1] = -128, 127
    return found


@pytest.mark.parametrize("way", [by_integers, by_floats])
@pytest.mark.parametrize("dim", [1, 384, EXACT, EXACT + 1, 2 * EXACT + 500])
def test_products_are_exact(way: Way, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.search.products, "COLUMNS", 50)
    rows, columns = codes(7, dim, 0), codes(120, dim, 1)
    out = np.full((7, 120), 99, np.int32)
    way(rows, columns, out)
    np.testing.assert_array_equal(out, rows.astype(np.int64) @ columns.T.astype(np.int64))


@pytest.mark.parametrize("slow", ["by_integers", "by_floats"])
def test_the_quicker_way_is_taken(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(rows: Codes, columns: Codes, out: npt.NDArray[np.int32]) -> None:
        time.sleep(0.05)

    monkeypatch.setattr(pipeline.search.products, "TRIAL", (8, 8, 8))
    monkeypatch.setattr(pipeline.search.products, slow, slowly)
    rows, out = codes(5, 16, 0), np.zeros((5, 5), np.int32)
    dot_products(rows, rows, out)
    np.testing.assert_array_equal(out, rows.astype(np.int32) @ rows.T.astype(np.int32))


@pytest.mark.usefixtures("two_threads")
def test_searches_find_the_same_by_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(1200, 48)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for way in (by_integers, by_floats):
        monkeypatch.setattr(pipeline.search.products, "_quicker", lambda way=way: way)
        work = tmp_path / way.__name__
        work.mkdir()
        ids, near = search_rows(vectors, quantise(vectors), np.arange(1200), 10, 8)
        more, also, _ = descend(vectors, quantise(vectors), 10, work, *sample_recall(vectors, 10, 0), 0.9, seed=0)
        found.append((ids, near, more, also))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
