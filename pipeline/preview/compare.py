"""Two graphs of the same texts: what they have in common, and at which tau_s their targets are as spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.preview.target import block_of, effective, masses
from shards.bars import bar
from shards.graph import Graph

__all__ = ["STRIPS", "Comparison", "Match", "comparison", "most_unlike"]

Ints = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]
NEAREST = (1, 4, 16, 64)
RANKED = 512  # texts whose pairs are ranked
LOOKED_AT = 2000  # texts among which those are sought whose neighbours differ most
STRIPS = 6
TEMPERATURES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
GRID = np.geomspace(0.002, 2.0, 60)
"""tau_s of the other graph that are looked at; what lies between is interpolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A tau_s of the one graph, and that of the other whose target is as spread out."""

    tau_s: float
    effective: float
    other: float
    end: str
    """`<=` or `>=` where `other` is the end of what was looked at, and its target is not quite as spread out; `any`
    where that is as spread out at every tau_s."""
    distance: float
    """Total variation of the two targets, mean over the rows of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    shared: Sequence[tuple[int, float, float]]
    """(k, share of the k nearest that both graphs name, what chance would give)."""
    correlation: float | None
    """Spearman's, over random pairs; None where a graph does not know them, or calls all alike."""
    matches: Sequence[Match]
    batch: int


def comparison(one: Graph, other: Graph, texts: Ints) -> Comparison:
    """texts: [batch] text id of each sample of a batch."""
    unique, inverse = np.unique(texts, return_inverse=True)
    return Comparison(
        shared=_shared(one, other),
        correlation=_correlation(one, other, np.random.default_rng(0).permutation(unique)[:RANKED]),
        matches=_matches(one, other, unique, inverse),
        batch=len(texts),
    )


def most_unlike(one: Graph, other: Graph, texts: Ints) -> Ints:
    """Those of `texts`, of which all have neighbours in both graphs, whose nearest have least in common; none that
    have all. Of texts with fewer neighbours than most one cannot say."""
    held = _held(one, other)
    size = int(min(16, np.median(held[texts]))) if len(texts) else 0
    looked = texts[held[texts] >= size][:LOOKED_AT]
    common = np.array([_common(one, other, int(text), size) for text in looked])
    order = np.argsort(common, kind="stable")[:STRIPS]
    return looked[order[common[order] < 1]]


def _held(one: Graph, other: Graph) -> Ints:
    """[texts] neighbours that both graphs name of each, at least."""
    return np.minimum(np.diff(one.indptr), np.diff(other.indptr))


def _common(one: Graph, other: Graph, text: int, k: int) -> float:
    """Share of a text's k nearest that both name."""
    mine, theirs = (set(g.neighbours[g.indptr[text] : g.indptr[text] + k].tolist()) for g in (one, other))
    return len(mine & theirs) / k


def _shared(one: Graph, other: Graph) -> list[tuple[int, float, float]]:
    """Of each k, as far as half of the texts have so many neighbours in both."""
    held = _held(one, other)
    mixed = np.random.default_rng(0).permutation(len(held))
    found = []
    for k in NEAREST:
        looked = mixed[held[mixed] >= k][:LOOKED_AT]
        if k <= np.median(held):
            share = float(np.mean([_common(one, other, int(text), k) for text in looked]))
            found.append((k, share, k / (len(one) - 1)))
    return found


def _correlation(one: Graph, other: Graph, texts: Ints) -> float | None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # slow to import

    pairs = np.triu_indices(len(texts), 1)
    if any(graph.codes is None and not graph.meta.get("complete") for graph in (one, other)) or len(pairs[0]) < 2:
        return None
    values = [block_of(graph, texts, 1.0)[pairs] for graph in (one, other)]
    if any(np.ptp(x) == 0 for x in values):  # all pairs alike: there is no order
        return None
    return float(spearmanr(*values).statistic)


def _matches(one: Graph, other: Graph, unique: Ints, inverse: Ints) -> list[Match]:
    def target(graph: Graph, tau_s: float) -> Doubles:
        advance(1)
        return masses(block_of(graph, unique, tau_s), inverse, tau_s)

    found = []
    with bar("comparing targets", len(GRID) + 2 * len(TEMPERATURES)) as advance:
        spread = [effective(target(other, tau_s)) for tau_s in GRID]
        known = np.maximum.accumulate(spread)  # entropy rises with temperature; rounding may not
        for tau_s in TEMPERATURES:
            mine = target(one, tau_s)
            count = effective(mine)
            matched = float(np.exp(np.interp(np.log(count), np.log(known), np.log(GRID))))
            distance = float(np.abs(mine - target(other, matched)).sum(axis=1).mean() / 2)
            end = "any" if known[0] == known[-1] else "<=" if count <= known[0] else ">=" if count >= known[-1] else ""
            found.append(Match(tau_s=tau_s, effective=count, other=matched, end=end, distance=distance))
    return found
