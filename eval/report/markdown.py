"""results.md: the tables of a suite, to paste into a page or an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report.compare import COMPARED, MANY, compared_columns, comparison_lines, is_sure, points
from eval.report.otherwise import otherwise
from eval.report.table import difference_lines, heading, is_turned, marks, plus_minus, runs_line, warnings
from eval.report.titles import TITLES, model_parts
from shards.atomic import write_text

__all__ = ["markdown", "write_markdown"]

MARKS = {"best": "**", "near": "*", "": ""}


def write_markdown(path: Path, results: dict[str, Any]) -> None:
    write_text(path, markdown(results))


def markdown(results: dict[str, Any]) -> str:
    """A table a method, the best of each column in bold; published figures below those of the linear probe."""
    parts = [f"# {_plain(results['title'])}", ""]
    for what, lines in warnings(results):
        parts += [f"**{what}:** {_plain(lines)}", ""]
    for method in results["methods"]:
        runs = f"; {line}" if (line := runs_line(results)) else ""
        parts += [f"{_plain(heading(results, method))}, 95% interval (Wilson score){runs}:", ""]
        found = [[_plain(row["method"]), *_cells(row, results, method)] for row in results["rows"]]
        if method == "linear_probe":
            found += [[f"*{row['method']}, published*", *_quoted(row, results)] for row in results["published"]]
        details = results["rows"][0]["details"][method]
        found += [["*images*", *(f"{details[column]['n']:,}" for column in results["columns"])]]
        parts += [*_table("", results["columns"], found), ""]
    if len(results["rows"]) > 1:
        parts += ["In bold the best by each figure, in italics what is not surely below it.", ""]
    parts += [*_settings(results), *_comparisons(results)]
    if differences := difference_lines(results):
        parts += [*(f"- {line}" for line in differences), ""]
    if results["published"]:
        parts += ["~ from memory of the paper: approximate. Its probes were trained on augmented views.", ""]
    places = [f"- {name}: {bench['root']}" for name, bench in results["benches"].items()]
    models = [
        f"- {_plain(row['method'])}: {_model(run['model'])}{_seed(run)}"
        for row in results["rows"]
        for run in row["runs"]
    ]
    protocols = [f"- {TITLES[method]}: {_words(results['protocol'][method])}" for method in results["methods"]]
    protocols += [f"- but {_plain(where)}: {_words(unlike)}" for where, unlike in otherwise(results)]
    versions = ", ".join(f"{name} {number}" for name, number in sorted(results["versions"].items()))
    return "\n".join([*parts, *places, *models, *protocols, f"- {versions}", ""])


def _table(corner: str, columns: Sequence[str], lines: Sequence[list[str]]) -> list[str]:
    rows = [[corner, *map(_plain, columns)], *lines]
    if is_turned(columns, lines):
        rows = [list(cells) for cells in zip(*rows, strict=True)]
    head, *others = rows
    return [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *map(_line, others)]


def _cells(row: dict[str, Any], results: dict[str, Any], method: str) -> list[str]:
    cells, kinds = [], marks(results, row, method)
    for column in results["columns"]:
        value, (low, high) = row[method][column], row["details"][method][column]["interval"]
        sign = MARKS[kinds[column]]
        text = f"{sign}{value:.1f}{sign}"
        text += plus_minus(row, method, column)
        cells.append(f"{text} ({low:.1f}-{high:.1f})")
    return cells


def _settings(results: dict[str, Any]) -> list[str]:
    """What the rows were trained with that is not the same in all."""
    keys, rows = results["settings"]["keys"], results["settings"]["rows"]
    if not keys:
        return []
    lines = [_line(["trained with", *keys]), _line(["---"] * (1 + len(keys)))]
    return [*lines, *(_line([_plain(name), *map(_plain, values)]) for name, values in rows.items()), ""]


def _comparisons(results: dict[str, Any]) -> list[str]:
    parts, columns = [], compared_columns(results)
    for method in results["methods"]:
        lines = comparison_lines(results, method)
        if len(lines) > MANY and not results["against"]:
            words = f"{len(lines)} pairs of rows are compared in report.html and results.json; `against` names one row"
            return [f"{words} to compare the others with.", ""]
        if lines:
            rows = [[_plain(name), *map(_comparison, cells)] for name, cells in lines]
            parts += [*_table(TITLES[method], columns, rows), ""]
    lost = [f"Not of the same pictures, so not compared: {_plain('; '.join(results['uncompared']))}.", ""]
    return [*([COMPARED, "", *parts] if parts else []), *(lost if results["uncompared"] else [])]


def _comparison(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    value, reach = points(found)
    return f"{f'**{value}**' if is_sure(found) else value} {reach}"


def _quoted(row: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """A published row's cells, ~ before what is approximate."""
    return [
        f"{'~' if column in row['approximate'] else ''}{row['linear_probe'][column]:.1f}"
        if column in row["linear_probe"]
        else ""
        for column in results["columns"]
    ]


def _model(model: dict[str, Any]) -> str:
    """`resnet18, xclr, runs/a/checkpoint-000270.pt, sha256 4f...`: what is known of it."""
    name, objective, checkpoint = model_parts(model)
    parts = [name, objective, checkpoint]
    if objective == "untrained":
        parts = [name, f"initial weights of {checkpoint}" if checkpoint else "untrained"]
    elif sha := model.get("checkpoint_sha256"):
        parts.append(f"sha256 {sha}")
    return ", ".join(part for part in parts if part)


def _seed(run: dict[str, Any]) -> str:
    seed = run["recipe"].get("seed")
    return "" if seed is None else f", seed {seed}"


def _words(protocol: dict[str, Any]) -> str:
    """A protocol in one line: `k 20; temperature 0.07`."""
    return "; ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in sorted(protocol.items()))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(part)}" for key, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return "/".join(_value(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(name: str) -> str:
    """A text that says nothing in Markdown; underlines within words are none."""
    signs = r"[|*`\[\]<>\\~&]|(?<![^\W_])_+|_+(?![^\W_])"
    return re.sub(signs, lambda found: "".join(f"\\{sign}" for sign in found[0]), name.replace("\n", " "))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
