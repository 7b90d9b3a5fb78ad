"""The pictures whose similarities are looked at, and what the graph says of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eval.benchmarks.bench import ImageSet, Ints, fingerprint
from eval.models.model import Model
from eval.similarity.rank import SEED, Doubles
from shards.bars import say
from shards.errors import UserError
from shards.graph import Graph
from shards.reader import TEST, Shards, is_finished, training_folder
from trainer.block import SimilarityBlock
from trainer.run_folder import contents_id
from trainer.table import TextTable

__all__ = ["GraphPictures", "open_pictures"]

MEAN = 1e6  # tau_s at which a background is its mean
MOST = 0.5  # share of the pictures whose texts another folder's graph must have, to be taken for their own


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPictures:
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


def open_pictures(root: Path, graph: str | None, count: int, models: Iterable[Model] = ()) -> GraphPictures:
    """`count` random samples of finished shards whose text is in the graph. Raises UserError.

    graph: without a name that which one of the models was trained with, else the only one. Of test shards also those of
    the training shards beside them count: by name, where one of the models was trained with one that has most of their
    texts, and where they have none.
    """
    shards = Shards.open(root)
    models = list(models)
    source, name = _graph_of(shards, graph, models)
    found = source.graph(name)
    for model in models:
        if _was_on(model, source) and model.graph == name and model.graph_id not in ("", contents_id(found)):
            say(f"warning: {model.folder or model.name} was trained on another graph {name} than lies there now")
    captions = source.texts()
    text = _texts_of(shards, source)
    whole = _whole(shards)
    pool = np.flatnonzero((text >= 0) & whole)
    rows: Ints = np.sort(np.random.default_rng(SEED).permutation(pool)[:count]).astype(np.int64)
    unknown, text = int(((text < 0) & whole).sum()), text[rows]
    if len(np.unique(text)) < 3:
        few = f"{root} has fewer than three texts among {len(rows):,} pictures"
        raise UserError(
            f"{few} (of {unknown:,} others {source.root} has no text): {_own_graph(shards)}"
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
    return GraphPictures(
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


def _graph_of(shards: Shards, graph: str | None, models: Sequence[Model]) -> tuple[Shards, str]:
    """(whose graph is looked into, its name)."""
    train = training_folder(shards.root)
    beside = Shards.open(train) if train != shards.root and is_finished(train) else None
    folders = [shards] if beside is None else [shards, beside]
    trained = ((folder, model.graph) for model in models for folder in folders if _was_on(model, folder))
    known = next(((folder, name) for folder, name in trained if name in folder.graph_names()), None)
    if graph is None and known and known[1] and (known[0] is shards or _has_most(shards, known[0])):
        return known[0], known[1]
    having = (folder for folder in folders if (graph in folder.graph_names() if graph else folder.graph_names()))
    source = next(having, beside if beside and not shards.graph_names() else shards)
    theirs = (model.graph for model in models if model.graph and _was_on(model, source))
    return source, source.graph_name(graph or next(theirs, None))


def _has_most(shards: Shards, beside: Shards) -> bool:
    """Whether a graph of the training shards is about the test pictures; if these have no graph, it has to do."""
    return not shards.graph_names() or float((_texts_of(shards, beside) >= 0).mean()) > MOST


def _texts_of(shards: Shards, source: Shards) -> Ints:
    """[samples] text of each, as a text id of `source`; -1 where that has no such text."""
    text: Ints = shards.index.text_id.astype(np.int64)
    if source is shards:
        return text
    place = {caption: i for i, caption in enumerate(source.texts())}
    return np.array([place.get(caption, -1) for caption in shards.texts()], np.int64)[text]


def _own_graph(shards: Shards) -> str:
    names = shards.graph_names()
    return f"give --graph {names[0]}, of {shards.root}" if names else f"make one, `xclr-shards graph {shards.root}`"


def _was_on(model: Model, shards: Shards) -> bool:
    """Whether it was trained on these shards."""
    return model.shards is not None and model.shards.resolve() == shards.root.resolve()


def _similarities(graph: Graph, text: Ints) -> Doubles:
    """[n, n] by lists and codes; without codes, where a pair is not listed, the mean of the two texts' backgrounds."""
    table = TextTable.from_graph(graph, torch.device("cpu"), "background" if graph.codes is None else "code")
    block = SimilarityBlock.of_texts(torch.from_numpy(text), table, tau_s=MEAN)
    g: Doubles = block.similarities(0, len(text)).double().numpy()
    return (g + g.T) / 2  # of backgrounds, each text has its own
