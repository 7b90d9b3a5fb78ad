"""The kNN vote against its definition written as loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

import eval.heads.bank as bank_module
import eval.heads.knn as module
from eval.heads.bank import Bank
from eval.heads.knn import KNN, KNNConfig
from shards.errors import UserError


def loops(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, classes: int, k: int, t: float) -> np.ndarray:
    votes = np.zeros((len(queries), classes))
    for i, query in enumerate(queries):
        cosines = [float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)) for row in bank]
        for j in sorted(range(len(bank)), key=lambda j: -cosines[j])[:k]:
            votes[i, labels[j]] += math.exp((cosines[j] - max(cosines)) / t)
    return votes


@pytest.mark.parametrize(("k", "bank_block"), [(1, 1000), (20, 1000), (20, 64), (50, 7)])
def test_votes_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch, k: int, bank_block: int) -> None:
    monkeypatch.setattr(bank_module, "BLOCK", bank_block)
    monkeypatch.setattr(module, "BLOCK", 16)
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 24)).astype(np.float32) for n in (150, 40))
    labels = rng.integers(0, 6, 150)
    knn = KNN(Bank.of(bank), labels, 6, KNNConfig(k=k, temperature=0.2))
    np.testing.assert_allclose(knn.scores(queries), loops(bank, labels, queries, 6, k, 0.2), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 3e-3])
def test_small_temperatures_leave_the_nearest_its_say(temperature: float) -> None:
    rng = np.random.default_rng(0)
    bank, queries = (rng.normal(size=(n, 24)).astype(np.float32) for n in (150, 40))
    labels = rng.integers(0, 6, 150)
    knn = KNN(Bank.of(bank), labels, 6, KNNConfig(k=20, temperature=temperature))
    _, nearest = knn.neighbours(queries)
    agreed = knn.scores(queries).argmax(1) == labels[nearest[:, 0].numpy()]
    assert agreed.mean() > 0.9
    assert (knn.scores(queries).max(1) >= 1).all()


def test_a_training_image_is_its_own_nearest() -> None:
    bank = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    cosines, rows = KNN(Bank.of(bank), np.zeros(30, np.int64), 1, KNNConfig(k=3)).neighbours(bank)
    assert rows[:, 0].tolist() == list(range(30))
    assert np.allclose(cosines[:, 0], 1, atol=1e-5)


def test_too_few_neighbours_is_one_line() -> None:
    with pytest.raises(UserError, match="20 neighbours of 5 training images: give more, or lower --k"):
        KNN(Bank.of(np.ones((5, 2), np.float32)), np.zeros(5, np.int64), 1, KNNConfig())
    KNN(Bank.of(np.ones((20, 2), np.float32)), np.zeros(20, np.int64), 1, KNNConfig())
    with pytest.raises(UserError, match="k must be at least 1"):
        KNNConfig(k=0)
