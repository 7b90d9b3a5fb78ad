"""The preview page: what it says of the target against loops over pairs, and that it is one well-formed file."""

from __future__ import annotations

import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.graph.build import build_graph
from pipeline.preview.measure import batch_target, compare, places, preview
from shards.errors import UserError
from shards.graph import Graph, write_graph
from shards.manifest import Manifest
from tests.make import make_graph, make_shards
from tests.pipeline.texts import text_shards
from trainer.block import background

VOID = {"meta", "img", "i", "line", "polyline"}


class Page(HTMLParser):
    """Open elements are closed, nothing is fetched, no script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images = 0
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        for name, value in attrs:
            assert name != "href"
            assert name != "src" or (value or "").startswith("data:image/jpeg;base64,")
        self.images += tag == "img"
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def by_loops(graph: Graph, texts: list[int], tau_s: float) -> tuple[float, float, float, float, float]:
    """Own view, same text, listed, rest, effective positives: two views a sample, pair by pair."""
    lists = {
        (row, int(graph.neighbours[at])): float(graph.similarities[at])
        for row in range(len(graph))
        for at in range(graph.indptr[row], graph.indptr[row + 1])
    }
    shares, entropies = np.zeros(4), []
    views = [(sample, text) for sample, text in enumerate(texts) for _ in range(2)]
    for i, (sample, text) in enumerate(views):
        weights, kinds = [], []
        for j, (other, that) in enumerate(views):
            if i == j:
                continue
            if that == text:
                similarity, kind = 1.0, 0 if other == sample else 1
            elif (text, that) in lists:
                similarity, kind = lists[text, that], 2
            elif graph.codes is not None and graph.code_scale is not None:
                product = int(graph.codes[text].astype(int) @ graph.codes[that].astype(int))
                similarity, kind = float(graph.code_scale[text]) * float(graph.code_scale[that]) * product, 3
            else:
                mean, deviation = float(graph.background_mean[text]), float(graph.background_std[text])
                similarity, kind = float(background(*map(torch.tensor, (mean, deviation)), tau_s)), 3
            weights.append(math.exp(similarity / tau_s))
            kinds.append(kind)
        p = np.array(weights) / sum(weights)
        shares += np.bincount(kinds, p, minlength=4) / len(views)
        entropies.append(-(p * np.log(p)).sum())
    return *shares.tolist(), math.exp(np.mean(entropies))


@pytest.mark.parametrize("codes", [True, False])
def test_target_mass_equals_the_loops(codes: bool) -> None:
    graph = make_graph(9, k=3)
    if not codes:
        graph = dataclasses.replace(graph, codes=None, code_scale=None)
    texts = [4, 1, 1, 7, 0, 4, 4, 8]
    for target in batch_target(graph, np.array(texts), (0.005, 0.05, 0.1, 0.3)):
        found = (target.view, target.same_text, target.listed, target.rest, target.effective)
        assert found == pytest.approx(by_loops(graph, texts, target.tau_s), rel=1e-5)
        assert sum(found[:4]) == pytest.approx(1)


def test_the_page(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "s", sizes=(20, 14), classes=12, bad=(3, 5, 8, 13, 21), graph=False)
    dataclasses.replace(Manifest.load(root), dataset="a <b> & c", skipped={"cut image": 7}).save(root)
    build_graph(root, k=4)
    result = CliRunner().invoke(app, ["preview", str(root)])
    path = root / "preview-minilm-k4.html"
    assert result.stdout.strip() == str(path), result.output
    page = Page(path.read_text())
    text = " ".join(page.text)
    assert "a <b> & c, graph minilm-k4" in text
    assert "7 cut image" in text
    assert "34 in 2 shards, shuffled" in text
    empty = path.read_text().count('class="none"')  # does not decode
    assert empty > 0
    assert page.images + empty + path.read_text().count("<div></div>") == 12 * 7
    shown = re.findall(r'role">image</div><p>([^<]*)', path.read_text())
    assert len(set(shown)) == len(shown) == 12  # no text twice
    assert path.read_text().count("<polyline") == 5
    assert "packed" not in re.findall(r"<td>(\w+)</td>", path.read_text())
    before = path.read_bytes()
    preview(root)
    assert path.read_bytes() == before
    assert "raise k" in text
    build_graph(root, kind="random")
    page = preview(root, "random").read_text()
    assert "raise k" not in page  # every pair is listed already
    assert "another encoder" not in page
    build_graph(root, kind="class")  # a text a class: no pair of different ones
    assert "It lists no pair of different texts." in preview(root, "class").read_text()


def test_texts_of_one_vector_are_on_the_page(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "s", classes=6, graph=False)
    vectors = np.eye(6)[[0, 0, 1, 2, 3, 4]]
    np.save(tmp_path / "v.npy", np.hstack([vectors, np.zeros((6, 1))]))
    build_graph(root, kind="file", source=tmp_path / "v.npy", name="mine", k=2)
    page = preview(root, "mine").read_text()
    assert "2 texts have that of another<" in page
    rows = re.findall(r'role">image</div><p>([^<]*).*?role">random</span></div><p>([^<]*)', page, re.DOTALL)
    assert len(rows) == 6
    assert all(own != other for own, other in rows)
    build_graph(root, k=2)
    assert "same vector" not in preview(root, "minilm-k2").read_text()


def test_near_classes_are_shown_beside_many_texts_of_one(tmp_path: Path) -> None:
    """Else a matrix of classes in a wrong order would look right: the nearest are of the own class in any case."""
    labels = [0] * 7 + [1] * 6 + [2] * 5
    root = text_shards(tmp_path / "s", [f"{'abc'[label]}{i}" for i, label in enumerate(labels)], labels, "abc")
    np.save(tmp_path / "m.npy", np.array([[1, 0.75, 0.25], [0.75, 1, 0.5], [0.25, 0.5, 1]]))
    build_graph(root, kind="file", source=tmp_path / "m.npy")
    page = preview(root).read_text()
    found = set(re.findall(r"<b>([\d.]+)</b> <span[^>]*>(nearest \d+)</span></div><p>(\w)", page))
    assert {("1.00", "nearest 1", "a"), ("0.75", "nearest 7", "b"), ("0.25", "nearest 13", "c")} <= found
    assert "the first of lower similarities follow" in page
    build_graph(root, kind="class")
    paired = re.findall(
        r"<b>([\d.]+)</b> <span[^>]*>(\w+)</span></div><p>(\w)", compare(root, "m", "class").read_text()
    )
    assert {("1.00", "m", "a"), ("0.75", "m", "b"), ("0.25", "m", "c"), ("1.00", "class", "a")} <= set(paired)
    assert places(np.array([1, 1, 1, 0.5, 0.25], np.float16)) == [0, 1, 2, 3]
    assert places(np.ones(9, np.float16)) == [0, 1, 2, 3]


def test_the_batch_may_be_that_of_the_training(tmp_path: Path) -> None:
    """In a smaller one more of the target lies on the sample itself."""
    root = make_shards(tmp_path / "shards", sizes=(40, 30), classes=12, graph=False)
    build_graph(root, k=4)
    shares = []
    for batch in (4, 60):
        text = preview(root, out=tmp_path / "page.html", batch=batch).read_text()
        assert f"random batch of {batch} (another has another target" in text
        assert f"in a batch of {batch}." in text
        row = text[text.index('class="marked"><td>0.1</td>') :]
        shares.append(float(row.split("<td>")[2].split("<")[0]))
    assert shares[0] > shares[1]
    with pytest.raises(UserError, match="at least 2 samples, not 1"):
        preview(root, batch=1)


def test_packed_order_has_its_line(tmp_path: Path) -> None:
    from tests.pipeline.test_packed import build, packing, themes

    root = build(themes(tmp_path / "in"), tmp_path / "out", packing())
    build_graph(root, k=8)
    text = preview(root, out=tmp_path / "page.html", batch=8).read_text()
    edges = {name: float(value) for name, value in re.findall(r"<td>(random|packed)</td><td>([\d.]+)</td>", text)}
    assert edges["random"] < edges["packed"] <= 7  # a batch is one group of eight


def test_graphs_without_measurements_are_refused(tmp_path: Path) -> None:
    root = make_shards(tmp_path)
    with pytest.raises(UserError, match="says nothing of its source and audit and fidelity and histogram"):
        preview(root, "made")
    with pytest.raises(UserError, match="no graph 'other', only made"):
        preview(root, "other")
    write_graph(root, "two", make_graph(4), np.zeros(4, np.int32), ["train-000000"])
    with pytest.raises(UserError, match=r"several graphs \(made, two\): say which"):
        preview(root)
    assert not list(root.glob("*.html"))
