"""Do similarities of pictures follow the graph's? What X-CLR trains, looked at: the paper's figure 4, with numbers.

For pairs of pictures whose texts differ, G_ij, by the graph's lists and codes, is held against the cosine of what a
model makes of the two: of its features, and of its projections, which are what the loss compared. The figure is
Spearman's rank correlation over all pairs, the usual comparison of two similarity matrices (Kriegeskorte et al. 2008,
doi.org/10.3389/neuro.06.004.2008), since no encoder's cosines have the scale of another's.

Pairs share pictures and pictures share texts, so pairs are not independent: intervals are of the texts drawn anew,
by a jackknife that leaves out a twentieth of them at a time. Models are compared on the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from eval.benchmarks.bench import Ints, fingerprint
from eval.features import extract
from eval.models.model import Model
from eval.similarity.pictures import GraphPictures
from eval.similarity.rank import Correlation, Doubles, correlation, curve, parts_of, ranks
from shards.bars import bar
from shards.errors import UserError

__all__ = ["PLACES", "Compared", "Followed", "Place", "compare_models", "groups_of", "similarity_hash"]

Place = Literal["projections", "features"]
PLACES: tuple[Place, ...] = ("projections", "features")

ALIKE = 1e-9  # standard deviation of cosines: less is rounding
GROUPS, SIZE = 5, 5  # of texts that matrices show


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """How far one model's similarities follow the graph's."""

    name: str
    about: dict[str, object]
    """Model.about."""
    pairs: dict[Place, Correlation]
    """Over pairs of pictures of different texts."""
    texts: dict[Place, Correlation]
    """Over pairs of texts: the mean of their pictures' similarities. Empty where most texts have one picture."""
    curve: dict[Place, list[tuple[float, float]]]
    """(mean G, mean cosine) of the pairs of each bin; cosines in standard deviations above the mean of all pairs."""
    same: dict[Place, float]
    """The same of pairs of pictures of one text. Empty where there are none."""
    shown: dict[Place, Doubles]
    """Mean cosine of the pictures of two texts, of Compared.shown; NaN within a text of one picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    texts: Ints
    """[t] the texts of the pictures that all models could read."""
    shown: Ints
    """Texts of the matrices, group by group."""
    similarity: Doubles
    """G of those."""
    pictures: int
    pairs: int
    """Of different texts."""
    same: int
    """Pairs of one text."""
    most: float
    """The largest correlation that a model can have: below 1 where the graph calls pairs alike, which no model does."""
    models: list[Followed]


def compare_models(models: dict[str, Model], pictures: GraphPictures, features: Path) -> Compared:
    """All models on the same pairs: of pictures that every one could decode. Raises UserError."""
    found = {name: extract(model, pictures.images, features) for name, model in models.items()}
    good: Ints = np.flatnonzero(np.all([values.ok for values in found.values()], axis=0)).astype(np.int64)
    rows = good[np.argsort(pictures.text[good], kind="stable")]
    texts, inverse = np.unique(pictures.text[rows], return_inverse=True)
    if len(texts) < 3:
        raise UserError(f"{pictures.shards}: fewer than three texts have a picture that decodes")
    g = pictures.similarity[np.ix_(rows, rows)]
    judge = _Judge(g, inverse)
    if judge.most == 0:
        raise UserError(
            f"{pictures.graph_of}, graph {pictures.graph}, calls all pairs of different texts alike, so there is no "
            "order to follow: name another with --graph"
        )
    made = []
    with bar("pairs", len(models)) as advance:
        for name, model in models.items():
            values = {"features": found[name].rows(rows)}
            if model.projector is not None:
                values["projections"] = _projections(name, model.projector, values["features"])
            unit = {place: _unit(values[place]) for place in PLACES if place in values}
            made.append(judge.follow(name, model.about, {place: x @ x.T for place, x in unit.items()}))
            advance(1)
    return Compared(
        texts=texts,
        shown=texts[judge.shown],
        similarity=judge.between[np.ix_(judge.shown, judge.shown)],
        pictures=len(rows),
        pairs=int(judge.apart.sum()) // 2,
        same=int((judge.count * (judge.count - 1)).sum()) // 2,
        most=judge.most,
        models=made,
    )


def _projections(name: str, projector: torch.nn.Module, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    place = next(projector.parameters()).device
    with torch.inference_mode():
        made: npt.NDArray[np.float32] = projector.eval()(torch.from_numpy(features).to(place)).float().cpu().numpy()
    if not np.isfinite(made).all():
        raise UserError(f"{name} gives projections that are no numbers: its weights are damaged, or training diverged")
    return made


def _unit(x: npt.NDArray[np.float32]) -> Doubles:
    wide = x.astype(np.float64)
    unit: Doubles = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


class _Judge:
    """Holds models' cosines against the graph, whose ranks are found once. Pictures are sorted by their texts."""

    def __init__(self, g: Doubles, inverse: Ints) -> None:
        """g: [n, n] of pictures. inverse: [n] place of a picture's text among the t that there are, rising."""
        self.g, self.inverse = g, inverse
        self.first = np.flatnonzero(np.diff(inverse, prepend=-1))
        self.count = np.bincount(inverse)
        t = len(self.count)
        self.apart = inverse[:, None] != inverse
        self.others = ~np.eye(t, dtype=bool)
        self.between = g[np.ix_(self.first, self.first)]
        self.shown = groups_of(self.between)
        self.part = parts_of(t)
        self.ranked = ranks(g, self.apart)
        several = np.median(self.count) > 1
        self.ranked_texts = ranks(self.between, self.others) if several else None
        pairs = float(self.apart.sum()) / 2
        # Against the variance of ranks of which no two are equal: what a model reaches that breaks ties at random.
        spread = float((self.ranked**2).sum()) / 2 / pairs
        self.most = sqrt(12 * spread / (pairs**2 - 1)) if pairs > 1 else 0.0

    def follow(self, name: str, about: dict[str, object], cosines: dict[Place, Doubles]) -> Followed:
        followed = Followed(name=name, about=about, pairs={}, texts={}, curve={}, same={}, shown={})
        for place, cosine in cosines.items():
            values = cosine[self.apart]
            centre, spread = float(values.mean()), float(values.std())
            if spread < ALIKE:  # what is left is rounding, that of sums as well
                cosine, spread = np.zeros_like(cosine), 1.0
                centre = 0.0
            mean, within = self._between(cosine)
            followed.shown[place] = mean[np.ix_(self.shown, self.shown)]
            ranked = ranks(cosine, self.apart)
            followed.pairs[place] = correlation(self.ranked, ranked, self.apart, self.part[self.inverse])
            if self.ranked_texts is not None:
                ranked = ranks(mean, self.others)
                followed.texts[place] = correlation(self.ranked_texts, ranked, self.others, self.part)
            followed.curve[place] = curve(self.g[self.apart], (cosine[self.apart] - centre) / spread)
            if within is not None:
                followed.same[place] = (within - centre) / spread
        return followed

    def _between(self, cosine: Doubles) -> tuple[Doubles, float | None]:
        """[t, t] means over pairs of different pictures, NaN within a text of one; and the mean of all within texts."""
        sums = np.add.reduceat(np.add.reduceat(cosine, self.first, axis=0), self.first, axis=1)
        np.fill_diagonal(sums, np.diag(sums) - np.add.reduceat(np.diag(cosine), self.first))
        pairs = np.outer(self.count, self.count)
        np.fill_diagonal(pairs, self.count * (self.count - 1))
        within = float(np.trace(sums)) / int(np.trace(pairs)) if np.trace(pairs) else None
        with np.errstate(invalid="ignore"):
            means: Doubles = np.where(pairs > 0, sums, np.nan) / pairs
        return means, within


def groups_of(similarity: Doubles) -> Ints:
    """Texts to show, group by group: near ones together, groups unlike each other. All where there are few."""
    t = len(similarity)
    near = np.where(np.eye(t, dtype=bool), -np.inf, similarity)
    size = min(SIZE, t)
    tight = np.sort(near, axis=1)[:, ::-1][:, : max(1, size - 1)].mean(axis=1)
    free = np.ones(t, bool)
    reached = np.full(t, np.min(similarity))
    chosen: list[int] = []
    for _ in range(GROUPS):
        if not free.any():
            break
        seed = int(np.argmax(np.where(free, tight - reached, -np.inf)))
        free[seed] = False
        others = np.flatnonzero(free)
        group = [seed, *others[np.argsort(-near[seed, others], kind="stable")][: size - 1].tolist()]
        free[group] = False
        chosen += group
        reached = np.maximum(reached, similarity[group].max(axis=0))
    return np.array(chosen, np.int64)


def similarity_hash(models: dict[str, Model], pictures: GraphPictures) -> str:
    """Equal for equal models, pictures and graph."""
    graph = sha256(pictures.similarity.tobytes()).hexdigest()
    return fingerprint(
        [*(f"{name} {model.sha256}" for name, model in models.items()), pictures.images.fingerprint, graph]
    )
