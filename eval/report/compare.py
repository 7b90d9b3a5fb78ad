"""Whether one row of a table is better than another, or only looks so.

All rows are scored on the same pictures, so a difference is less uncertain than the figures: what is hard for both
cancels out. It is the mean over pictures of d = a - b, where a and b are the shares of the rows' runs that were right.
Its variance has two parts. Pictures drawn anew: that of the mean of d, with half a picture more in each of the four
cases right/wrong of two models (Agresti and Min 2005), so that none is certain. Runs trained anew, where a row has
several: the larger of the two rows' variances, over the number of runs of each; a single run has none of its own, and
the other row's stands in. Student's t, degrees of freedom after Satterthwaite. Between rows of one run each, what other
seeds would do is not in it. Of a figure that is one column less another (ImageNet-9's gap), each run has one, and the
two columns' pictures are taken as independent: an object that is in both makes it less uncertain than is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.benchmarks.bench import Floats
from eval.evaluate import DIGITS, METHODS, hits_of
from eval.report.titles import TITLES

__all__ = [
    "COMPARED",
    "MANY",
    "RowHits",
    "compare_rows",
    "compared_columns",
    "comparison_lines",
    "difference",
    "is_sure",
    "points",
]

LEVEL = 0.95
MANY = 15  # pairs of rows, of six; those of more are shown on the page alone, folded
COMPARED = (
    "Differences in points, ± half of the 95% interval, picture by picture; in bold those beyond it (one in twenty "
    "where nothing differs). It covers other pictures, and other seeds where one of the two rows has several runs, "
    "but no other draw of the tenth by which a probe is chosen."
)
Doubles = npt.NDArray[np.float64]
Line = tuple[str, list[dict[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class RowHits:
    """What the runs of a row made of the pictures."""

    share: Doubles
    """[pictures] of the runs that were right."""
    rates: Doubles
    """[runs] of the pictures that were right."""

    @classmethod
    def of(cls, runs: Sequence[Floats]) -> RowHits:
        """runs: hits [pictures] of each."""
        hits = np.stack(runs).astype(np.float64)
        return cls(hits.mean(0), hits.mean(1))


def compare_rows(
    evaluated: list[dict[str, Any]],
    titles: dict[tuple[str, str], str],
    methods: Sequence[str] = METHODS,
    gaps: Collection[tuple[str, str]] = (),
) -> tuple[list[dict[str, Any]], list[str]]:
    """(each pair of rows, the later less the earlier, by method and column: difference and interval in points; a line
    for each that cannot be compared, since one could not decode what another could).

    evaluated: {"method", "runs": [{"evaluations": {(prefix, method): evaluate()'s value}}]} of each row. titles: what
    the columns (prefix, name) are called. A mean over splits is compared split by split; as splits share pictures, its
    interval is as wide as theirs on average. gaps: those that are one column less another.
    """
    found, lost = [], []
    for method, ((prefix, name), title) in product(methods, titles.items()):
        first = evaluated[0]["runs"][0]["evaluations"][prefix, method]
        splits = [name] if name in first["columns"] else first["summaries"][name]["columns"]
        rows = [(row["method"], [_columns(row, prefix, method, split) for split in splits]) for row in evaluated]
        hits = {which: [RowHits.of([hits_of(c) for c in of]) for of in columns if _same(of)] for which, columns in rows}
        for (less, earlier), (more, later) in combinations(rows, 2):
            if not all(_same([*x, *y]) for x, y in zip(later, earlier, strict=True)):
                lost.append(f"{more} - {less}, {TITLES[method]} on {title}")
                continue
            pairs = list(zip(hits[more], hits[less], strict=True))
            parts = [difference(*pairs)] if (prefix, name) in gaps else [difference(pair) for pair in pairs]
            value, reach = (100 * float(np.mean(numbers)) for numbers in zip(*parts, strict=True))
            found.append(
                {
                    "method": method,
                    "column": title,
                    "row": more,
                    "less": less,
                    "runs": [len(later[0]), len(earlier[0])],
                    "difference": round(value, DIGITS),
                    "interval": [round(value - reach, DIGITS), round(value + reach, DIGITS)],
                }
            )
    return found, lost


def difference(first: tuple[RowHits, RowHits], *less: tuple[RowHits, RowHits]) -> tuple[float, float]:
    """(a less b of the two rows (a, b) on the first column, less the same of any others; half of its 95 % interval), in
    shares of 1."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import

    parts = [_pictures(a.share - b.share) for a, b in (first, *less)]
    rates = [one.rates - sum(other.rates for other in others) for one, *others in zip(first, *less, strict=True)]
    counts = [len(of) for of in rates]
    free = sum(counts) - 2
    if free:
        larger = max(float(of.var(ddof=1)) for of in rates if len(of) > 1)
        parts.append((larger * sum(1 / count for count in counts), free))
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / of for part, of in parts)
    return float(rates[0].mean() - rates[1].mean()), float(stdtrit(freedom, (1 + LEVEL) / 2)) * sqrt(total)


def _pictures(d: Doubles) -> tuple[float, int]:
    """(variance of the mean of d over pictures drawn anew, its degrees of freedom)"""
    n = len(d)
    return ((float(d @ d) + 1) / (n + 2) - (float(d.sum()) / (n + 2)) ** 2) / (n + 2), max(1, n - 1)


def compared_columns(results: dict[str, Any]) -> list[str]:
    """The table's, and figures of two of them (ImageNet-9's gap), which have no column of their own there: each behind
    its benchmark's."""
    columns = list(dict.fromkeys([*results["columns"], *(found["column"] for found in results["comparisons"])]))
    benches = list(dict.fromkeys(column.rpartition("/")[0] for column in columns))
    return sorted(columns, key=lambda column: benches.index(column.rpartition("/")[0]))


def comparison_lines(results: dict[str, Any], method: str) -> list[Line]:
    """`xclr - simclr` and the comparison of each of `compared_columns`, None where there is none; all pairs, or those
    with the rows that the suite compares with."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for found in results["comparisons"]:
        against, pair = results["against"], (found["row"], found["less"])
        if found["method"] != method or (against and not set(against) & set(pair)):
            continue
        if found["row"] in against and found["less"] not in against:
            low, high = found["interval"]
            turned = {"row": found["less"], "less": found["row"], "difference": -found["difference"]}
            found = {**found, **turned, "interval": [-high, -low]}
        lines.setdefault((found["row"], found["less"]), {})[found["column"]] = found
    return [
        (f"{row} - {less}", [line.get(column) for column in compared_columns(results)])
        for (row, less), line in lines.items()
    ]


def is_sure(comparison: dict[str, Any]) -> bool:
    """Zero lies outside its interval."""
    low, high = comparison["interval"]
    return bool(low > 0 or high < 0)


def points(comparison: dict[str, Any]) -> tuple[str, str]:
    """`+1.0` and `±0.8`."""
    low, high = comparison["interval"]
    return f"{round(comparison['difference'], 1) + 0.0:+.1f}", f"±{(high - low) / 2:.1f}"  # no -0.0


def _columns(row: dict[str, Any], prefix: str, method: str, column: str) -> list[dict[str, Any]]:
    """The figures of each of its runs."""
    return [run["evaluations"][prefix, method]["columns"][column] for run in row["runs"]]


def _same(columns: list[dict[str, Any]]) -> bool:
    """Whether all are of the same pictures."""
    return len({column["counted"] for column in columns}) == 1
