"""Whether one row of a table is better than another, or only looks so.

All rows are scored on the same pictures, so a difference is less uncertain than the figures: what is hard for both
cancels out. It is the mean over pictures of d = a - b, where a and b are the shares of the rows' runs that were right.
Its variance is that of the mean of d (pictures drawn anew) and, of each row with several runs, their variance over
their number (trained anew); Student's t, degrees of freedom after Welch and Satterthwaite. Between rows of one run
each, what other seeds would do is not in it.
"""

from __future__ import annotations

from itertools import combinations
from math import sqrt
from typing import Any

import numpy as np

from eval.benchmarks.bench import Floats
from eval.evaluate import METHODS, hits_of

__all__ = ["COMPARED", "compare_rows", "comparison_lines", "difference", "is_sure"]

LEVEL = 0.95
COMPARED = (
    "Differences in points, ± half of the 95% interval, picture by picture; in bold those beyond it. Between rows of "
    "several runs it covers other seeds, between single runs other pictures alone."
)
Line = tuple[str, list[dict[str, Any] | None]]


def compare_rows(evaluated: list[dict[str, Any]], titles: dict[tuple[str, str], str]) -> list[dict[str, Any]]:
    """Each pair of rows (the later less the earlier), method and column: difference and interval in points.

    evaluated: {"method", "runs": [{"evaluations": {(prefix, method): evaluate()'s value}}]} of each row. titles: what
    the columns (prefix, name) are called. A mean over splits is compared split by split; as splits share pictures, its
    interval is as wide as theirs on average.
    """
    found = []
    for (earlier, later), method in ((pair, m) for pair in combinations(evaluated, 2) for m in METHODS):
        for (prefix, name), title in titles.items():
            first = later["runs"][0]["evaluations"][prefix, method]
            columns = [name] if name in first["columns"] else first["summaries"][name]["columns"]
            a, b = (
                [[_hits(run, prefix, method, c) for run in row["runs"]] for c in columns] for row in (later, earlier)
            )
            if any(len(one) != len(x[0]) for x, y in zip(a, b, strict=True) for one in (*x, *y)):
                continue  # one could not decode what another could: not the same pictures
            parts = [difference(x, y) for x, y in zip(a, b, strict=True)]
            value, reach = (100 * float(np.mean(numbers)) for numbers in zip(*parts, strict=True))
            found.append(
                {
                    "method": method,
                    "column": title,
                    "row": later["method"],
                    "less": earlier["method"],
                    "difference": round(value, 2),
                    "interval": [round(value - reach, 2), round(value + reach, 2)],
                }
            )
    return found


def comparison_lines(results: dict[str, Any], method: str) -> list[Line]:
    """`xclr - simclr` and the comparison of each column, None where there is none."""
    lines: dict[str, dict[str, Any]] = {}
    for found in results["comparisons"]:
        if found["method"] == method:
            lines.setdefault(f"{found['row']} - {found['less']}", {})[found["column"]] = found
    return [(name, [line.get(column) for column in results["columns"]]) for name, line in lines.items()]


def is_sure(comparison: dict[str, Any]) -> bool:
    """Zero lies outside its interval."""
    low, high = comparison["interval"]
    return bool(low > 0 or high < 0)


def difference(a: list[Floats], b: list[Floats]) -> tuple[float, float]:
    """(mean of a less mean of b, half of its 95 % interval), in shares. a, b: hits [pictures] of each run of a row."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import

    per_picture = np.stack(a).astype(np.float64).mean(0) - np.stack(b).astype(np.float64).mean(0)
    drawn = [per_picture, *(np.stack(runs).astype(np.float64).mean(1) for runs in (a, b))]
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in drawn if len(values) > 1]
    total = sum(part for part, _ in parts)
    if not total:
        return float(per_picture.mean()), 0.0
    freedom = total**2 / sum(part**2 / free for part, free in parts)
    return float(per_picture.mean()), float(stdtrit(freedom, (1 + LEVEL) / 2)) * sqrt(total)


def _hits(run: dict[str, Any], prefix: str, method: str, column: str) -> Floats:
    return hits_of(run["evaluations"][prefix, method]["columns"][column])
