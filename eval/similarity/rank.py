"""Rank correlation of two similarity matrices, with an interval that knows what pairs have in common."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from eval.benchmarks.bench import Ints

__all__ = ["SEED", "Correlation", "Doubles", "correlation", "curve", "difference", "parts_of", "ranks"]

Doubles = npt.NDArray[np.float64]
SEED = 0  # of the choice of pictures, and of the parts of the jackknife
PARTS = 20
FEWEST = 10  # texts, for an interval: of four it was five times the deviation (simulated, 2026-11)
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 100)  # percent of pairs: the curve's bins
MANY = 0.001  # of the pairs: so many of the largest similarity are a bin of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    value: float
    """NaN where a model makes the same of all pictures."""
    parts: Doubles
    """[parts] the same without each part of the texts; empty where there are too few for an interval."""

    @property
    def reach(self) -> float | None:
        """Half of the 95 % interval."""
        return _reach(self.parts)


def parts_of(texts: int) -> Ints:
    """[texts] which part of the jackknife each text belongs to; one part alone where there are too few."""
    if texts < FEWEST:
        return np.zeros(texts, np.int64)
    return np.random.default_rng(SEED).permutation(texts) % PARTS


def ranks(values: Doubles, use: npt.NDArray[np.bool_]) -> Doubles:
    """Ranks among the pairs of `use`, less their mean; 0 elsewhere. Both symmetric, [n, n]; `use` has no diagonal."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # slow to import

    upper = np.triu(use)
    found = rankdata(values[upper])
    ranked = np.zeros_like(values)
    ranked[upper] = found - found.mean()
    both: Doubles = ranked + ranked.T
    return both


def correlation(one: Doubles, other: Doubles, use: npt.NDArray[np.bool_], part: Ints) -> Correlation:
    """Spearman's of two `ranks` over the pairs of `use`, and the same without the rows and columns of each part.

    part: [n] of each row, 0, 1, ...; with one part alone there is no interval. Ranks stay those among all pairs, so
    that a part costs a few sums.
    """
    parts = int(part.max()) + 1
    member = np.zeros((len(part), parts))
    member[np.arange(len(part)), part] = 1
    # Sums over the pairs of two parts each, [parts, parts]; all pairs count twice, once as (i, j) and once as (j, i).
    products = (use.astype(np.float64), one, other, one * one, other * other, one * other)
    sums = np.stack([member.T @ product @ member for product in products])
    value = _pearson(sums.sum(axis=(1, 2)))
    if parts == 1:
        return Correlation(value=value, parts=np.zeros(0))
    each = np.arange(parts)
    left = sums.sum(axis=(1, 2))[:, None] - sums.sum(axis=1) - sums.sum(axis=2) + sums[:, each, each]
    return Correlation(value=value, parts=np.array([_pearson(rest) for rest in left.T]))


def difference(one: Correlation, other: Correlation) -> tuple[float, float | None]:
    """one - other, and half of its 95 % interval: both of the same pairs."""
    return one.value - other.value, _reach(one.parts - other.parts)


def _pearson(sums: Doubles) -> float:
    """Of sums of 1, x, y, x^2, y^2, x y. NaN without any spread."""
    n, x, y, xx, yy, xy = (float(value) for value in sums)
    if n == 0:
        return float("nan")
    spread = (xx - x * x / n) * (yy - y * y / n)
    return (xy - x * y / n) / sqrt(spread) if spread > 0 else float("nan")


def _reach(parts: Doubles) -> float | None:
    """Of the jackknife: t times the standard error."""
    from scipy.stats import t as student

    count = len(parts)
    if not count or not np.isfinite(parts).all():
        return None
    error = sqrt((count - 1) / count * float(((parts - parts.mean()) ** 2).sum()))
    return float(student.ppf(0.975, count - 1)) * error


def curve(g: Doubles, cosine: Doubles) -> list[tuple[float, float]]:
    """Means of both in bins of G that hold SHARES of the pairs; of few different values each is a bin."""
    edges = np.unique(g)
    last = len(edges) - 1
    if len(edges) > len(SHARES):
        edges = np.unique(np.percentile(g, SHARES))
        last = len(edges) - (1 if (g == edges[-1]).mean() > MANY else 2)
    which = np.clip(np.searchsorted(edges, g, side="right") - 1, 0, last)
    points = []
    for number in np.unique(which):
        here = which == number
        points.append((float(g[here].mean()), float(cosine[here].mean())))
    return points
