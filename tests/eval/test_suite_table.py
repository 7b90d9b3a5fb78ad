"""A suite of several benchmarks: means, few-shot, partial copies, and published figures beside ours."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.benchmarks.bench import Bench, Column, Summary, top
from eval.evaluate import METHODS
from eval.report.claims import verdicts
from eval.report.compare import compared_columns
from eval.report.latex import latex
from eval.report.markdown import markdown
from eval.report.page import write_report
from eval.report.published import FIGURES, published_rows
from eval.report.show import show_rows
from eval.report.table import gather, marks
from eval.report.tidy import tidy_lines
from shards.page import STYLE
from tests.eval.make_folders import make_set


def bench(name: str, columns: tuple[str, ...], summaries: tuple[Summary, ...] = ()) -> Bench:
    from eval.benchmarks.bench import Task

    images = make_set(4)
    task = Task(name="class", images="train", labels=np.zeros(4, np.int64), classes=["a", "b"])
    made = tuple(Column(name=c, task="class", images="train", score=top(np.zeros(4))) for c in columns)
    return Bench(name=name, root=Path(name), sets=(images,), tasks=(task,), columns=made, summaries=summaries)


HALF, ALL = (base64.b64encode(bytes([bits])).decode() for bits in (0b1010_0000, 0b1111_0000))  # of four pictures


def value(
    made: Bench,
    accuracy: float,
    partial: tuple[str, ...] = (),
    unreadable: int = 0,
    hits: str = HALF,
    counted: str = "all",
) -> dict[str, Any]:
    column = {
        "interval": [accuracy - 1, accuracy + 1],
        "n": 4,
        "unreadable": 0,
        "about": "",
        "marked": True,
        "accuracy": accuracy,
        "hits": hits,
        "counted": counted,
    }
    return {
        "bench": made.name,
        "root": str(made.root),
        "columns": {c.name: column for c in made.columns},
        "summaries": {s.name: {"value": accuracy, "columns": list(s.columns), "about": s.kind} for s in made.summaries},
        "partial": list(partial),
        "chosen": {"class": {"lr": 1.0, "candidates": [1, 2, 3]}},
        "protocol": {"k": 1},
        "notes": {},
        "pictures": {"train": {"count": 1000, "unreadable": unreadable}},
        "versions": {"torch": "2"},
    }


def test_one_benchmark_is_named_above_its_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    part = ("objectnet", bench("objectnet", ("overlap",)))
    rows = [
        {
            "method": name,
            "runs": [
                {
                    "model": {"model": "vit", "objective": "xclr", "checkpoint_sha256": "f" * 64},
                    "evaluations": {("objectnet", how): value(part[1], 20.0) for how in ("linear_probe", "knn")},
                }
            ],
        }
        for name in ("a", "b")
    ]
    table = gather("mine", "Mine", rows, [part])
    assert table["columns"] == ["overlap"]
    rows[1]["runs"][0]["evaluations"]["objectnet", "knn"] = value(part[1], 20.0) | {"protocol": {"k": 7, "t": 2}}
    assert gather("mine", "Mine", rows, [part])["rows"][1]["runs"][0]["otherwise"] == {
        "objectnet/knn": {"k": 7, "t": 2}
    }
    assert "kNN on objectnet, accuracy in percent, 95% interval" in markdown(table)
    assert f"- objectnet: {part[1].root}\n" in markdown(table)
    show_rows(table, tmp_path)
    assert "linear probe on objectnet, accuracy in percent" in capsys.readouterr().out


def results(methods: Sequence[str] = METHODS) -> dict[str, Any]:
    seeds = ("object_seed0", "object_seed1")
    mean = Summary(name="object", kind="mean", columns=seeds)
    deviation = Summary(name="object_deviation", kind="deviation", columns=seeds)
    gap = Summary(name="gap", kind="difference", columns=("top1", "top5"), about="difference")
    parts = [
        ("imagenet", bench("imagenet", ("top1", "top5"), (gap,))),
        ("imagenet 1%", bench("imagenet", ("top1", "top5"))),
        ("mit-states", bench("mit-states", seeds, (mean, deviation))),
    ]
    rows = []
    for method, accuracy in (("mine", 60.0), ("resnet50", 70.0)):
        evaluations = {
            (prefix, how): value(made, accuracy, *((("images: 3 of 4",), 7) if prefix == "mit-states" else ()))
            for prefix, made in parts
            for how in ("linear_probe", "knn")
        }
        model = {"model": "resnet50", "objective": "xclr", "checkpoint_sha256": "f" * 64}
        rows.append({"method": method, "runs": [{"model": model, "evaluations": evaluations}]})
    return gather("paper", "The paper", rows, parts, methods=methods)


def test_what_a_protocol_has_otherwise_is_told_once(tmp_path: Path) -> None:
    """Of a suite of three rows (one of two runs), three columns and both methods: a line each difference."""
    parts = [(name, bench(name, ("top1",))) for name in ("pets", "cars", "pets 1%")]
    sizes = {"own": [64], "simclr": [32, 32], "xclr": [32], "wide": [64, 64]}
    rows = []
    for name, runs in sizes.items():
        row: dict[str, Any] = {"method": name, "runs": []}
        for number, size in enumerate(runs):
            evaluations = {}
            for (prefix, made), how in product(parts, METHODS):
                protocol = {"transform": {"image_size": size, "mean": [0.5]}, "features": 512}
                protocol |= {"few_shot_percent": 1.0} if "%" in prefix else {}
                if how == "knn" and name == "wide":
                    protocol["features"] = 96 if number else 64
                evaluations[prefix, how] = value(made, 50.0) | {"protocol": protocol}
            model = {"model": "vit", "objective": name, "checkpoint": f"runs/{name}{number}"}
            row["runs"].append({"model": model, "evaluations": evaluations})
        rows.append(row)
    rows[1]["runs"][0]["evaluations"]["cars", "linear_probe"]["protocol"]["seed"] = 7
    rows[1]["runs"][0]["evaluations"]["pets", "knn"]["protocol"]["seed"] = 7
    table = gather("mine", "Mine", rows, parts)
    expected = {
        "on pets 1%: few shot percent 1",
        "simclr, xclr: transform image_size 32",
        "simclr (runs/simclr0) by kNN on pets, by linear probe on cars: seed 7",
        "wide (runs/wide0) by kNN: features 64",
        "wide (runs/wide1) by kNN: features 96",
    }
    found = [line.removeprefix("- but ") for line in markdown(table).splitlines() if line.startswith("- but ")]
    assert len(found) == len(expected)
    assert set(found) == expected
    page = page_of(table, tmp_path)
    assert page.count("&quot;image_size&quot;: 32") == 1
    assert page.count("few_shot_percent") == 1


def test_a_model_is_told_once() -> None:
    table = simple(["mine", "elsewhere", "export", "initial"])
    abouts = (
        {"model": "nets.py:moco", "objective": "moco", "checkpoint": "nets.py"},
        {"model": "nets.py:moco", "objective": "moco", "checkpoint": "code/nets.py"},
        {"model": "resnet50", "objective": "50", "checkpoint": "out/50"},
        {"model": "vit", "objective": "untrained", "checkpoint": "runs/a"},
    )
    for row, about in zip(table["rows"], abouts, strict=True):
        row["runs"][0]["model"] = about
    text = markdown(table)
    assert "- mine: nets.py:moco\n" in text
    assert "- elsewhere: nets.py:moco, code/nets.py\n" in text
    assert "- export: resnet50, 50, out/50\n" in text
    assert "- initial: vit, initial weights of runs/a\n" in text
    assert {line[2] for line in tidy_lines(table)[1:]} == {"nets.py:moco", "code/nets.py", "out/50", "runs/a"}


def test_columns_are_named_by_benchmark_and_means_stand_for_their_splits() -> None:
    table = results()
    assert table["columns"] == [
        "imagenet/top1",
        "imagenet/top5",
        "imagenet 1%/top1",
        "imagenet 1%/top5",
        "mit-states/object",
    ]
    row = table["rows"][0]
    assert set(row["linear_probe"]) == set(row["knn"]) == set(table["columns"])
    assert row["details"]["linear_probe"]["mit-states/object"]["deviation"] == 60.0
    assert "candidates" not in row["runs"][0]["chosen"]["imagenet/linear_probe"]["class"]
    assert table["partial"] == ["mit-states: images: 3 of 4"]


@pytest.mark.parametrize("models", [2, 11])
@pytest.mark.parametrize("spread", ["", " ±10.5"])
def test_a_suite_can_be_read_at_80_columns(
    models: int, spread: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = results()
    first = table["rows"][0]
    figures = {column: 10.0 + number for number, column in enumerate(table["columns"])}
    name = (
        "m" if spread else "vit_small_patch16_"
    )  # names that are narrower than the figures below them, and wider ones
    table["rows"] = [{**first, "method": f"{name}{i}", "linear_probe": figures} for i in range(models)]
    if spread:
        for known in first["details"]["linear_probe"].values():
            known["spread"] = 10.54
    table["differences"] = []
    show_rows(table, tmp_path)
    probe = capsys.readouterr().out.split("kNN")[0].splitlines()
    assert max(map(len, probe)) <= 80
    for column, value in figures.items():
        cells = [line.split(column)[1].split() for line in probe if line.strip().startswith(column)]
        assert [cell for line in cells for cell in line] == f"{value:.1f}{spread}".split() * models
    monkeypatch.setenv("COLUMNS", "300")  # one line a model
    show_rows(table, tmp_path)
    assert "".join(f"{value:18.1f}{spread}" for value in figures.values()).split() == next(
        line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip().startswith(f"{name}0")
    )


def test_published_figures_stand_beside_and_say_what_they_are(tmp_path: Path) -> None:
    table = results()
    by_name = {row["method"]: row for row in table["published"]}
    assert by_name["X-CLR on ImageNet"]["linear_probe"] == {"imagenet/top1": 75.6, "mit-states/object": 45.8}
    assert by_name["SimCLR on ImageNet"]["approximate"] == ["mit-states/object"]
    text = markdown(table)
    assert "| *X-CLR on ImageNet, published* | ~75.6 |  |  |  | ~45.8 |" in text
    assert "| *SupCon on ImageNet, published* | 74.3 |  |  |  | ~45.3 |" in text
    assert "| resnet50 | **70.0** (69.0-71.0) |" in text
    assert "**PARTIAL, not comparable:** mit-states: images: 3 of 4" in text
    assert "**LEFT OUT:** mit-states: train: 7 of 1,000 pictures did not decode\n" in text
    assert "- gap (imagenet, linear probe; difference): mine 60.0, resnet50 70.0\n" in text
    assert "f" * 64 in text
    write_report(tmp_path / "report.html", table, curves={}, captions=None, images=[])
    page = (tmp_path / "report.html").read_text()
    assert "<td class=published>~75.6</td>" in page
    assert "<td class=published>74.3</td>" in page
    assert ".abreast.named > .soft { overflow-wrap: anywhere; }" in page  # else long names run under the pictures
    assert "PARTIAL, not comparable" in page
    assert "LEFT OUT: mit-states: train: 7 of 1,000 pictures did not decode<" in page
    assert "<p>gap (imagenet, kNN; difference): mine 60.0, resnet50 70.0</p>" in page
    assert "approximate" in page


def test_published_rows_are_of_linear_probes(tmp_path: Path) -> None:
    table = results(["knn"])
    assert table["published"] == []
    write_report(tmp_path / "report.html", table, curves={}, captions=None, images=[])
    assert "inear probe" not in (tmp_path / "report.html").read_text() + markdown(table)


def test_published_rows_come_only_with_their_benchmarks() -> None:
    assert published_rows([("demo", "object")]) == []
    assert len(published_rows([("imagenet", "top1")])) == len(FIGURES)
    assert len(published_rows([("mit-states", "object")])) == 3


def simple(names: list[str], column: str = "object", *, hits: str = HALF, counted: str = "all") -> dict[str, Any]:
    """One column; the last row has these hits."""
    made = bench("demo", (column, "only_fg"))
    rows = []
    for name in names:
        last = name == names[-1]
        found = value(made, 60.0 if last else 50.0, hits=hits if last else HALF, counted=counted if last else "all")
        evaluations = {("demo", how): found for how in ("linear_probe", "knn")}
        rows.append(
            {"method": name, "runs": [{"model": {"model": "vit", "objective": "xclr"}, "evaluations": evaluations}]}
        )
    return gather("mine", "Mine", rows, [("demo", made)])


def page_of(table: dict[str, Any], tmp_path: Path) -> str:
    write_report(tmp_path / "r.html", table, curves={}, captions=None, images=[])
    return (tmp_path / "r.html").read_text()


def test_a_claim_of_grounds_is_of_the_pictures_as_they_are_too() -> None:
    figures = {"xclr": {"original": 20.0, "mixed_rand": 11.0}, "simclr": {"original": 90.0, "mixed_rand": 10.0}}
    table: dict[str, Any] = {"methods": ["knn"], "columns": ["original", "mixed_rand"], "comparisons": []}
    table["rows"] = [{"method": method, "knn": found, "runs": [0]} for method, found in figures.items()]
    (verdict,) = verdicts(table)
    assert len(verdict.failures) == 1
    assert "original" in verdict.failures[0]


def test_a_claim_holds_only_beyond_the_uncertainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claim = "X-CLR recognises objects better than SimCLR, on every ground"
    page = page_of(simple(["simclr", "xclr"]), tmp_path)  # 60 above 50 of equal hits
    assert f"In the figures:</span> {claim}. Within the uncertainty for linear probe on object;" in page
    table = simple(["simclr", "xclr"])
    for one in table["comparisons"]:
        one["interval"] = [1.0, 19.0]
    page = page_of(table, tmp_path)
    assert (
        f"Holds:</span> {claim}. By linear probe and kNN alike, each beyond its uncertainty. That is of other" in page
    )
    table["rows"][0]["runs"] *= 2
    assert "each beyond its uncertainty.<" in page_of(table, tmp_path)
    hostile = simple(["<b>simclr", "xclr"])
    hostile["rows"][0]["runs"] *= 2
    assert "<b>simclr" not in page_of(hostile, tmp_path)
    assert "Mean of 2 runs of &lt;b&gt;simclr" in page_of(hostile, tmp_path)
    lost = simple(["simclr", "xclr"], counted="all but one")
    assert lost["comparisons"] == []
    assert len(lost["uncompared"]) == 4
    assert "Of other pictures, so not compared: linear probe on object; " in page_of(lost, tmp_path)
    assert "Not of the same pictures, so not compared: xclr - simclr" in page_of(lost, tmp_path)
    show_rows(lost, tmp_path)
    assert "NOT OF THE SAME PICTURES, so not compared: xclr - simclr, linear probe" in capsys.readouterr().out
    assert "Not of the same pictures, so not compared: xclr - simclr, linear probe on object; " in markdown(lost)


def test_marks_of_cells_are_no_class_of_anything_else() -> None:
    """A grid for pictures that was called `near` as well took the figures out of their columns."""
    css = files("eval").joinpath("data/report.css").read_text() + STYLE
    for mark in ("best", "near"):
        selectors = re.findall(rf"[^\s,{{}}]*\.{mark}\b", css)
        assert selectors
        assert set(selectors) == {f"td.{mark}"}


def test_tables_of_many_columns_have_the_window_s_width(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", results(), curves={}, captions=None, images=[])
    page = (tmp_path / "r.html").read_text()
    (rule,) = re.findall(r"\.scroll \{([^}]*100vw[^}]*)\}", page)
    assert "min-width: 100%" in rule  # others stay where the text is
    assert page.count("<th class=bench colspan=2><span>imagenet 1%</span></th>") == 4  # two methods, and differences
    assert "<th>imagenet" not in page  # not before each of its columns once more


def test_benchmarks_stand_above_their_columns(tmp_path: Path) -> None:
    found = results()
    assert found["columns"] == [
        "imagenet/top1",
        "imagenet/top5",
        "imagenet 1%/top1",
        "imagenet 1%/top5",
        "mit-states/object",
    ]
    assert compared_columns(found) == [*found["columns"][:2], "imagenet/gap", *found["columns"][2:]]
    lines = latex(found).splitlines()
    above, rules, head = lines[lines.index(r"\toprule") + 1 :][:3]
    assert (
        above
        == r"{} & \multicolumn{2}{c}{imagenet} & \multicolumn{2}{c}{imagenet 1\%} & \multicolumn{1}{c}{mit-states} \\"
    )
    assert rules == r"\cmidrule(lr){2-3}\cmidrule(lr){4-5}\cmidrule(lr){6-6}"
    assert head == r"{} & top1 & top5 & top1 & top5 & object \\"
    figures, _, differences, _ = re.findall(
        r"<tr><th></th>(<th class=bench.*?)</tr><tr><th></th>(.*?)</tr>", page_of(found, tmp_path)
    )
    for (above, columns), spans in ((figures, [2, 2, 1]), (differences, [3, 2, 1])):
        assert [int(span) for span in re.findall(r"colspan=(\d)", above)] == spans
        assert columns.count("<th>") == sum(spans)
    assert "class=bench" not in page_of(simple(["a", "b"]), tmp_path)
    assert "multicolumn" not in latex(simple(["a", "b"]))


def test_too_many_columns_for_a_page_are_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {**results(), "published": []}  # else more lines than columns
    names = [name.rpartition("/")[2] for name in found["columns"]]
    upright = [cells_of(page_of(found, tmp_path)), rows_of(markdown(found))]
    monkeypatch.setattr("eval.report.table.ABREAST", len(names) - 1)
    page, text, tex = page_of(found, tmp_path), markdown(found), latex(found)
    for before, turned in zip(upright, (cells_of(page), rows_of(text)), strict=True):
        assert [list(cells) for cells in zip(*before, strict=True)] == turned
    parts = re.findall("<th class=part colspan=.>([^<]*)</th>", page)
    assert parts[:3] == ["imagenet", "imagenet 1%", "mit-states"]
    lines = tex[tex.index(r"\toprule") :].splitlines()
    assert lines[2:4] == [r"\midrule", r"\multicolumn{4}{l}{imagenet} \\"]
    assert lines[1] == rf"{{}} & {found['rows'][0]['method']} & {found['rows'][1]['method']} & images \\"
    assert [line.split(" & ")[0] for line in lines if line[:2] == "{}"][1 : len(names) + 1] == [
        f"{{}}{n}" for n in names
    ]
    alone = page_of({**found, "rows": found["rows"][:1], "comparisons": []}, tmp_path)
    assert [len(cells) for cells in cells_of(alone)] == [1] * len(names)
    assert "Row against row" not in alone


def cells_of(page: str) -> list[list[str]]:
    """Of its first table, without names."""
    rows = page[page.index("<table>") : page.index("</table>")].split("<tr>")[2:]
    return [cells for row in rows if (cells := re.findall("<td[^>]*>(.*?)</td>", row)[1:])]


def rows_of(text: str) -> list[list[str]]:
    """Of the first table of Markdown, all but the rule."""
    lines = text[text.index("\n|") :].strip().split("\n\n")[0].splitlines()
    return [line[2:-2].split(" | ") for line in [lines[0], *lines[2:]]]


def test_what_is_not_surely_below_the_best_is_marked_too() -> None:
    near, far = simple(["a", "b"]), simple(["a", "b"])
    for one in far["comparisons"]:
        one["interval"] = [1.0, 19.0]
    assert "| a | *50.0* (" in markdown(near)
    assert "| a | 50.0 (" in markdown(far)
    assert "| b | **60.0** (" in markdown(far)
    far["comparisons"].clear()  # of other pictures: not surely below
    assert "| a | *50.0* (" in markdown(far)
    for one in near["comparisons"]:
        one["interval"] = [1.0, 19.0] if one["method"] == "knn" else [-1.0, 21.0]
    assert [marks(near, near["rows"][0], method)["object"] for method in ("knn", "linear_probe")] == ["", "near"]


def test_more_than_six_rows_are_compared_where_there_is_room(tmp_path: Path) -> None:
    few, many = simple(list("abcdef")), simple(list("abcdefg"))
    assert "| b - a | +0.0 ±" in markdown(few)
    assert "<details><summary>15" not in page_of(few, tmp_path)
    assert "| b - a |" not in markdown(many)
    assert "21 pairs of rows are compared in report.html and results.json" in markdown(many)
    assert "<details><summary>21 pairs of rows</summary>" in page_of(many, tmp_path)
    against = markdown(many | {"against": "g"})
    assert "| a - g | " in against
    assert "| b - a |" not in against
    wide = simple(list("abcdefghijklmnopqr")) | {"against": ["a"]}  # what was asked for is shown, however much
    assert "| r - a | " in markdown(wide)
    assert "<details><summary>17" not in page_of(wide, tmp_path)


def test_names_stay_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = simple(["a | b", "__best__", "[bold]c*<i>"], "pets [red] | x")
    text = markdown(table)
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {4}
    assert "| a \\| b |" in text
    assert "| \\_\\_best\\_\\_ |" in text
    assert "only_fg" in text
    assert "\\[bold\\]c\\*\\<i\\>" in text
    table["benches"] = {"pets [red]": table["benches"]["demo"]}
    show_rows(table, tmp_path)
    shown = capsys.readouterr().out
    assert "linear probe on pets [red], accuracy" in shown
    assert "[bold]c*<i>" in shown
    assert "<i>" not in page_of(table, tmp_path)


def test_a_mean_over_splits_has_its_spread_over_runs() -> None:
    splits = ("object_seed0", "object_seed1")
    mean = Summary(name="object", kind="mean", columns=splits)
    made = bench("mit-states", splits, (mean,))
    runs = [
        {
            "model": {"model": "vit", "objective": "xclr"},
            "evaluations": {
                ("mit-states", how): value(made, accuracy, ("3 of 4",), hits=hits) for how in ("linear_probe", "knn")
            },
        }
        for accuracy, hits in ((50.0, HALF), (100.0, ALL))
    ]
    table = gather("m", "M", [{"method": "mine", "runs": runs}], [("mit-states", made)])
    assert table["rows"][0]["knn"] == {"object": 75.0}
    assert table["rows"][0]["details"]["knn"]["object"]["runs"] == [50.0, 100.0]
    assert "| mine | 75.0 ±35.4 (" in markdown(table)
    assert table["partial"] == ["3 of 4"]
    assert "In bold" not in markdown(table)  # a row alone has no best
