"""report.html: one file, no script, readable in light and dark, that shows what a suite found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from eval.report.claims import verdicts
from eval.report.compare import COMPARED, MANY, compared_columns, comparison_lines, is_sure, points
from eval.report.gallery import GraphStrips, Neighbour, Strip
from eval.report.grid import Line, grid
from eval.report.otherwise import otherwise
from eval.report.table import difference_lines, marks, plus_minus, runs_line, warnings
from eval.report.titles import TITLES
from shards.page import COLOURS, interval_chart, legend, line_chart, table, write_page

__all__ = ["Curves", "read_curves", "write_report"]

Curves = dict[str, list[tuple[float, float]]]
"""Metric -> (step, value)."""
CURVES = {
    "loss": "Loss. Each objective has its own scale: compare the shapes, not the heights.",
    "knn": "Accuracy of a kNN vote among training images, while training: is it learning at all?",
    "knn_similarity": "How much more alike the captions of an image and of its nearest image are than random ones.",
    "rankme": "Effective rank of the features (RankMe): how many directions are in use.",
}


def write_report(
    path: Path,
    results: dict[str, Any],
    *,
    curves: Mapping[str, Sequence[Curves]],
    captions: GraphStrips | None,
    images: Sequence[Strip],
) -> None:
    """results: as in results.json. curves: of each row's runs. captions, images: the gallery."""
    colours = {row["method"]: position % COLOURS for position, row in enumerate(results["rows"])}
    style = files("eval").joinpath("data/report.css").read_text(encoding="utf-8")
    body = [
        f"<h1>{escape(results['title'])}</h1>",
        f'<p class="soft">{_models(results)}</p>',
        *(f'<p class="partial">{what}: {escape(lines)}</p>' for what, lines in warnings(results)),
        *(_table(results, method) for method in results["methods"]),
        *(f"<p>{escape(line)}</p>" for line in difference_lines(results)),
        _columns(results),
        _settings(results),
        _figures(results, colours),
        _comparisons(results),
        _verdicts(results),
        _charts(curves, colours),
        _captions(captions),
        _images(images),
        _protocol(results),
    ]
    write_page(path, results["title"], body, style)


def read_curves(run: Path) -> Curves:
    """The metrics of a run that the report draws; {} where it left none."""
    curves: Curves = {}
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # the line that a killed process was writing
        for name in CURVES:
            if name in values and "step" in values:
                curves.setdefault(name, []).append((values["step"], values[name]))
    return curves


def _models(results: dict[str, Any]) -> str:
    runs = [run for row in results["rows"] for run in row["runs"]]
    models = sorted({str(run["model"]["model"]) for run in runs})
    where = ", ".join(results["benches"])
    return escape(f"{', '.join(models)} on {where}; accuracy in percent, frozen features")


def _table(results: dict[str, Any], method: str) -> str:
    columns, lines = results["columns"], list[Line]()
    for row in results["rows"]:
        cells, kinds = [], marks(results, row, method)
        for column in columns:
            value = row[method][column]
            low, high = row["details"][method][column]["interval"]
            title = f"95% interval {low:.1f} to {high:.1f}, {row['details'][method][column]['n']:,} images"
            if len(row["runs"]) > 1:
                title += f"; runs {', '.join(f'{run[method][column]:.1f}' for run in row['runs'])}"
            figure = f"{value:.1f}<small>{plus_minus(row, method, column)}</small>"
            kind = kinds[column]
            cells.append(f'<td{f" class={kind}" if kind else ""} title="{title}">{figure}</td>')
        lines.append((row["method"], cells))
    lines += [_published(row, columns) for row in results["published"]] if method == "linear_probe" else []
    return grid(_title(method), columns, lines)


def _title(method: str) -> str:
    return TITLES[method][0].upper() + TITLES[method][1:] if method != "knn" else TITLES[method]


def _published(row: dict[str, Any], columns: list[str]) -> Line:
    """Figures from the paper, ~ before what is approximate."""
    cells = []
    for column in columns:
        value = row["linear_probe"].get(column)
        mark = "~" if column in row["approximate"] else ""
        cells.append("<td></td>" if value is None else f"<td class=published>{mark}{value:.1f}</td>")
    return f"{row['method']}, published", cells


def _columns(results: dict[str, Any]) -> str:
    details = results["rows"][0]["details"][results["methods"][0]]
    every = [d["interval"] for row in results["rows"] for one in row["details"].values() for d in one.values()]
    widest = max((high - low) / 2 for low, high in every)
    about = {(name.rpartition("/")[2], detail["about"]): None for name, detail in details.items() if detail["about"]}
    words = "; ".join(f"{name}: {said}" for name, said in about)  # once, of however many benchmarks
    runs = f" {escape(line[0].upper() + line[1:])}." if (line := runs_line(results)) else ""
    return (
        '<p class="soft">In bold the best by each figure, shaded too what is not surely below it; the test pictures '
        f"leave a figure uncertain by up to &plusmn;{widest:.1f} (95%, Wilson score; hold the pointer over one).{runs} "
        f"{escape(words)}.{_quotes(results)}</p>"
    )


def _figures(results: dict[str, Any], colours: Mapping[str, int]) -> str:
    """The tables once more, to look at."""
    columns = results["columns"]
    charts = []
    for method in results["methods"]:
        series = {
            row["method"]: [(row[method][column], *row["details"][method][column]["interval"]) for column in columns]
            for row in results["rows"]
        }
        single = {
            row["method"]: [[run[method][column] for run in row["runs"]] for column in columns]
            for row in results["rows"]
            if len(row["runs"]) > 1
        }
        chart = interval_chart(columns, series, x_title="accuracy, %", colours=colours, within=single)
        words = f"{_title(method)}; bars: 95% of the test pictures{'; rings: single runs' if single else ''}."
        charts.append(f"<figure>{chart}<figcaption>{words}</figcaption></figure>")
    return f'<h2>The figures</h2>{legend(colours)}<div class="charts">{"".join(charts)}</div>'


def _settings(results: dict[str, Any]) -> str:
    keys, rows = results["settings"]["keys"], results["settings"]["rows"]
    if not keys:
        return ""
    lines = [[name, *values] for name, values in rows.items()]
    return f"<h2>What the rows differ in</h2>{table(['trained with', *keys], lines)}"


def _comparisons(results: dict[str, Any]) -> str:
    tables, count = list[str](), 0
    for method in results["methods"]:
        lines = [(name, [*map(_comparison, cells)]) for name, cells in comparison_lines(results, method)]
        tables += [grid(_title(method), compared_columns(results), lines)] if lines else []
        count = max(count, len(lines))
    if not count and not results["uncompared"]:
        return ""
    lost = (
        f" Not of the same pictures, so not compared: {'; '.join(results['uncompared'])}."
        if results["uncompared"]
        else ""
    )
    body = f'<p class="soft">{escape(COMPARED + lost)}</p>{"".join(tables)}'
    if count > MANY and not results["against"]:
        body = f"<details><summary>{count} pairs of rows</summary>{body}</details>"
    return f"<h2>Row against row</h2>{body}"


def _comparison(found: dict[str, Any] | None) -> str:
    if found is None:
        return "<td></td>"
    (low, high), (value, reach) = found["interval"], points(found)
    words = f'title="95% interval {low:+.1f} to {high:+.1f}"'
    mark = " class=best" if is_sure(found) else ""
    return f"<td{mark} {words}>{value}<small> {reach}</small></td>"


def _quotes(results: dict[str, Any]) -> str:
    if not results["published"]:
        return ""
    return " Published figures are the paper's, ~ from memory and approximate; its probes trained on augmented views."


def _verdicts(results: dict[str, Any]) -> str:
    found = verdicts(results)
    if not found:
        return ""
    items = []
    for verdict in found:
        if verdict.failures:
            kind, head, tail = "fails", "Not everywhere:", f"Not so for {'; '.join(verdict.failures)}."
        elif verdict.unsure:
            kind, head, tail = "soft", "In the figures:", f"Within the uncertainty for {'; '.join(verdict.unsure)}."
        elif verdict.lost:
            kind, head = "soft", "In the figures:"
            tail = f"Of other pictures, so not compared: {'; '.join(verdict.lost)}."
        else:
            kind, head, by = "holds", "Holds:", [TITLES[method] for method in results["methods"]]
            tail = f"By {' and '.join(by)}{' alike, each' * (len(by) > 1)} beyond its uncertainty."
            if verdict.single:
                tail += " That is of other pictures: single runs say nothing of other seeds."
        items.append(f'<li><span class="{kind}">{head}</span> {escape(f"{verdict.claim}. {tail}")}</li>')
    return f'<h2>What the paper claims</h2><ul class="verdicts">{"".join(items)}</ul>'


def _charts(curves: Mapping[str, Sequence[Curves]], colours: Mapping[str, int]) -> str:
    figures = []
    for metric, words in CURVES.items():
        series = [
            (method, values[metric]) for method, several in curves.items() for values in several if values.get(metric)
        ]
        chart = line_chart(series, x_title="step", y_title=metric, colours=colours)
        if chart:
            figures.append(f"<figure>{chart}<figcaption>{words}</figcaption></figure>")
    if not figures:
        return ""
    names = legend({name: colours[name] for name, several in curves.items() if any(several)})
    return f'<h2>Training</h2>{names}<div class="charts">{"".join(figures)}</div>'


def _captions(captions: GraphStrips | None) -> str:
    if captions is None or not captions.strips:
        return ""
    rows = [
        f'<div class="strip">{_picture(strip.query)}<div class="abreast">'
        f"{''.join(map(_picture, strip.neighbours['captions']))}</div></div>"
        for strip in captions.strips
    ]
    return (
        f"<h2>What the graph calls near</h2><p>Training images of {escape(str(captions.shards))}, each beside images "
        f"of its nearest texts with their similarity by the graph {escape(captions.graph)}: what X-CLR is trained on, "
        f"and no picture had a say in.</p>{''.join(rows)}"
    )


def _images(strips: Sequence[Strip]) -> str:
    if not strips:
        return ""
    rows = []
    for strip in strips:
        lines = [
            f'<div class="abreast named"><span class="soft">{escape(name)}</span>{"".join(map(_picture, near))}</div>'
            for name, near in strip.neighbours.items()
        ]
        rows.append(f'<div class="strip">{_picture(strip.query)}<div>{"".join(lines)}</div></div>')
    return (
        "<h2>What each model calls near</h2><p>Test images, each beside the training images whose "
        f"features are nearest, with their cosine; of several runs the first.</p>{''.join(rows)}"
    )


def _picture(neighbour: Neighbour) -> str:
    words = escape(neighbour.words)
    number = "" if neighbour.similarity is None else f"<span>{neighbour.similarity:.2f}</span>"
    image = f'<img src="{neighbour.source}" alt="{words}" title="{words}">'
    return f'<div class="picture">{image}{number}<p title="{words}">{words}</p></div>'


def _protocol(results: dict[str, Any]) -> str:
    rows = {
        row["method"]: [{key: run[key] for key in ("model", "chosen")} for run in row["runs"]]
        for row in results["rows"]
    }
    shown = {
        "protocol": results["protocol"],
        "but": otherwise(results),
        "rows": rows,
        "versions": results["versions"],
    }
    text = escape(json.dumps(shown, indent=1, ensure_ascii=False))
    return f"<h2>Protocol</h2><details><summary>Everything that decides a figure</summary><pre>{text}</pre></details>"
