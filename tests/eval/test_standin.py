"""Features, probes and votes on a stand-in for a GPU: the CPU's results, and every tensor where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch

import eval.features
import eval.heads.bank
from eval.benchmarks.bench import ImageSet
from eval.features import extract
from eval.heads.bank import Bank
from eval.heads.knn import KNN, KNNConfig
from eval.heads.probe import ProbeConfig, fit_probe
from eval.models.model import Model, Transform
from pipeline.search.gpu import torch_tiles
from tests.make import jpeg
from tests.standin import GPU, stand_in_gpu

CLASSES, PICTURES = 4, 120
LABELS = np.arange(PICTURES) % CLASSES


def scores(root: Path) -> list[npt.NDArray[np.float32]]:
    """Of the vote and of both solvers' probes, and the features themselves."""
    rng = np.random.default_rng(0)
    pictures = [jpeg(rng, hue=int(label)) for label in LABELS]
    torch.manual_seed(0)
    model = Model(
        name="resnet10t",
        network=timm.create_model("resnet10t", num_classes=0).eval(),
        feature_dim=512,
        transform=Transform(image_size=32, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
        sha256="",
        about={},
    )
    images = ImageSet(name="made", keys=[*map(str, LABELS)], read=pictures.__getitem__, fingerprint="", may_train=True)
    features = extract(model, images, root)
    bank, some = Bank(features, np.arange(PICTURES)), features.rows(np.arange(20))
    configs = ProbeConfig(epochs=4, batch_size=32, min_steps=40), ProbeConfig(solver="lbfgs", iterations=20)
    probes = (fit_probe(bank, LABELS, CLASSES, config) for config in configs)
    return [some, KNN(bank, LABELS, CLASSES, KNNConfig(k=5)).scores(some), *(probe.scores(some) for probe in probes)]


def test_evaluation_on_the_gpu_is_that_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scores(tmp_path / "cpu")
    for module in (eval.features, eval.heads.bank):
        monkeypatch.setattr(module, "device", lambda: GPU)
    with stand_in_gpu():
        found = scores(tmp_path / "gpu")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_search_on_the_gpu_finds_what_it_finds_on_the_cpu() -> None:
    """There in half precision, so the last of a list may differ."""
    vectors = np.random.default_rng(0).normal(size=(500, 16)).astype(np.float32)
    rows = np.arange(50)
    expected = torch_tiles(vectors, "cpu")(rows, 5)
    with stand_in_gpu():
        found = torch_tiles(vectors, str(GPU))(rows, 5)
    assert (found == expected).mean() > 0.95
