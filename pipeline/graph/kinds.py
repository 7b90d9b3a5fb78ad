"""What each kind of graph is made of: `encoder`, `class`, `random`, `wordnet`, `file`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode import codes
from pipeline.encode.embed import encode_texts
from pipeline.encode.encoder import EncoderSource
from pipeline.graph import audit, by_text, classes, file
from pipeline.graph.wordnet import Nouns, read_nouns, synset_of, wu_palmer
from pipeline.scan.samples import Limits
from pipeline.search.exact import Similarity, dot_products
from pipeline.search.neighbours import Lists, symmetric_lists
from pipeline.search.plan import nearest
from shards.atomic import sha256_file, write_array
from shards.bars import say
from shards.class_names import WNID
from shards.errors import UserError
from shards.graph import Graph
from shards.reader import Shards

__all__ = [
    "Found",
    "GraphSettings",
    "class_graph",
    "class_synsets",
    "edge_graph",
    "encoder_graph",
    "file_graph",
    "matrix_graph",
    "random_graph",
    "search_texts",
    "wordnet_graph",
]


ALIKE = 0.05  # share of texts that have another one's vector, above which an encoder does not understand them


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSettings:
    """Of all kinds; each uses what concerns it."""

    k: int
    code_dim: int
    seed: int
    target: float
    """Recall that the search must reach on a sample."""
    memory: int | None
    """Bytes that the search may hold at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Texts, embedded and searched; the records are graph.json's."""

    vectors: npt.NDArray[np.float32]
    """[n, dim] unit vectors, mapped from a file in the work folder."""
    ids: npt.NDArray[np.int32]
    """[n, k] nearest texts."""
    similarities: npt.NDArray[np.float32]
    """[n, k]"""
    encoding: dict[str, Any]
    search: dict[str, Any]


def search_texts(texts: Sequence[str], source: EncoderSource, settings: GraphSettings, work: Path) -> Found:
    """Embed texts and find the nearest of each; a later call with the same ones goes on from what is in `work`."""
    vectors, encoding = encode_texts(texts, source, work / "encoding")
    return _search(vectors, encoding, settings, work)


def _search(vectors: npt.NDArray[np.float32], encoding: dict[str, Any], settings: GraphSettings, work: Path) -> Found:
    ids, similarities, search = nearest(
        vectors, settings.k, work / "search", target=settings.target, memory=settings.memory, seed=settings.seed
    )
    return Found(vectors=vectors, ids=ids, similarities=similarities, encoding=encoding, search=search)


def encoder_graph(shards: Shards, source: EncoderSource, settings: GraphSettings, folder: Path, work: Path) -> Graph:
    """Cosine of caption embeddings: top-k lists, and a code for every other pair."""
    found = search_texts(shards.texts(), source, settings, work)
    return _vector_graph(found, source.record() | {"kind": "encoder"} | found.encoding, settings, folder)


def class_graph(shards: Shards, settings: GraphSettings) -> Graph:
    """1 within a class, 0 otherwise: one-hot codes are exact, and the lists hold k others of the class."""
    labels, count = classes.text_classes(shards), len(shards.manifest.classes)
    meta = {
        "source": {"kind": "class", "classes": count},
        "metric": "1 within a class, 0 otherwise",
        "search": {"method": "by class"},
        "code": {"dim": count, "basis": None},
    }
    codes = classes.class_codes(labels, count)
    return _graph(classes.class_lists(labels, settings.k), classes.class_background(labels), codes,
                  classes.class_similarity(labels), settings, meta, least=0.0)  # fmt: skip


def random_graph(shards: Shards, settings: GraphSettings) -> Graph:
    matrix = classes.random_matrix(len(shards.manifest.classes), settings.seed)
    return matrix_graph(matrix, classes.text_classes(shards), settings, {"kind": "random", "classes": len(matrix)},
                        "one number a pair of classes, evenly from 0..1")  # fmt: skip


def wordnet_graph(shards: Shards, folder: Path, settings: GraphSettings) -> Graph:
    """Wu-Palmer similarity of the classes' synsets."""
    synsets, nouns = class_synsets(shards, folder)
    source = {
        "kind": "wordnet",
        "classes": len(synsets),
        "sha256": sha256_file(folder / "data.noun"),
        "synsets": [f"n{synset:08d}" for synset in synsets],
    }
    return matrix_graph(wu_palmer(synsets, nouns), classes.text_classes(shards), settings, source, "Wu-Palmer")


def class_synsets(shards: Shards, folder: Path) -> tuple[list[int], Nouns]:
    """The synset of each class, by its folder (`wnids` in the shards' settings) where that is a WordNet id, else by its
    name. Raises UserError where WordNet has none."""
    names = shards.manifest.classes
    folders = shards.manifest.settings.get("wnids") or names
    nouns = read_nouns(folder)
    synsets = [synset_of(f if WNID.fullmatch(f) else name, nouns) for f, name in zip(folders, names, strict=True)]
    missing = [name for name, synset in zip(names, synsets, strict=True) if synset is None]
    if missing:
        some = ", ".join(map(repr, missing[:3]))
        raise UserError(f"{len(missing)} of {len(names)} classes are no nouns in {folder}: {some}; use --kind encoder")
    return [synset for synset in synsets if synset is not None], nouns


def file_graph(shards: Shards, path: Path, settings: GraphSettings, folder: Path, work: Path) -> Graph:
    """A matrix or vectors (.npy) of the classes or of the texts; vectors beside their texts, or edges between text ids
    (.parquet)."""
    n = shards.manifest.texts
    source = {"kind": "file", "name": path.name, "sha256": sha256_file(path)}
    if by_text.names_texts(path):
        longest = shards.manifest.settings.get("max_caption", Limits().max_caption)
        vectors = by_text.vectors_by_text(path, shards.texts(), work / "vectors.npy", longest)
        return _vector_graph(_search(vectors, {}, settings, work), source | {"dim": vectors.shape[1]}, settings, folder)
    if path.suffix == ".parquet":
        lists = file.read_edges(path, n)
        if lonely := int((np.diff(lists[0]) == 0).sum()):
            say(
                f"note: {lonely:,} of {n:,} texts have no edge in {path}, so each is like itself alone (a and b are "
                "text_id of texts.parquet, no numbers of classes)"
            )
        return edge_graph(lists, n, settings, source)
    if path.suffix != ".npy":
        raise UserError(
            f"{path} is neither .npy (vectors, or a square matrix) nor .parquet (text, embedding; or edges a, b, "
            "similarity)"
        )
    array = file.open_array(path)
    rows = classes.text_classes(shards) if file.of_classes(path, array, shards) else np.arange(n)
    if not file.holds_vectors(path):
        matrix = file.read_matrix(path, array)
        if file.like_distances(matrix):
            say(
                f"warning: the diagonal of {path} is the least of every row, as that of distances is: give "
                "similarities, such as 1 - distance / the largest one (of similarities, set the diagonal to 1)"
            )
        elif not np.allclose(np.diagonal(matrix), 1) and np.bincount(rows).max() == 1:
            say(f"note: the diagonal of {path} is not 1 and says nothing here: it is of different texts of a class")
        return matrix_graph(matrix, rows, settings, source, "as given")
    vectors = file.unit_vectors(path, array, rows, work / "vectors.npy")
    found = _search(vectors, {}, settings, work)
    each = int(rows.max()) + 1 == n  # else of classes, whose texts have one vector by design
    return _vector_graph(found, source | {"dim": array.shape[1]}, settings, folder, each)


def matrix_graph(
    matrix: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    settings: GraphSettings,
    source: dict[str, Any],
    metric: str,
) -> Graph:
    """Complete rows: such a matrix need not be a Gram matrix, so no code's dot products could stand for it."""
    meta = {"source": source, "metric": metric, "search": {"method": "complete"}, "code": None}
    return _graph(classes.complete_lists(matrix, labels), classes.matrix_background(matrix, labels), None,
                  classes.matrix_similarity(matrix, labels), settings, meta)  # fmt: skip


def edge_graph(lists: Lists, n: int, settings: GraphSettings, source: dict[str, Any]) -> Graph:
    meta = {"source": source, "metric": "as given, 0 without an edge", "search": {"method": "as given"}, "code": None}
    return _graph(lists, file.edge_background(n), None, file.edge_similarity(lists), settings, meta,
                  least=0.0)  # fmt: skip


def _vector_graph(
    found: Found, source: dict[str, Any], settings: GraphSettings, folder: Path, each: bool = True
) -> Graph:
    """Cosine: top-k lists, and a code for every other pair. each: every text was given a vector of its own."""
    vectors = found.vectors
    dim = min(settings.code_dim, vectors.shape[1])
    basis = codes.principal_basis(vectors, dim) if dim < vectors.shape[1] else None
    meta = {
        "source": source,
        "metric": "cosine",
        "search": found.search,
        "code": {"dim": dim, "basis": _write_basis(folder, basis)},
    }
    background = audit.background(vectors, settings.seed)
    lists = symmetric_lists(found.ids, found.similarities)
    graph = _graph(lists, background, codes.encode(vectors, basis), dot_products(vectors), settings, meta)
    graph.meta["as_another"] = alike = audit.as_another(graph) if each else 0
    if alike > ALIKE * len(graph):
        most = f"the first {found.encoding['max_tokens']} tokens, and " if found.encoding.get("max_tokens") else ""
        why = f" ({source['id']} reads {most}words of its languages): take another --encoder" if found.encoding else ""
        say(f"warning: {alike:,} of {len(graph):,} texts have the vector of another text{why}")
    return graph


def _graph(
    lists: Lists,
    background: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    code: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None,
    similarity: Similarity,
    settings: GraphSettings,
    meta: dict[str, Any],
    least: float = -np.inf,
) -> Graph:
    """The graph with graph.json's content: what made it, and what the audit found."""
    graph = Graph(
        meta=dict(meta),
        indptr=lists[0],
        neighbours=lists[1],
        similarities=lists[2],
        background_mean=background[0],
        background_std=background[1],
        codes=code[0] if code else None,
        code_scale=code[1] if code else None,
    )
    n, seed = len(graph), settings.seed
    graph.meta.update(
        format=1,
        k=settings.k,
        listed=len(graph.neighbours),
        complete=len(graph.neighbours) == n * (n - 1),
        audit=audit.recall(graph, similarity, settings.k, seed, least),
        fidelity=audit.fidelity(graph, similarity, seed),
        histogram=audit.histogram(graph, similarity, seed),
    )
    return graph


def _write_basis(folder: Path, basis: npt.NDArray[np.float32] | None) -> dict[str, str] | None:
    if basis is None:
        return None
    path = folder / "basis.npy"
    write_array(path, basis)
    return {"file": path.name, "sha256": sha256_file(path)}
