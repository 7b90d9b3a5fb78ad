"""Do similarities of pictures follow the graph's? What X-CLR trains, looked at: the paper's figure 4, with numbers.

For pairs of pictures whose texts differ, G_ij, by the graph's lists and codes, is held against the cosine of what a
model makes of the two: of its features, and of its projections, which are what the loss compared. The figure is
Spearman's rank correlation over all pairs, the usual comparison of two similarity matrices (Kriegeskorte et al. 2008,
doi.org/10.3389/neuro.06.004.2008), since no encoder's cosines have the scale of another's.

Pairs share pictures and pictures share texts, so pairs are not independent: intervals are of the texts drawn anew,
by a jackknife that leaves out a twentieth of them at a time. Models are compared on the same pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from eval.benchmarks.bench import ImageSet, Ints, fingerprint
from eval.features import extract
from eval.models.model import Model
from shards.bars import bar
from shards.errors import UserError
from shards.graph import Graph
from shards.reader import TEST, Shards, is_finished, training_folder
from trainer.block import SimilarityBlock
from trainer.table import TextTable

__all__ = [
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
    "curve",
    "difference",
    "groups_of",
    "open_pictures",
    "ranks",
    "similarity_hash",
]

Place = Literal["projections", "features"]
PLACES: tuple[Place, ...] = ("projections", "features")

Doubles = npt.NDArray[np.float64]
SEED = 0  # of the choice of pictures, and of the parts of the jackknife
PARTS = 20
FEWEST = 10  # texts, for an interval: of four it was five times the deviation (simulated, 2026-11)
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9, 100)  # percent of pairs: the curve's bins
MANY = 0.001  # of the pairs: so many of the largest similarity are a bin of their own
MEAN = 1e6  # tau_s at which a background is its mean
ALIKE = 1e-9  # standard deviation of cosines: less is rounding
GROUPS, SIZE = 5, 5  # of texts that matrices show


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
    """Of the shards' pictures, how many no text of the graph is theirs."""


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


def open_pictures(root: Path, graph: str | None, count: int, models: Iterable[Model] = ()) -> Pictures:
    """`count` random samples of finished shards whose text is in the graph. Raises UserError.

    graph: without a name that which one of the models was trained with, else the only one.
    """
    shards = Shards.open(root)
    source = _graph_source(shards)
    name = source.graph_name(graph or _trained_with(models, source.root))
    found = source.graph(name)
    captions = source.texts()
    text = shards.index.text_id.astype(np.int64)
    if source is not shards:
        place = {caption: i for i, caption in enumerate(captions)}
        text = np.array([place.get(caption, -1) for caption in shards.texts()], np.int64)[text]
    whole = _whole(shards)
    pool = np.flatnonzero((text >= 0) & whole)
    rows: Ints = np.sort(np.random.default_rng(SEED).permutation(pool)[:count]).astype(np.int64)
    unknown, text = int(((text < 0) & whole).sum()), text[rows]
    if len(np.unique(text)) < 3:
        few = f"{root} has fewer than three texts among {len(rows):,} pictures"
        raise UserError(
            f"{few} (of {unknown:,} others {source.root} has no text): make a graph of them, `xclr-shards graph {root}`"
            if unknown
            else f"{few}: there are no pairs to rank"
        )
    files = shards.manifest.files
    paths = [path for shard in shards.manifest.shards for path in (shard.tar, f"index/{shard.name}.parquet")]
    images = ImageSet(
        name=f"{len(rows):,} pictures of {root.resolve().name}",
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
        unknown=unknown,
    )


def _whole(shards: Shards) -> npt.NDArray[np.bool_]:
    """[samples] whether a picture shows what its text says: of the demo's test split the originals, since of the other
    variants one has lost its object, and all would count a scene several times."""
    if shards.manifest.dataset != f"demo{TEST}":
        return np.ones(len(shards), bool)
    return np.array([key.endswith("-original") for key in shards.index.key.to_pylist()])


def _graph_source(shards: Shards) -> Shards:
    """Whose graph is looked into: of test shards without one, that of the training shards beside them."""
    train = training_folder(shards.root)
    if shards.graph_names() or train == shards.root or not is_finished(train):
        return shards
    return Shards.open(train)


def _trained_with(models: Iterable[Model], root: Path) -> str | None:
    """The graph of these shards that the first of them was trained with that says one."""
    known = (model for model in models if model.graph and model.shards and model.shards.resolve() == root.resolve())
    return next((model.graph for model in known), None)


def _similarities(graph: Graph, text: Ints) -> Doubles:
    """[n, n] by lists and codes; without codes, where a pair is not listed, the mean of the two texts' backgrounds."""
    table = TextTable.from_graph(graph, torch.device("cpu"), "background" if graph.codes is None else "code")
    block = SimilarityBlock.of_texts(torch.from_numpy(text), table, tau_s=MEAN)
    g: Doubles = block.similarities(0, len(text)).double().numpy()
    return (g + g.T) / 2  # of backgrounds, each text has its own


def compare_models(models: dict[str, Model], pictures: Pictures, features: Path) -> Compared:
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
        self.part = np.random.default_rng(SEED).permutation(t) % PARTS if t >= FEWEST else np.zeros(t, np.int64)
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
            if spread < ALIKE:
                cosine, spread = np.full_like(cosine, centre), 1.0  # what is left is rounding
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


def similarity_hash(models: dict[str, Model], pictures: Pictures) -> str:
    """Equal for equal models, pictures and graph."""
    graph = sha256(pictures.similarity.tobytes()).hexdigest()
    return fingerprint(
        [*(f"{name} {model.sha256}" for name, model in models.items()), pictures.images.fingerprint, graph]
    )


def as_table(pictures: Pictures, compared: Compared) -> dict[str, Any]:
    """Plain values, for JSON."""
    first = compared.models[0]

    def of(found: Followed, place: Place) -> dict[str, Any]:
        table: dict[str, Any] = {"pairs": _figure(found.pairs[place].value, found.pairs[place].reach)}
        if found is not first and place in first.pairs:
            table[f"pairs_over_{first.name}"] = _figure(*difference(found.pairs[place], first.pairs[place]))
        if place in found.texts:
            table["texts"] = _figure(found.texts[place].value, found.texts[place].reach)
        table["curve"] = [[_rounded(g), _rounded(c)] for g, c in found.curve[place]]
        if place in found.same:
            table["same_text"] = _rounded(found.same[place])
        return table

    return {
        "shards": str(pictures.shards),
        "split": pictures.split,
        "graph": pictures.graph,
        "graph_of": str(pictures.graph_of),
        "seed": SEED,
        "pictures": compared.pictures,
        "pictures_sha256": pictures.images.fingerprint,
        "left_out": len(pictures.images) - compared.pictures,
        "unknown_texts": pictures.unknown,
        "texts": len(compared.texts),
        "pairs": compared.pairs,
        "pairs_of_one_text": compared.same,
        "largest_possible": _rounded(compared.most),
        "models": {
            found.name: {"about": found.about, **{place: of(found, place) for place in found.pairs}}
            for found in compared.models
        },
    }


def _figure(value: float, reach: float | None) -> dict[str, float | None]:
    return {"spearman": _rounded(value), "half_interval": _rounded(reach)}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 6)
