"""graphs/NAME for a finished folder of shards: settle the settings, build, write. No tar is touched."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.costs import keep_cost
from pipeline.encode.encoder import BUNDLED, CONFIG, EncoderSource, resolve_encoder
from pipeline.graph import kinds
from pipeline.graph.classes import check_classes
from pipeline.graph.wordnet import find_wordnet
from pipeline.work import WORK, alone, differing, disk_errors, holds_nothing, read_settings
from shards.atomic import sha256_file, sweep, write_json
from shards.bars import say
from shards.errors import UserError
from shards.graph import Graph, write_graph
from shards.reader import Shards

__all__ = ["KINDS", "build_graph", "check_options", "graph_name"]

KINDS = ("encoder", "class", "random", "wordnet", "file")


def build_graph(
    root: Path,
    *,
    kind: str = "encoder",
    name: str | None = None,
    encoder: str | EncoderSource | None = None,
    source: Path | None = None,
    k: int = 32,
    code_dim: int = 384,
    seed: int = 0,
    recall: float = 0.99,
    memory: int | None = None,
) -> Path:
    """Write graphs/NAME below a finished folder of shards; returns the folder.

    kind: `encoder` (cosine of caption embeddings), `class` (1 within a class, 0 otherwise), `random` (one number a
    pair of classes), `wordnet` (Wu-Palmer similarity of classes) or `file`. encoder: a name or folder, None for the
    bundled one. source: for `file` the vectors, matrix or edges, for `wordnet` the folder of WordNet's files if not
    where Debian or NLTK put them. k: nearest texts a text lists; the lists are made symmetric. code_dim: dimensions of
    the int8 code at most; fewer than the encoder's are a projection. recall: least recall on a sample that decides how
    large sets of texts are searched. memory: bytes the search may hold beside the embeddings.

    The same settings again return at once; a stopped run goes on from its finished parts. Raises UserError where
    another graph has that name or was begun under it, and where the shards lack what the kind needs.
    """
    if name is not None and (name != Path(name).name or name.startswith(".")):
        raise UserError(f"a graph's --name is one plain folder name, not {name!r}")
    shards = Shards.open(root)
    encoder_source, source = _check(shards, kind, encoder, source, k, code_dim, recall)
    settings = {"kind": kind, "k": k, "code_dim": code_dim, "seed": seed, "recall": recall}
    settings |= _inputs(shards, encoder_source, source)
    folder = root / "graphs" / (name or graph_name(kind, encoder_source, source, k))
    there = f"{folder} is already there, with these settings"
    if not (folder / WORK).exists() and _finished(folder, settings):  # which may be read only
        say(there)
        return folder
    with disk_errors(folder), alone(folder, "choose another --name (of xclr-shards graph)") as work:
        if _finished(folder, settings):
            say(there)
        else:
            sweep(folder, *(path for path in work.rglob("*") if path.is_dir()), work)
            write_json(work / "settings.json", settings)
            say(f"{folder}: making the {kind} graph of {shards.manifest.texts:,} texts")
            chosen = kinds.GraphSettings(k=k, code_dim=code_dim, seed=seed, target=recall, memory=memory)
            graph = _make(shards, kind, encoder_source, source, chosen, folder)
            graph.meta["settings"] = settings
            graph.meta["texts_sha256"] = shards.manifest.files["texts.parquet"].sha256
            write_graph(root, folder.name, graph, _home(shards), [shard.name for shard in shards.manifest.shards])
            _keep_cost(root, folder)
            say(f"{folder}: {len(graph)} texts, {len(graph.neighbours)} listed pairs, {_summary(graph)}")
            if graph.meta["search"]["method"] == "complete":
                say("note: every pair is listed, so k changes nothing")
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _keep_cost(root: Path, folder: Path) -> None:
    path = folder / WORK / "search" / "cost.json"
    if path.exists():
        keep_cost(root, f"search of {folder.name}", **json.loads(path.read_text(encoding="utf-8")))


def graph_name(kind: str, encoder: EncoderSource | None, source: Path | None, k: int) -> str:
    """`minilm-k32` for the bundled encoder, `all-mpnet-base-v2-k32` for another; `class`; the file's name."""
    if encoder is not None:
        base = "minilm" if encoder.id == BUNDLED else encoder.id.rpartition("/")[2]
        return f"{_slug(base) or 'encoder'}-k{k}"
    return (_slug(source.stem) if kind == "file" and source else kind) or kind


def _make(
    shards: Shards,
    kind: str,
    encoder: EncoderSource | None,
    source: Path | None,
    settings: kinds.GraphSettings,
    folder: Path,
) -> Graph:
    if encoder is not None:
        return kinds.encoder_graph(shards, encoder, settings, folder, folder / WORK)
    if kind == "class":
        return kinds.class_graph(shards, settings)
    if kind == "random":
        return kinds.random_graph(shards, settings)
    assert source is not None
    if kind == "wordnet":
        return kinds.wordnet_graph(shards, source, settings)
    return kinds.file_graph(shards, source, settings, folder, folder / WORK)


def check_options(
    kind: str, encoder: str | EncoderSource | None, source: Path | None, k: int, code_dim: int, recall: float
) -> None:
    """Raises UserError for what makes no sense with any shards: a build asks before it writes some for hours."""
    if kind not in KINDS:
        raise UserError(f"no graph of kind {kind!r}: choose one of {', '.join(KINDS)}")
    if k < 1 or code_dim < 1:
        raise UserError(f"k and the code's dimensions must be at least 1, not {k} and {code_dim}")
    if not 0 < recall <= 1:
        raise UserError(f"the recall to reach must lie in 0..1, not {recall}")
    if encoder is not None and kind != "encoder":
        raise UserError(f"a graph of kind {kind} has no encoder: leave --encoder {encoder} out")
    if source is not None and kind not in ("wordnet", "file"):
        raise UserError(f"a graph of kind {kind} is made from the shards alone: leave --source {source} out")
    if kind == "file":
        if source is None:
            raise UserError("a graph of kind file needs --source, a .npy or .parquet file (docs/sources.md)")
        if not source.is_file():
            raise UserError(f"there is no file {source} to make a graph of")


def _check(
    shards: Shards,
    kind: str,
    encoder: str | EncoderSource | None,
    source: Path | None,
    k: int,
    code_dim: int,
    recall: float,
) -> tuple[EncoderSource | None, Path | None]:
    """The encoder's or the file's place. Raises UserError for settings that make no sense."""
    if not shards.manifest.texts:
        raise UserError(f"{shards.root} has no texts, so it can have no graph: build it from a source with captions")
    check_options(kind, encoder, source, k, code_dim, recall)
    if kind in ("class", "random", "wordnet"):
        check_classes(shards, complete=kind != "class")
    if kind == "wordnet":
        source = find_wordnet(source)
        kinds.class_synsets(shards, source)
    if kind != "encoder":
        return None, source
    return encoder if isinstance(encoder, EncoderSource) else resolve_encoder(encoder), source


def _inputs(shards: Shards, encoder: EncoderSource | None, source: Path | None) -> dict[str, str]:
    """Checksums of what goes in: texts and labels (by the files that hold them), weights, the file."""
    files = shards.manifest.files
    names = sorted(name for name in files if name == "texts.parquet" or name.startswith("index/"))
    inputs = {"texts_sha256": _digest("".join(f"{name} {files[name].sha256}\n" for name in names))}
    if encoder is not None:
        inputs |= encoder.identity()
    if source is not None:
        inputs["source_sha256"] = sha256_file(source / "data.noun" if source.is_dir() else source)
    return inputs


def _finished(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the graph is there. Raises UserError where it is there, or begun, with other settings."""
    for path, key, what in (
        (folder / "graph.json", "settings", "made"),
        (folder / WORK / "settings.json", None, "begun"),
    ):
        if what == "begun" and holds_nothing(folder / WORK):
            continue
        try:
            found = read_settings(path, key)
        except ValueError:
            raise UserError(f"{path} is damaged: delete {folder} and run `xclr-shards graph` again") from None
        if found is None:
            continue
        if unlike := differing(found, settings, {CONFIG} - found.keys()):  # of a graph from before it was kept
            raise UserError(
                f"{folder} was {what} with {'; '.join(unlike)}: choose another --name, or delete that folder first"
            )
        return what == "made"
    return False


def _home(shards: Shards) -> npt.NDArray[np.int32]:
    """[texts] position of the shard in which each text first appears."""
    home = np.zeros(shards.manifest.texts, np.int32)
    home[shards.index.text_id[::-1]] = shards.index.shard[::-1]  # of several assignments the last one stays
    return home


def _summary(graph: Graph) -> str:
    audit, code = graph.meta["audit"], graph.meta["fidelity"].get("code")
    tail = f", KL of the target to the dense one {code['kl']:.1e}" if code else ""
    if not code and len(graph.neighbours) < len(graph) * (len(graph) - 1):
        tail = ", no codes: train on it with --tail background or --tail none"
    return f"recall@{audit['k']} {audit['recall']:.4f} on {audit['sample']}{tail}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
