"""Layout packed: what the groups hold, that every sample is there once, and that a stopped build goes on."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import pipeline.encode.embed
import pipeline.graph.kinds
from pipeline.build import build_shards
from pipeline.cli import app
from pipeline.encode.encoder import EncoderSource, resolve_encoder
from pipeline.graph.build import build_graph
from pipeline.layout import group_shards
from pipeline.packing import Packing, batch_edges, in_groups, neighbour_groups
from pipeline.search.neighbours import search_exact, symmetric_lists
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from shards.verify import verify
from tests import forked
from tests.make import jpeg
from tests.pipeline.sources import write_tar

Ints = npt.NDArray[Any]
THEMES, EACH = 9, 8


def planted(groups: int, size: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Symmetric lists of vectors in clusters, ids mixed."""
    centres = rng.normal(size=(groups, 24))
    vectors = rng.permutation(np.repeat(centres, size, axis=0) + 0.4 * rng.normal(size=(groups * size, 24)))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return symmetric_lists(*search_exact(vectors, size - 1))


def repeats(sequence: Ints, size: int) -> int:
    """Places in groups that a text holds beyond its first."""
    return sum(len(group) - len(np.unique(group)) for group in np.split(sequence, range(size, len(sequence), size)))


@given(st.integers(2, 12), st.lists(st.integers(1, 9), min_size=40, max_size=40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_every_sample_is_in_a_group_once(size: int, counts: list[int], seed: int) -> None:
    lists = planted(8, 5, np.random.default_rng(seed))
    sequence = neighbour_groups(*lists, np.array(counts), size, seed)
    assert np.bincount(sequence, minlength=40).tolist() == counts
    np.testing.assert_array_equal(sequence, neighbour_groups(*lists, np.array(counts), size, seed))
    text_ids = np.random.default_rng(seed).permutation(np.repeat(np.arange(40), counts))
    order = in_groups(text_ids, sequence, size, seed)
    assert sorted(order) == list(range(len(text_ids)))
    whole = len(order) // size * size

    def groups(texts: Ints) -> list[list[int]]:
        return sorted(sorted(group) for group in texts[:whole].reshape(-1, size).tolist())

    assert groups(text_ids[order]) == groups(sequence)
    np.testing.assert_array_equal(text_ids[order[whole:]], sequence[whole:])


def test_clusters_become_groups() -> None:
    lists = planted(30, 16, np.random.default_rng(0))
    ones = np.ones(480, np.int64)
    sequence = neighbour_groups(*lists, ones, 16, 0)
    inside = np.mean([batch_edges(lists[0], lists[1], group) for group in sequence.reshape(-1, 16)])
    assert inside > 0.95 * 15
    mixed = np.random.default_rng(1).permutation(sequence)
    assert np.mean([batch_edges(lists[0], lists[1], group) for group in mixed.reshape(-1, 16)]) < 2
    assert not np.array_equal(sequence, neighbour_groups(*lists, ones, 16, 1))


@pytest.mark.parametrize("seed", range(4))
def test_of_what_a_text_lists_the_nearest_comes_first(seed: int) -> None:
    """0 is near 3, 1 near 2, and 0 and 1 are further apart."""
    indptr, neighbours = np.array([0, 2, 4, 5, 6]), np.array([3, 1, 2, 0, 1, 0])
    similarities = np.array([0.9, 0.3, 0.9, 0.3, 0.9, 0.9], np.float16)
    sequence = neighbour_groups(indptr, neighbours, similarities, np.ones(4, np.int64), 2, seed)
    assert sorted(map(sorted, sequence.reshape(2, 2).tolist())) == [[0, 3], [1, 2]]


def test_copies_of_a_text_go_to_different_groups() -> None:
    lists = planted(6, 10, np.random.default_rng(0))
    assert repeats(neighbour_groups(*lists, np.full(60, 20), 10, 0), 10) < 0.02 * 1200
    # One text has a third of all samples and no neighbour: its copies are spread over what the clusters leave over.
    indptr, neighbours, similarities = lists
    alone = np.append(indptr, indptr[-1])
    sequence = neighbour_groups(alone, neighbours, similarities, np.append(np.full(60, 1), 30), 10, 0)
    assert np.bincount(sequence)[60] == 30
    assert (sequence.reshape(-1, 10) == 60).any(axis=1).all()
    sequence = neighbour_groups(alone, neighbours, similarities, np.append(np.full(60, 1), 5), 10, 0)
    assert repeats(sequence[:60], 10) == 0


def test_batch_edges_counts_what_rows_list() -> None:
    indptr, neighbours = np.array([0, 2, 3, 4, 4]), np.array([1, 2, 0, 0])
    assert batch_edges(indptr, neighbours, np.array([0, 1])) == 1
    assert batch_edges(indptr, neighbours, np.array([1, 2])) == 0
    assert batch_edges(indptr, neighbours, np.array([0, 1, 1, 3])) == pytest.approx((2 + 1 + 1 + 0) / 4)


@given(st.integers(1, 500), st.integers(2, 20), st.integers(20, 90))
def test_shards_hold_whole_groups(samples: int, size: int, shard_size: int) -> None:
    bounds = group_shards(samples, size, shard_size)
    assert bounds[0][0] == 0
    assert bounds[-1][1] == samples
    assert all(stop == start for (_, stop), (start, _) in pairwise(bounds))
    assert all(start % size == 0 and 0 < stop - start <= shard_size for start, stop in bounds)
    with pytest.raises(UserError, match="a shard of 3 samples holds no group of 4: raise --shard-size"):
        group_shards(samples, 4, 3)


def themes(root: Path) -> Path:
    """Tars of pictures in THEMES themes of EACH captions; a ninth of the samples repeat a caption."""
    rng = np.random.default_rng(0)
    scenes = ["a dog runs on the beach", "a man plays the guitar", "two children eat ice cream", "a red car in rain",
              "snow on a high mountain", "a plate of pasta", "an old book on a table", "a train in a station",
              "a white bird over the sea"]  # fmt: skip
    captions = [f"{scene}, picture {i}" for scene in scenes for i in range(EACH)] + scenes[:1] * THEMES
    order = rng.permutation(len(captions))
    for number, part in enumerate(np.array_split(order, 3)):
        members = [
            member
            for i in part
            for member in ((f"{i:04d}.jpg", jpeg(rng)), (f"{i:04d}.txt", captions[int(i)].encode()))
        ]
        write_tar(root / f"{number:05d}.tar", members)
    return root


def packing(**changes: Any) -> Packing:
    return Packing(**{"encoder": resolve_encoder(None), "group_size": 8, "k": 8} | changes)


def build(source: Path, out: Path, packed: Packing | None = None, **changes: Any) -> Path:
    chosen = {"layout": "packed", "packing": packed or packing(), "shard_size": 20} | changes
    build_shards(open_source(load_dataset("flickr8k"), str(source)), out, BuildSettings(**chosen), 1)
    return out


def contents(root: Path) -> dict[str, str]:
    # Work in progress, which .work holds, carries measured times.
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and ".work" not in path.parts)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A quick stand-in for the encoder, one direction a word; holds how many texts each call embedded."""
    calls: list[int] = []

    def encode(texts: Sequence[str], source: EncoderSource, work: Path) -> tuple[npt.NDArray[np.float32], Any]:
        calls.append(len(texts))
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                vectors[row] += np.random.default_rng([*word.encode()]).normal(size=64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), {"captions": len(texts)}

    monkeypatch.setattr(pipeline.graph.kinds, "encode_texts", encode)
    return calls


def test_packed_shards(tmp_path: Path, words: list[int]) -> None:
    source = themes(tmp_path / "in")
    out = build(source, tmp_path / "out")
    shards = Shards.open(out)
    index = shards.index
    assert (shards.manifest.layout, shards.manifest.settings["group_size"]) == ("packed", 8)
    assert [shard.samples for shard in shards.manifest.shards] == [8, 16, 16, 16, 16, 9]
    assert np.bincount(index.group).tolist() == [8] * 10 + [1]
    assert (np.diff(index.group) >= 0).all()
    build_graph(out, k=8)
    graph = shards.graph()
    plain = Shards.open(build(source, tmp_path / "plain", None, layout="shuffled", packing=None)).index.text_id
    edges = [batch_edges(graph.indptr, graph.neighbours, ids[:80].reshape(5, 16)[i]) for ids in (plain, index.text_id)
             for i in range(5)]  # fmt: skip
    assert np.mean(edges[5:]) > 3 * np.mean(edges[:5])
    assert repeats(index.text_id, 8) == 0
    assert verify(out) == []
    assert words == [73, 73]


def test_same_settings_same_bytes(tmp_path: Path, words: list[int]) -> None:
    source = themes(tmp_path / "in")
    first = build(source, tmp_path / "a")
    assert contents(build(source, tmp_path / "b")) == contents(first)
    assert contents(build(source, tmp_path / "c", seed=1)).keys() == contents(first).keys()
    assert contents(tmp_path / "c")["index/train-000000.parquet"] != contents(first)["index/train-000000.parquet"]
    before = len(words)
    build(source, first)
    assert len(words) == before
    for changes, message in (({"group_size": 4}, "group_size 8, not 4"), ({"k": 5}, "k 8, not 5")):
        with pytest.raises(UserError, match=f"was built with {message}"):
            build(source, first, packing(**changes))
    with pytest.raises(UserError, match="layout packed, not shuffled"):
        build(source, first, None, layout="shuffled", packing=None)


def test_the_graph_goes_on_from_the_layouts_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real encoder: what the layout embedded is not embedded again, stopped in between or not."""
    embedded: list[int] = []
    embed = pipeline.encode.embed.embed

    def counting(encoder: Any, captions: Sequence[str], *rest: Any) -> Any:
        embedded.append(len(captions))
        return embed(encoder, captions, *rest)

    monkeypatch.setattr(pipeline.encode.embed, "embed", counting)
    source = themes(tmp_path / "in")
    monkeypatch.setattr("pipeline.build.write_shard", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.encode.embed, "embed", counting)
    out = build(source, tmp_path / "out")
    folder = build_graph(out, k=8)
    assert embedded == [73]
    assert not (folder / ".work").exists()
    assert not (out / ".work").exists()
    assert verify(out) == []
    shutil.copytree(out, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "graphs")
    build_graph(tmp_path / "again", k=8)
    assert contents(tmp_path / "again") == contents(out)


def test_an_encoder_that_failed_may_be_replaced(
    tmp_path: Path, words: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was scanned stays; once anything is encoded, another encoder is another build."""
    source, out = themes(tmp_path / "in"), tmp_path / "out"
    wrong = packing(encoder=replace(resolve_encoder(None), id="wrong", config_sha256="wrong"))

    def failing(*arguments: Any) -> Any:
        raise UserError("lacks weights")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.graph.kinds, "encode_texts", failing)
        with pytest.raises(UserError, match="lacks weights"):
            build(source, out, wrong)
    assert not (out / "graphs" / "wrong-k8").exists()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.write_shard", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(source, out)
    with pytest.raises(UserError, match="was begun with encoder all-MiniLM-L6-v2, not wrong"):
        build(source, out, wrong)
    assert Manifest.load(build(source, out)).settings["encoder"] == "all-MiniLM-L6-v2"


def stopped(job: Any) -> Any:
    raise KeyboardInterrupt


def test_what_is_refused(tmp_path: Path) -> None:
    arguments = ["build", "demo", "--layout", "packed", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, [*arguments, "--graph", "class"])
    assert "not by --graph class" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--shard-size", "16"])
    assert "holds no group of 32" in str(result.exception)
    with pytest.raises(UserError, match="at least 2 samples, not 1"):
        packing(group_size=1)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL over a packed build with its graph, each followed by the same command: the same bytes."""
    source = themes(tmp_path / "in")

    def arguments(out: Path) -> list[str]:
        options = ["--layout", "packed", "--group-size", "8", "--k", "8", "--shard-size", "20"]
        return ["build", "flickr8k", "--source", str(source), "--out", str(out), *options]

    said = tmp_path / "said"
    forked.ready()
    begin = time.perf_counter()
    forked.run("pipeline.cli", arguments(tmp_path / "whole"), said)
    length, out, kills = time.perf_counter() - begin, tmp_path / "out", 0
    for _ in range(10):
        process = forked.start("pipeline.cli", arguments(out), said)
        process.join(random.uniform(0.3, 1.0) * length)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), said.read_text()
        if process.exitcode == 0 and not kills:  # the machine is less busy than it was when the clock ran
            shutil.rmtree(out)
            length /= 2
    forked.run("pipeline.cli", arguments(out), said)
    assert kills
    assert contents(out) == contents(tmp_path / "whole")
    assert Manifest.load(out).layout == "packed"
