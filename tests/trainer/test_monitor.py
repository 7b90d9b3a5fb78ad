"""What is watched while a run goes on: nearest neighbours, rank, and the graph's order."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr  # type: ignore[import-untyped]
from torch.nn import functional

from shards.reader import Shards
from tests.make import make_shards
from tests.trainer.small import recipe
from trainer.data import Batch, to_views
from trainer.model import build_encoder
from trainer.monitor import Monitor, _rankme
from trainer.recipe import ModelConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=(30, 25, 29), classes=6)


def test_features_that_are_all_alike_have_rank_one() -> None:
    assert _rankme(torch.zeros(20, 4)) == _rankme(torch.ones(20, 4)) == 1.0
    assert _rankme(torch.randn(2000, 4)) == pytest.approx(4, abs=0.1)


def test_the_correlation_with_the_graph_is_spearmans(tmp_path: Path) -> None:
    """Of features, over pairs of different texts; many similarities are equal."""
    shards = Shards.open(make_shards(tmp_path / "made", (40,), classes=5))
    graph = shards.graph()
    monitor, built = Monitor(shards, graph, 32, 0), build_encoder(recipe(shards.root).model, 32, 0)
    found = monitor.measure(built, torch.device("cpu"))["graph_correlation"]
    views = to_views(Batch(monitor.images, *[torch.zeros(40, dtype=torch.int64)] * 3), torch.device("cpu"))
    with torch.no_grad():
        features = torch.nn.functional.normalize(built.eval().features(views), dim=1)
    assert graph.codes is not None
    assert graph.code_scale is not None
    text = shards.index.text_id
    codes = torch.from_numpy(graph.codes[text] * graph.code_scale[text, None])
    pairs = [(i, j) for i, j in combinations(range(40), 2) if text[i] != text[j]]
    values = [[float(x[i] @ x[j]) for i, j in pairs] for x in (features, codes)]
    assert found == pytest.approx(spearmanr(*values).statistic, abs=1e-4)
    alone = Monitor(Shards.open(make_shards(tmp_path / "one", (9,), classes=1, graph=False)), graph, 32, 0)
    assert "graph_correlation" not in alone.measure(built, torch.device("cpu"))
    monitor.codes = torch.eye(5)[
        torch.from_numpy(text.astype(np.int64))
    ]  # of classes: all pairs of different texts are alike
    assert "graph_correlation" not in monitor.measure(built, torch.device("cpu"))


@pytest.mark.parametrize("labels", [True, False])
def test_the_online_knn_is_the_vote_and_the_captions_of_the_nearest(tmp_path: Path, labels: bool) -> None:
    """Pair by pair, as its two definitions say."""
    shards = Shards.open(make_shards(tmp_path / "made", (40,), classes=5, labels=labels))
    monitor, built = Monitor(shards, shards.graph(), 32, 0), build_encoder(recipe(shards.root).model, 32, 0)
    found = monitor.measure(built, torch.device("cpu"))
    views = to_views(Batch(monitor.images, *[torch.zeros(40, dtype=torch.int64)] * 3), torch.device("cpu"))
    with torch.no_grad():
        features = functional.normalize(built.eval().features(views), dim=1).double().numpy()
    cosine = features @ features.T - 9 * np.eye(40)
    if labels:
        right = 0
        for i, row in enumerate(cosine):
            votes = np.zeros(5)
            for j in np.argsort(-row)[:10]:
                votes[shards.index.label[j]] += math.exp(row[j] / 0.07)
            right += int(votes.argmax() == shards.index.label[i])
        assert found["knn"] == pytest.approx(right / 40)
    else:
        assert monitor.codes is not None
        alike = (monitor.codes @ monitor.codes.T).double().numpy()
        near = np.mean([alike[i, row.argmax()] for i, row in enumerate(cosine)])
        random = np.mean([alike[i, j] for i in range(40) for j in range(40) if i != j])
        assert found["knn_similarity"] == pytest.approx(near - random, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_watching_leaves_the_encoder_as_it_was(shards: Path, training: bool) -> None:
    """In its mode, and with its running statistics."""
    encoder = build_encoder(ModelConfig(backbone="test_resnet"), 32, 0).train(training)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    Monitor(Shards.open(shards), None, 32, 0).measure(encoder, torch.device("cpu"))
    assert {module.training for module in encoder.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_of_large_images_the_monitor_looks_at_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards.open(make_shards(tmp_path / "made", (40,), classes=5))
    monkeypatch.setattr("trainer.monitor.BYTES", 7 * 3 * 32**2)
    few = Monitor(shards, shards.graph(), 32, 0)
    assert (len(few.images), len(few.labels if few.labels is not None else ())) == (7, 7)
    assert len(Monitor(shards, shards.graph(), 512, 0).images) == 2


@pytest.mark.parametrize(("unlabelled", "labelled"), [(0, True), (10, True), (45, False)])
def test_of_mostly_labelled_samples_the_monitor_looks_at_those_with_a_label(
    shards: Path, unlabelled: int, labelled: bool
) -> None:
    folder = Shards.open(shards)
    label = np.where(np.arange(84) % 84 < unlabelled, -1, folder.index.label)
    folder.index = replace(folder.index, label=label)
    monitor = Monitor(folder, folder.graph(), 16, 0)
    assert len(monitor.images) == (84 - unlabelled if labelled else 84)
    assert (monitor.labels is not None) == labelled
    encoder = build_encoder(ModelConfig(backbone="test_vit"), 16, 0)
    found = monitor.measure(encoder, torch.device("cpu"))
    assert ("knn" in found, "knn_similarity" in found) == (labelled, not labelled)
