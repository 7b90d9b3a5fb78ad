"""The linear probe against scikit-learn, and what it promises about its selection."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import eval.heads.bank as bank_module
from eval.heads.bank import Bank
from eval.heads.flow import follow, paces, path_steps
from eval.heads.probe import ProbeConfig, fit_probe, probe_steps, schedule, split
from eval.heads.solvers import Candidate, moments, prepare, sgd
from shards.errors import UserError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def digits() -> tuple[Floats, Ints, Floats, Ints]:
    """Real pictures of digits, 64 features: 900 to train on, 897 to test on."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.int64)
    return x[:900], y[:900], x[900:], y[900:]


def accuracy(scores: Floats, truth: Ints) -> float:
    return float((scores.argmax(1) == truth).mean())


def test_lbfgs_is_logistic_regression(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, test, truth = digits
    deviation = np.where(x.std(0) > 0, x.std(0), np.inf)
    standard, standard_test = (x - x.mean(0)) / deviation, (test - x.mean(0)) / deviation
    train, held = split(y, 0.1, 0)
    decays = (1e-3, 1e-2, 1e-1)
    probe = fit_probe(Bank.of(x), y, 10, ProbeConfig(solver="lbfgs", weight_decays=decays, iterations=200))
    for row in probe.table:
        deviation_there = np.where(x[train].std(0) > 0, x[train].std(0), np.inf)
        there = (x - x[train].mean(0)) / deviation_there
        reference = LogisticRegression(C=1 / (row["weight_decay"] * len(train)), max_iter=2000)
        expected = reference.fit(there[train], y[train]).score(there[held], y[held])
        assert row["held_out_accuracy"] == pytest.approx(100 * expected, abs=1.2)  # one of 90
    reference = LogisticRegression(C=1 / (probe.chosen.weight_decay * len(y)), max_iter=5000, tol=1e-8)
    expected = reference.fit(standard, y).decision_function(standard_test)
    scores = probe.scores(test)
    assert abs(accuracy(scores, truth) - accuracy(expected, truth)) <= 0.003
    np.testing.assert_allclose(scores - scores.mean(1, keepdims=True), expected, atol=0.05)


def test_candidates_know_nothing_of_the_images_that_judge_them(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    """Not even by mean and deviation, which a few far-off images among those would decide."""
    x, y, _, _ = digits
    train, held = split(y, 0.1, 0)
    x = x.copy()
    x[held[:5]] += 1e4
    strong = ProbeConfig(solver="lbfgs", weight_decays=(1e-1,))
    row = fit_probe(Bank.of(x), y, 10, ProbeConfig(solver="lbfgs", weight_decays=(1e-1, 1.0))).table[0]
    alone = fit_probe(Bank.of(x[train]), y[train], 10, strong).scores(x[held])
    assert row["weight_decay"] == strong.weight_decays[0]
    assert row["held_out_accuracy"] == pytest.approx(100 * accuracy(alone, y[held]), abs=1.2)  # one of 90


def test_a_streamed_bank_trains_as_well_as_one_in_memory(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, test, truth = digits
    config = ProbeConfig(learning_rates=(0.3, 3.0), weight_decays=(1e-2,))
    streamed = Bank.of(x, memory=64 * 4 * 2 * 300)  # windows of 300 rows
    assert streamed.streams
    assert not Bank.of(x).streams
    near, far = (fit_probe(bank, y, 10, config).scores(test) for bank in (Bank.of(x), streamed))
    assert abs(accuracy(near, truth) - accuracy(far, truth)) <= 0.01


def test_a_streamed_pass_shows_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "SEGMENT", 8)
    values = np.arange(500, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    positions = np.arange(0, 500, 2).astype(np.int64)
    for bank in (Bank.of(values), Bank.of(values, memory=4 * 4 * 2 * 50)):
        rng = np.random.default_rng(0)
        seen = []
        for x, part in bank.shuffled(positions, 32, rng):
            assert len(part) == 32
            assert x[:, 0].tolist() == part.tolist()
            seen += part.tolist()
        assert len(seen) == len(set(seen)) == 250 // 32 * 32
        assert set(seen) <= set(positions.tolist())
        assert seen != sorted(seen)


@pytest.mark.parametrize("decay", [1e-2, 1e-1])
def test_converges_to_logistic_regression(digits: tuple[Floats, Ints, Floats, Ints], decay: float) -> None:
    x, y, test, truth = digits
    probe = fit_probe(
        Bank.of(x), y, 10, ProbeConfig(learning_rates=(1.0,), weight_decays=(decay,), epochs=300, batch_size=450)
    )
    deviation = np.where(x.std(0) > 0, x.std(0), np.inf)
    reference = LogisticRegression(C=1 / (decay * len(x)), max_iter=2000)
    reference.fit((x - x.mean(0)) / deviation, y)
    expected = reference.decision_function((test - x.mean(0)) / deviation)
    scores = probe.scores(test)
    assert abs(accuracy(scores, truth) - accuracy(expected, truth)) <= 0.003
    centred = scores - scores.mean(1, keepdims=True)  # softmax regression knows scores up to a constant
    assert np.abs(centred - (expected - expected.mean(1, keepdims=True))).mean() < 0.06


def test_the_sweep_is_as_good_as_scikit_learns(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, test, truth = digits
    deviation = np.where(x.std(0) > 0, x.std(0), np.inf)
    train, held = split(y, 0.1, 0)
    standard = (x - x.mean(0)) / deviation
    fits = {c: LogisticRegression(C=c, max_iter=500).fit(standard[train], y[train]) for c in (0.01, 0.1, 1.0)}
    best = max(fits, key=lambda c: fits[c].score(standard[held], y[held]))
    expected = LogisticRegression(C=best, max_iter=500).fit(standard, y)
    probe = fit_probe(Bank.of(x), y, 10, ProbeConfig())
    assert accuracy(probe.scores(test), truth) >= expected.score((test - x.mean(0)) / deviation, truth) - 0.003


def test_all_candidates_together_are_each_alone(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, _, _ = digits
    bank, labels, everything = Bank.of(x), torch.from_numpy(y), np.arange(len(y), dtype=np.int64)
    candidates = [
        Candidate(features="unit", lr=lr, weight_decay=decay) for lr in (0.1, 1.0, 5.0) for decay in (0.0, 0.1)
    ]
    at = moments(bank, everything, "unit")
    steps = schedule(len(y), ProbeConfig(min_steps=30, epochs=3))

    def train(group: list[Candidate]) -> list[torch.Tensor]:
        return sgd(bank, everything, labels, 10, group, at, steps, advance=lambda _: None)

    for candidate, weight in zip(candidates, train(candidates), strict=True):
        torch.testing.assert_close(train([candidate])[0], weight, atol=1e-4, rtol=1e-3)


def test_one_training_passes_the_ends_of_all_learning_rates(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    """Against each candidate trained by itself, from a hundredth of the largest learning rate on."""
    x, y, test, truth = digits
    config = ProbeConfig(learning_rates=(10.0, 0.1, 1.0), weight_decays=(1e-3, 1e-1))
    bank, labels, everything = Bank.of(x), torch.from_numpy(y), np.arange(len(y), dtype=np.int64)
    at, whole = moments(bank, everything, "standardised"), schedule(len(y), config)
    rates, decays = config.learning_rates, config.weight_decays
    done: list[int] = []
    found = follow(bank, everything, labels, 10, "standardised", rates, decays, at, whole, advance=done.append)
    assert len(found) == 6
    assert sum(done) == pytest.approx(path_steps(whole), rel=0.15)
    features = prepare(torch.from_numpy(test), "standardised", at)
    logits = {}
    for candidate, weight in found.items():
        alone = sgd(bank, everything, labels, 10, [candidate], at, whole, advance=lambda _: None)[0]
        logits[candidate], expected = (features @ weight).numpy(), (features @ alone).numpy()
        assert np.abs(logits[candidate] - expected).mean() < 0.1 * np.abs(expected).mean()
        assert abs(accuracy(logits[candidate], truth) - accuracy(expected, truth)) < 0.01
    sizes = [np.abs(logits[c]).mean() for c in sorted(logits, key=lambda c: (c.weight_decay, c.lr))]
    assert sizes[0] < 0.7 * sizes[1] < 0.7 * sizes[2]  # unlike ends, not one
    assert sizes[3] < sizes[2]


def test_paces_reach_the_end_in_the_steps_given() -> None:
    for first, last, steps in ((1.0, 1000.0, 400), (5.0, 5.0, 400), (0.1, 10.0, 5000)):
        found = paces(first, last, steps)
        assert sum(found) == pytest.approx(last)
        assert len(found) == pytest.approx(steps, rel=0.15)
        assert found[0] <= 0.05 * first + 1e-9
        assert max(found[i + 1] / found[i] for i in range(len(found) - 2)) < 1.06


def test_a_single_candidate_needs_no_selection(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, _, _ = digits
    single = ProbeConfig(learning_rates=(1.0,), weight_decays=(0.0,), min_steps=20, epochs=1)
    probe = fit_probe(Bank.of(x), y, 10, single)
    assert (probe.trained_on, probe.held_out, probe.table) == (900, 0, [])
    assert fit_probe(Bank.of(x[:2]), np.array([0, 1]), 2, single).trained_on == 2  # too few to hold any out


def test_of_equal_candidates_the_first_of_the_grid_is_taken() -> None:
    labels = np.repeat([0, 1], 20).astype(np.int64)
    config = ProbeConfig(learning_rates=(1.0, 3.0), weight_decays=(1e-2, 1e-3), min_steps=20, epochs=1)
    probe = fit_probe(Bank.of(np.eye(2, dtype=np.float32)[labels]), labels, 2, config)
    assert [row["held_out_accuracy"] for row in probe.table] == [100.0] * 4
    assert (probe.chosen.lr, probe.chosen.weight_decay) == (1.0, 1e-2)


def test_equal_calls_give_equal_weights(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, test, _ = digits
    one, two, other = (
        fit_probe(Bank.of(x), y, 10, ProbeConfig(min_steps=20, epochs=3, seed=seed)).scores(test) for seed in (0, 0, 1)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_constant_features_and_few_images_do_no_harm() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 8).astype(np.int64)
    x = np.concatenate([np.eye(3, dtype=np.float32)[labels], np.full((24, 1), 7, np.float32)], 1)
    x[:, :3] += 0.01 * rng.normal(size=(24, 3)).astype(np.float32)
    scores = fit_probe(Bank.of(x), labels, 4, ProbeConfig()).scores(x)  # the fourth class has no image
    assert np.isfinite(scores).all()
    assert accuracy(scores, labels) == 1


def test_progress_adds_up(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, _, _ = digits
    config = ProbeConfig(min_steps=20, epochs=3, features=("standardised", "unit"), batch_size=128)
    done: list[int] = []
    fit_probe(Bank.of(x), y, 10, config, done.append)
    assert sum(done) == pytest.approx(probe_steps(len(y), config), rel=0.02)  # the split rounds class by class


def test_the_held_out_part_is_stratified_and_leaves_every_class_an_image() -> None:
    labels = np.repeat(np.arange(5), [1, 2, 10, 100, 1000]).astype(np.int64)
    train, held = split(labels, 0.1, 0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert set(labels[train]) == set(range(5))
    counts = np.bincount(labels[held], minlength=5)
    assert counts[0] == 0
    assert abs(counts[3] - 10) <= 1
    assert abs(counts[4] - 100) <= 1
    assert not np.array_equal(held, split(labels, 0.1, 1)[1])


def test_wrong_input_is_one_line(digits: tuple[Floats, Ints, Floats, Ints]) -> None:
    x, y, test, _ = digits
    probe = fit_probe(Bank.of(x), y, 10, ProbeConfig(min_steps=20, epochs=1))
    with pytest.raises(UserError, match="trained on 64 features an image, these have 63"):
        probe.scores(test[:, 1:])
    with pytest.raises(UserError, match="2 training images of 2 classes leave none to select on"):
        fit_probe(Bank.of(x[:2]), np.array([0, 7]), 10, ProbeConfig())
    with pytest.raises(UserError, match="unknown kind of features 'raw'"):
        ProbeConfig(features=("raw",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="learning rates are above 0"):
        ProbeConfig(learning_rates=(0.0,))
    with pytest.raises(UserError, match="above 15 training is not stable"):
        ProbeConfig(learning_rates=(1.0, 30.0))
