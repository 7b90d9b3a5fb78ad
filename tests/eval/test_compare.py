"""Differences of rows: against simulated pictures and seeds, and against a paired t-test."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from eval.evaluate import hits_of
from eval.report.compare import RowHits, compare_rows, comparison_lines, difference, is_sure


def test_of_single_runs_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1.5, 500)
    a, b = ((hard + rng.normal(shift, 0.5, 500) > 0).astype(np.float32) for shift in (0.3, 0.0))
    value, reach = difference(RowHits.of([a]), RowHits.of([b]))
    exact = ttest_rel(a, b).confidence_interval(0.95)
    assert (value - reach, value + reach) == pytest.approx((exact.low, exact.high))
    unpaired = ttest_ind(a, b).confidence_interval(0.95)
    assert 2 * reach < 0.6 * (unpaired.high - unpaired.low)  # the same pictures tell more


def test_of_many_pictures_it_is_welchs_test_of_the_runs() -> None:
    rng = np.random.default_rng(1)
    rates = ([0.5, 0.52, 0.58], [0.4, 0.41, 0.42, 0.43])
    a, b = (
        [np.repeat([1, 0], [round(r * 10**6), 10**6 - round(r * 10**6)]).astype(np.float32) for r in x] for x in rates
    )
    for runs in (*a, *b):
        rng.shuffle(runs)
    value, reach = difference(RowHits.of(a), RowHits.of(b))
    exact = ttest_ind(*rates, equal_var=False).confidence_interval(0.95)
    assert (value - reach, value + reach) == pytest.approx((exact.low, exact.high), rel=0.01)


@pytest.mark.parametrize(("runs", "spread"), [((1, 1), 0.0), ((3, 3), 0.2), ((3, 5), 0.05), ((2, 2), 0.1)])
def test_the_interval_holds_the_truth_as_often_as_it_says(runs: tuple[int, int], spread: float) -> None:
    """Two methods that are equal: in 95 of 100 repetitions zero lies within, or somewhat more often."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        hard = rng.normal(0, 1.5, 300)
        a, b = (
            [(hard + rng.normal(0, spread) + rng.normal(0, 0.5, 300) > 0).astype(np.float32) for _ in range(count)]
            for count in runs
        )
        value, reach = difference(RowHits.of(a), RowHits.of(b))
        inside += abs(value) <= reach

    assert 0.93 <= inside / 400 < 1


def row(name: str, *runs: list[int]) -> dict[str, Any]:
    def value(hits: list[int]) -> dict[str, Any]:
        column = {"n": len(hits), "hits": base64.b64encode(np.packbits(hits).tobytes()).decode()}
        return {
            "columns": {"top1": column, "s0": column, "s1": {**column, "hits": base64.b64encode(b"\0" * 9).decode()}},
            "summaries": {"mean": {"columns": ["s0", "s1"]}},
        }

    return {
        "method": name,
        "runs": [{"evaluations": {("b", m): value(hits) for m in ("linear_probe", "knn")}} for hits in runs],
    }


def test_each_pair_is_compared_on_each_column() -> None:
    right, wrong, other = [1] * 40, [0] * 40, [1] * 39
    titles = {("b", "top1"): "top1", ("b", "mean"): "mean"}
    half = [1, 0] * 20
    found = compare_rows([row("a", wrong), row("b", half), row("c", right, half)], titles)
    assert len(found) == 3 * 2 * 2
    by = {(f["row"], f["less"], f["column"]): f for f in found}
    assert by["b", "a", "top1"]["difference"] == 50
    assert is_sure(by["b", "a", "top1"])
    assert by["b", "a", "mean"]["difference"] == 25  # of the two splits only one differs
    assert by["c", "a", "top1"]["difference"] == 75
    assert not is_sure(by["c", "a", "top1"])  # two runs, 50 points apart
    lines = comparison_lines({"comparisons": found, "columns": ["top1", "none"]}, "knn")
    assert [name for name, _ in lines] == ["b - a", "c - a", "c - b"]
    assert [cell and cell["difference"] for cell in lines[0][1]] == [50, None]
    assert compare_rows([row("a", right), row("b", other)], titles) == []  # not the same pictures


def test_hits_come_back_as_they_were() -> None:
    hits = [1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    packed = base64.b64encode(np.packbits(hits).tobytes()).decode()
    assert hits_of({"n": len(hits), "hits": packed}).tolist() == hits
