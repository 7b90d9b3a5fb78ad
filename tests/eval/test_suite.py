"""The benchmark `demo` and the suite on miniature runs: figures, page, resuming, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval.suite as module
from eval.benchmarks.bench import Source
from eval.benchmarks.demo import VARIANTS, open_demo
from eval.heads.probe import WEIGHT_DECAYS, ProbeConfig
from eval.report.gallery import caption_strips
from eval.suite import load_suite
from shards.errors import UserError
from shards.reader import Shards
from tests.eval.demo_shards import make_demo
from tests.eval.make_folders import make_folders
from tests.eval.runs import run_eval, suite_results, train_run

COLUMNS = ["object", "mixed_same", "mixed_rand", "only_fg", "only_bg", "colour", "texture"]
SCENES = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/demo, data/demo-test and the three runs of `make demo`, in miniature."""
    root = tmp_path_factory.mktemp("suite")
    shards, _ = make_demo(root / "data", 96, SCENES)
    for objective in ("simclr", "supcon", "xclr"):
        train_run(shards, root / "runs/demo" / objective, objective)
    return root


@pytest.fixture(scope="module")
def results(world: Path) -> dict[str, Any]:
    return suite_results(world, "demo", "runs/demo")


def test_the_benchmark_has_the_variants_and_labels_of_the_shards(world: Path) -> None:
    bench = open_demo(Source(root=world / "data/demo", benchmarks=world))
    assert [column.name for column in bench.columns] == COLUMNS
    assert [len(bench.by_name[variant]) for variant in VARIANTS] == [SCENES] * 5
    assert len(bench.by_name["train"]) == 96
    assert [images.name for images in bench.sets if images.may_train] == ["train"]
    assert bench.tasks[0].classes[bench.tasks[0].labels[0]] == "arrow" or len(set(bench.tasks[0].classes)) == 10
    by_name = {column.name: column for column in bench.columns}
    rows = np.arange(SCENES)
    for name in COLUMNS:  # the labels are those of the test pictures: scores that say so are right everywhere
        classes = len(next(t.classes for t in bench.tasks if t.name == by_name[name].task))
        right = [
            label
            for i in rows
            for label in range(classes)
            if by_name[name].score(np.eye(classes, dtype=np.float32)[[label]], rows[i : i + 1])[0] == 1
        ]
        assert len(right) == SCENES


def test_every_row_has_every_column(results: dict[str, Any]) -> None:
    assert [row["method"] for row in results["rows"]] == ["untrained", "simclr", "supcon", "xclr"]
    assert results["columns"] == COLUMNS
    for row in results["rows"]:
        for method in ("linear_probe", "knn"):
            assert set(row[method]) == set(COLUMNS)
            assert all(0 <= value <= 100 for value in row[method].values())
            assert all(detail["n"] == SCENES for detail in row["details"][method].values())
    assert results["rows"][0]["runs"][0]["model"]["objective"] == "untrained"
    assert results["rows"][3]["runs"][0]["model"]["objective"] == "xclr"
    assert results["protocol"]["knn"]["k"] == 20
    assert "held out of the training images" in results["protocol"]["linear_probe"]["selection"]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_holds_everything_in_itself(world: Path, results: dict[str, Any]) -> None:
    text = (world / "runs/demo/report.html").read_text()
    page = Page()
    page.feed(text)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(sources) >= 6 * 2 + 6 * (1 + 3 * 6)
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert sum(tag == "polyline" for tag, _ in page.tags) >= 6  # loss and kNN of three runs
    dots = [attrs for tag, attrs in page.tags if tag == "circle" and attrs["r"] == "3.2"]  # of the intervals
    assert len(dots) == 2 * len(results["rows"]) * len(COLUMNS)
    for row in results["rows"]:
        assert f">{row['knn']['texture']:.1f}<" in text
    assert "prefers-color-scheme: dark" in text


def test_a_second_run_evaluates_nothing(
    world: Path, results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def must_not(*args: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.chdir(world)
    monkeypatch.setattr(module, "evaluate", must_not)
    assert run_eval(["suite", "--config", "demo", "--out", "runs/demo"]) == 0
    assert json.loads((world / "runs/demo/results.json").read_text()) == results
    shown = capsys.readouterr().out
    assert "mixed_rand" in shown
    assert "untrained" in shown


def test_checkpoints_can_be_named_instead(
    world: Path,
    results: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    call = ["suite", "--config", "demo", "--out", str(tmp_path)]
    assert run_eval([*call, "--checkpoint", "runs/demo/xclr", "--checkpoint", "runs/demo/simclr"]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["xclr", "simclr"]
    assert rows[0]["knn"] == results["rows"][3]["knn"]
    assert rows[1]["linear_probe"] == results["rows"][1]["linear_probe"]
    whole = (world / "runs/demo/results.json").read_text()
    capsys.readouterr()
    assert run_eval(["suite", "--config", "demo", "--out", "runs/demo", "--checkpoint", "runs/demo/xclr"]) == 2
    assert "runs/demo has the results of the suite demo: give another --out" in capsys.readouterr().err
    assert (world / "runs/demo/results.json").read_text() == whole


def test_a_report_does_without_what_is_gone(
    world: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)

    call = ["suite", "--config", "demo", "--out", str(tmp_path), "--checkpoint", "runs/demo/xclr"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.report.gallery._caption_strips", gone)
        assert run_eval(call) == 0
    assert "the report does without captions' neighbours: train-000000.tar is missing" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


def gone(*_: object) -> None:
    raise UserError("train-000000.tar is missing")


def test_a_graph_that_lists_nothing_has_no_strips(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Shards.open(world / "data/demo").graph()
    empty = replace(
        graph, indptr=np.zeros_like(graph.indptr), neighbours=graph.neighbours[:0], similarities=graph.similarities[:0]
    )
    monkeypatch.setattr(Shards, "graph", lambda *_: empty)
    monkeypatch.setattr("eval.report.gallery.decode", lambda _: pytest.fail("decodes pictures for nothing"))
    found = caption_strips(world / "data/demo")
    assert found
    assert found.strips == []


def test_a_suite_may_say_how_heads_are_made(
    world: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    text = "benches = ['demo']\n[knn]\nk = 3\n[probe]\nlearning_rates = [0.3]\nweight_decays = [0.01]\nmin_steps = 50\n"
    (tmp_path / "mine.toml").write_text(text)
    call = ["suite", "--config", str(tmp_path / "mine.toml"), "--checkpoint", "runs/demo/xclr", "--out", str(tmp_path)]
    assert run_eval(call) == 0
    found, usual = json.loads((tmp_path / "results.json").read_text())["protocol"], results["protocol"]
    assert (usual["knn"]["k"], found["knn"]["k"]) == (20, 3)
    assert found["linear_probe"]["learning_rates"] == [0.3] != usual["linear_probe"]["learning_rates"]


def test_a_solver_brings_its_weight_decays(tmp_path: Path) -> None:
    """As on the command line: eight, each to convergence."""
    (tmp_path / "mine.toml").write_text("benches = ['demo']\n[probe]\nsolver = 'lbfgs'\n")
    assert load_suite(str(tmp_path / "mine.toml")).probe.weight_decays == WEIGHT_DECAYS["lbfgs"]
    assert len(WEIGHT_DECAYS["lbfgs"]) == 8
    assert ProbeConfig().weight_decays == WEIGHT_DECAYS["sgd"]


def test_a_suite_may_name_several_folders(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    for name, classes in (("pets", 3), ("cars", 2)):
        make_folders(tmp_path / name, classes)
    text = f"benches = ['imagefolder:{tmp_path}/pets', 'imagefolder:{tmp_path}/cars/']\nfew_shot = [50]\n[knn]\nk = 3\n"
    (tmp_path / "mine.toml").write_text(text)
    call = ["suite", "--config", str(tmp_path / "mine.toml"), "--checkpoint", "runs/demo/xclr", "--out", str(tmp_path)]
    assert run_eval(call) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["columns"] == ["pets/top1", "cars/top1", "pets 50%/top1", "cars 50%/top1"]
    assert {name: Path(bench["root"]).name for name, bench in found["benches"].items() if "%" not in name} == {
        "pets": "pets",
        "cars": "cars",
    }
    details = found["rows"][0]["details"]["knn"]
    assert [details[column]["n"] for column in found["columns"][:2]] == [15, 10]
    assert run_eval([*call, "--data", str(tmp_path / "pets")]) == 2
    assert "--data names the folder of a suite's one benchmark" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text(f"benches = ['imagefolder:{tmp_path}/pets']")
    assert run_eval([*call, "--data", str(tmp_path / "cars")]) == 2
    (tmp_path / "mine.toml").write_text("benches = ['imagefolder:pets', 'demo']")
    assert run_eval(call) == 2
    assert f"there is no {world.resolve()}/pets: it is looked for from the current" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("benches = ['imagefolder', 'demo']")
    assert run_eval(call) == 2
    assert "say the folder, 'imagefolder:DIR'" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("benches = ['backgrounds', 'demo']")
    assert run_eval(call) == 2
    assert "say the folder, 'backgrounds:DIR'" in capsys.readouterr().err


def test_own_data_has_no_published_figures_and_its_own_place(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    make_folders(tmp_path / "imagenet", 3)
    shutil.copytree(tmp_path / "imagenet", tmp_path / "copy")
    text = f"benches = ['imagefolder:{tmp_path}/imagenet', 'other=imagefolder:{tmp_path}/copy']\n[knn]\nk = 3\n"
    (tmp_path / "mine.toml").write_text(text)
    call = ["suite", "--config", str(tmp_path / "mine.toml"), "--checkpoint", "runs/demo/xclr", "--out", str(tmp_path)]
    assert run_eval(call) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["columns"] == ["imagenet/top1", "other/top1"]
    assert found["published"] == []
    assert found["benches"]["other"]["root"] == str(tmp_path / "copy")  # though its evaluation is the other's


def test_a_cut_or_edited_evaluation_is_made_again(
    world: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    call = ["suite", "--config", "demo", "--out", str(tmp_path), "--checkpoint", "runs/demo/xclr"]
    assert run_eval(call) == 0
    (tmp_path / "results.json").unlink()
    paths = sorted((tmp_path / "evaluations").iterdir())
    whole = [path.read_text() for path in paths]
    old = json.loads(whole[0])
    del old["columns"]["object"]["hits"]
    cut = json.loads(whole[0])
    cut["columns"]["object"]["hits"] = "AAAA"[:4]
    cut["columns"]["object"]["n"] = 100
    bare = json.loads(whole[0])
    del bare["columns"]["object"]["about"]
    edited = json.loads(whole[0])
    edited["columns"]["object"]["accuracy"] = 99.9
    surer = json.loads(whole[0])
    surer["columns"]["object"]["interval"] = [surer["columns"]["object"]["accuracy"]] * 2
    none = json.loads(whole[0])
    none["columns"]["object"] |= {"n": 0, "hits": ""}
    rows = json.dumps(json.loads(whole[0]) | {"columns": []})
    for text in (
        json.dumps(surer),
        json.dumps(none),
        json.dumps(old),
        json.dumps(cut),
        json.dumps(bare),
        json.dumps(edited),
        rows,
        '{"columns": {}}',
        "[]",
        "5",
        whole[0][:200],
        "",
    ):
        paths[0].write_text(text)
        assert run_eval(call) == 0
        assert json.loads(paths[0].read_text())["columns"] == json.loads(whole[0])["columns"]


def test_a_run_that_has_not_ended_is_told_of(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    shutil.copytree("runs/demo/xclr", tmp_path / "half")
    run = json.loads((tmp_path / "half/run.json").read_text())
    (tmp_path / "half/run.json").write_text(json.dumps(run | {"steps": 2 * run["steps"], "status": "stopped"}))
    call = ["suite", "--config", "demo", "--checkpoint", str(tmp_path / "half"), "--checkpoint", "runs/demo/simclr"]
    assert run_eval([*call, "--out", str(tmp_path)]) == 0
    line = f"half: step {run['steps']} of {2 * run['steps']}"
    assert json.loads((tmp_path / "results.json").read_text())["unfinished"] == [line]
    assert f"NOT TRAINED TO THE END: {line}" in capsys.readouterr().out
    assert all(line in (tmp_path / name).read_text() for name in ("results.md", "report.html"))
    assert run_eval(["knn", "--bench", "demo", "--checkpoint", str(tmp_path / "half")]) == 0
    assert f"half, step {run['steps']} of {2 * run['steps']} on demo" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "half/eval").iterdir()] == [f"knn-demo-step{run['steps']}.json"]


def test_a_row_that_cannot_be_evaluated_does_not_take_the_others_with_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def forward(self, x): return x.flatten(1)[:, :8] * float('nan')\n"
        "def broken(): return Broken()"
    )
    (tmp_path / "mine.toml").write_text(
        f"""benches = ["demo"]
        runs = "runs/demo"
        methods = ["knn", "linear_probe"]
        against = ["broken"]
        [[rows]]
        method = "broken"
        checkpoint = "{tmp_path}/nets.py:broken"
        [[rows]]
        method = "xclr"
        checkpoint = "xclr"
        """
    )
    call = ["suite", "--config", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), "--data", "data/demo"]
    assert run_eval(call) == 2
    shown = capsys.readouterr()
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["method"] for row in found["rows"]] == ["xclr"]
    why = "broken: nets.py:broken gives features of train that are no numbers, or too large to be kept"
    assert found["failed"][0].startswith(why)
    assert all(why in " ".join(text.split()) for text in (shown.out, (tmp_path / "out/report.html").read_text()))
    assert f"**FAILED, and left out:** {why}" in (tmp_path / "out/results.md").read_text()
    assert f"error: 1 of 2 rows could not be evaluated ({why}" in shown.err
    assert "3 of 4  xclr: demo, kNN" in shown.err
    (tmp_path / "nets.py").write_text((tmp_path / "nets.py").read_text().replace("* float('nan')", ""))
    assert run_eval(call) == 0  # mended
    assert json.loads((tmp_path / "out/results.json").read_text())["failed"] == []
    call[2] = str(tmp_path / "alone.toml")
    (tmp_path / "alone.toml").write_text((tmp_path / "mine.toml").read_text().rpartition("[[rows]]")[0])
    (tmp_path / "nets.py").write_text((tmp_path / "nets.py").read_text().replace("[:, :8]", "[:, :8] / 0"))
    assert run_eval([*call[:4], str(tmp_path / "other"), *call[5:]]) == 2
    assert "gives features of train that are no numbers" in capsys.readouterr().err
    assert not (tmp_path / "other/results.json").exists()


def test_models_of_several_data_sets_want_one_to_be_judged_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    shards, _ = make_demo(tmp_path / "data", 96, SCENES)
    train_run(shards, tmp_path / "other")
    (tmp_path / "named.toml").write_text("benches = ['x=demo']")
    call = ["suite", "--config", str(tmp_path / "named.toml"), "--checkpoint", str(tmp_path / "other")]
    call += ["--checkpoint", "runs/demo/xclr"]
    assert run_eval([*call, "--out", str(tmp_path / "out")]) == 2
    assert "say with --data on which to evaluate all of them" in capsys.readouterr().err
    call[2] = "demo"
    assert run_eval([*call, "--out", str(tmp_path / "out")]) == 2
    assert "say with --data on which to evaluate all of them" in capsys.readouterr().err


def test_results_of_another_suite_are_not_replaced(
    world: Path, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)
    rows = "".join(f"[[rows]]\nmethod = '{name}'\ncheckpoint = '{name}'\n" for name in ("simclr", "xclr"))
    (tmp_path / "mine.toml").write_text(f"benches = ['demo']\nagainst = 'simclr'\n{rows}")
    call = ["suite", "--config", str(tmp_path / "mine.toml"), "--checkpoint", "runs/demo/xclr", "--out", "runs/demo"]
    assert run_eval(call) == 2
    assert "runs/demo has the results of the suite demo: give another --out" in capsys.readouterr().err
    call[-1] = str(tmp_path / "out")
    assert run_eval([*call, "--checkpoint", "runs/demo/supcon"]) == 0  # the row to compare with is none of these
    assert "| supcon - xclr |" in (tmp_path / "out/results.md").read_text()
    assert run_eval([*call, "--checkpoint", "runs/demo/xclr"]) == 2
    assert "--checkpoint names a model twice" in capsys.readouterr().err
    assert run_eval([*call, "--checkpoint", ""]) == 2
    assert "a checkpoint is given that has no name" in capsys.readouterr().err


def test_results_do_not_go_into_a_run(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    assert run_eval(["suite", "--config", "demo", "--checkpoint", "runs/demo/xclr", "--out", "runs/demo/xclr"]) != 0
    assert "runs/demo/xclr is a run of xclr-train" in " ".join(capsys.readouterr().err.split())


def test_few_shot_parts_that_are_too_small_are_refused_first(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr(module, "evaluate", lambda *_: pytest.fail("evaluated before the others were looked at"))
    (tmp_path / "few.toml").write_text("benches = ['demo']\nfew_shot = [2]\n")
    call = ["suite", "--config", str(tmp_path / "few.toml"), "--checkpoint", "runs/demo/xclr"]
    assert run_eval([*call, "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"demo 2%, .*: .* training images", capsys.readouterr().err)
    (tmp_path / "file").write_text("")
    assert run_eval([*call, "--out", str(tmp_path / "file")]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err


def test_what_differs_from_row_to_row_is_kept(results: dict[str, Any]) -> None:
    assert all(run["otherwise"] == {} for row in results["rows"] for run in row["runs"])


def test_missing_runs_and_shards_are_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_eval(["suite", "--config", "demo", "--out", "runs/demo"]) == 2
    assert "runs that are not there: runs/demo/simclr, runs/demo/supcon, runs/demo/xclr" in capsys.readouterr().err
    assert run_eval(["suite", "--config", "nothing"]) == 2
    assert "unknown suite 'nothing': give a .toml file or one of demo" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # what is refused leaves nothing
    shutil.copytree(world / "data/demo", tmp_path / "data/demo")
    with pytest.raises(UserError, match=r"demo-test is missing.*xclr-shards build demo-test"):
        open_demo(Source(root=tmp_path / "data/demo", benchmarks=tmp_path))
