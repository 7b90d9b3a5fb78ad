"""What results.json holds: evaluations gathered into rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.benchmarks.bench import Bench
from eval.evaluate import METHODS
from eval.report.published import published_rows
from eval.report.titles import TITLES

__all__ = ["Part", "difference_lines", "gather", "heading", "is_best", "unreadable_lines"]

Part = tuple[str, Bench]
"""(what its columns are prefixed with, benchmark): `imagenet`, `imagenet 1%`."""


def gather(
    name: str, title: str, evaluated: list[dict[str, Any]], parts: list[Part], unfinished: Sequence[str] = ()
) -> dict[str, Any]:
    """evaluated: {"method", "model", "evaluations": {(prefix, method): evaluate()'s value}} for each row.

    unfinished: a line for each row whose training has not come to its end.
    """
    several = len(parts) > 1
    columns = [(prefix, column) for prefix, bench in parts for column in _columns(bench)]
    titles = {place: f"{place[0]}/{place[1]}" if several else place[1] for place in columns}
    first = evaluated[0]["evaluations"]
    return {
        "suite": name,
        "title": title,
        "rows": [_row(row, titles, parts[0][0], first) for row in evaluated],
        "columns": list(titles.values()),
        "published": [
            {
                "method": row["method"],
                "linear_probe": {titles[place]: value for place, value in row["figures"].items()},
                "approximate": [titles[place] for place in row["approximate"]],
            }
            for row in published_rows(columns)
        ],
        "summaries": {
            f"{row['method']}/{prefix}/{method}": value["summaries"]
            for row in evaluated
            for (prefix, method), value in row["evaluations"].items()
            if value["summaries"]
        },
        "protocol": {method: first[(parts[0][0], method)]["protocol"] for method in METHODS},
        "benches": {
            prefix: {key: first[(prefix, METHODS[0])][key] for key in ("root", "notes", "pictures")}
            for prefix, _ in parts
        },
        "differences": [
            [
                prefix,
                method,
                summary.name,
                summary.about,
                {row["method"]: _value(row, prefix, method, summary.name) for row in evaluated},
            ]
            for prefix, bench in parts
            for summary in bench.summaries
            if summary.kind == "difference"
            for method in METHODS
        ],
        "partial": sorted(
            {
                f"{prefix}: {reason}" if several else reason
                for row in evaluated
                for (prefix, _), value in row["evaluations"].items()
                for reason in value["partial"]
            }
        ),
        "unfinished": list(unfinished),
        "unreadable": _unreadable(evaluated, several),
        "versions": first[(parts[0][0], METHODS[0])]["versions"],
    }


def unreadable_lines(evaluation: dict[str, Any]) -> list[str]:
    """A line for each set of images of which some did not decode, and so had no say."""
    return [
        f"{name}: {found['unreadable']:,} of {found['count']:,} pictures did not decode"
        for name, found in evaluation["pictures"].items()
        if found["unreadable"]
    ]


def _unreadable(evaluated: list[dict[str, Any]], several: bool) -> list[str]:
    values = [value for row in evaluated for value in row["evaluations"].values()]
    return sorted({f"{v['bench']}/{line}" if several else line for v in values for line in unreadable_lines(v)})


def heading(results: dict[str, Any], method: str) -> str:
    """Of a table. Columns of several benchmarks begin with their names."""
    where = list(results["benches"])
    return f"{TITLES[method]}{f' on {where[0]}' if len(where) == 1 else ''}, accuracy in percent"


def is_best(rows: list[dict[str, Any]], row: dict[str, Any], method: str, column: str) -> bool:
    """The row's figure is to be marked as the column's best."""
    if len(rows) < 2 or not row["details"][method][column]["marked"]:
        return False
    return bool(row[method][column] == max(other[method][column] for other in rows))


def difference_lines(results: dict[str, Any]) -> list[str]:
    """A line for each figure that is one column less another, such as ImageNet-9's gap: it has no column of its own."""
    lines = []
    for prefix, method, name, about, values in results["differences"]:
        figures = ", ".join(f"{row} {value:.1f}" for row, value in values.items())
        lines.append(f"{name} ({prefix}, {TITLES[method]}; {about}): {figures}")
    return lines


def _value(row: dict[str, Any], prefix: str, method: str, name: str) -> float:
    value: float = row["evaluations"][(prefix, method)]["summaries"][name]["value"]
    return value


def _columns(bench: Bench) -> list[str]:
    """Means stand for the columns they are made of."""
    means = [summary for summary in bench.summaries if summary.kind == "mean"]
    within = {name for summary in means for name in summary.columns}
    return [c.name for c in bench.columns if c.name not in within] + [summary.name for summary in means]


def _row(
    row: dict[str, Any], titles: dict[tuple[str, str], str], shown: str, first: dict[tuple[str, str], Any]
) -> dict[str, Any]:
    """otherwise: where its protocol is not the one shown, the first row's on the first benchmark."""
    figures: dict[str, dict[str, float]] = {method: {} for method in METHODS}
    details: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    for (prefix, column), title in titles.items():
        for method in METHODS:
            evaluation = row["evaluations"][(prefix, method)]
            figures[method][title], details[method][title] = _figure(evaluation, column)
    chosen = {f"{prefix}/{m}": _without_table(e["chosen"]) for (prefix, m), e in row["evaluations"].items()}
    otherwise = {}
    for (prefix, method), value in row["evaluations"].items():
        usual = first[(shown, method)]["protocol"]
        unlike = {key: found for key, found in value["protocol"].items() if found != usual.get(key)}
        if unlike:
            otherwise[f"{prefix}/{method}"] = unlike
    return {
        "method": row["method"],
        **figures,
        "details": details,
        "model": row["model"],
        "chosen": chosen,
        "otherwise": otherwise,
    }


def _figure(evaluation: dict[str, Any], column: str) -> tuple[float, dict[str, Any]]:
    """(accuracy, what is known about it)"""
    if column in evaluation["columns"]:
        value = evaluation["columns"][column]
        return value["accuracy"], {key: value[key] for key in ("interval", "n", "unreadable", "about", "marked")}
    summary = evaluation["summaries"][column]
    parts = [evaluation["columns"][name] for name in summary["columns"]]
    deviation = evaluation["summaries"].get(f"{column}_deviation", {}).get("value")
    return summary["value"], {
        "interval": [min(p["interval"][0] for p in parts), max(p["interval"][1] for p in parts)],
        "n": parts[0]["n"],
        "unreadable": parts[0]["unreadable"],
        "deviation": deviation,
        "about": summary["about"],
        "marked": True,
    }


def _without_table(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        task: {key: value for key, value in values.items() if key != "candidates"} for task, values in chosen.items()
    }
