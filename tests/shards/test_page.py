"""Charts of the pages: what is drawn where."""

from __future__ import annotations

import re

from shards.page import interval_chart, line_chart, table, ticks


def test_charts() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.31, 0.32)[0] <= 0.31
    assert ticks(5, 5)[0] < 5 < ticks(5, 5)[-1]
    lines = {"a<b": [(0, 1), (10, 2)], "none": []}
    chart = line_chart(lines, x_title="step", y_title="loss", colours={"a<b": 2}, mark=5)
    assert 'class="line s2"' in chart
    assert "a&lt;b" in chart
    assert chart.count("<polyline") == chart.count('class="mark"') == 1
    assert "<circle" not in chart
    alone = line_chart({"a": [(2, 1)]}, x_title="x", y_title="y", colours={"a": 1})
    assert '<circle class="dot s1"' in alone  # a line of one point is not seen
    assert line_chart({"a": []}, x_title="x", y_title="y", colours={"a": 0}) == ""
    two = {"a": [(50.0, 40.0, 60.0), (80.0, 70.0, 90.0)], "b": [(60.0, 50.0, 70.0), (10.0, 0.0, 20.0)]}
    dots = interval_chart(["one", "<two>"], two, x_title="%", colours={"a": 0, "b": 1})
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', dots)]
    assert [x for x, _ in sorted(places)] == sorted(x for x, _ in places)
    assert sorted(range(4), key=lambda i: places[i][0]) == [3, 0, 1, 2]  # by value: 10, 50, 60, 80
    assert [y for _, y in places] == sorted(y for _, y in places)  # group by group, series by series
    assert "&lt;two&gt;: 10.0 (0.0 to 20.0)" in dots
    assert interval_chart([], {}, x_title="%", colours={}) == ""


def test_tables() -> None:
    assert '<tr class="marked"><td>&lt;</td>' in table(["head"], [["a"], ["<"]], marked=["<"])


def test_charts_of_several_runs() -> None:
    lines = line_chart([("a", [(0, 1), (1, 2)]), ("a", [(0, 2), (1, 3)])], x_title="x", y_title="y", colours={"a": 3})
    assert lines.count('class="line s3"') == 2
    one = {"a": [(50.0, 45.0, 55.0)]}
    assert "ring" not in interval_chart(["g"], one, x_title="%", colours={"a": 0})
    assert interval_chart(["g"], one, x_title="%", colours={"a": 0}, within={"a": [[20.0, 80.0]]}).count("ring") == 2
    wide = interval_chart(["g"], one, x_title="%", colours={"a": 0}, within={"a": [[20.0, 80.0]]})
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', wide)]
    assert max(places) < 460  # a run beyond the interval is within the picture
    long = interval_chart(["oxford-flowers-by-photographer 10%/top1" * 2], one, x_title="%", colours={"a": 0})
    assert ">oxford-f\N{HORIZONTAL ELLIPSIS}ographer 10%/top1</text>" in long
    ends = [float(x) for x in re.findall(r'class="line[^>]* x1="([\d.]+)" x2=', long)]
    assert ends[0] < float(re.findall(r'cx="([\d.]+)"', long)[0]) < 460
