"""Pages that are one file: no script, nothing fetched, readable in light and dark. Line charts are inline SVG."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from shards.atomic import write_text

__all__ = ["COLOURS", "data_uri", "interval_chart", "legend", "line_chart", "table", "ticks", "write_page"]

WIDTH, HEIGHT = 460, 260  # units of the view box
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
LABEL = 26  # letters of a group's name in an interval chart
COLOURS = 12  # classes s0, s1, ... of the style sheet
ROW, GROUP_GAP, LETTER = 11, 9, 7  # of an interval chart: height of a row, between groups, width of a name's letter
Points = Sequence[tuple[float, float]]

STYLE = """
:root { color-scheme: light dark; --back: #fbfaf8; --ink: #1d1c1a; --soft: #6b675f; --line: #dedad2; --mark: #eef3e4;
  --s0: #8a867d; --s1: #2f6db3; --s2: #b3672f; --s3: #3d8a3d; --s4: #8a4fb0; --s5: #b03a5b;
  --s6: #1f8f92; --s7: #8c8a1f; --s8: #1d3f73; --s9: #7a4a2a; --s10: #d06fb8; --s11: #57606b; }
@media (prefers-color-scheme: dark) {
  :root { --back: #191816; --ink: #e9e6df; --soft: #a09b90; --line: #38352f; --mark: #2b3422; --s0: #9b978e;
    --s1: #74aef0; --s2: #eba36b; --s3: #7fcb7f; --s4: #c596e6; --s5: #ee86a4;
    --s6: #63d1d4; --s7: #d3d05f; --s8: #9db7e8; --s9: #c79a79; --s10: #f0a6dc; --s11: #b4bec9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; } .soft, figcaption, .legend { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 500; color: var(--soft); } th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
tr.marked td { background: var(--mark); }
table.facts td { text-align: left; white-space: normal; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 1.5rem 2.5rem; }
.charts > :only-child { max-width: max(19rem, 50%); }
figure { margin: 0; } figcaption { margin-top: .25rem; } .chart { width: 100%; height: auto; }
.chart text { font-size: 11px; fill: var(--soft); } .grid { stroke: var(--line); }
.mark { stroke: var(--soft); stroke-dasharray: 3 3; } .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.ring { fill: none; stroke-width: 1; }
.legend span { display: inline-block; margin-right: 1rem; overflow-wrap: anywhere; }
.legend i { display: inline-block; width: 1rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
""" + "\n".join(
    f".line.s{i}, .ring.s{i} {{ stroke: var(--s{i}); }} .dot.s{i} {{ fill: var(--s{i}); }} "
    f".legend i.s{i} {{ background: var(--s{i}); }}"
    for i in range(COLOURS)
)


def write_page(path: Path, title: str, parts: Iterable[str], style: str = "") -> None:
    """parts: HTML of the body, already escaped. style: rules beyond STYLE."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )
    write_text(path, page)


def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: Sequence[str] = ()) -> str:
    """Cells are text. Rows whose first cell is in `marked` stand out."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f'</tr><tr class="marked">{cells}' if row[0] in marked else f"</tr><tr>{cells}")
    return f'<div class="scroll"><table><tr>{"".join(lines)}</tr></table></div>'


def legend(colours: Mapping[str, int]) -> str:
    spans = "".join(f'<span><i class="s{number}"></i>{escape(name)}</span>' for name, number in colours.items())
    return f'<p class="legend">{spans}</p>'


def line_chart(
    series: Mapping[str, Points] | Sequence[tuple[str, Points]],
    *,
    x_title: str,
    y_title: str,
    colours: Mapping[str, int],
    mark: float | None = None,
    low_x: float | None = 0.0,
) -> str:
    """One polyline a series; `colours` gives its number in the style sheet. Empty without any point.

    series: by name, or pairs where several have one name and colour.
    mark: x of a dashed upright line. low_x: the axis reaches down to it at least; None leaves it to the points.
    """
    pairs = series.items() if isinstance(series, Mapping) else series
    drawn = [(name, points) for name, points in pairs if points]
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    if not xs:
        return ""
    x_ticks, y_ticks = ticks(min(xs if low_x is None else [low_x, *xs]), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low or 1)
        up = (y - y_low) / (y_high - y_low or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)}">']
    for value in y_ticks:
        _, y = place(x_low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, _ = place(value, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>')
    if mark is not None:
        x, _ = place(mark, y_low)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for name, points in drawn:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        if len(points) == 1:  # a line of one point is not seen
            x, y = place(*points[0])
            parts.append(f'<circle class="dot s{colours[name]}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        parts.append(
            f'<polyline class="line s{colours[name]}" points="{line}"><title>{escape(name)}</title></polyline>'
        )
    return "".join([*parts, "</svg>"])


def _short(name: str) -> str:
    """Of LABEL letters at most: its ends, of which the last tells most from one another."""
    start = LABEL // 3
    return name if len(name) <= LABEL else f"{name[:start]}\N{HORIZONTAL ELLIPSIS}{name[start + 1 - LABEL :]}"


def interval_chart(
    groups: Sequence[str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    *,
    x_title: str,
    colours: Mapping[str, int],
    within: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> str:
    """A dot on a bar for each group (from top to bottom) and each series within it.

    series: (value, low, high) of each group; `colours` gives its number in the style sheet. within: of a series, the
    values that each group's is the mean of, as rings. Empty without any group or series.
    """
    if not groups or not series:
        return ""
    within = within or {}
    ends = [number for values in series.values() for value in values for number in value]
    ends += [number for each in within.values() for numbers in each for number in numbers]
    marks = ticks(min(ends), max(ends))
    block = ROW * len(series) + GROUP_GAP
    height = TOP + block * len(groups) + BOTTOM
    shown = [_short(name) for name in groups]
    left = LETTER * max(map(len, shown)) + 16

    def across(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (WIDTH - left - RIGHT)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(x_title)}">']
    for mark in marks:
        x = across(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_title)}</text>')
    for number, group in enumerate(groups):
        top = TOP + number * block + GROUP_GAP / 2
        middle = top + ROW * len(series) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(shown[number])}</text>')
        for row, (name, values) in enumerate(series.items()):
            value, low, high = values[number]
            y, style = top + ROW * (row + 0.5), f"s{colours[name]}"
            title = f"<title>{escape(name)}, {escape(group)}: {value:.1f} ({low:.1f} to {high:.1f})</title>"
            rings = "".join(
                f'<circle class="ring {style}" cx="{across(one):.1f}" cy="{y:.1f}" r="4"/>'
                for one in (within[name][number] if name in within else ())
            )
            parts.append(
                f'<g>{title}<line class="line {style}" x1="{across(low):.1f}" x2="{across(high):.1f}" y1="{y:.1f}" '
                f'y2="{y:.1f}"/>{rings}<circle class="dot {style}" cx="{across(value):.1f}" cy="{y:.1f}" r="3.2"/></g>'
            )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]
