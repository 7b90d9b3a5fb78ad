"""Do similarities of pictures follow the graph's? What X-CLR trains, looked at: the paper's figure 4, with numbers.

For pairs of pictures whose texts differ, G_ij, as training reads it, is held against the cosine of what a model makes
of the two: of its features, and of its projections, which are what the loss compared. The figure is Spearman's rank
correlation over all pairs, the usual comparison of two similarity matrices (Kriegeskorte et al. 2008,
doi.org/10.3389/neuro.06.004.2008), since no encoder's cosines have the scale of another's.

Pairs share pictures and pictures share texts, so pairs are not independent: intervals are of the texts drawn anew,
by a jackknife that leaves out a twentieth of them at a time. Models are compared on the same pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from eval.benchmarks.bench import ImageSet, Ints, fingerprint
from eval.features import extract
from eval.models.model import Model
from shards.errors import UserError
from shards.graph import Graph
from shards.reader import Shards, is_finished, training_folder
from trainer.block import SimilarityBlock
from trainer.table import TextTable

__all__ = [
    "MOST",
    "PLACES",
    "Compared",
    "Correlation",
    "Doubles",
    "Followed",
    "Pictures",
    "Place",
    "as_table",
    "compare_models",
    "correlation",
    "difference",
    "open_pictures",
    "ranks",
]

Place = Literal["projections", "features"]
PLACES: tuple[Place, ...] = ("projections", "features")

Doubles = npt.NDArray[np.float64]
MOST = 5000  # pictures: their pairs take 3 GB
SEED = 0  # of the choice of pictures, and of the parts of the jackknife
PARTS = 20
FEWEST = 4  # texts, for an interval
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 100)  # percent of pairs: the curve's bins
MEAN = 1e6  # tau_s at which a background is its mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Some pictures of a folder of shards, and what a graph says of them."""

    images: ImageSet
    shards: Path
    split: str
    graph: str
    graph_of: Path
    """Shards that the graph lies in: these, or those that these are the test split of."""
    text: Ints
    """[n] text of each, as a text id of `graph_of`."""
    captions: list[str]
    """By text id."""
    similarity: Doubles
    """[n, n] G; 1 within a text."""
    unknown: int
    """Pictures that were drawn and left out: no text of the graph is theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correlation:
    value: float
    parts: Doubles
    """[parts] the same without each part of the texts; empty where there are too few for an interval."""

    @property
    def reach(self) -> float | None:
        """Half of the 95 % interval."""
        return _reach(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """How far one model's similarities follow the graph's."""

    name: str
    pairs: dict[Place, Correlation]
    """Over pairs of pictures of different texts."""
    texts: dict[Place, Correlation]
    """Over pairs of texts: the mean of their pictures' similarities. Empty where most texts have one picture."""
    curve: dict[Place, list[tuple[float, float]]]
    """(mean G, mean cosine) of the pairs of each bin; cosines in standard deviations above the mean of all pairs."""
    same: dict[Place, float]
    """The same of pairs of pictures of one text. Empty where there are none."""
    between: dict[Place, Doubles]
    """[t, t] mean cosine of the pictures of two texts, in the order of Compared.texts; NaN within a text of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    texts: Ints
    """[t] the texts of the pictures that all models could read."""
    similarity: Doubles
    """[t, t] of them."""
    pictures: int
    pairs: int
    """Of different texts."""
    models: list[Followed]


def open_pictures(root: Path, graph: str | None, count: int) -> Pictures:
    """`count` random samples of finished shards. Raises UserError, also where their texts are in no graph."""
    if not is_finished(root):
        raise UserError(
            f"{root} has no manifest.json, so its shards are not finished, or none: give --data a folder of shards"
        )
    shards = Shards.open(root)
    source, translated = _graph_source(shards)
    name = source.graph_name(graph)
    found = source.graph(name)
    captions = source.texts()
    drawn: Ints = np.sort(np.random.default_rng(SEED).permutation(len(shards))[:count]).astype(np.int64)
    text = shards.index.text_id[drawn].astype(np.int64)
    if translated:
        place = {caption: i for i, caption in enumerate(captions)}
        own = shards.texts()
        text = np.array([place.get(own[i], -1) for i in text.tolist()], np.int64)
    rows, text = drawn[text >= 0], text[text >= 0]
    if len(np.unique(text)) < 3:
        known = f"of {len(drawn):,} pictures of {root} that were drawn only {len(rows):,} have a text of {source.root}"
        raise UserError(
            f"{known}: make a graph of their own texts with `xclr-shards graph {root}`"
            if translated
            else f"{root} has fewer than three texts among {len(drawn):,} pictures: there are no pairs to rank"
        )
    files = shards.manifest.files
    paths = [path for shard in shards.manifest.shards for path in (shard.tar, f"index/{shard.name}.parquet")]
    images = ImageSet(
        name=f"{len(rows):,} pictures of {root.name or root}",
        keys=shards.index.key.take(rows).to_pylist(),
        read=lambda i: shards.image(int(rows[i])),
        fingerprint=fingerprint(["some", str(rows.tolist()), *(files[path].sha256 for path in paths)]),
    )
    return Pictures(
        images=images,
        shards=root,
        split=shards.manifest.split,
        graph=name,
        graph_of=source.root,
        text=text,
        captions=captions,
        similarity=_similarities(found, text),
        unknown=len(drawn) - len(rows),
    )


def _graph_source(shards: Shards) -> tuple[Shards, bool]:
    """Whose graph is looked into, and whether texts are to be found there by what they say."""
    train = training_folder(shards.root)
    if shards.graph_names() or train == shards.root or not is_finished(train):
        return shards, False
    return Shards.open(train), True


def _similarities(graph: Graph, text: Ints) -> Doubles:
    """[n, n] as training reads them; where nothing is known of pairs but their text's background, its mean."""
    table = TextTable.from_graph(graph, torch.device("cpu"), "background" if graph.codes is None else "code")
    block = SimilarityBlock.of_texts(torch.from_numpy(text), table, tau_s=MEAN)
    g: Doubles = block.similarities(0, len(text)).double().numpy()
    return (g + g.T) / 2  # of backgrounds, each text has its own


def compare_models(models: dict[str, Model], pictures: Pictures, features: Path) -> Compared:
    """All models on the same pairs: of pictures that every one could decode. Raises UserError."""
    found = {name: extract(model, pictures.images, features) for name, model in models.items()}
    rows: Ints = np.flatnonzero(np.all([values.ok for values in found.values()], axis=0)).astype(np.int64)
    text, g = pictures.text[rows], pictures.similarity[np.ix_(rows, rows)]
    texts, inverse = np.unique(text, return_inverse=True)
    if len(texts) < 3:
        raise UserError(f"{pictures.shards}: fewer than three texts have a picture that decodes")
    first = np.unique(text, return_index=True)[1]
    apart = inverse[:, None] != inverse
    if np.ptp(g[apart]) == 0:
        raise UserError(
            f"{pictures.graph_of}, graph {pictures.graph}, calls all pairs of different texts alike, so there is no "
            "order to follow: name another with --graph"
        )
    between = g[np.ix_(first, first)]
    judge = _Judge(g, between, inverse)
    made = []
    for name, model in models.items():
        values = {"features": found[name].rows(rows)}
        if model.projector is not None:
            values["projections"] = _projections(model.projector, values["features"])
        unit = {place: _unit(values[place]) for place in PLACES if place in values}
        made.append(judge.follow(name, {place: x @ x.T for place, x in unit.items()}))
    pairs = int(np.triu(apart).sum())
    return Compared(texts=texts, similarity=between, pictures=len(rows), pairs=pairs, models=made)


def _projections(projector: torch.nn.Module, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    place = next(projector.parameters()).device
    with torch.inference_mode():
        made: npt.NDArray[np.float32] = projector.eval()(torch.from_numpy(features).to(place)).float().cpu().numpy()
    return made


def _unit(x: npt.NDArray[np.float32]) -> Doubles:
    wide = x.astype(np.float64)
    unit: Doubles = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


class _Judge:
    """Holds models' cosines against the graph, whose ranks are found once."""

    def __init__(self, g: Doubles, between: Doubles, inverse: Ints) -> None:
        """g: [n, n] of pictures. between: [t, t] of texts. inverse: [n] place of a picture's text among those."""
        n, t = len(g), len(between)
        self.g, self.inverse = g, inverse
        self.apart = inverse[:, None] != inverse
        self.within = ~self.apart & ~np.eye(n, dtype=bool)
        self.others = ~np.eye(t, dtype=bool)
        self.member = np.zeros((n, t))
        self.member[np.arange(n), inverse] = 1
        self.count = self.member.sum(axis=0)
        self.part = np.random.default_rng(SEED).permutation(t) % min(PARTS, t)
        self.ranked = ranks(g, self.apart)
        several = np.median(self.count) > 1
        self.ranked_texts = ranks(between, self.others) if several else None

    def follow(self, name: str, cosines: dict[Place, Doubles]) -> Followed:
        followed = Followed(name=name, pairs={}, texts={}, curve={}, same={}, between={})
        for place, cosine in cosines.items():
            mean = self._between(cosine)
            followed.between[place] = mean
            part = self.part[self.inverse]
            followed.pairs[place] = correlation(self.ranked, ranks(cosine, self.apart), self.apart, part)
            if self.ranked_texts is not None:
                ranked = ranks(mean, self.others)
                followed.texts[place] = correlation(self.ranked_texts, ranked, self.others, self.part)
            values = cosine[self.apart]
            centre, spread = values.mean(), values.std() or 1.0
            followed.curve[place] = _curve(self.g[self.apart], (values - centre) / spread)
            if self.within.any():
                followed.same[place] = float((cosine[self.within].mean() - centre) / spread)
        return followed

    def _between(self, cosine: Doubles) -> Doubles:
        """[t, t] means over the pairs of different pictures."""
        own = np.diag(np.diag(cosine))
        pairs = np.outer(self.count, self.count) - np.diag(self.count)
        with np.errstate(invalid="ignore"):
            means: Doubles = (self.member.T @ (cosine - own) @ self.member) / pairs  # NaN within a text of one picture
        return means


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

    part: [n] of each row, 0, 1, ... Ranks stay those among all pairs, so that a part costs a few sums.
    """
    parts = int(part.max()) + 1
    member = np.zeros((len(part), parts))
    member[np.arange(len(part)), part] = 1
    # Sums over the pairs of two parts each, [parts, parts]; all pairs count twice, once as (i, j) and once as (j, i).
    products = (use.astype(np.float64), one, other, one * one, other * other, one * other)
    sums = np.stack([member.T @ product @ member for product in products])
    value = _pearson(sums.sum(axis=(1, 2)))
    if parts < FEWEST:
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


def _curve(g: Doubles, cosine: Doubles) -> list[tuple[float, float]]:
    """Means of both in bins of G that hold SHARES of the pairs; equal ones share a bin."""
    edges = np.unique(np.percentile(g, SHARES))
    which = np.clip(np.searchsorted(edges, g, side="right") - 1, 0, max(0, len(edges) - 2))
    points = []
    for number in np.unique(which):
        here = which == number
        points.append((float(g[here].mean()), float(cosine[here].mean())))
    return points


def as_table(pictures: Pictures, compared: Compared) -> dict[str, Any]:
    """Plain values, for JSON."""

    def of(found: Followed, place: Place) -> dict[str, Any]:
        table: dict[str, Any] = {"pairs": _figure(found.pairs[place])}
        if place in found.texts:
            table["texts"] = _figure(found.texts[place])
        table["curve"] = [[round(g, 6), round(c, 6)] for g, c in found.curve[place]]
        if place in found.same:
            table["same_text"] = round(found.same[place], 6)
        return table

    return {
        "shards": str(pictures.shards),
        "split": pictures.split,
        "graph": pictures.graph,
        "graph_of": str(pictures.graph_of),
        "pictures": compared.pictures,
        "left_out": len(pictures.images) - compared.pictures,
        "unknown_texts": pictures.unknown,
        "texts": len(compared.texts),
        "pairs": compared.pairs,
        "models": {found.name: {place: of(found, place) for place in found.pairs} for found in compared.models},
    }


def _figure(found: Correlation) -> dict[str, float | None]:
    reach = found.reach
    return {"spearman": round(found.value, 6), "half_interval": None if reach is None else round(reach, 6)}
