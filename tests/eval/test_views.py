"""The augmented-views protocol, few-shot and L-BFGS through the command line, and what `list` says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.benchmarks.bench import Task
from eval.features import extract
from eval.heads.probe import ProbeConfig, split
from eval.heads.probe_views import fit_views
from eval.inventory import look
from tests.eval.demo_shards import make_demo
from tests.eval.make_folders import make_folders, make_model, make_set
from tests.eval.runs import run_eval

QUICK = ["--learning-rates", "1", "--weight-decays", "0.01"]
TWO = ["--learning-rates", "1", "--weight-decays", "0.01,0.1"]


def test_a_probe_on_views_learns_several_tasks_in_one_pass(tmp_path: Path) -> None:
    images, model = make_set(120), make_model()
    features = extract(model, images, tmp_path)
    hue = (np.arange(120) % 10).astype(np.int64)  # make_set's colours
    rows = np.arange(120, dtype=np.int64)
    tasks = [
        Task(name="hue", images="train", labels=hue, classes=[str(i) for i in range(10)]),
        Task(name="half", images="train", labels=hue // 5, classes=["low", "high"]),
    ]
    config = ProbeConfig(learning_rates=(1e-4, 1.0), weight_decays=(1e-3,), epochs=80)
    wanted = [(tasks[0], rows), (tasks[1], rows[:100])]
    probes = fit_views(model, images, features, wanted, config)
    scores = {name: probe.scores(features.rows(rows)) for name, probe in probes.items()}
    assert (scores["hue"].argmax(1) == hue).mean() > 0.8
    assert (scores["half"].argmax(1) == hue // 5).mean() > 0.9
    assert probes["hue"].chosen.lr == 1.0
    assert (probes["half"].trained_on, probes["half"].held_out) == (90, 10)
    again = fit_views(model, images, features, wanted, config)["hue"]
    np.testing.assert_allclose(again.scores(features.rows(rows)), scores["hue"], atol=1e-3)


def test_a_probe_on_views_is_not_trained_on_what_judges_it(tmp_path: Path) -> None:
    """Though other tasks are, and show it those pictures: with others in their place it has the same weights."""
    images, model = make_set(120), make_model()
    features, rows = extract(model, images, tmp_path), np.arange(120, dtype=np.int64)
    hue = (rows % 10).astype(np.int64)
    hues = Task(name="hue", images="train", labels=hue, classes=[str(i) for i in range(10)])
    halves = Task(name="half", images="train", labels=hue // 5, classes=["low", "high"])
    config = ProbeConfig(learning_rates=(1.0,), weight_decays=(1e-3,), epochs=4)
    held = split(hue, config.held_out, config.seed)[1].tolist()
    other = replace(images, read=lambda i: images.read(i - 1 if i in held else i))
    one, two = (fit_views(model, shown, features, [(hues, rows), (halves, rows)], config) for shown in (images, other))
    torch.testing.assert_close(one["hue"].weight, two["hue"].weight)
    assert not torch.allclose(one["half"].weight, two["half"].weight)


def test_of_equal_candidates_on_views_the_first_is_taken(tmp_path: Path) -> None:
    images, model, rows = make_set(40), make_model(), np.arange(40, dtype=np.int64)
    task = Task(name="one", images="train", labels=np.zeros(40, np.int64), classes=["all", "none"])
    config = ProbeConfig(learning_rates=(2e-6, 1e-6), weight_decays=(1e-3,), epochs=2)  # one way, twice as far
    probe = fit_views(model, images, extract(model, images, tmp_path), [(task, rows)], config)["one"]
    assert len({row["held_out_accuracy"] for row in probe.table}) == 1
    assert probe.chosen.lr == 2e-6


def evaluate(data: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    call = [
        "linear-probe",
        "--bench",
        "imagefolder",
        "--data",
        str(data),
        "--checkpoint",
        "timm:test_vit",
        "--untrained",
    ]
    assert run_eval([*call, "--features", str(tmp_path / "cache"), "--out", str(out), *options]) == 0
    value: dict[str, Any] = json.loads(out.read_text())
    return value


def test_options_of_the_probe_reach_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folders(tmp_path / "data", train=24)
    plain = evaluate(data, tmp_path, *TWO)
    assert plain["protocol"]["name"] == "features"
    assert plain["chosen"]["class"]["trained_on"] == 96
    assert "chosen on 10 of 96 training images" in capsys.readouterr().out
    views = evaluate(data, tmp_path, *TWO, "--protocol", "views", "--epochs", "2")
    assert views["protocol"]["name"] == "views"
    assert "; trained on 86 images, chosen on 10 others" in " ".join(capsys.readouterr().out.split())
    assert "two an image and pass" in views["protocol"]["training"]
    exact = evaluate(data, tmp_path, "--solver", "lbfgs")
    assert exact["protocol"]["solver"] == "lbfgs"
    assert exact["chosen"]["class"]["lr"] == 0
    assert len(exact["chosen"]["class"]["candidates"]) == 8
    few = evaluate(data, tmp_path, *QUICK, "--few-shot", "50")
    assert few["chosen"]["class"]["trained_on"] == 48
    assert few["protocol"]["few_shot_percent"] == 50
    assert few["notes"]["few_shot"]["class"]["images"] == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "crops"], "--protocol is features or views, not 'crops'"),
        (["--protocol", "views", "--solver", "lbfgs"], "--protocol views trains by SGD"),
        (["--solver", "newton"], "the solver is sgd or lbfgs"),
        (["--epochs", "0"], "epochs and batch size of at least 1"),
    ],
)
def test_wrong_options_are_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_eval(["linear-probe", "--bench", "demo", *options]) == 2
    assert message in capsys.readouterr().err


def test_list_says_what_is_there_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XCLR_BENCHMARKS", "benchmarks")
    monkeypatch.setenv("COLUMNS", "200")
    make_demo(tmp_path / "data", 12, 4)
    assert look("demo") == ("ready", "train 12, original 4, mixed_same 4, mixed_rand 4, only_fg 4, only_bg 4", [])
    assert look("objectnet") == ("missing", "no objectnet, no imagenet/train", ["objectnet", "imagenet"])
    assert run_eval(["list"]) == 0
    shown = capsys.readouterr().out
    assert "ready" in shown
    assert "none below runs/" in shown
    assert shown.count("objectnet.dev") == 1
    assert not (tmp_path / "data" / "features").exists()
