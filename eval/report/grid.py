"""A table of report.html: a line for each row of the suite, or, of too many columns for a page, one for each column."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.report.table import column_groups, is_turned

__all__ = ["Line", "grid"]

Line = tuple[str, Sequence[str]]
"""What it is of, and a `<td>` for each column."""


def grid(caption: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    rows = _turned(columns, lines) if is_turned(columns, lines) else _plain(columns, lines)
    return f'<div class="scroll"><table><caption>{caption}</caption>{"".join(rows)}</table></div>'


def _plain(columns: Sequence[str], lines: Sequence[Line]) -> list[str]:
    """Columns of several benchmarks have the names of these above their own."""
    groups = column_groups(columns)
    head = [_head([name for _, names in groups for name in names])]
    if [bench for bench, _ in groups] != [""]:
        above = (f"<th class=bench colspan={len(names)}><span>{escape(bench)}</span></th>" for bench, names in groups)
        head.insert(0, f"<tr><th></th>{''.join(above)}</tr>")
    return [*head, *(_row(name, cells) for name, cells in lines)]


def _turned(columns: Sequence[str], lines: Sequence[Line]) -> list[str]:
    rows, cells = [_head([name for name, _ in lines])], zip(*(of for _, of in lines), strict=True)
    for bench, names in column_groups(columns):
        rows += [f"<tr><th class=part colspan={len(lines) + 1}>{escape(bench)}</th></tr>"] if bench else []
        rows += [_row(name, next(cells)) for name in names]
    return rows


def _head(names: Sequence[str]) -> str:
    return f"<tr><th></th>{''.join(f'<th>{escape(name)}</th>' for name in names)}</tr>"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>"
