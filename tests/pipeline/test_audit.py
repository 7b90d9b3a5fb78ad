"""The audit's numbers against the definitions written out, and on graphs that are wrong in a known way."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from pipeline.encode import codes
from pipeline.graph import audit
from pipeline.search.exact import dot_products, random_texts
from pipeline.search.neighbours import Lists, search_exact, symmetric_lists
from shards.graph import Graph

Vectors = npt.NDArray[np.float32]


def vectors_of(n: int, dim: int = 16, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32) + 0.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def graph_of(vectors: Vectors, lists: Lists) -> Graph:
    mean, deviation = audit.background(vectors, 0)
    code, scale = codes.encode(vectors, None)
    return Graph(
        meta={}, indptr=lists[0], neighbours=lists[1], similarities=lists[2], background_mean=mean,
        background_std=deviation, codes=code, code_scale=scale,
    )  # fmt: skip


def keep(graph: Graph, kept: npt.NDArray[np.bool_]) -> Graph:
    """The graph with some of its listed pairs left out."""
    rows = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    return dataclasses.replace(
        graph,
        indptr=np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(graph)))]),
        neighbours=graph.neighbours[kept],
        similarities=graph.similarities[kept],
    )


@pytest.mark.parametrize("rows", [7, 1 << 13])
def test_recall_counts_what_is_missing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ROWS", rows)
    vectors = vectors_of(100)
    ids, similarities = search_exact(vectors, 10)
    graph = graph_of(vectors, symmetric_lists(ids, similarities))
    exact = dot_products(vectors)
    assert audit.recall(graph, exact, 10, 0) == {"recall": 1.0, "k": 10, "sample": 100, "tie": 1e-6}
    first = np.zeros(len(graph.neighbours), bool)
    first[graph.indptr[:-1]] = True  # every text's nearest
    assert audit.recall(keep(graph, ~first), exact, 10, 0)["recall"] == pytest.approx(0.9)
    assert audit.recall(keep(graph, first), exact, 10, 0)["recall"] == pytest.approx(0.1)


def test_copies_do_not_fool_the_audit() -> None:
    """Twenty copies of a text: any ten of them are its ten nearest; one copy ten times over is not."""
    vectors = vectors_of(60)
    vectors[:20] = vectors[0]
    exact = dot_products(vectors)
    ids, similarities = search_exact(vectors, 10)
    rng = np.random.default_rng(1)
    for row in range(20):
        ids[row] = rng.choice([j for j in range(20) if j != row], 10, replace=False)
    indptr = np.arange(61) * 10
    near = similarities.astype(np.float16).ravel()
    assert audit.recall(graph_of(vectors, (indptr, ids.ravel(), near)), exact, 10, 0)["recall"] == 1
    repeated = ids.copy()
    repeated[:20] = (np.arange(20)[:, None] + 1) % 20
    assert audit.recall(graph_of(vectors, (indptr, repeated.ravel(), near)), exact, 10, 0)["recall"] == pytest.approx(
        (40 * 10 + 20) / 600
    )
    near_misses = ids.copy()
    near_misses[:20] = np.argsort(-(vectors[0] @ vectors.T)[20:], kind="stable")[:10] + 20
    assert audit.recall(graph_of(vectors, (indptr, near_misses.ravel(), near)), exact, 10, 0)[
        "recall"
    ] == pytest.approx(400 / 600)


def test_background_leaves_the_text_itself_out() -> None:
    vectors = vectors_of(50)
    mean, deviation = audit.background(vectors, 0)
    for row in range(50):
        others = np.delete(vectors.astype(np.float64) @ vectors[row], row)
        assert mean[row] == pytest.approx(others.mean(), abs=1e-6)
        assert deviation[row] == pytest.approx(others.std(), abs=1e-6)


def test_background_of_a_sample_is_near_that_of_all() -> None:
    vectors = vectors_of(3000)
    mean, deviation = audit.background(vectors, 0)
    exact = vectors @ vectors.T
    assert np.abs(mean - exact.mean(axis=1)).max() < 0.04  # deviation 0.25, 1024 texts: standard error 0.008
    assert np.abs(deviation - exact.std(axis=1)).max() < 0.04


def log_mean_weight(mean: float, deviation: float, tau: float) -> float:
    """log E[exp(G / tau)] of a G that is normal and at most 1, by the midpoint rule."""
    edges = np.linspace(mean - 12 * deviation, 1, 200_001)
    g = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-(((g - mean) / deviation) ** 2) / 2)
    return math.log(float((np.exp(g / tau) * density).sum() / density.sum()))


def test_fidelity_is_the_distance_of_the_targets_written_out() -> None:
    """Loops over the 2n views, as design and paper have it: self out, the other view of a text at similarity 1."""
    n, tau = 12, 0.1
    vectors = vectors_of(n)
    graph = graph_of(vectors, symmetric_lists(*search_exact(vectors, 2)))
    assert graph.codes is not None
    assert graph.code_scale is not None
    dense = vectors.astype(np.float64) @ vectors.T
    listed = {(i, int(j)): float(graph.similarities[p])
              for i in range(n) for p, j in enumerate(graph.neighbours) if graph.indptr[i] <= p < graph.indptr[i + 1]}  # fmt: skip  # noqa: E501

    def target(tail: str, view: int) -> list[float]:
        i, logits = view % n, []
        for other in range(2 * n):
            j = other % n
            if other == view:
                continue
            if i == j:
                logits.append(1 / tau)
            elif tail == "dense":
                logits.append(dense[i, j] / tau)
            elif (i, j) in listed and tail != "one_hot":
                logits.append(listed[i, j] / tau)
            elif tail == "code":
                dot = int(graph.codes[i].astype(int) @ graph.codes[j].astype(int))  # type: ignore[index]
                logits.append(float(graph.code_scale[i]) * float(graph.code_scale[j]) * dot / tau)  # type: ignore[index]
            elif tail == "background":
                logits.append(log_mean_weight(float(graph.background_mean[i]), float(graph.background_std[i]), tau))
            else:
                logits.append(-math.inf)
        total = sum(map(math.exp, logits))
        return [math.exp(logit) / total for logit in logits]

    found = audit.fidelity(graph, dot_products(vectors), 0)
    assert (found["batch"], found["tau_s"]) == (n, tau)
    for tail in ("code", "background", "none", "one_hot"):
        tv, kl = [], []
        for view in range(2 * n):
            p, q = target("dense", view), target(tail, view)
            tv.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2)
            kl.append(sum(a * math.log(a / b) if b else math.inf for a, b in zip(p, q, strict=True)))
        assert found[tail]["tv"] == pytest.approx(np.mean(tv), rel=1e-6)
        expected = float(np.mean(kl))
        assert found[tail]["kl"] == (None if math.isinf(expected) else pytest.approx(expected, rel=1e-5))


def test_histogram_counts_every_pair() -> None:
    vectors = vectors_of(30)
    graph = graph_of(vectors, symmetric_lists(*search_exact(vectors, 3)))
    found = audit.histogram(graph, dot_products(vectors), 0)
    pairs = (vectors.astype(np.float64) @ vectors.T)[np.triu_indices(30, 1)]
    edges = [found["low"] + i * (found["high"] - found["low"]) / 100 for i in range(101)]
    assert found["random"] == [int(((pairs >= a) & (pairs < b)).sum()) for a, b in pairwise(edges)]
    assert sum(found["listed"]) == len(graph.neighbours)


def test_random_texts_are_distinct_and_of_their_purpose() -> None:
    drawn = random_texts(1500, 1000, 0, "recall")
    assert len(set(drawn.tolist())) == 1000
    assert (np.diff(drawn) > 0).all()
    assert 0 <= drawn[0] < drawn[-1] < 1500
    assert drawn.tolist() != random_texts(1500, 1000, 0, "background").tolist()
    assert random_texts(5, 5, 0, "recall").tolist() == [0, 1, 2, 3, 4]


def test_what_is_drawn_is_drawn_by_the_seed() -> None:
    vectors = vectors_of(1100)
    graph = graph_of(vectors, symmetric_lists(*search_exact(vectors, 5)))
    exact = dot_products(vectors)
    first = np.arange(len(graph.neighbours)) < graph.indptr[550]
    half = keep(graph, first)  # so that it counts who is in the sample
    for measure in (
        lambda seed: [x.tolist() for x in audit.background(vectors, seed)],
        lambda seed: audit.recall(half, exact, 5, seed),
        lambda seed: audit.fidelity(graph, exact, seed),
        lambda seed: audit.histogram(graph, exact, seed),
    ):
        assert measure(1) == measure(1) != measure(2)


@pytest.mark.parametrize("dim", [4, 8, 16])
def test_projected_codes_keep_the_plain_dot_product(dim: int) -> None:
    """Vectors that lie in 4 of 16 dimensions, off centre: 4 uncentred components hold all of it."""
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.normal(size=(16, 4)))[0].T
    rows = ((rng.normal(size=(200, 4)) + 1) @ plane).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    code, scale = codes.encode(rows, codes.principal_basis(rows, dim))
    assert code.shape == (200, dim)
    coded = (code * scale[:, None]) @ (code * scale[:, None]).T
    assert np.abs(coded - rows @ rows.T).max() < 0.02
