"""results.tex: the tables of a suite as a paper takes them (booktabs)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from eval.report.table import column_groups, difference_lines, heading, is_turned, marks, runs_line, warnings
from shards.atomic import write_text

__all__ = ["latex", "write_latex"]

MARKS = {"best": r"\textbf{%s}", "near": r"\textit{%s}", "": "%s"}
SPREAD = r" {\scriptsize$\pm$%s}"
SIGNS = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
SIGNS |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
SIGNS |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def write_latex(path: Path, results: dict[str, Any]) -> None:
    write_text(path, latex(results))


def latex(results: dict[str, Any]) -> str:
    r"""A tabular for each method; needs \usepackage{booktabs}. Intervals and comparisons are in results.md."""
    parts = [f"% {results['title']}: needs \\usepackage{{booktabs}}; letters beyond Latin need xelatex or lualatex"]
    parts += [f"% {what}: {lines}" for what, lines in warnings(results)]
    columns, rows = results["columns"], results["rows"]
    for method in results["methods"]:
        parts += ["", f"% {heading(results, method)}"]
        parts += [f"% {line}" for line in (runs_line(results),) if line]
        parts += ["% bold: the best by each figure; italic: not surely below it"] * (len(rows) > 1)
        images = [f"{rows[0]['details'][method][column]['n']:,}".replace(",", "{,}") for column in columns]
        lines = [(_plain(row["method"]), _cells(row, results, method)) for row in rows]
        made = _turned(columns, lines, images) if is_turned(columns, lines) else _upright(columns, lines, images)
        parts += [*made, r"\bottomrule", r"\end{tabular}"]
    parts += ["", *(f"% {line}" for line in difference_lines(results))]
    return "\n".join(" ".join(line.split()) for line in parts) + "\n"  # a comment ends with its line


def _upright(columns: Sequence[str], lines: Sequence[tuple[str, list[str]]], images: list[str]) -> list[str]:
    parts = [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", *_head(columns), r"\midrule"]
    return [*parts, *(_line([name, *cells]) for name, cells in lines), r"\midrule", _line(["images", *images])]


def _turned(columns: Sequence[str], lines: Sequence[tuple[str, list[str]]], images: list[str]) -> list[str]:
    """A line for each column, below the name of its benchmark."""
    heads = [*(name for name, _ in lines), "images"]
    parts = [f"\\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule", _line(["", *heads])]
    cells = zip(*(of for _, of in lines), images, strict=True)
    for bench, names in column_groups(columns):
        parts.append(r"\midrule")
        if bench:  # nothing may stand before it
            parts.append(f"\\multicolumn{{{len(heads) + 1}}}{{l}}{{{_plain(bench)}}} \\\\")
        parts += [_line([_plain(name), *next(cells)]) for name in names]
    return parts


def _head(columns: Sequence[str]) -> list[str]:
    """Of several benchmarks their names above their columns', with a rule between."""
    groups = column_groups(columns)
    line = _line(["", *(_plain(name) for _, names in groups for name in names)])
    if [bench for bench, _ in groups] == [""]:
        return [line]
    ends = list(accumulate((len(names) for _, names in groups), initial=1))
    rules = "".join(f"\\cmidrule(lr){{{first + 1}-{last}}}" for first, last in pairwise(ends))
    above = [f"\\multicolumn{{{len(names)}}}{{c}}{{{_plain(bench)}}}" for bench, names in groups]
    return [_line(["", *above]), rules, line]


def _cells(row: dict[str, Any], results: dict[str, Any], method: str) -> list[str]:
    """Figures stand below each other, whether of one run or of several."""
    cells, kinds, details = [], marks(results, row, method), row["details"][method]
    for column in results["columns"]:
        text = MARKS[kinds[column]] % f"{row[method][column]:.1f}"
        spreads = [other["details"][method][column].get("spread") for other in results["rows"]]
        if "spread" in details[column]:
            text += SPREAD % f"{details[column]['spread']:.1f}"
        elif any(spread is not None for spread in spreads):
            text += f"\\phantom{{{SPREAD % '0.0'}}}"
        cells.append(text)
    return cells


def _line(cells: list[str]) -> str:
    """{} before a row that begins with a bracket or a star, which the rule or the line break above would take."""
    return f"{{}}{' & '.join(cells)} \\\\"


def _plain(name: str) -> str:
    """A text that commands nothing in TeX."""
    return "".join(SIGNS.get(sign, sign) for sign in " ".join(name.split()))
