"""Two graphs side by side: a graph against itself, against its own rescaled, and against one that is unrelated."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.graph.build import build_graph
from pipeline.preview.compare import comparison, most_unlike
from pipeline.preview.measure import compare
from pipeline.preview.target import batch_target
from shards.errors import UserError
from shards.graph import Graph
from tests.make import make_graph, make_shards
from tests.pipeline.test_preview import Page

TEXTS = np.arange(60)


def test_a_graph_against_itself() -> None:
    graph = make_graph(60, k=20)
    found = comparison(graph, graph, TEXTS)
    assert [(k, share) for k, share, _ in found.shared] == [(1, 1.0), (4, 1.0), (16, 1.0)]
    assert found.correlation == pytest.approx(1)
    for match in found.matches:
        assert match.other == pytest.approx(match.tau_s, rel=0.02)
        assert match.distance < 0.01
        assert match.end == ""
        assert match.effective == pytest.approx(batch_target(graph, TEXTS, (match.tau_s,))[0].effective)


def test_another_scale_is_another_tau_s() -> None:
    """1 - (1 - s) / 2 at half the temperature is the same target: all but a constant, which softmax does not see."""
    graph = make_graph(60, k=59)  # every pair is listed, so that codes do not count
    nearer = dataclasses.replace(graph, similarities=(1 - (1 - graph.similarities.astype(np.float64)) / 2))
    for match in comparison(graph, nearer, TEXTS).matches:
        assert match.other == pytest.approx(match.tau_s / 2, rel=0.02)
        assert match.distance < 0.01


def test_unrelated_graphs_share_what_chance_gives() -> None:
    one, other = make_graph(400, k=40, seed=1), make_graph(400, k=40, seed=2)
    found = comparison(one, other, np.arange(300))
    assert len(found.shared) == 3 + (np.median(np.minimum(np.diff(one.indptr), np.diff(other.indptr))) >= 64)
    for k, share, chance in found.shared:
        assert chance == k / 399
        assert share == pytest.approx(chance, abs=0.035)
    assert found.correlation is not None
    assert abs(found.correlation) < 0.3
    assert max(match.distance for match in found.matches) > 0.2
    assert found.batch == 300


def test_an_end_of_what_is_looked_at_is_said() -> None:
    """Two samples of each text: however small tau_s is, a target has three positives."""
    one = make_graph(60, k=59)
    flat = dataclasses.replace(one, similarities=np.ones_like(one.similarities))
    found = comparison(one, flat, TEXTS)
    assert {match.end for match in found.matches} == {"any"}  # of whatever tau_s, its target is uniform
    assert {match.end for match in comparison(flat, one, TEXTS).matches} == {">="}


def test_order_is_that_of_random_pairs() -> None:
    one, other = make_graph(40, k=39), make_graph(40, k=39, seed=3)
    mixed = dataclasses.replace(one, similarities=(one.similarities + other_of(one, other)) / 2)
    found = comparison(one, mixed, np.arange(40)).correlation
    a, b = (dense(graph)[np.triu_indices(40, 1)] for graph in (one, mixed))
    assert found is not None
    assert 0 < kendalltau(a, b).statistic < found < 1  # another measure of the same: always nearer 0
    blind = dataclasses.replace(one, codes=None, code_scale=None)
    assert comparison(one, blind, np.arange(40)).correlation is None


def dense(graph: Graph) -> np.ndarray:
    block = np.ones((len(graph), len(graph)))
    for row in range(len(graph)):
        at = slice(graph.indptr[row], graph.indptr[row + 1])
        block[row, graph.neighbours[at]] = graph.similarities[at]
    return block


def other_of(one: Graph, other: Graph) -> np.ndarray:
    """The other graph's similarities in the order of this one's lists."""
    rows = np.repeat(np.arange(len(one)), np.diff(one.indptr))
    return dense(other)[rows, one.neighbours]


def test_what_is_ranked_is_drawn_from_the_whole_batch() -> None:
    """Two graphs that agree on the first half of the texts alone, and rank all pairs."""
    one, other = make_graph(1100, k=3, seed=1), make_graph(1100, k=3, seed=2)
    assert one.codes is not None
    assert other.codes is not None
    codes, scale = one.codes.copy(), one.code_scale
    codes[550:] = other.codes[550:]
    half = dataclasses.replace(other, codes=codes, code_scale=scale)
    found = comparison(one, half, np.arange(1000)).correlation
    assert found is not None
    assert found < 0.75


def test_a_graph_without_codes_is_what_training_makes_of_it() -> None:
    graph = dataclasses.replace(make_graph(60, k=5), codes=None, code_scale=None)
    for match in comparison(graph, graph, TEXTS).matches:
        assert match.other == pytest.approx(match.tau_s, rel=0.02)
        assert match.distance < 0.01


def test_texts_of_few_neighbours_are_not_those_that_differ() -> None:
    one = make_graph(60, k=20)
    assert len(most_unlike(one, one, np.arange(60))) == 0
    first, stop = int(one.indptr[8]), int(one.indptr[9])
    cut = np.r_[0 : first + 1, stop : len(one.neighbours)]  # text 8 has one neighbour left
    short = dataclasses.replace(
        one,
        indptr=one.indptr - (stop - first - 1) * (np.arange(61) > 8),
        neighbours=np.where(cut == first, (one.neighbours[cut] + 1) % 60, one.neighbours[cut]).astype(np.int32),
        similarities=one.similarities[cut],
    )
    assert 8 not in most_unlike(one, short, np.arange(60))


def test_texts_that_differ_most_come_first() -> None:
    one = make_graph(60, k=59)
    turned = one.neighbours.copy()
    for text in (7, 30):  # in these two lists the farthest come first
        at = slice(one.indptr[text], one.indptr[text + 1])
        turned[at] = turned[at][::-1]
    found = most_unlike(one, dataclasses.replace(one, neighbours=turned), np.arange(60))
    assert set(found[:2].tolist()) == {7, 30}


def test_the_page_of_two(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "s", sizes=(40, 34), classes=20, bad=(3,), graph=False)
    build_graph(root, k=4)
    call = ["preview", str(root), "--graph", "minilm-k4", "--against"]
    build_graph(root, kind="random")
    result = CliRunner().invoke(app, [*call, "random"])
    path = root / "preview-minilm-k4-against-random.html"
    assert result.stdout.strip() == str(path), result.output
    text = " ".join(Page(path.read_text()).text)
    assert "minilm-k4 against random" in text
    assert "Where they differ most" in text
    shown = re.findall(r'role">image</div><p>([^<]*)', path.read_text())
    assert len(set(shown)) == len(shown) == 12  # no text twice
    before = path.read_bytes()
    compare(root, "minilm-k4", "random")
    assert path.read_bytes() == before
    for wrong, said in (("minilm-k4", "against itself"), ("nothere", "nothere")):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, [*call, wrong], catch_exceptions=False)
    with pytest.raises(UserError, match=r"say with --graph which graph of .* is compared with random"):
        CliRunner().invoke(app, ["preview", str(root), "--against", "random"], catch_exceptions=False)
