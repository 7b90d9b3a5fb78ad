"""Results on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.table import difference_lines, heading, is_best, unreadable_lines
from eval.report.titles import TITLES

__all__ = ["show_result", "show_rows"]


def show_result(result: dict[str, Any], path: Path) -> None:
    """One model, one benchmark, one method."""
    model = result["model"]
    console = Console(highlight=False)
    table = Table(
        title=escape(f"{TITLES[result['method']]} on {result['bench']}: {model['model']}, {model['objective']}"),
        title_justify="left",
    )
    table.add_column("")
    for name in ("accuracy %", "95% interval", "images"):
        table.add_column(name, justify="right")
    for name, column in result["columns"].items():
        low, high = column["interval"]
        table.add_row(name, f"{column['accuracy']:.2f}", f"{low:.1f} to {high:.1f}", f"{column['n']:,}")
    for name, summary in result["summaries"].items():
        table.add_row(name, f"{summary['value']:.2f}", "", "")
    console.print(table)
    for task, chosen in result["chosen"].items():
        if "lr" in chosen:
            rate = f"{_value(chosen, 'lr')}, " if chosen["lr"] else ""  # L-BFGS has none
            how = f"chosen on {chosen['held_out']:,} of {chosen['trained_on']:,} training images"
            console.print(
                f"{task}: {rate}{_value(chosen, 'weight_decay')}, {chosen['features']} features; "
                f"{how if chosen['held_out'] else 'the only candidate'}"
            )
    show_unreadable(console, unreadable_lines(result))
    show_partial(console, result["partial"])
    console.print(f"written to {path}", soft_wrap=True, markup=False)


def _value(chosen: dict[str, Any], key: str) -> str:
    """What was chosen, and whether it lies at an end of the grid, beyond which better ones may lie."""
    tried = sorted({candidate[key] for candidate in chosen["candidates"]})
    name = key.replace("_", " ")
    end = ""
    if len(tried) > 1 and chosen[key] in (tried[0], tried[-1]):
        end = " (the smallest tried)" if chosen[key] == tried[0] else " (the largest tried)"
    return f"{name} {chosen[key]:g}{end}"


def show_rows(results: dict[str, Any], path: Path) -> None:
    """A suite: one line a model, the best of each column in bold."""
    console = Console(highlight=False)
    for method in TITLES:
        console.print(f"[italic]{heading(results, method)}[/italic]")  # a title would wrap at the table's width
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("", no_wrap=True)
        for column in results["columns"]:
            table.add_column(escape(column), justify="right", overflow="fold")
        for row in results["rows"]:
            cells = []
            for column in results["columns"]:
                text = f"{row[method][column]:.1f}"
                best = is_best(results["rows"], row, method, column)
                cells.append(f"[bold]{text}[/bold]" if best else text)
            table.add_row(escape(row["method"]), *cells)
        console.print(table)
    for line in difference_lines(results):
        console.print(line, soft_wrap=True, markup=False)
    show_unreadable(console, results["unreadable"])
    show_partial(console, results["partial"])
    console.print(f"written to {path}: results.json, results.md, report.html", soft_wrap=True, markup=False)


def show_unreadable(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(f"[bold red]LEFT OUT[/bold red], {escape(line)}", soft_wrap=True)


def show_partial(console: Console, partial: list[str]) -> None:
    if partial:
        console.print(f"[bold red]PARTIAL[/bold red], not comparable: {escape('; '.join(partial))}", soft_wrap=True)
