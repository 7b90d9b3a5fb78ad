"""What a graph is worth, measured when it is made: recall, background, histogram, distance from the dense target.

All of it is computed here from the embeddings, by other code than the search and the trainer use, so that it can
contradict them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.search.exact import ROWS, TIE, Doubles, Similarity, largest_similarities, random_texts
from shards.graph import Graph, flat_places

__all__ = [
    "BATCH",
    "TAU_S",
    "as_another",
    "background",
    "background_similarity",
    "fidelity",
    "histogram",
    "listed_pairs",
    "recall",
]

Ints = npt.NDArray[Any]
Vectors = npt.NDArray[np.float32]

SAMPLE = 1000  # texts whose lists are audited: recall's standard error is then below 0.001 at 0.99 and k = 32
RANDOM = 1024  # texts that stand for "random texts" in the background
BATCH = 1024  # texts of the random batch that fidelity is measured on
TAU_S = 0.1  # the paper's temperature of the targets
SAME = 1 - 2.0**-11  # the half-precision number below 1
BINS = 100  # of the histogram, over -1..1


def recall(graph: Graph, similarity: Similarity, k: int, seed: int, least: float = -np.inf) -> dict[str, Any]:
    """Share of a sample's true k nearest texts that its lists hold, against brute force in float64.

    Tie-aware: with texts as near as the k-th nearest, any of them counts, each once and the text itself never, so
    copies neither hide a miss nor make one up. Every text is audited where there are no more than SAMPLE. Pairs of
    similarity `least` or lower need not be listed.
    """
    n = len(graph)
    k = min(k, n - 1)
    sample = random_texts(n, SAMPLE, seed, "recall")
    best = largest_similarities(similarity, sample, n, k)
    hits = wanted = 0
    for row, nearest in zip(sample, best, strict=True):
        count = int((nearest > least).sum())
        listed = np.unique(graph.neighbours[graph.indptr[row] : graph.indptr[row + 1]]).astype(np.int64)
        bound = max(nearest.min(initial=np.inf), least) - TIE
        hits += min(count, int((similarity(row[None], listed[listed != row]) >= bound).sum()))
        wanted += count
    return {"recall": hits / wanted if wanted else 1.0, "k": k, "sample": len(sample), "tie": TIE}


def background(vectors: Vectors, seed: int) -> tuple[Vectors, Vectors]:
    """Mean and deviation [n] of each text's similarity to RANDOM random texts, itself left out."""
    n = len(vectors)
    sample = random_texts(n, RANDOM, seed, "background")
    others = vectors[sample].T
    mean, deviation = np.zeros(n, np.float32), np.zeros(n, np.float32)
    if n == 1:
        return mean, deviation
    for start in range(0, n, ROWS):
        rows = np.arange(start, min(start + ROWS, n))
        similarities = (vectors[rows] @ others).astype(np.float64)
        counted = rows[:, None] != sample
        count = counted.sum(axis=1)
        centre = (similarities * counted).sum(axis=1) / count
        spread = ((similarities - centre[:, None]) ** 2 * counted).sum(axis=1) / count
        mean[rows], deviation[rows] = centre, np.sqrt(spread)
    return mean, deviation


def as_another(graph: Graph) -> int:
    """Texts whose nearest other text is as near as they are themselves, in half precision."""
    listing = np.flatnonzero(np.diff(graph.indptr))
    return int((graph.similarities[graph.indptr[listing]] >= SAME).sum())  # each list begins with the nearest


def histogram(graph: Graph, similarity: Similarity, seed: int) -> dict[str, Any]:
    """Counts over BINS equal bins of -1..1: pairs of RANDOM random texts, and all listed pairs."""
    edges = np.linspace(-1, 1, BINS + 1)
    sample = random_texts(len(graph), RANDOM, seed, "histogram")
    pairs = similarity(sample, sample)[np.triu_indices(len(sample), 1)]
    counts = [np.histogram(np.clip(values, -1, 1), edges)[0] for values in (pairs, graph.similarities)]
    return {"low": -1.0, "high": 1.0, "random": counts[0].tolist(), "listed": counts[1].tolist()}


def fidelity(graph: Graph, similarity: Similarity, seed: int) -> dict[str, Any]:
    """Distance of each tail's target from the dense one, in a random batch of BATCH texts with two views each.

    A view's target is the softmax over the other views: its own text's second view at similarity 1, every other text
    twice. kl is KL(dense || target), tv the total variation, averaged over rows, natural logarithm. Tails: `code`
    (listed, else the code's similarity), `background` (listed, else `background_similarity` of the row), `none`
    (listed only; KL is infinite, so None) and `one_hot` (SimCLR's target).
    """
    batch = random_texts(len(graph), BATCH, seed, "fidelity")
    listed, known = listed_pairs(graph, batch)
    dense = _target(similarity(batch, batch))
    tails = {
        "background": np.broadcast_to(background_similarity(graph, batch, TAU_S)[:, None], listed.shape),
        "none": np.full(listed.shape, -np.inf),
    }
    if graph.codes is not None and graph.code_scale is not None:
        rows = graph.codes[batch] * graph.code_scale[batch, None].astype(np.float64)
        tails["code"] = rows @ rows.T
    result: dict[str, Any] = {"batch": len(batch), "tau_s": TAU_S}
    for name, tail in tails.items():
        result[name] = _distance(dense, _target(np.where(known, listed, tail)))
    return result | {"one_hot": _distance(dense, _target(np.full(listed.shape, -np.inf)))}


def background_similarity(graph: Graph, texts: npt.NDArray[np.int64], tau_s: float) -> Doubles:
    """The similarity [t] that stands for each text's unlisted pairs, as training takes it (trainer/block.py).

    tau_s log E[exp(G / tau_s)] of a G that is normal with the text's mean and deviation and cut off at 1, where cosines
    end; tau_s = inf: the mean.
    """
    from scipy.special import log_ndtr  # type: ignore[import-untyped]  # slow to import

    mean: Doubles
    mean, deviation = (x[texts].astype(np.float64) for x in (graph.background_mean, graph.background_std))
    if np.isinf(tau_s):
        return mean
    deviation = np.maximum(deviation, 1e-6)
    end = (1 - mean) / deviation
    cut = log_ndtr(end - deviation / tau_s) - log_ndtr(end)
    similarity: Doubles = mean + deviation**2 / (2 * tau_s) + tau_s * cut
    return similarity


def _target(similarities: Doubles) -> Doubles:
    """[b, b] probabilities: on the diagonal the second view of the same text, elsewhere both views of another."""
    logits = similarities / TAU_S + np.log(2)
    np.fill_diagonal(logits, 1 / TAU_S)
    logits -= logits.max(axis=1, keepdims=True)
    weights: Doubles = np.exp(logits)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _distance(dense: Doubles, target: Doubles) -> dict[str, float | None]:
    tv = float(np.abs(dense - target).sum(axis=1).mean() / 2)
    if (target == 0).any():
        return {"kl": None, "tv": tv}
    return {"kl": max(0.0, float((dense * np.log(dense / target)).sum(axis=1).mean())), "tv": tv}


def listed_pairs(graph: Graph, texts: Ints) -> tuple[Doubles, npt.NDArray[np.bool_]]:
    """Listed similarities among different texts [t, t], and where there are any."""
    place = np.full(len(graph), -1)
    place[texts] = np.arange(len(texts))
    flat = flat_places(graph.indptr, texts)
    rows, columns = np.repeat(np.arange(len(texts)), np.diff(graph.indptr)[texts]), place[graph.neighbours[flat]]
    inside = columns >= 0
    values, known = np.zeros((len(texts), len(texts))), np.zeros((len(texts), len(texts)), np.bool_)
    values[rows[inside], columns[inside]] = graph.similarities[flat[inside]]
    known[rows[inside], columns[inside]] = True
    return values, known
