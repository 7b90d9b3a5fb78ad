"""results.tex: the tables of a suite as a paper takes them (booktabs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eval.report.table import heading, marks, runs_line
from shards.atomic import atomic_file

__all__ = ["latex", "write_latex"]

MARKS = {"best": r"\textbf{%s}", "near": r"\textit{%s}", "": "%s"}
SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def write_latex(path: Path, results: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(latex(results).encode())


def latex(results: dict[str, Any]) -> str:
    r"""A tabular for each method; needs \usepackage{booktabs}. Intervals and comparisons are in results.md."""
    parts = [f"% {_one_line(results['title'])}: \\usepackage{{booktabs}}"]
    for method in results["methods"]:
        runs = f"; {line}" if (line := runs_line(results)) else ""
        columns = results["columns"]
        parts += ["", f"% {_one_line(heading(results, method))}{runs}"]
        if len(results["rows"]) > 1:
            parts += ["% bold: the best of a column; italic: not surely below it"]
        parts += [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", _line(["", *map(_plain, columns)])]
        parts += [
            r"\midrule",
            *(_line([_plain(row["method"]), *_cells(row, results, method)]) for row in results["rows"]),
        ]
        parts += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*parts, ""])


def _cells(row: dict[str, Any], results: dict[str, Any], method: str) -> list[str]:
    cells, kinds = [], marks(results, row, method)
    for column in results["columns"]:
        known = row["details"][method][column]
        text = MARKS[kinds[column]] % f"{row[method][column]:.1f}"
        cells.append(f"{text} {{\\scriptsize$\\pm${known['spread']:.1f}}}" if "spread" in known else text)
    return cells


def _line(cells: list[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _plain(name: str) -> str:
    """A text that commands nothing in TeX."""
    return "".join(SIGNS.get(sign, sign) for sign in _one_line(name))


def _one_line(text: str) -> str:
    """A comment ends with its line."""
    return " ".join(text.split())
