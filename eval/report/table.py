"""What results.json holds: evaluations gathered into rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

from eval.benchmarks.bench import Bench
from eval.evaluate import DIGITS, METHODS
from eval.report.compare import compare_rows, is_sure
from eval.report.published import published_rows
from eval.report.runs import mean_of_runs, spread
from eval.report.settings import row_settings
from eval.report.titles import TITLES

__all__ = [
    "Part",
    "column_groups",
    "difference_lines",
    "gather",
    "heading",
    "is_turned",
    "left_out_lines",
    "marks",
    "plus_minus",
    "runs_line",
    "warnings",
]

ABREAST = 14  # columns: the paper's twelve, and of its comparisons one more
Mark = Literal["best", "near", ""]
Part = tuple[str, Bench]
"""(what its columns are prefixed with, benchmark): `imagenet`, `imagenet 1%`."""


def gather(
    name: str,
    title: str,
    evaluated: list[dict[str, Any]],
    parts: list[Part],
    unfinished: Sequence[str] = (),
    unalike: Sequence[str] = (),
    failed: Sequence[str] = (),
    against: Sequence[str] = (),
    methods: Sequence[str] = METHODS,
) -> dict[str, Any]:
    """evaluated: {"method", "runs": [{"model", "evaluations": {(prefix, method): evaluate()'s value}}]} for each row.

    unfinished: a line for each run whose training has not come to its end. unalike: one for each that differs from the
    first of its row in more than the seed. failed: one for each row that could not be evaluated. against: the rows that
    tables compare the others with; none: every pair.
    """
    evaluated = [{**row, "evaluations": _means(row["runs"])} for row in evaluated]
    several = len(parts) > 1
    columns = [(prefix, column) for prefix, bench in parts for column in _columns(bench)]
    titles = {place: f"{place[0]}/{place[1]}" if several else place[1] for place in columns}
    first = evaluated[0]["evaluations"]
    gaps = _gaps(parts)
    comparisons, uncompared = compare_rows(evaluated, titles | gaps, methods, gaps)
    return {
        "suite": name,
        "title": title,
        "methods": list(methods),
        "rows": [_row(row, titles, parts[0][0], first, methods) for row in evaluated],
        "columns": list(titles.values()),
        "published": _published(titles, dict(parts)) if "linear_probe" in methods else [],
        "summaries": {
            f"{row['method']}/{prefix}/{method}": value["summaries"]
            for row in evaluated
            for (prefix, method), value in row["evaluations"].items()
            if value["summaries"]
        },
        "protocol": {method: first[(parts[0][0], method)]["protocol"] for method in methods},
        "benches": {prefix: _bench(bench, first[prefix, methods[0]]) for prefix, bench in parts},
        "differences": _differences(evaluated, parts, methods),
        "settings": row_settings({row["method"]: [run.get("recipe", {}) for run in row["runs"]] for row in evaluated}),
        "comparisons": comparisons,
        "uncompared": uncompared,
        "against": list(against),
        "partial": sorted(
            {
                f"{prefix}: {reason}" if several else reason
                for row in evaluated
                for (prefix, _), value in row["evaluations"].items()
                for reason in value["partial"]
            }
        ),
        "unfinished": list(unfinished),
        "unalike": list(unalike),
        "failed": list(failed),
        "unreadable": _unreadable(evaluated, several),
        "versions": first[(parts[0][0], methods[0])]["versions"],
    }


def _gaps(parts: list[Part]) -> dict[tuple[str, str], str]:
    """What figures that are one column less another are called, by (prefix, name)."""
    return {
        (prefix, summary.name): f"{prefix}/{summary.name}" if len(parts) > 1 else summary.name
        for prefix, bench in parts
        for summary in bench.summaries
        if summary.kind == "difference"
    }


def _published(titles: dict[tuple[str, str], str], benches: dict[str, Bench]) -> list[dict[str, Any]]:
    """The paper's rows, where a column is its benchmark's: not of few images, nor of a folder that is called so."""
    places = [place for place in titles if benches[place[0]].name == place[0]]
    return [
        {
            "method": row["method"],
            "linear_probe": {titles[place]: value for place, value in row["figures"].items()},
            "approximate": [titles[place] for place in row["approximate"]],
        }
        for row in published_rows(places)
    ]


def _bench(bench: Bench, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Its place is the bench's own: an evaluation that was kept may be of a copy elsewhere."""
    notes = {**evaluation["notes"], **bench.notes}
    return {"root": str(bench.root), "notes": notes, "pictures": evaluation["pictures"]}


def _differences(evaluated: list[dict[str, Any]], parts: list[Part], methods: Sequence[str]) -> list[list[Any]]:
    """[prefix, method, figure, what it is, {row: value}] of figures that are one column less another."""
    return [
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
        for method in methods
    ]


def warnings(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, of which) above the tables: what makes figures less than they look."""
    kinds = {
        "PARTIAL, not comparable": results["partial"],
        "FAILED, and left out": results["failed"],
        "NOT TRAINED TO THE END": results["unfinished"],
        "NOT ALIKE BUT FOR THE SEED": results["unalike"],
        "LEFT OUT": results["unreadable"],
    }
    return [(what, "; ".join(lines)) for what, lines in kinds.items() if lines]


def left_out_lines(evaluation: dict[str, Any]) -> list[str]:
    """A line for each set of images of which some did not decode, and so had no say, and one for what the benchmark
    does not show."""
    lines = [
        f"{name}: {found['unreadable']:,} of {found['count']:,} pictures did not decode"
        for name, found in evaluation["pictures"].items()
        if found["unreadable"]
    ]
    notes = evaluation.get("notes", {})
    reasons = {why: count for why, count in sorted(notes.get("left_out", {}).items()) if count}
    words = ", ".join(f"{count:,} {why}" for why, count in reasons.items())
    of = notes.get("test_pictures", 0)
    return [*lines, *([f"{sum(reasons.values()):,} of {of:,} test pictures ({words})"] if reasons else [])]


def _unreadable(evaluated: list[dict[str, Any]], several: bool) -> list[str]:
    runs = [run for row in evaluated for run in row["runs"]]
    values = [(prefix, value) for run in runs for (prefix, _), value in run["evaluations"].items()]
    return sorted({f"{prefix}: {line}" if several else line for prefix, v in values for line in left_out_lines(v)})


def column_groups(columns: Sequence[str]) -> list[tuple[str, list[str]]]:
    """(benchmark, its columns that follow each other), for a head of two lines; all of "" where a table has but one."""
    parts = [column.rpartition("/") for column in columns]
    return [(bench, [name for *_, name in of]) for bench, of in groupby(parts, key=lambda part: part[0])]


def is_turned(columns: Sequence[str], lines: Sequence[object]) -> bool:
    """Whether a table has a line for each of its columns, since these are more than stand side by side on a page."""
    return len(columns) > max(ABREAST, len(lines))


def heading(results: dict[str, Any], method: str) -> str:
    """Of a table. Columns of several benchmarks begin with their names."""
    where = list(results["benches"])
    return f"{TITLES[method]}{f' on {where[0]}' if len(where) == 1 else ''}, accuracy in percent"


def marks(results: dict[str, Any], row: dict[str, Any], method: str) -> dict[str, Mark]:
    """By column: `best`, `near` where the row is not surely below that, or nothing."""
    sure = {
        (found["row"] if found["less"] == row["method"] else found["less"], found["column"])
        for found in results["comparisons"]
        if found["method"] == method and row["method"] in (found["row"], found["less"]) and is_sure(found)
    }
    made: dict[str, Mark] = {}
    for column in results["columns"]:
        best = max(results["rows"], key=lambda other: other[method][column])
        if len(results["rows"]) < 2 or not row["details"][method][column]["marked"]:
            made[column] = ""
        elif row[method][column] == best[method][column]:
            made[column] = "best"
        else:
            made[column] = "" if (best["method"], column) in sure else "near"
    return made


def plus_minus(row: dict[str, Any], method: str, column: str) -> str:
    """` ±0.4` behind the mean of several runs, their standard deviation; empty behind the figure of one."""
    known = row["details"][method][column]
    return f" ±{known['spread']:.1f}" if "spread" in known else ""


def runs_line(results: dict[str, Any]) -> str:
    """What ± says; empty where every row is of one run."""
    counts = {row["method"]: len(row["runs"]) for row in results["rows"] if len(row["runs"]) > 1}
    if not counts:
        return ""
    few, *others = dict.fromkeys(counts.values())
    if others:
        of = ", ".join(f"{count} runs of {name}" for name, count in counts.items())
    elif len(counts) < len(results["rows"]):
        of = f"{few} runs{' each' * (len(counts) > 1)} of {', '.join(counts)}"
    else:
        of = f"{few} runs"
    two = "; two runs say little of how far others lie apart" if 2 in counts.values() else ""
    return f"mean of {of}, ± their standard deviation{two}"


def difference_lines(results: dict[str, Any]) -> list[str]:
    """A line for each figure that is one column less another, such as ImageNet-9's gap: it has no column of its own."""
    lines = []
    for prefix, method, name, about, values in results["differences"]:
        figures = ", ".join(f"{row} {value:.1f}" for row, value in values.items())
        lines.append(f"{name} ({prefix}, {TITLES[method]}; {about}): {figures}")
    return lines


def _means(runs: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {place: mean_of_runs([run["evaluations"][place] for run in runs]) for place in runs[0]["evaluations"]}


def _value(row: dict[str, Any], prefix: str, method: str, name: str) -> float:
    value: float = row["evaluations"][(prefix, method)]["summaries"][name]["value"]
    return value


def _columns(bench: Bench) -> list[str]:
    """Means stand for the columns they are made of."""
    means = [summary for summary in bench.summaries if summary.kind == "mean"]
    within = {name for summary in means for name in summary.columns}
    return [c.name for c in bench.columns if c.name not in within] + [summary.name for summary in means]


def _row(
    row: dict[str, Any],
    titles: dict[tuple[str, str], str],
    shown: str,
    first: dict[tuple[str, str], Any],
    methods: Sequence[str],
) -> dict[str, Any]:
    """The row's figures, means where it has several runs, and of each run its own."""
    details = {
        m: {title: _figure(row["evaluations"][prefix, m], column)[1] for (prefix, column), title in titles.items()}
        for m in methods
    }
    return {
        "method": row["method"],
        **_accuracies(row["evaluations"], titles, methods),
        "details": details,
        "runs": [_run(run, titles, shown, first, methods) for run in row["runs"]],
    }


def _run(
    run: dict[str, Any],
    titles: dict[tuple[str, str], str],
    shown: str,
    first: dict[tuple[str, str], Any],
    methods: Sequence[str],
) -> dict[str, Any]:
    """otherwise: where its protocol is not the one shown, the first row's on the first benchmark."""
    otherwise = {}
    for (prefix, method), value in run["evaluations"].items():
        usual = first[(shown, method)]["protocol"]
        unlike = {key: found for key, found in value["protocol"].items() if found != usual.get(key)}
        if unlike:
            otherwise[f"{prefix}/{method}"] = unlike
    chosen = {f"{prefix}/{m}": _without_table(e["chosen"]) for (prefix, m), e in run["evaluations"].items()}
    figures = _accuracies(run["evaluations"], titles, methods)
    return {
        "model": run["model"],
        "recipe": run.get("recipe", {}),
        **figures,
        "chosen": chosen,
        "otherwise": otherwise,
    }


def _accuracies(
    evaluations: dict[tuple[str, str], Any], titles: dict[tuple[str, str], str], methods: Sequence[str]
) -> dict[str, Any]:
    return {
        m: {title: _figure(evaluations[prefix, m], column)[0] for (prefix, column), title in titles.items()}
        for m in methods
    }


def _figure(evaluation: dict[str, Any], column: str) -> tuple[float, dict[str, Any]]:
    """(accuracy, what is known about it)"""
    if column in evaluation["columns"]:
        value = evaluation["columns"][column]
        known = {key: value[key] for key in ("interval", "n", "unreadable", "about", "marked")}
        return value["accuracy"], known | _runs(value)
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
        **_runs(summary),
    }


def _runs(figure: dict[str, Any]) -> dict[str, Any]:
    """The figures of several runs, and their deviation; nothing of one."""
    if "runs" not in figure:
        return {}
    return {"runs": [round(value, DIGITS) for value in figure["runs"]], "spread": spread(figure["runs"])}


def _without_table(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        task: {key: value for key, value in values.items() if key != "candidates"} for task, values in chosen.items()
    }
