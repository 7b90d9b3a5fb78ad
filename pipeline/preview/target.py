"""Where the target's mass lies at each tau_s, in one batch.

The target of a batch is taken as training takes it: two views of each sample, similarity 1 within a text, the listed
one where texts list each other, the code's (or the background's) elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.graph.audit import background_similarity, listed_pairs
from shards.graph import Graph

__all__ = ["Target", "batch_target", "block_of", "effective", "masses", "tail_pairs"]

Ints = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Means over the rows of a batch at one tau_s; the first four are shares of the target's mass."""

    tau_s: float
    view: float
    """On the sample's own second view."""
    same_text: float
    """On other samples of the same text."""
    listed: float
    rest: float
    effective: float
    """exp of the mean entropy: so many equal positives would be as spread out."""


def batch_target(graph: Graph, texts: Ints, temperatures: tuple[float, ...]) -> list[Target]:
    """Where the target's mass lies in a batch. texts: [batch] text id of each sample."""
    unique, inverse = np.unique(texts, return_inverse=True)
    values, known = listed_pairs(graph, unique)  # once, for all temperatures
    listed = known[np.ix_(inverse, inverse)]
    same = inverse[:, None] == inverse
    result = []
    for tau_s in temperatures:
        block = np.where(known, values, tail_pairs(graph, unique, tau_s))
        np.fill_diagonal(block, 1.0)
        mass = masses(block, inverse, tau_s)
        own = np.trace(mass) / len(texts)
        on_text, on_listed = (mass[where].sum() / len(texts) for where in (same, listed & ~same))
        result.append(
            Target(
                tau_s=tau_s,
                view=float(own),
                same_text=float(on_text - own),
                listed=float(on_listed),
                rest=float(1 - on_text - on_listed),
                effective=effective(mass),
            )
        )
    return result


def block_of(graph: Graph, texts: Ints, tau_s: float) -> Doubles:
    """[t, t] similarities of different texts, as training takes them."""
    values, known = listed_pairs(graph, texts)
    block: Doubles = np.where(known, values, tail_pairs(graph, texts, tau_s))
    np.fill_diagonal(block, 1.0)
    return block


def masses(block: Doubles, inverse: Ints, tau_s: float) -> Doubles:
    """[b, b] shares of a target's mass: both views of every other sample, and the one other view of its own.

    block: [t, t] similarities of texts. inverse: [b] place in it of each sample's text.
    """
    logits = block[np.ix_(inverse, inverse)] / tau_s
    views = 2 - np.eye(len(inverse))
    logits -= logits.max(axis=1, keepdims=True)
    mass: Doubles = views * np.exp(logits)
    mass /= mass.sum(axis=1, keepdims=True)
    return mass


def effective(mass: Doubles) -> float:
    """exp of the mean entropy over views: so many equal positives would be as spread out."""
    single = mass / (2 - np.eye(len(mass)))
    entropy = -(mass * np.log(np.maximum(single, np.finfo(np.float64).tiny))).sum(axis=1)
    return float(np.exp(entropy.mean()))


def tail_pairs(graph: Graph, texts: Ints, tau_s: float) -> Doubles:
    """[t, t] or [t, 1] similarities of pairs that are not listed."""
    if graph.codes is not None and graph.code_scale is not None:
        rows = graph.codes[texts].astype(np.float64) * graph.code_scale[texts, None]
        products: Doubles = rows @ rows.T
        return products
    return background_similarity(graph, texts, tau_s)[:, None]
