"""graphs/NAME for a finished folder of shards: encode, search, codes, audit, write. No tar is touched."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import audit, classes, codes
from pipeline.bars import say
from pipeline.encode import encode_texts
from pipeline.encoders import BUNDLED, EncoderSource, resolve_encoder
from pipeline.neighbours import Lists, search_exact, symmetric_lists
from shards.atomic import atomic_file, sha256_file
from shards.errors import UserError
from shards.graph import Graph, write_graph
from shards.reader import Shards

__all__ = ["KINDS", "build_graph", "graph_name"]

KINDS = ("encoder", "class", "random")
WORK = ".work"  # below the graph's folder; holds what a stopped run had finished


def build_graph(
    root: Path,
    *,
    kind: str = "encoder",
    name: str | None = None,
    encoder: str | None = None,
    k: int = 32,
    code_dim: int = 384,
    seed: int = 0,
) -> Path:
    """Write graphs/NAME below a finished folder of shards; returns the folder.

    kind: `encoder` (cosine of caption embeddings), `class` (1 within a class, 0 otherwise) or `random` (one number a
    pair of classes). encoder: a name or folder, None for the bundled one. k: nearest texts a text lists; the lists
    are made symmetric. code_dim: dimensions of the int8 code at most; fewer than the encoder's are a projection.
    The same settings again return at once; a stopped run goes on from its finished chunks. Raises UserError where
    another graph has that name, and where the shards have no labels but the kind needs them.
    """
    shards = Shards.open(root)
    source = _check(kind, encoder, k, code_dim)
    settings = _settings(shards, kind, source, k, code_dim, seed)
    folder = root / "graphs" / (name or graph_name(kind, source, k))
    with _alone(folder):
        if _finished(folder, settings):
            say(f"{folder} is already there, with these settings")
        else:
            graph = _encoder_graph(shards, source, settings, folder) if source else _class_graph(shards, settings)
            names = [shard.name for shard in shards.manifest.shards]
            write_graph(root, folder.name, graph, _home(shards), names)
            say(f"{folder}: {len(graph)} texts, {len(graph.neighbours)} listed pairs, {_summary(graph.meta)}")
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return folder


def graph_name(kind: str, source: EncoderSource | None, k: int) -> str:
    """`minilm-k32` for the bundled encoder, `all-mpnet-base-v2-k32` for another, `class`, `random`."""
    if source is None:
        return kind
    base = "minilm" if source.id == BUNDLED else source.id.rpartition("/")[2]
    return f"{re.sub(r'[^a-z0-9.]+', '-', base.lower()).strip('-.') or 'encoder'}-k{k}"


def _encoder_graph(shards: Shards, source: EncoderSource, settings: dict[str, Any], folder: Path) -> Graph:
    k, code_dim, seed = settings["k"], settings["code_dim"], settings["seed"]
    vectors, encoding = encode_texts(shards.texts(), source, folder / WORK)
    lists = symmetric_lists(*search_exact(vectors, k))
    basis = codes.principal_basis(vectors, code_dim) if code_dim < vectors.shape[1] else None
    meta = {
        "source": source.record() | {"kind": "encoder"} | encoding,
        "metric": "cosine",
        "search": {"method": "exact", "index": "faiss IndexFlatIP"},
        "code": {"dim": min(code_dim, vectors.shape[1]), "basis": _write_basis(folder, basis)},
    }
    graph = _assemble(lists, audit.background(vectors, seed), codes.encode(vectors, basis))
    return _audited(graph, audit.dot_products(vectors), settings, meta)


def _class_graph(shards: Shards, settings: dict[str, Any]) -> Graph:
    kind, k, seed = settings["kind"], settings["k"], settings["seed"]
    labels, count = classes.text_classes(shards), len(shards.manifest.classes)
    code, least = None, -np.inf
    if kind == "class":
        matrix = np.eye(count, dtype=np.float32)
        lists, code, least = classes.class_lists(labels, k), classes.class_codes(labels, count), 0.0
    else:
        matrix = classes.random_matrix(count, seed)
        lists = classes.complete_lists(matrix, labels)
    meta = {
        "source": {"kind": kind, "classes": count},
        "metric": "one within a class" if kind == "class" else "one number a pair of classes",
        "search": {"method": "by class" if kind == "class" else "complete"},
        "code": {"dim": count, "basis": None} if code else None,
    }
    graph = _assemble(lists, classes.class_background(matrix, labels), code)
    return _audited(graph, classes.matrix_similarity(matrix, labels), settings, meta, least)


def _assemble(
    lists: Lists,
    background: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    code: tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None,
) -> Graph:
    return Graph(
        meta={},
        indptr=lists[0],
        neighbours=lists[1],
        similarities=lists[2],
        background_mean=background[0],
        background_std=background[1],
        codes=code[0] if code else None,
        code_scale=code[1] if code else None,
    )


def _audited(
    graph: Graph, similarity: audit.Similarity, settings: dict[str, Any], meta: dict[str, Any], least: float = -np.inf
) -> Graph:
    """The graph with graph.json's content: what made it, and what the audit found."""
    n, seed = len(graph), settings["seed"]
    measured = {
        "format": 1,
        "k": settings["k"],
        "settings": settings,
        "listed": len(graph.neighbours),
        "complete": len(graph.neighbours) == n * (n - 1),
        "audit": audit.recall(graph, similarity, settings["k"], seed, least),
        "fidelity": audit.fidelity(graph, similarity, seed),
        "histogram": audit.histogram(graph, similarity, seed),
    }
    graph.meta.update(meta | measured)
    return graph


def _check(kind: str, encoder: str | None, k: int, code_dim: int) -> EncoderSource | None:
    if kind not in KINDS:
        raise UserError(f"no graph of kind {kind!r}: choose one of {', '.join(KINDS)}")
    if k < 1 or code_dim < 1:
        raise UserError(f"k and the code's dimensions must be at least 1, not {k} and {code_dim}")
    if kind == "encoder":
        return resolve_encoder(encoder)
    if encoder is not None:
        raise UserError(f"a graph of kind {kind} has no encoder: leave --encoder {encoder} out")
    return None


def _settings(
    shards: Shards, kind: str, source: EncoderSource | None, k: int, code_dim: int, seed: int
) -> dict[str, Any]:
    """All that decides the graph. Texts and labels are named by the checksums of the files that hold them."""
    if not shards.manifest.texts:
        raise UserError(f"{shards.root} has no texts, so it can have no graph: build it from a source with captions")
    files = shards.manifest.files
    names = sorted(name for name in files if name == "texts.parquet" or name.startswith("index/"))
    digest = hashlib.sha256("".join(f"{name} {files[name].sha256}\n" for name in names).encode()).hexdigest()
    encoder = {"encoder": source.id, "encoder_sha256": source.sha256} if source else {}
    return {"kind": kind, **encoder, "k": k, "code_dim": code_dim, "seed": seed, "texts_sha256": digest}


def _finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the graph is there. Raises UserError where it is there with other settings."""
    try:
        found = json.loads((folder / "graph.json").read_text(encoding="utf-8"))["settings"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder}/graph.json is damaged: delete {folder} and run `xclr-shards graph` again") from None
    differing = [f"{key} {found.get(key)}, not {value}" for key, value in settings.items() if found.get(key) != value]
    if differing:
        raise UserError(
            f"{folder} was made with {'; '.join(differing)}: choose another --name, or delete that folder first"
        )
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the graph's folder against a second builder; the lock goes with the process, also when it is killed."""
    work = folder / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is building {folder}: wait for it, or choose another --name") from None
        try:
            yield
        finally:
            _remove_if_idle(work)


def _remove_if_idle(work: Path) -> None:
    """Leave no trace of a run that ended before it had anything to keep."""
    if work.is_dir() and {path.name for path in work.iterdir()} == {"lock"}:
        shutil.rmtree(work)
        if not any(work.parent.iterdir()):
            work.parent.rmdir()


def _home(shards: Shards) -> npt.NDArray[np.int32]:
    """[texts] position of the shard in which each text first appears."""
    home = np.zeros(shards.manifest.texts, np.int32)
    home[shards.index.text_id[::-1]] = shards.index.shard[::-1]  # of several assignments the last one stays
    return home


def _write_basis(folder: Path, basis: npt.NDArray[np.float32] | None) -> dict[str, str] | None:
    if basis is None:
        return None
    path = folder / "basis.npy"
    with atomic_file(path) as file:
        np.save(file, basis)
    return {"file": path.name, "sha256": sha256_file(path)}


def _summary(meta: dict[str, Any]) -> str:
    code = meta["fidelity"].get("code")
    tail = f", KL of the target to the dense one {code['kl']:.1e}" if code else ""
    return f"recall@{meta['audit']['k']} {meta['audit']['recall']:.4f} on {meta['audit']['sample']}{tail}"
