"""results.md: the tables of a suite, to paste into a page or an issue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.report.table import difference_lines, heading, is_best
from eval.report.titles import TITLES
from shards.atomic import atomic_file

__all__ = ["markdown", "write_markdown"]


def write_markdown(path: Path, results: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(markdown(results).encode())


def markdown(results: dict[str, Any]) -> str:
    """A table a method, the best of each column in bold; published figures below those of the linear probe."""
    parts = [f"# {results['title']}", ""]
    if results["partial"]:
        parts += [f"**PARTIAL, not comparable:** {'; '.join(results['partial'])}", ""]
    if results["unfinished"]:
        parts += [f"**NOT TRAINED TO THE END:** {'; '.join(results['unfinished'])}", ""]
    if results["unreadable"]:
        parts += [f"**LEFT OUT:** {'; '.join(results['unreadable'])}", ""]
    for method in TITLES:
        parts += [f"{heading(results, method)}, 95% interval (Wilson score):", ""]
        parts += [_line(["", *results["columns"]]), _line(["---", *["---:"] * len(results["columns"])])]
        parts += [_line([row["method"], *_cells(row, results, method)]) for row in results["rows"]]
        if method == "linear_probe":
            parts += [_line([f"*{row['method']}, published*", *_quoted(row, results)]) for row in results["published"]]
        parts.append("")
    if differences := difference_lines(results):
        parts += [*(f"- {line}" for line in differences), ""]
    if results["published"]:
        parts += ["~ from memory of the paper: approximate. Its probes were trained on augmented views.", ""]
    places = [f"- {name}: {bench['root']}" for name, bench in results["benches"].items()]
    model = [f"- {row['method']}: {row['model']['model']}, {_sha(row['model'])}" for row in results["rows"]]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n".join([*parts, *places, *model, f"- {versions}", ""])


def _cells(row: dict[str, Any], results: dict[str, Any], method: str) -> list[str]:
    cells = []
    for column in results["columns"]:
        value, (low, high) = row[method][column], row["details"][method][column]["interval"]
        text = f"**{value:.1f}**" if is_best(results["rows"], row, method, column) else f"{value:.1f}"
        cells.append(f"{text} ({low:.1f}-{high:.1f})")
    return cells


def _quoted(row: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """A published row's cells, ~ before what is approximate."""
    return [
        f"{'~' if column in row['approximate'] else ''}{row['linear_probe'][column]:.1f}"
        if column in row["linear_probe"]
        else ""
        for column in results["columns"]
    ]


def _sha(model: dict[str, Any]) -> str:
    sha = model.get("checkpoint_sha256")
    return f"{model['objective']}, checkpoint sha256 {sha}" if sha else str(model["objective"])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
