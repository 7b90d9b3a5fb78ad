"""What one needs to judge a graph and to choose tau_s before paying for a training run, measured on the shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.graph.audit import listed_pairs
from pipeline.images import resized
from pipeline.packing import batch_edges
from pipeline.preview.compare import STRIPS as PAIRED
from pipeline.preview.compare import comparison, most_unlike
from pipeline.preview.page import Numbers, Picture, Strip, write_comparison, write_preview
from pipeline.preview.target import batch_target, tail_pairs
from shards.errors import UserError
from shards.graph import Graph
from shards.page import data_uri
from shards.reader import Shards

__all__ = ["compare", "places", "preview"]

Ints = npt.NDArray[Any]
SEED = 0
BATCH = 1024  # the paper's
BATCHES = 20  # that edges a row are counted in
STRIPS = 12
ABREAST = 3  # neighbours by each of two graphs
NEAREST = 4  # neighbours shown beside an image, besides the last listed and a random one
THUMBNAIL = 128  # pixels of the shorter side, at most
TEMPERATURES = tuple(round(0.01 * step, 2) for step in range(2, 31))


def preview(root: Path, name: str | None = None, out: Path | None = None, batch: int = BATCH) -> Path:
    """Write the page, by default preview-GRAPH.html beside the manifest; returns its path.

    batch: samples of the batch that targets are taken of, which decides how much of a target lies on a sample itself.
    Raises UserError where there is no such graph, or one without graph.json's measurements.
    """
    if batch < 2:
        raise UserError(f"a batch has at least 2 samples, not {batch}")
    shards = Shards.open(root)
    graph = shards.graph(name)
    name = name or shards.graph_names()[0]
    out = out or root / f"preview-{name}.html"
    missing = [key for key in ("source", "audit", "fidelity", "histogram") if not isinstance(graph.meta.get(key), dict)]
    if missing:
        raise UserError(
            f"{root / 'graphs' / name / 'graph.json'} says nothing of its {' and '.join(missing)}: delete that folder "
            "and run `xclr-shards graph` again"
        )
    text_ids = shards.index.text_id
    chosen = np.random.default_rng(SEED).permutation(len(text_ids))[:batch]
    numbers = Numbers(
        name=name,
        root=str(root),
        manifest=shards.manifest,
        meta=graph.meta,
        targets=batch_target(graph, text_ids[chosen], TEMPERATURES),
        batch=len(chosen),
        edges=_edges(graph, shards, len(chosen)),
    )
    write_preview(out, numbers, list(_strips(shards, graph)))
    return out


def compare(root: Path, one: str, other: str, out: Path | None = None, batch: int = BATCH) -> Path:
    """Write a page of two graphs of the same shards side by side; returns its path, by default
    preview-ONE-against-OTHER.html.

    Raises UserError where there is no such graph, and for one graph with itself.
    """
    if batch < 2:
        raise UserError(f"a batch has at least 2 samples, not {batch}")
    if one == other:
        raise UserError(f"{one} against itself: name another graph of {root}")
    shards = Shards.open(root)
    graphs = (shards.graph(one), shards.graph(other))
    out = out or root / f"preview-{one}-against-{other}.html"
    text_ids = shards.index.text_id
    rng = np.random.default_rng(SEED)
    found = comparison(*graphs, text_ids[rng.permutation(len(text_ids))[:batch]])
    pictures, names = _Pictures(shards, rng), (one, other)
    having = np.flatnonzero((np.diff(graphs[0].indptr) > 0) & (np.diff(graphs[1].indptr) > 0))
    having = rng.permutation(having[np.isin(having, text_ids)])
    unlike = most_unlike(*graphs, having)
    strips = {
        "Where they differ most": [pictures.paired(graphs, int(text)) for text in unlike],
        "At random": [pictures.paired(graphs, int(text)) for text in having[~np.isin(having, unlike)][:PAIRED]],
    }
    write_comparison(out, f"{shards.manifest.dataset}, {one} against {other}", str(root), names, found, strips)
    return out


def _edges(graph: Graph, shards: Shards, batch: int) -> dict[str, float]:
    """Listed neighbours a row, by the order of samples."""
    text_ids, group = shards.index.text_id, shards.index.group
    rng = np.random.default_rng(SEED)
    draws = [rng.choice(len(text_ids), batch, replace=False) for _ in range(BATCHES)]
    found = {"random": float(np.mean([batch_edges(graph.indptr, graph.neighbours, text_ids[d]) for d in draws]))}
    if (group >= 0).all() and len(group):
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        pieces = np.split(text_ids, starts[1:])
        size = max(len(piece) for piece in pieces)
        several = [rng.permutation(len(pieces))[: max(1, batch // size)] for _ in range(BATCHES)]
        joined = [np.concatenate([pieces[i] for i in chosen]) for chosen in several]
        found["packed"] = float(np.mean([batch_edges(graph.indptr, graph.neighbours, texts) for texts in joined]))
    return found


def _strips(shards: Shards, graph: Graph) -> Iterator[Strip]:
    """Random samples of different texts, each beside its nearest texts, the last one listed, and a random one."""
    text_ids, rng = shards.index.text_id, np.random.default_rng(SEED)
    pictures = _Pictures(shards, rng)
    texts, show = pictures.texts, pictures.show
    found, seen = 0, set[int]()
    for sample in pictures.mixed:
        text = int(text_ids[sample])
        if found == STRIPS or len(seen) == len(texts):
            return
        if text in seen:
            continue
        seen.add(text)
        span = slice(int(graph.indptr[text]), int(graph.indptr[text + 1]))
        near = list(zip(graph.neighbours[span].tolist(), graph.similarities[span].tolist(), strict=True))
        if not near:
            continue
        found += 1
        other = (text + 1 + int(rng.integers(len(texts) - 1))) % len(texts)  # not the row's own
        random = _similarity(graph, text, other)
        yield Strip(
            query=show(text, None, int(sample)),
            nearest=[(place + 1, show(*near[place])) for place in places(graph.similarities[span])],
            last=show(*near[-1]) if len(near) > NEAREST else None,
            listed=len(near),
            random=show(other, random),
        )


def places(similarities: npt.NDArray[np.float16], count: int = NEAREST) -> list[int]:
    """Of a list by falling similarity the places to show: the `count` nearest.

    Where those are all equally near, as texts of one class are, the first of each similarity: else the page would say
    nothing of what a graph of classes makes of other classes, and one in a wrong order would look right.
    """
    if len(similarities) <= count or similarities[0] != similarities[count - 1]:
        return list(range(min(count, len(similarities))))
    lower = np.flatnonzero(similarities[1:] != similarities[:-1]) + 1
    return sorted(list(dict.fromkeys([0, *lower.tolist(), *range(count)]))[:count])


class _Pictures:
    """Texts, each with the image of some sample of it."""

    def __init__(self, shards: Shards, rng: np.random.Generator) -> None:
        self.shards, self.texts = shards, shards.texts()
        text_ids = shards.index.text_id
        self.mixed = rng.permutation(len(text_ids))
        self.first = np.empty(len(self.texts), np.int64)
        self.first[text_ids[self.mixed]] = self.mixed

    def show(self, text: int, similarity: float | None, sample: int | None = None) -> Picture:
        position = int(self.first[text]) if sample is None else sample
        return Picture(source=_thumbnail(self.shards.image(position)), text=self.texts[text], similarity=similarity)

    def paired(self, graphs: Sequence[Graph], text: int) -> tuple[Picture, list[list[Picture]]]:
        """A text's picture, and its nearest by each graph."""
        near = []
        for graph in graphs:
            span = slice(int(graph.indptr[text]), int(graph.indptr[text + 1]))
            others, similarities = graph.neighbours[span], graph.similarities[span]
            shown = places(similarities, ABREAST)
            near.append([self.show(int(others[place]), float(similarities[place])) for place in shown])
        return self.show(text, None), near


def _similarity(graph: Graph, text: int, other: int) -> float:
    if text == other:
        return 1.0
    pair = np.array([text, other])
    values, known = listed_pairs(graph, pair)
    tail = np.broadcast_to(tail_pairs(graph, pair, np.inf), (2, 2))  # without codes: the mean of its background
    return float(values[0, 1] if known[0, 1] else tail[0, 1])


def _thumbnail(data: bytes) -> str:
    """A data: URI of a small JPEG; empty for what does not decode."""
    try:
        small = resized(data, THUMBNAIL)
        if small[:2] != b"\xff\xd8":  # a small image of another format, which a browser may not know
            image = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR)
            small = cv2.imencode(".jpg", image)[1].tobytes()
    except ValueError:
        return ""
    return data_uri(small)
