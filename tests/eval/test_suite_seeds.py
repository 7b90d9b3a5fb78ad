"""Rows of several checkpoints: means, spread, and what is said where they are no seeds of one method."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from eval.models.model import Model
from eval.models.open import open_model
from eval.report.latex import latex
from eval.report.runs import mean_of_runs
from eval.report.settings import row_settings
from eval.report.tidy import HEAD
from eval.rows import Row, open_rows, recipe_of, rows_of, unalike
from shards.errors import UserError
from shards.graph import write_graph
from shards.manifest import Manifest
from tests.eval.demo_shards import make_demo
from tests.eval.make_folders import make_model
from tests.eval.runs import run_eval, suite_results, train_run
from tests.make import make_graph
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD
from trainer.recipe import as_table, changed, load_recipe

SUITE = """
benches = ['demo']
[probe]
learning_rates = [0.3]
weight_decays = [0.01]
[[rows]]
method = 'untrained'
checkpoints = ['xclr-0', 'xclr-1']
untrained = true
[[rows]]
method = 'simclr'
checkpoint = 'simclr-0'
[[rows]]
method = 'xclr'
checkpoints = ['xclr-0', 'xclr-1', 'xclr-2']
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three seeds."""
    root = tmp_path_factory.mktemp("seeds")
    shards, _ = make_demo(root / "data", 96, 20)
    train_run(shards, root / "runs/simclr-0")
    for seed in range(3):
        train_run(shards, root / f"runs/xclr-{seed}", "xclr", seed=seed)
    (root / "seeds.toml").write_text(SUITE)
    return root


@pytest.fixture(scope="module")
def results(world: Path) -> dict[str, Any]:
    return suite_results(world, "seeds.toml", "runs")


def test_a_row_of_several_runs_has_their_mean_and_spread(results: dict[str, Any]) -> None:
    untrained, simclr, xclr = results["rows"]
    assert [len(row["runs"]) for row in results["rows"]] == [2, 1, 3]
    differ = 0
    for method in ("linear_probe", "knn"):
        for column in results["columns"]:
            for row in (untrained, xclr):
                single, known = [run[method][column] for run in row["runs"]], row["details"][method][column]
                assert row[method][column] == pytest.approx(mean(single), abs=0.006)
                assert known["runs"] == single
                assert known["spread"] == pytest.approx(stdev(single), abs=0.006)
                assert known["interval"][0] < row[method][column] < known["interval"][1]
                differ += known["spread"] > 0
            assert "spread" not in simclr["details"][method][column]
    assert differ > 10  # seeds: not one run three times
    assert [run["model"]["checkpoint"].split("/")[-3] for run in xclr["runs"]] == ["xclr-0", "xclr-1", "xclr-2"]
    assert results["unalike"] == []


def test_what_lay_under_one_name_when_runs_were_trained_is_told(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another graph of the name, or shards built anew where the others were; the same elsewhere is no difference."""
    root = shutil.copytree(world / "data", tmp_path / "data") / "demo"
    shards = [shard.name for shard in Manifest.load(root).shards]
    train_run(root, tmp_path / "a", "xclr")
    train_run(shutil.copytree(root, tmp_path / "moved"), tmp_path / "b", "xclr", seed=1)
    shutil.rmtree(root / "graphs/made")
    graph = make_graph(Manifest.load(root).texts, seed=7)
    write_graph(root, "made", graph, np.zeros(len(graph), np.int32), shards)
    train_run(root, tmp_path / "c", "xclr", seed=2)
    replace(Manifest.load(root), seed=99).save(root)
    train_run(root, tmp_path / "d", "xclr", seed=3)
    row = Row(method="xclr", checkpoints=tuple(str(tmp_path / name) for name in "abcd"))
    models = open_rows([row])["xclr"]
    told = list(unalike(row, models))
    assert [line.rpartition("/")[2].partition(":")[0] for line in told] == ["c", "d"]
    assert "contents.graph" in told[0]
    assert "contents.shards" not in told[0]
    assert "contents.shards" in told[1]
    recipes = {model.name: [recipe_of(model)] for model in (replace(one, name=str(i)) for i, one in enumerate(models))}
    assert row_settings({name: recipes[name] for name in "01"})["keys"] == []
    assert row_settings({name: recipes[name] for name in "02"})["keys"] == ["contents.graph"]
    found = row_settings(recipes)
    assert found["keys"] == ["contents.graph", "contents.shards", "data.shards"]
    assert found["rows"]["0"][0] != found["rows"]["2"][0]


def test_shards_are_said_to_lie_where_they_are(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever folder the suite is started from, or as the run says where they are gone."""
    shutil.copytree(world / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    run = train_run(Path("data/demo"), tmp_path / "runs/a", "simclr")
    for folder in (tmp_path, tmp_path / "runs"):
        monkeypatch.chdir(folder)
        assert recipe_of(open_model(str(run)))["data"]["shards"] == str((tmp_path / "data/demo").resolve())
    shutil.rmtree(tmp_path / "data")
    assert recipe_of(open_model(str(run)))["data"]["shards"] == "data/demo"


def test_the_mean_is_said_wherever_it_is_shown(
    world: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setenv("COLUMNS", "80")
    assert run_eval(["suite", "--config", "seeds.toml", "--out", "runs"]) == 0  # nothing is evaluated again
    shown, markdown, page = (
        capsys.readouterr().out,
        *((world / "runs" / n).read_text() for n in ("results.md", "report.html")),
    )
    row = results["rows"][2]
    figure, spread = f"{row['knn']['colour']:.1f}", f" ±{row['details']['knn']['colour']['spread']:.1f}"
    assert f"{figure}{spread}" in shown
    assert "| trained with | data.graph | objective.name |" in markdown
    assert "| simclr |  | simclr |\n| xclr | made | xclr |" in markdown
    assert "<tr><td>xclr</td><td>made</td><td>xclr</td></tr>" in page
    assert results["rows"][2]["runs"][1]["recipe"]["seed"] == 1
    assert [line[-6:] for line in markdown.splitlines() if line.startswith("- xclr")] == [f"seed {i}" for i in range(3)]
    assert results["rows"][0]["runs"][0]["recipe"] == {}  # untrained: of no training
    assert max(len(line) for line in shown.splitlines() if "±" in line and "mean" not in line) <= 80
    assert f"{figure}{spread} (" in markdown.replace("*", "")
    assert f"{figure}<small>{spread}</small>" in page
    said = "ean of 2 runs of untrained, 3 runs of xclr, ± their standard deviation"
    assert all(said in text for text in (shown, markdown, page))
    assert page.count('class="ring') == 2 * (2 + 3) * len(results["columns"])
    assert f"; runs {', '.join(f'{one:.1f}' for one in row['details']['knn']['colour']['runs'])}" in page
    assert "data/demo, each beside" in page
    assert "by the graph made:" in page
    assert page.count("<polyline") >= 2 * 4  # loss and kNN of each trained run
    assert all(f"runs/xclr-{seed}/" in markdown for seed in range(3))
    assert "\n- kNN: features frozen" in markdown
    found = next(
        f for f in results["comparisons"] if (f["row"], f["less"], f["column"]) == ("xclr", "simclr", "colour")
    )
    reach = (found["interval"][1] - found["interval"][0]) / 2
    assert found["difference"] == pytest.approx(
        row["linear_probe"]["colour"] - results["rows"][1]["linear_probe"]["colour"], abs=0.02
    )
    gap = next(f for f in results["comparisons"] if (f["row"], f["less"], f["column"]) == ("xclr", "simclr", "bg_gap"))
    gaps = next(values for *_, values in results["differences"])
    assert gap["difference"] == pytest.approx(gaps["xclr"] - gaps["simclr"], abs=0.02)
    assert markdown.count(" texture | bg_gap |") == page.count("<th>texture</th><th>bg_gap</th>") == 2
    line = next(line for line in markdown.splitlines() if line.startswith("| xclr - simclr |"))
    assert f"{found['difference']:+.1f} ±{reach:.1f}" in line.replace("*", "")
    assert f">{found['difference']:+.1f}<small> ±{reach:.1f}</small>" in page
    assert "; k 20; temperature 0.07; " in markdown
    assert "; learning rates 0.3; " in markdown


def test_the_graph_of_simclr_and_the_spelling_of_a_folder_are_no_difference(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = make_model()

    def of(objective: str, **data: str) -> Model:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        recipe = changed(
            load_recipe("demo"), {"objective.name": objective, **{f"data.{k}": v for k, v in data.items()}}
        )
        (folder / "run.json").write_text(json.dumps({"recipe": as_table(recipe)}))
        return replace(model, folder=folder)

    row = Row(method="a", checkpoints=("x", "y"))
    assert list(unalike(row, [of("simclr", graph="one"), of("simclr")])) == []
    assert list(unalike(row, [of("xclr", graph="one"), of("xclr")])) == ["a, y: data.graph: '', not 'one'"]
    folders = ("data/demo", f"{tmp_path}/data/../data/demo/", f"file://{tmp_path}/data/demo")
    assert list(unalike(row, [of("xclr", shards=folders[0]), of("xclr", shards=folders[1])])) == []
    assert list(unalike(row, [of("xclr", shards=folders[0]), of("xclr", shards=folders[2])])) == []


def test_runs_that_differ_in_more_than_the_seed_are_told_of(
    world: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)
    text = SUITE[: SUITE.index("[[rows]]")] + "[[rows]]\nmethod = 'both'\ncheckpoints = ['xclr-0', 'simclr-0']\n"
    (world / "both.toml").write_text(text)
    for run in ("xclr-0", "simclr-0"):
        (tmp_path / run).symlink_to(world / "runs" / run)
    assert run_eval(["suite", "--config", "both.toml", "--out", str(tmp_path)]) == 0
    line = f"both, {tmp_path}/simclr-0: data.graph: '', not 'made'; objective.name: 'simclr', not 'xclr'"
    assert json.loads((tmp_path / "results.json").read_text())["unalike"] == [line]
    said = capsys.readouterr()
    assert f"not alike but for the seed: {line}" in said.err
    assert f"NOT ALIKE BUT FOR THE SEED: {line}" in said.out
    assert "NOT ALIKE BUT FOR THE SEED" in (tmp_path / "results.md").read_text()
    assert "NOT ALIKE BUT FOR THE SEED" in (tmp_path / "report.html").read_text()


def test_the_same_weights_are_no_second_seed(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(world)
    shutil.copytree("runs/xclr-0", "runs/copy")
    (world / "twice.toml").write_text("benches = ['demo']\n[[rows]]\nmethod = 'a'\ncheckpoints = ['xclr-0', 'copy']\n")
    assert run_eval(["suite", "--config", "twice.toml", "--out", "runs"]) == 2
    assert "the row 'a' counts the same weights twice: runs/xclr-0 and runs/copy" in capsys.readouterr().err


CHOICE = """
benches = ['demo']
methods = ['knn']
runs = 'runs'
against = ['simclr', 'first']
[[rows]]
method = 'simclr'
checkpoint = 'simclr-0'
[[rows]]
method = 'first'
checkpoint = 'xclr-0'
[[rows]]
method = 'xclr'
checkpoints = ['xclr-*']
[[rows]]
method = 'others'
checkpoints = ['xclr-[12]']
"""


def test_a_suite_chooses_methods_runs_and_what_to_compare(
    world: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "choice.toml").write_text(CHOICE)
    (world / "runs/xclr-tables").mkdir()  # called so, and no run
    found = suite_results(world, "choice.toml", "tables")  # in a folder of its own, though runs/ holds another suite's
    assert found["methods"] == ["knn"]
    assert found["protocol"].keys() == {"knn"}
    by_name = {row["method"]: row for row in found["rows"]}
    assert [run["model"]["checkpoint"].split("/")[1] for run in by_name["xclr"]["runs"]] == [
        "xclr-0",
        "xclr-1",
        "xclr-2",
    ]
    assert len(by_name["others"]["runs"]) == 2
    usual = {row["method"]: row for row in results["rows"]}
    made = [json.loads(path.read_text())["method"] for path in (world / "tables/evaluations").iterdir()]
    assert set(made) == {"knn"}
    assert by_name["xclr"]["knn"] == usual["xclr"]["knn"]
    page, text = ((world / "tables" / name).read_text() for name in ("report.html", "results.md"))
    for shown in (page, text):
        assert "inear probe" not in shown
        assert "xclr - simclr" in shown
        assert "xclr - first" in shown
        assert "first - simclr" in shown
        assert "others - xclr" not in shown


def test_the_tables_are_ready_for_a_paper(world: Path, results: dict[str, Any]) -> None:
    text = (world / "runs/results.tex").read_text()
    lines = text.splitlines()
    assert text.count("\\begin{tabular}") == text.count("\\bottomrule") == len(results["methods"]) == 2
    rows = [line for line in lines if line.endswith(r"\\") and not line.startswith(("{} &", "{}images"))]
    assert len(rows) == 2 * len(results["rows"])
    assert all(line.count("&") == len(results["columns"]) for line in rows)
    assert text.count("{") == text.count("}")
    xclr = next(row for row in results["rows"] if row["method"] == "xclr")
    cell = next(line for line in rows if line.startswith("{}xclr")).split(" & ")[1]
    figure, spread = xclr["linear_probe"][results["columns"][0]], xclr["details"]["linear_probe"][results["columns"][0]]
    assert f"{figure:.1f}" in cell
    assert f"$\\pm${spread['spread']:.1f}" in cell
    single = next(line for line in rows if line.startswith("{}simclr")).split(" & ")[1]
    assert single.removesuffix(r"\\").rstrip().endswith(r"\phantom{ {\scriptsize$\pm$0.0}}")
    assert single.count(r"$\pm$") == 1
    names = results | {"columns": [], "rows": [xclr | {"method": "[50%] a_b\n~<c>"}], "title": "one\n\\input{two}"}
    names |= {"unreadable": ["x: 3 of 4\npictures"]}
    hostile = latex(names).splitlines()
    assert r"{}[50\%] a\_b \textasciitilde{}\textless{}c\textgreater{} \\" in hostile
    assert hostile[0].startswith(r"% one \input{two}: ")
    assert "% LEFT OUT: x: 3 of 4 pictures" in hostile


def test_every_figure_is_a_line_to_plot(world: Path, results: dict[str, Any]) -> None:
    with (world / "runs/results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns, settings = results["columns"], results["settings"]["keys"]
    assert list(lines[0]) == [*HEAD, *settings]
    assert {line["seed"] for line in lines if line["row"] == "xclr"} == {"0", "1", "2"}
    assert {line["step"] for line in lines if line["row"] == "simclr"} == {"12"}
    assert len(lines) == (2 + 1 + 3) * 2 * len(columns)
    for row in results["rows"]:
        for column in columns:
            for method in ("linear_probe", "knn"):
                of = {"row": row["method"], "column": column, "method": method}
                own = [line for line in lines if of.items() <= line.items()]
                assert [int(line["run"]) for line in own] == list(range(1, len(row["runs"]) + 1))
                average = mean(float(line["accuracy"]) for line in own)
                assert average == pytest.approx(row[method][column], abs=0.011)  # each is rounded to two digits
                assert {int(line["images"]) for line in own} == {row["details"][method][column]["n"]}
    assert {line["objective.name"] for line in lines if line["row"] == "xclr"} == {"xclr"}
    assert {line["objective.name"] for line in lines if line["row"] == "untrained"} == {""}


def test_settings_are_those_of_every_run() -> None:
    """Not of the first of a row alone; and not of an objective that has no use for them."""
    demo = load_recipe("demo")

    def table(**changes: Any) -> dict[str, Any]:
        return as_table(changed(demo, {key.replace("__", "."): value for key, value in changes.items()}))

    rows = {
        "untrained": [{}],
        "simclr": [table(objective__name="simclr", objective__tau_s=0.5), table(objective__name="simclr", seed=1)],
        "xclr": [table(), table(objective__tau_s=0.2, seed=1), table(seed=2)],
    }
    found = row_settings(rows)
    assert found["keys"] == ["objective.name", "objective.tau_s"]
    usual = demo.objective.tau_s
    assert found["rows"] == {"simclr": ["simclr", ""], "xclr": ["xclr", f"{usual} | 0.2"]}
    assert row_settings({"simclr": rows["simclr"]})["keys"] == []


def test_a_pattern_is_of_runs_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("x-seed10", "x-seed9", "x-seed9-report"):
        (tmp_path / name).mkdir()
    for name in ("x-seed10", "x-seed9"):
        (tmp_path / name / "run.json").write_text("{}")

    def named(*specs: str) -> list[str]:
        row = Row(method="m", checkpoints=specs)
        found = rows_of((row,), "s", tmp_path, [])[0].specs
        return [spec.replace(f"{tmp_path}/", "") for spec in found]

    code = f"{tmp_path}/mine.py:net"
    assert named("x-seed*") == ["x-seed9", "x-seed10"]
    assert named(f"{tmp_path}/x-seed*") == ["x-seed9", "x-seed10"]
    single = Row(method="m", checkpoint="x-seed9*")
    assert [Path(s).name for s in rows_of((single,), "s", tmp_path, [])[0].specs] == ["x-seed9"]
    assert named(f"{code}@x-seed*") == ["mine.py:net@x-seed9", "mine.py:net@x-seed10"]
    odd = tmp_path / "exp[1]"
    for folder, names in ((odd, ("t0.5", "t0.05", "t0.005")), (tmp_path / "exp1", ("t0.7",))):
        for name in names:
            (folder / name).mkdir(parents=True)
            (folder / name / "run.json").write_text("{}")
    row = Row(method="m", checkpoints=("t*",))
    assert [Path(s).name for s in rows_of((row,), "s", odd, [])[0].specs] == ["t0.005", "t0.05", "t0.5"]
    (tmp_path / "x-[1]").mkdir()  # a name, though it looks like a pattern
    assert named("x-[1]") == ["x-[1]"]
    with pytest.raises(UserError, match=r"not there: .*/y-seed\*; train them first"):
        named("x-seed*", "y-seed*")
    with pytest.raises(UserError, match=r"'m' names a checkpoint twice: .*x-seed9"):
        named("x-seed9", "x-seed*")


def test_summaries_are_means_as_well() -> None:
    def value(right: int, gap: float) -> dict[str, Any]:
        hits = base64.b64encode(np.packbits([1] * right + [0] * (50 - right)).tobytes()).decode()
        column = {"accuracy": 2.0 * right, "interval": [0, 100], "n": 50, "about": "", "marked": True, "hits": hits}
        summary = {"value": gap, "columns": ["a"], "about": ""}
        return {"columns": {"a": column}, "summaries": {"gap": summary}, "partial": [f"{gap:g} of 9"]}

    found = mean_of_runs([value(20, 2), value(30, 5)])
    assert found["columns"]["a"]["accuracy"] == 50
    assert found["columns"]["a"]["interval"] == pytest.approx([36.64, 63.36], abs=0.005)  # Wilson's of 25 of 50
    assert found["summaries"]["gap"] == {"value": 3.5, "columns": ["a"], "about": "", "runs": [2, 5]}
    assert found["partial"] == ["2 of 9", "5 of 9"]
    assert mean_of_runs([value(20, 2)]) == value(20, 2)


def run(tmp_path: Path, name: str, **changes: Any) -> Model:
    """A model with the run.json of a run."""
    recipe = as_table(changed(load_recipe("demo"), {key.replace("__", "."): value for key, value in changes.items()}))
    (tmp_path / name).mkdir()
    (tmp_path / name / "run.json").write_text(json.dumps({"recipe": recipe}))
    return replace(make_model(), folder=tmp_path / name, about={"objective": "xclr"})


def test_what_is_no_seed(tmp_path: Path) -> None:
    row = Row(method="m", checkpoints=("a", "b", "c"))
    first, second = run(tmp_path, "a", seed=1), run(tmp_path, "b", seed=2)
    third = run(tmp_path, "c", seed=3, objective__tau_s=0.2)
    assert list(unalike(row, [first, second, third])) == ["m, c: objective.tau_s: 0.2, not 0.1"]
    old = json.loads((tmp_path / "b/run.json").read_text())
    for key in ("mean", "std"):
        assert old["recipe"]["model"][key] == []
        old["recipe"]["model"][key] = list(IMAGENET_MEAN if key == "mean" else IMAGENET_STD)
    (tmp_path / "b/run.json").write_text(json.dumps(old))  # one says what the other leaves open
    assert list(unalike(row, [first, second, second])) == []
    many = run(
        tmp_path, "d", epochs=1, objective__tau=0.2, objective__tau_s=0.2, optimiser__lr=1.0, precision="float32"
    )
    assert next(iter(unalike(row, [first, second, many]))).endswith("; ...")
    exported = [replace(make_model(), about={"objective": name, "checkpoint": name}) for name in ("x-0", "x-1", "x-2")]
    assert list(unalike(row, exported)) == []  # nothing is known of how they were trained
    other = run(tmp_path, "e", objective__name="simclr")
    assert list(unalike(replace(row, untrained=True), [first, second, other])) == []  # weights before any training
