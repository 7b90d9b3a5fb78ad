"""Whether one row of a table is better than another, or only looks so.

All rows are scored on the same pictures, so a difference is less uncertain than the figures: what is hard for both
cancels out. It is the mean over pictures of d = a - b, where a and b are the shares of the rows' runs that were right.
Its variance is that of the mean of d (pictures drawn anew) and, of each row with several runs, their variance over
their number (trained anew); Student's t, degrees of freedom after Welch and Satterthwaite. Between rows of one run
each, what other seeds would do is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.benchmarks.bench import Floats
from eval.evaluate import METHODS, hits_of

__all__ = ["COMPARED", "RowHits", "compare_rows", "comparison_lines", "difference", "is_sure"]

LEVEL = 0.95
COMPARED = (
    "Differences in points, ± half of the 95% interval, picture by picture; in bold those beyond it. Between rows of "
    "several runs it covers other seeds, between single runs other pictures alone."
)
Doubles = npt.NDArray[np.float64]
Line = tuple[str, list[dict[str, Any] | None]]


def compare_rows(evaluated: list[dict[str, Any]], titles: dict[tuple[str, str], str]) -> list[dict[str, Any]]:
    """Each pair of rows (the later less the earlier), method and column: difference and interval in points.

    evaluated: {"method", "runs": [{"evaluations": {(prefix, method): evaluate()'s value}}]} of each row. titles: what
    the columns (prefix, name) are called. A mean over splits is compared split by split; as splits share pictures, its
    interval is as wide as theirs on average.
    """
    found = []
    for method, ((prefix, name), title) in product(METHODS, titles.items()):
        first = evaluated[0]["runs"][0]["evaluations"][prefix, method]
        splits = [name] if name in first["columns"] else first["summaries"][name]["columns"]
        rows = [(row["method"], [_row_hits(row, prefix, method, split) for split in splits]) for row in evaluated]
        for (less, earlier), (more, later) in combinations(rows, 2):
            pairs = list(zip(later, earlier, strict=True))
            if any(x is None or y is None or len(x.share) != len(y.share) for x, y in pairs):
                continue  # one could not decode what another could: not the same pictures
            parts = [difference(x, y) for x, y in pairs if x and y]
            value, reach = (100 * float(np.mean(numbers)) for numbers in zip(*parts, strict=True))
            found.append(
                {
                    "method": method,
                    "column": title,
                    "row": more,
                    "less": less,
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


def difference(a: RowHits, b: RowHits) -> tuple[float, float]:
    """(a less b, half of its 95 % interval), in shares of 1."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # slow to import

    per_picture = a.share - b.share
    drawn = (per_picture, a.rates, b.rates)
    parts = [(float(values.var(ddof=1)) / len(values), len(values) - 1) for values in drawn if len(values) > 1]
    total = sum(part for part, _ in parts)
    if not total:
        return float(per_picture.mean()), 0.0
    freedom = total**2 / sum(part**2 / free for part, free in parts)
    return float(per_picture.mean()), float(stdtrit(freedom, (1 + LEVEL) / 2)) * sqrt(total)


def _row_hits(row: dict[str, Any], prefix: str, method: str, column: str) -> RowHits | None:
    """None where its runs did not see the same pictures."""
    runs = [hits_of(run["evaluations"][prefix, method]["columns"][column]) for run in row["runs"]]
    return RowHits.of(runs) if len({len(hits) for hits in runs}) == 1 else None
