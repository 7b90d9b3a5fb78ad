"""The pictures whose similarities are looked at, and what the graph says of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eval.benchmarks.bench import ImageSet, Ints, fingerprint
from eval.models.model import Model
from eval.similarity.rank import SEED, Doubles
from shards.errors import UserError
from shards.graph import Graph
from shards.reader import TEST, Shards, is_finished, training_folder
from trainer.block import SimilarityBlock
from trainer.table import TextTable

__all__ = ["Pictures", "open_pictures"]

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
    """Of the shards' pictures, how many no text of the graph is theirs."""


def open_pictures(root: Path, graph: str | None, count: int, models: Iterable[Model] = ()) -> Pictures:
    """`count` random samples of finished shards whose text is in the graph. Raises UserError.

    graph: without a name that which one of the models was trained with, else the only one; of test shards, that of the
    training shards beside them where these have it and the test shards have not.
    """
    shards = Shards.open(root)
    source, name = _graph_of(shards, graph, models)
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


def _graph_of(shards: Shards, graph: str | None, models: Iterable[Model]) -> tuple[Shards, str]:
    """(whose graph is looked into, its name)."""
    train = training_folder(shards.root)
    beside = Shards.open(train) if train != shards.root and is_finished(train) else None
    folders = [shards] if beside is None else [shards, beside]
    trained = ((folder, model.graph) for model in models for folder in folders if _was_on(model, folder))
    known = next(((folder, name) for folder, name in trained if name in folder.graph_names()), None)
    if graph is None and known and known[1]:
        return known[0], known[1]
    having = (folder for folder in folders if (graph in folder.graph_names() if graph else folder.graph_names()))
    source = next(having, beside if beside and not shards.graph_names() else shards)
    return source, source.graph_name(graph)


def _was_on(model: Model, shards: Shards) -> bool:
    """Whether it was trained on these shards."""
    return model.shards is not None and model.shards.resolve() == shards.root.resolve()


def _similarities(graph: Graph, text: Ints) -> Doubles:
    """[n, n] by lists and codes; without codes, where a pair is not listed, the mean of the two texts' backgrounds."""
    table = TextTable.from_graph(graph, torch.device("cpu"), "background" if graph.codes is None else "code")
    block = SimilarityBlock.of_texts(torch.from_numpy(text), table, tau_s=MEAN)
    g: Doubles = block.similarities(0, len(text)).double().numpy()
    return (g + g.T) / 2  # of backgrounds, each text has its own
