"""Results on the screen."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.report.similarity import figures, notes, shortened
from eval.report.table import difference_lines, heading, left_out_lines, marks, plus_minus, runs_line, warnings
from eval.report.titles import TITLES, model_parts
from eval.similarity.compare import Compared
from eval.similarity.pictures import GraphPictures

__all__ = ["show_result", "show_rows", "show_similarity"]


MARKS = {"best": "bold", "near": "italic", "": "none"}
FIGURE_WIDTH = len("100.0")
MODEL_WIDTH = 14  # of a model's name above its figures; a longer one takes several lines


def show_result(result: dict[str, Any], path: Path) -> None:
    """One model, one benchmark, one method."""
    name, objective, _ = model_parts(result["model"])
    console = Console(highlight=False)
    model = ", ".join(part for part in (name, objective) if part)
    table = Table(title=escape(f"{TITLES[result['method']]} on {result['bench']}: {model}"), title_justify="left")
    table.add_column("")
    for name in ("accuracy %", "95% interval", "images"):
        table.add_column(name, justify="right")
    for name, column in result["columns"].items():
        low, high = column["interval"]
        table.add_row(name, f"{column['accuracy']:.2f}", f"{low:.1f} to {high:.1f}", f"{column['n']:,}")
    for name, summary in result["summaries"].items():
        table.add_row(name, f"{summary['value']:.2f}", "", "")
    console.print(table)
    console.print(_made_of(result))
    for task, chosen in result["chosen"].items():
        if "lr" in chosen:
            rate = f"{_value(chosen, 'lr')}, " if chosen["lr"] else ""  # L-BFGS has none
            how = f"chosen on {chosen['held_out']:,} of {chosen['trained_on']:,} training images"
            if result["protocol"].get("name") == "views":
                how = f"trained on {chosen['trained_on']:,} images, chosen on {chosen['held_out']:,} others"
            console.print(
                f"{task}: {rate}{_value(chosen, 'weight_decay')}, {chosen['features']} features; "
                f"{how if chosen['held_out'] else 'the only candidate'}"
            )
    for line in left_out_lines(result):
        console.print(f"[bold red]LEFT OUT[/bold red], {escape(line)}", soft_wrap=True)
    if result["partial"]:
        lines = escape("; ".join(result["partial"]))
        console.print(f"[bold red]PARTIAL, not comparable[/bold red]: {lines}", soft_wrap=True)
    console.print(f"written to {path}", soft_wrap=True, markup=False)


def _made_of(result: dict[str, Any]) -> str:
    """`600 training images of 10 classes, 512 features each`: what a wrong folder, or a wrong layer, shows by."""
    most = max((chosen["trained_on"] for chosen in result["chosen"].values()), default=0)
    classes = result["notes"].get("classes")
    of = f" of {classes:,} classes" if classes else ""
    return f"{most:,} training images{of}, {result['feature_dim']:,} features each"


def _value(chosen: dict[str, Any], key: str) -> str:
    """What was chosen, and whether it lies at an end of the grid, beyond which better ones may lie."""
    tried = sorted({candidate[key] for candidate in chosen["candidates"]})
    name = key.replace("_", " ")
    end = ""
    if len(tried) > 1 and chosen[key] in (tried[0], tried[-1]):
        end = " (the smallest tried)" if chosen[key] == tried[0] else " (the largest tried)"
    return f"{name} {chosen[key]:g}{end}"


def show_rows(results: dict[str, Any], path: Path) -> None:
    """A suite: one line a model, or a figure where that is too wide; the best of each figure in bold."""
    console = Console(highlight=False)
    for method in results["methods"]:
        console.print(f"[italic]{escape(heading(results, method))}[/italic]")  # a title would wrap at the table's width
        for table in _tables(results, method, console):
            console.print(table)
    if line := runs_line(results):
        console.print(line, soft_wrap=True, markup=False)
    for line in difference_lines(results):
        console.print(line, soft_wrap=True, markup=False)
    if results["uncompared"]:
        lost = escape("; ".join(results["uncompared"]))
        console.print(f"[bold red]NOT OF THE SAME PICTURES[/bold red], so not compared: {lost}", soft_wrap=True)
    for what, lines in warnings(results):
        console.print(f"[bold red]{what}[/bold red]: {escape(lines)}", soft_wrap=True)
    console.print(f"written to {path}: report.html and results.json, .md, .tex, .csv", soft_wrap=True, markup=False)


def show_similarity(pictures: GraphPictures, compared: Compared, path: Path) -> None:
    """One line a model and what of it is looked at."""
    console = Console(highlight=False)
    graph = f"graph {pictures.graph}" + ("" if pictures.graph_of == pictures.shards else f" of {pictures.graph_of}")
    title = (
        f"Rank correlation with {graph}: {pictures.shards}, {compared.pictures:,} pictures, {compared.pairs:,} pairs"
    )
    console.print(f"[italic]{escape(title)}[/italic]", soft_wrap=True)
    head, rows = figures(shortened(compared))
    widths = [max(map(len, [*name.split(), *cells])) for name, *cells in list(zip(head, *rows, strict=True))[1:]]
    room = max(MODEL_WIDTH, console.width - sum(widths) - 2 * len(head))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    for number, (name, width) in enumerate(zip(head[1:], widths, strict=True)):
        table.add_column(escape(fill(name, width)), justify="right" if number else "left", overflow="fold")
    for name, *cells in rows:
        table.add_row(*map(escape, [_lines(name, room), *cells]))
    console.print(table)
    for note in notes(pictures, compared):
        console.print(note, soft_wrap=True, markup=False)
    console.print(f"written to {path} and {path.with_suffix('.json').name}", soft_wrap=True, markup=False)


def _lines(name: str, width: int) -> str:
    """A name on lines of at most so many letters, which end where it has a hyphen, if any."""
    if len(name) <= width:
        return name
    return fill(name.replace("-", "- "), width, break_on_hyphens=False).replace("- ", "-")


def _tables(results: dict[str, Any], method: str, console: Console) -> list[Table]:
    rows, columns = results["rows"], results["columns"]
    names, cells = [row["method"] for row in rows], []
    for row in rows:
        line, kinds = [], marks(results, row, method)
        for column in columns:
            text = f"{row[method][column]:.1f}"
            style = MARKS[kinds[column]]
            line.append(f"[{style}]{text}[/]{plus_minus(row, method, column)}")
        cells.append(line)
    table = _table(names, columns, cells)
    if console.measure(table, options=console.options.update(max_width=10_000)).maximum <= console.width:
        return [table]
    turned = [list(line) for line in zip(*cells, strict=True)]
    widths = [min(len(name), MODEL_WIDTH) for name in names]
    figure = FIGURE_WIDTH + max(len(plus_minus(row, method, column)) for row in rows for column in columns)
    at_once = max(1, (console.width - max(map(len, columns)) - 4) // (max(*widths, figure) + 2))
    return [
        _table(columns, names[start : start + at_once], [line[start : start + at_once] for line in turned])
        for start in range(0, len(names), at_once)
    ]


def _table(lines: list[str], heads: list[str], cells: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(escape(head), justify="right", overflow="fold", min_width=FIGURE_WIDTH)
    for name, line in zip(lines, cells, strict=True):
        table.add_row(escape(name), *line)
    return table
