"""Differences of rows: against textbook tests, and against simulated pictures and seeds."""

from __future__ import annotations

import base64
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from eval.benchmarks.bench import Bench, Column, Task, top
from eval.evaluate import Settings, evaluate, hits_of
from eval.heads.knn import KNNConfig
from eval.report.compare import RowHits, compare_rows, compared_columns, comparison_lines, difference, is_sure, points
from tests.eval.make_folders import make_model, make_set

METHODS = ("linear_probe", "knn")


def test_of_single_runs_it_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1.5, 5000)
    a, b = ((hard + rng.normal(shift, 0.5, 5000) > 0).astype(np.float32) for shift in (0.3, 0.0))
    value, reach = difference((RowHits.of([a]), RowHits.of([b])))
    exact = ttest_rel(a, b).confidence_interval(0.95)
    assert (value - reach, value + reach) == pytest.approx((exact.low, exact.high), abs=1e-4)
    unpaired = ttest_ind(a, b).confidence_interval(0.95)
    assert 2 * reach < 0.6 * (unpaired.high - unpaired.low)  # the same pictures tell more


def test_of_few_pictures_it_is_agresti_and_mins_and_never_certain() -> None:
    a, b = np.array([1, 1, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 1, 0])  # 3 right for a alone, 1 for b alone
    value, reach = difference((RowHits.of([a]), RowHits.of([b])))
    n, more, fewer = 6 + 2, 3.5, 1.5
    assert value == pytest.approx(2 / 6)
    assert reach == pytest.approx(2.570582 * sqrt((more + fewer) / n - ((more - fewer) / n) ** 2) / sqrt(n))  # t of 5
    for count in (1, 3):
        value, reach = difference((RowHits.of([np.ones(count)]), RowHits.of([np.zeros(count)])))
        assert value == 1
        assert reach > 0.5


def runs_of(rates: list[float], pictures: int, rng: np.random.Generator) -> RowHits:
    hits = [np.repeat([1, 0], [round(r * pictures), pictures - round(r * pictures)]) for r in rates]
    return RowHits.of([rng.permutation(one).astype(np.float32) for one in hits])


def test_of_many_pictures_it_is_the_t_test_of_the_runs_with_the_larger_spread() -> None:
    rng = np.random.default_rng(1)
    small, large = [0.50, 0.52, 0.54], [0.40, 0.44, 0.48]
    spread = float(np.std(large, ddof=1))
    for a, b in ((small, large), (large, small)):
        value, reach = difference((runs_of(a, 10**6, rng), runs_of(b, 10**6, rng)))
        assert value == pytest.approx(np.mean(a) - np.mean(b))
        assert reach == pytest.approx(2.776445 * spread * sqrt(2 / 3), rel=0.01)  # t of 4
    _, alike = difference((runs_of(large, 10**6, rng), runs_of(large, 10**6, rng)))
    exact = ttest_ind(large, large).confidence_interval(0.95)
    assert alike == pytest.approx((exact.high - exact.low) / 2, rel=0.01)
    _, single = difference((runs_of(large, 10**6, rng), runs_of([0.5], 10**6, rng)))
    assert single == pytest.approx(4.302653 * spread * sqrt(1 + 1 / 3), rel=0.01)  # its own is not known; t of 2


@pytest.mark.parametrize(
    ("runs", "spreads", "least"),
    [
        ((1, 1), (0, 0), 0.93),
        ((2, 2), (0.1, 0.1), 0.94),
        ((3, 3), (0.2, 0.2), 0.94),
        ((3, 3), (0.1, 0), 0.94),
        ((5, 5), (0.05, 0.05), 0.94),
        ((3, 1), (0.1, 0.1), 0.9),
    ],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(
    runs: tuple[int, int], spreads: tuple[float, float], least: float
) -> None:
    """Two methods that are equal: in 95 of 100 repetitions zero lies within, or somewhat more often."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(500):
        hard = rng.normal(0, 1.5, 500)
        a, b = (
            RowHits.of([(hard + rng.normal(0, spread) + rng.normal(0, 0.5, 500) > 0) for _ in range(count)])
            for count, spread in zip(runs, spreads, strict=True)
        )
        value, reach = difference((a, b))
        inside += abs(value) <= reach
    assert least <= inside / 500 < 1


@pytest.mark.parametrize(("runs", "least"), [(1, 0.93), (3, 0.94)])
@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_the_interval_of_a_gap_holds_the_truth_as_often_as_it_says(runs: int, shared: float, least: float) -> None:
    """Two columns, the second harder for both methods alike: their gaps are equal. shared: of the objects' difficulty,
    what is the same in both columns."""
    rng = np.random.default_rng(5)
    inside, wide = 0, 0.0
    for _ in range(500):
        hard = rng.normal(0, 1.5, 500)
        columns = [shared * hard + rng.normal(0, 1.5 * (1 - shared), 500) - shift for shift in (0, 1)]
        whims = rng.normal(0, 0.2 * (runs > 1), (2, runs))  # of a run, in both columns
        (a, b), (c, d) = (
            (
                RowHits.of([column + whim + rng.normal(0, 0.5, 500) > 0 for whim in whims[0]]),
                RowHits.of([column + whim + rng.normal(0, 0.5, 500) > 0 for whim in whims[1]]),
            )
            for column in columns
        )
        value, reach = difference((a, b), (c, d))
        assert value == pytest.approx((a.share - b.share - c.share + d.share).mean())
        inside += abs(value) <= reach
        wide += reach / 500
    assert least <= inside / 500 < 1
    assert wide < (0.08 if runs == 1 else 0.11)  # and is of use


def row(name: str, *runs: list[int], counted: str = "all") -> dict[str, Any]:
    """Three columns, of which `s1` is right on no picture but the first."""

    def column(hits: list[int]) -> dict[str, Any]:
        return {
            "n": len(hits),
            "hits": base64.b64encode(np.packbits(hits).tobytes()).decode(),
            "counted": counted,
        }

    def value(hits: list[int]) -> dict[str, Any]:
        return {
            "columns": {"top1": column(hits), "s0": column(hits), "s1": column([1] + [0] * (len(hits) - 1))},
            "summaries": {"mean": {"columns": ["s0", "s1"]}},
        }

    return {"method": name, "runs": [{"evaluations": {("b", m): value(hits) for m in METHODS}} for hits in runs]}


TITLES = {("b", "top1"): "top1", ("b", "mean"): "mean"}
RIGHT, WRONG, HALF = [1] * 40, [0] * 40, [1, 0] * 20


def test_each_pair_is_compared_on_each_column() -> None:
    found, lost = compare_rows([row("a", WRONG), row("b", HALF), row("c", RIGHT, HALF)], TITLES)
    assert lost == []
    assert len(found) == 3 * 2 * 2
    by = {(f["row"], f["less"], f["column"], f["method"]): f for f in found}
    one = by["b", "a", "top1", "knn"]
    value, reach = difference((RowHits.of([np.array(HALF)]), RowHits.of([np.array(WRONG)])))
    assert one["interval"] == pytest.approx([100 * (value - reach), 100 * (value + reach)], abs=1e-5)
    assert (one["difference"], one["runs"]) == (50, [1, 1])
    assert is_sure(one)
    assert not is_sure({"interval": [-1, 2]})
    assert is_sure({"interval": [-2, -1]})
    mean = by["b", "a", "mean", "knn"]  # of the two splits only one differs
    same = difference((RowHits.of([np.array(HALF)]), RowHits.of([np.array(HALF)])))[1]
    assert mean["difference"] == 25
    assert mean["interval"][1] - 25 == pytest.approx(100 * (reach + same) / 2, abs=0.011)
    assert by["c", "a", "top1", "knn"]["difference"] == 75
    assert not is_sure(by["c", "a", "top1", "knn"])  # two runs, 50 points apart


def test_a_gap_is_compared_as_one_figure() -> None:
    """s1 is the same for all, so the gap s0 - s1 differs by what s0 does; it is no mean of the two."""
    found, _ = compare_rows([row("a", WRONG), row("b", HALF)], TITLES, ("knn",), {("b", "mean")})
    plain, gap = found
    assert (plain["column"], gap["column"]) == ("top1", "mean")
    assert gap["difference"] == plain["difference"] == 50
    assert gap["interval"][0] < plain["interval"][0]
    results = {"comparisons": found, "columns": ["top1"], "against": ""}
    assert compared_columns(results) == ["top1", "mean"]
    assert comparison_lines(results, "knn") == [("b - a", [plain, gap])]


def test_other_pictures_are_not_compared() -> None:
    found, lost = compare_rows([row("a", RIGHT), row("b", HALF, counted="all but one"), row("c", WRONG)], TITLES)
    assert {(f["row"], f["less"]) for f in found} == {("c", "a")}
    assert lost[0] == "b - a, linear probe on top1"
    assert len(lost) == 2 * 2 * 2


def test_lines_are_of_all_pairs_or_of_those_with_one_row() -> None:
    found, _ = compare_rows([row("a", WRONG), row("a - b", HALF), row("b", RIGHT), row("b - b", RIGHT)], TITLES)
    results = {"comparisons": found, "columns": ["top1", "none"], "against": ""}
    lines = comparison_lines(results, "knn")
    assert [name for name, _ in lines] == ["a - b - a", "b - a", "b - b - a", "b - a - b", "b - b - a - b", "b - b - b"]
    assert [cell and cell["difference"] for cell in lines[0][1]] == [50, None, 25]
    against = comparison_lines(results | {"against": "b"}, "knn")
    assert [name for name, _ in against] == ["a - b", "a - b - b", "b - b - b"]
    assert [cells[0]["difference"] for _, cells in against if cells[0]] == [-100, -50, 0]
    low, high = against[1][1][0]["interval"] if against[1][1][0] else (0, 0)
    assert low < -50 < high < 0
    assert points(against[2][1][0] or {})[0] == "+0.0"
    assert points({"difference": -0.04, "interval": [-1.04, 0.96]}) == ("+0.0", "±1.0")


def test_hits_come_back_as_they_were() -> None:
    hits = [1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1]
    packed = base64.b64encode(np.packbits(hits).tobytes()).decode()
    assert hits_of({"n": len(hits), "hits": packed}).tolist() == hits


def test_counted_says_which_pictures_they_are(tmp_path: Path) -> None:
    def counted(bad: tuple[int, ...], where: str) -> str:
        train, val = make_set(20), make_set(20, bad=bad, name="val", seed=1)
        task = Task(name="t", images="train", labels=np.arange(20) % 2, classes=["a", "b"])
        column = Column(name="top1", task="t", images="val", score=top(np.arange(20) % 2))
        bench = Bench(name="mine", root=tmp_path, sets=(train, val), tasks=(task,), columns=(column,))
        settings = Settings(features=tmp_path / where, knn=KNNConfig(k=1))
        found = evaluate(make_model(), bench, "knn", settings)["columns"]["top1"]
        assert found["n"] == 20 - len(bad)
        return str(found["counted"])

    assert counted((0,), "a") != counted((3,), "b")  # equally many, others
    assert counted((3,), "c") == counted((3,), "d") != counted((), "e")
