"""Several runs of one method, of other seeds above all, as one: the mean of their figures, and their spread."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from eval.evaluate import DIGITS, hits_of, wilson

__all__ = ["mean_of_runs", "spread"]


def mean_of_runs(values: list[dict[str, Any]]) -> dict[str, Any]:
    """evaluate()'s values of several models, by one method on one benchmark, as one such value.

    An accuracy is the mean, its interval Wilson's of that mean: how far the pictures leave it open, whichever seed.
    Columns and summaries gain `runs`, the figures in order; those of columns are not rounded, so that means and
    spreads are right to the last digit shown. What is not a figure is the first's.
    """
    if len(values) == 1:
        return values[0]
    columns = {}
    for name, column in values[0]["columns"].items():
        runs = [100 * float(hits_of(value["columns"][name]).mean(dtype=float)) for value in values]
        interval = [round(100 * end, DIGITS) for end in wilson(mean(runs) / 100, column["n"])]
        columns[name] = {**column, "accuracy": round(mean(runs), DIGITS), "interval": interval, "runs": runs}
    summaries = {}
    for name, summary in values[0]["summaries"].items():
        runs = [value["summaries"][name]["value"] for value in values]
        summaries[name] = {**summary, "value": round(mean(runs), DIGITS), "runs": runs}
    partial = [line for value in values for line in value["partial"]]
    return {**values[0], "columns": columns, "summaries": summaries, "partial": partial}


def spread(runs: list[float]) -> float:
    """Sample standard deviation of the figures of several runs."""
    return round(stdev(runs), DIGITS)
