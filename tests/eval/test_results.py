"""Where `xclr-eval` puts results, and every way to call it wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.make_folders import make_folders
from tests.eval.runs import read, run_eval, small_run, train_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders"))


def test_results_lie_beside_the_checkpoint_and_a_second_call_says_it_reuses(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["linear-probe", "--bench", "imagefolder", "--data", str(folders), "--checkpoint", str(run)]
    call += ["--features", str(tmp_path)]
    assert run_eval(call) == 0
    path = run / "eval" / f"linear-probe-imagefolder-{folders.name}.json"
    trained = read(path)
    assert "used again" not in capsys.readouterr().err
    assert run_eval(call) == 0
    said = capsys.readouterr().err
    assert "features from before are used again" in said
    assert "the probe trained before is used again (class)" in said
    assert read(path) == trained
    assert run_eval([*call, "--untrained"]) == 0
    untrained = read(run / "eval" / f"linear-probe-imagefolder-{folders.name}-untrained.json")
    assert untrained["model"]["objective"] == "untrained"
    assert untrained["pictures"]["train"]["features"] != trained["pictures"]["train"]["features"]
    # Other options are another result, which overwrites none.
    assert run_eval([*call, "--weight-decays", "0.5", "--learning-rates", "1"]) == 0
    assert read(path) == trained
    others = set(path.parent.glob(f"{path.stem}-*.json")) - {path.with_name(f"{path.stem}-untrained.json")}
    assert [read(other)["chosen"]["class"]["weight_decay"] for other in others] == [0.5]
    assert f"{run}, step " in said
    capsys.readouterr()
    assert run_eval([*call, "--out", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder, where the result would be written" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["def pix(): ...", '{"bench": "mine"}', "5", '["bench", "method"]'])
def test_only_an_earlier_result_is_replaced(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    out = tmp_path / "mine.py"
    out.write_text(text)
    call = ["knn", "--bench", "imagefolder", "--data", str(folders), "--checkpoint", str(run), "--out", str(out)]
    call += ["--features", str(tmp_path / "cache"), "--k", "1"]
    assert run_eval(call) == 2
    assert f"{out} is there and no earlier result, which it would replace" in capsys.readouterr().err
    assert out.read_text() == text
    out.write_text("")
    assert run_eval(call) == run_eval(call) == 0
    assert read(out)["bench"] == "imagefolder"
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "results.json").write_text(text)
    assert run_eval(["suite", "--out", str(suite)]) == 2
    assert "results.json is there and no earlier result" in capsys.readouterr().err


def test_several_checkpoints_are_scored_one_after_the_other(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = train_run(run.parent.parent / "shards", tmp_path / "other", seed=1)
    call = ["knn", "--bench", "imagefolder", "--data", str(folders), "--features", str(tmp_path / "cache"), "--k", "1"]
    both = ["--checkpoint", str(other), "--checkpoint", str(run)]
    assert run_eval([*call, *both, "--out", str(tmp_path / "one.json")]) == 2
    assert "takes one result, and 2 checkpoints are given" in capsys.readouterr().err
    assert run_eval([*call, *both, "--checkpoint", str(tmp_path / "none")]) == 2  # before any is scored
    assert not (other / "eval").exists()
    assert run_eval([*call, *both]) == 0
    found = [read(path / "eval" / f"knn-imagefolder-{folders.name}.json") for path in (other, run)]
    assert [Path(result["model"]["checkpoint"]).parent.parent for result in found] == [other, run]
    assert found[0]["pictures"]["val"]["features"] != found[1]["pictures"]["val"]["features"]


def test_more_neighbours_than_images_are_refused_before_features_are_extracted(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["knn", "--bench", "imagefolder", "--data", str(folders), "--checkpoint", str(run)]
    assert run_eval([*call, "--features", str(tmp_path / "kept"), "--k", "100000"]) == 2
    assert "training images: give more, or lower --k" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bench", "imagefolder", "--data", "nowhere"], "there is no folder nowhere: give --data DIR"),
        (["--bench", "imagefolder", "--data", "nowhere", "--checkpoint", "timm:no"], "there is no folder nowhere"),
        (["--bench", "imagefolder"], "there is no folder benchmarks/imagefolder"),
        (
            ["--bench", "imagefolders"],
            "unknown benchmark 'imagefolders' (did you mean imagefolder?): give one of demo, imagefolder",
        ),
        (["--bench", "demo", "--checkpoint", "nowhere"], "there is no checkpoint or run folder nowhere"),
        (["--bench", "demo"], "the benchmark demo needs the shards demo and demo-test"),
        (["--bench", "demo", "--learning-rates", "a,b"], "--learning-rates takes numbers separated by commas"),
        (["--bench", "demo", "--learning-rates", "nan"], "are numbers, not nan or inf"),
        (["--bench", "demo", "--learning-rates", "1e-300"], "a learning rate below 1e-09 trains nothing"),
        (["--bench", "demo", "--seed", "-1"], "the seed must lie in 0..2**32 - 1, not -1"),
        (["--bench", "demo", "--data", "."], "--data . is no folder of shards, such as data/demo"),
        (["--bench", "demo", "--solver", "lbfgs", "--learning-rates", "1"], "leave out --learning-rates"),
    ],
)
def test_wrong_options_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.setenv("XCLR_BENCHMARKS", "benchmarks")
    assert run_eval(["linear-probe", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert said.startswith("error: ")


def test_a_run_without_checkpoints_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval(["knn", "--bench", "demo", "--checkpoint", str(tmp_path)]) == 2
    assert "holds no checkpoints/step-*.pt: give a run folder" in capsys.readouterr().err
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "step-00000001.pt").touch()
    assert run_eval(["knn", "--bench", "demo", "--checkpoint", str(tmp_path)]) == 2
    assert f"give one of {tmp_path / 'a'}\n" in capsys.readouterr().err
    (tmp_path / "other.pt").write_bytes(b"x")
    assert run_eval(["knn", "--bench", "demo", "--checkpoint", str(tmp_path / "other.pt")]) == 2
    assert "is not a readable checkpoint" in capsys.readouterr().err
