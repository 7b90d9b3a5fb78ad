"""Search and lists on vectors made to be awkward: copies, ties, fewer texts than k; blocks of every size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.search.neighbours
from pipeline.search.neighbours import pair_similarities, rank, search_exact, symmetric_lists

Vectors = npt.NDArray[np.float32]


def unit(rng: np.random.Generator, n: int, dim: int = 12) -> Vectors:
    rows = rng.normal(size=(n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def grid(n: int) -> Vectors:
    """Unit vectors with dot products in sixteenths: float32 is exact, so ties are ties."""
    rng = np.random.default_rng(n)
    return (rng.choice([-0.25, 0.25], (n, 16))).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), k=st.integers(1, 70), copies=st.integers(1, 20))
def test_exact_search_finds_the_nearest_with_ties_by_id(n: int, k: int, copies: int) -> None:
    vectors = grid(n)
    vectors[: min(copies, n)] = vectors[0]
    ids, similarities = search_exact(vectors, k)
    products = vectors.astype(np.float64) @ vectors.T
    for row in range(n):
        others = sorted((-products[row, j], j) for j in range(n) if j != row)[:k]
        assert [-value for value, _ in others] == similarities[row].tolist()
        assert len(set(ids[row].tolist()) - {row}) == min(k, n - 1)
        # Beyond the margin FAISS chooses among equals; up to it the smaller id wins.
        if n <= k + pipeline.search.neighbours.MARGIN:
            assert [j for _, j in others] == ids[row].tolist()


def test_rank_drops_itself_and_holes_and_recomputes() -> None:
    vectors = unit(np.random.default_rng(0), 6)
    rows = np.array([2, 5])
    candidates = np.array([[2, -1, 0, 4], [1, 3, -1, -1]])
    ids, similarities = rank(vectors, rows, candidates, 3)
    products = vectors @ vectors.T
    best = sorted([0, 4], key=lambda j: -products[2, j])
    assert ids.tolist() == [[*best, -1], [*sorted([1, 3], key=lambda j: -products[5, j]), -1]]
    np.testing.assert_allclose(similarities[0, :2], products[2, best], rtol=1e-6)
    assert np.isneginf(similarities[:, 2]).all()
    np.testing.assert_allclose(
        pair_similarities(vectors, rows, candidates)[1, :2], products[5, [1, 3]], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("pairs", [1, 64, 1 << 20])
def test_symmetric_lists_are_the_union(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in blocks of one row, of a few and in one block."""
    monkeypatch.setattr(pipeline.search.neighbours, "PAIRS", pairs)
    vectors = grid(40)
    ids, similarities = search_exact(vectors, 5)
    ids[7, 3:], similarities[7, 3:] = -1, -np.inf  # a search that found too few
    indptr, neighbours, values = symmetric_lists(ids, similarities)
    directed = {(i, int(j)) for i in range(40) for j in ids[i] if j >= 0}
    found = [(i, int(j)) for i in range(40) for j in neighbours[indptr[i] : indptr[i + 1]]]
    assert len(found) == len(set(found))
    assert set(found) == directed | {(j, i) for i, j in directed}
    exact = vectors @ vectors.T
    for row in range(40):
        span = slice(indptr[row], indptr[row + 1])
        assert values[span].tolist() == exact[row, neighbours[span]].tolist()
        assert sorted(zip(-values[span], neighbours[span], strict=True)) == [*zip(-values[span], neighbours[span], strict=True)]  # fmt: skip  # noqa: E501
