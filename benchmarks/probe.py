"""The linear probe: many candidates against one, and against scikit-learn's sweep.

    python -m benchmarks.probe [--quick] [--large]

30,000 x 512 features, 100 classes (a hidden mixture: class means, a falling spectrum, classes that overlap so far that
two thirds can be told, as of a good encoder's ImageNet), 10,000 more to test on. One sweep of 13 learning rates x 3
weight decays against the training of a single candidate by the same code, medians of three, and against scikit-learn's
LogisticRegression on as many values of C. --large: random features of ImageNet's shape (1.28 M x 2048 in half
precision, 1000 classes, 13 candidates); trained where there is a GPU, elsewhere only estimated.

The last line is one JSON object: sweep_over_single (target at most 1.5), speedup_sklearn (at least 20), accuracy_gain
(points; at least 0).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from eval.features import Features
from eval.heads.bank import Bank
from eval.heads.estimate import estimate
from eval.heads.probe import Probe, ProbeConfig, fit_probe
from shards.bars import say

RATES = tuple(np.geomspace(0.01, 10, 13).tolist())
DECAYS = (1e-3, 1e-2, 1e-1)
SAMPLE_OF_C = 7  # of scikit-learn's 39 fits are timed, evenly over the range; the rest are counted as their mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the features")
    parser.add_argument("--large", action="store_true", help="features of ImageNet's shape as well")
    options = parser.parse_args()
    count = 3_000 if options.quick else 30_000
    x, y, test, truth = mixture(count, 512, 100)
    values: dict[str, Any] = {"features": list(x.shape), "classes": 100, "threads": torch.get_num_threads()}
    sweep_config = ProbeConfig(learning_rates=RATES, weight_decays=DECAYS)
    fit_probe(Bank.of(x[:2000]), y[:2000], 100, ProbeConfig(min_steps=10, epochs=1))  # warm up
    probe, sweep = timed(x, y, sweep_config)
    say(f"sweep of {len(RATES)} x {len(DECAYS)}: {sweep:.1f} s, chosen {probe.chosen}")
    chosen = ProbeConfig(learning_rates=(probe.chosen.lr,), weight_decays=(probe.chosen.weight_decay,))
    _, single = timed(x, y, chosen)
    say(f"one candidate: {single:.1f} s")
    ours = accuracy(probe.scores(test), truth)
    theirs, seconds, fits = scikit(x, y, test, truth)
    values |= {
        "sweep_s": round(sweep, 2),
        "single_s": round(single, 2),
        "sweep_over_single": round(sweep / single, 2),
        "sklearn_s": round(seconds, 1),
        "sklearn_fits_timed": fits,
        "speedup_sklearn": round(seconds / sweep, 1),
        "accuracy": round(100 * ours, 2),
        "sklearn_accuracy": round(100 * theirs, 2),
        "accuracy_gain": round(100 * (ours - theirs), 2),
    }
    show(values)
    if options.large:
        values["large"] = large()
    print(json.dumps(values))


def timed(x: Any, y: Any, config: ProbeConfig) -> tuple[Probe, float]:
    """The probe, and the median of three rounds' seconds."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        probe = fit_probe(Bank.of(x), y, 100, config)
        seconds.append(time.perf_counter() - start)
    return probe, median(seconds)


def mixture(
    count: int, width: int, classes: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features with the falling spectrum of a network's: (train, labels, test, labels)."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, width + 1) ** -0.5
    means = rng.normal(size=(classes, width)) * spectrum * 0.15
    total = count + 10_000
    labels = rng.integers(0, classes, total)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = ((means[labels] + rng.normal(size=(total, width)) * spectrum) @ rotation).astype(np.float32)
    return x[:count], labels[:count], x[count:], labels[count:]


def scikit(x: Any, y: Any, test: Any, truth: Any) -> tuple[float, float, int]:
    """(accuracy of the best C by the same held-out share, seconds of 39 fits, how many were timed)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    mean, deviation = x.mean(0), x.std(0)
    standard, standard_test = (x - mean) / deviation, (test - mean) / deviation
    train, held, y_train, y_held = train_test_split(standard, y, test_size=0.1, random_state=0, stratify=y)
    times, scores = [], {}
    for c in np.geomspace(1e-6, 1e-1, SAMPLE_OF_C):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its default limit of 100 iterations
            model = LogisticRegression(C=c).fit(train, y_train)
        times.append(time.perf_counter() - start)
        say(f"scikit-learn, C = {c:.1e}: {times[-1]:.1f} s")
        scores[c] = model.score(held, y_held)
    best = max(scores, key=lambda c: scores[c])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        final = LogisticRegression(C=best).fit(standard, y)
    return float(final.score(standard_test, truth)), float(np.mean(times)) * len(RATES) * len(DECAYS), SAMPLE_OF_C


def large() -> dict[str, Any]:
    """ImageNet's shape, on disk as the features of a benchmark are."""
    count, width = 1_281_167, 2048
    config = ProbeConfig(learning_rates=RATES, weight_decays=(1e-3,), batch_size=4096, epochs=10)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        parts, labels = on_disk(Path(folder), count, width)
        features = Features(hash="", parts=parts, ok=np.ones(count, bool), dim=width, reused=True)
        bank = Bank(features, np.arange(count, dtype=np.int64))
        seconds, held = estimate(bank, 1000, config)
        values: dict[str, Any] = {"estimate_s": round(seconds), "estimate_gib": round(held / 2**30, 2)}
        if torch.cuda.is_available():
            start = time.perf_counter()
            fit_probe(bank, labels, 1000, config)
            values["sweep_s"] = round(time.perf_counter() - start)
    show(values)
    return values


def on_disk(folder: Path, count: int, width: int) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Random features in half precision, in parts of 8192 rows; the same noise in every part."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8192, width)).astype(np.float16)
    parts = []
    for number, start in enumerate(range(0, count, 8192)):
        path = folder / f"{number}.npy"
        np.save(path, noise[: count - start])
        parts.append(np.load(path, mmap_mode="r"))
    return parts, rng.integers(0, 1000, count)


def accuracy(scores: Any, truth: Any) -> float:
    return float((scores.argmax(1) == truth).mean())


def show(values: dict[str, Any]) -> None:
    for name, value in values.items():
        print(f"{name:<22}{value}")


if __name__ == "__main__":
    main()
