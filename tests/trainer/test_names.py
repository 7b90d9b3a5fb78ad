"""What runs are called by default: a sweep lies side by side, and each of its runs is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.make import make_shards
from tests.trainer.test_loop import SIZES, table
from trainer.cli import app
from trainer.names import default_run
from trainer.recipe import Recipe, changed

BASE = Recipe(name="default")


def name(changes: dict[str, Any], base: Recipe = BASE) -> str:
    return default_run(changed(base, changes), base, "cats").name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "cats-xclr-resnet50"),
        ({"epochs": 100, "objective.tau_s": 0.1}, "cats-xclr-resnet50"),  # the recipe's own
        ({"objective.tau_s": 0.05}, "cats-xclr-resnet50-tau_s0.05"),
        ({"objective.tau_s": 0.05, "seed": 3}, "cats-xclr-resnet50-tau_s0.05-seed3"),
        ({"objective.name": "simclr"}, "cats-simclr-resnet50"),
        ({"objective.name": "simclr", "objective.tau_s": 0.05, "data.graph": "random"}, "cats-simclr-resnet50"),
        ({"data.graph": "random", "epochs": 5}, "cats-xclr-random-resnet50-epochs5"),
        ({"run.workers": 7, "run.checkpoint_every": 9, "data.chunk": 64}, "cats-xclr-resnet50"),  # free when resumed
        ({"model.start": "runs/../of mine/model.pt"}, "cats-xclr-resnet50-start-model.pt"),
        ({"model.backbone": "nets/mine.py:net", "compile": True}, "cats-xclr-mine.py-net-compile"),
        ({"precision": "bfloat16"}, "cats-xclr-resnet50-precision-bfloat16"),
    ],
)
def test_what_differs_from_the_recipe_is_named(changes: dict[str, Any], expected: str) -> None:
    assert name(changes) == expected


def test_a_recipe_of_ones_own_is_named() -> None:
    assert name({}, Recipe(name="mine")) == "cats-mine-xclr-resnet50"
    assert name({}, Recipe(name="cats")) == "cats-xclr-resnet50"


def test_names_stay_names() -> None:
    """Not paths, and not longer than a file system takes."""
    assert "/" not in name({"model.start": "a/" + "b" * 300})
    assert len(name({"model.start": "b" * 300})) <= 120
    assert default_run(BASE, BASE, "../../cats").parent == Path("runs")


def test_a_graph_that_needed_no_name_when_the_run_began(tmp_path: Path) -> None:
    def where(graph: str) -> str:
        return default_run(changed(BASE, {"data.graph": graph}), BASE, "cats", below=tmp_path).name

    assert where("minilm") == "cats-xclr-minilm-resnet50"
    run = tmp_path / "cats-xclr-resnet50"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"recipe": {"data": {"graph": "minilm"}}}))
    assert where("minilm") == "cats-xclr-resnet50"
    assert where("random") == "cats-xclr-random-resnet50"
    (run / "run.json").write_text("[")
    assert where("minilm") == "cats-xclr-minilm-resnet50"


@pytest.mark.slow
def test_a_sweep_trains_side_by_side_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the same commands with --resume; what an objective does not heed is said."""
    monkeypatch.chdir(tmp_path)
    shards = make_shards(tmp_path / "s", sizes=SIZES, classes=6)
    lines = [f"epochs = {1}"]
    for section, values in table(shards).items():
        if isinstance(values, dict):
            lines += [f"[{section}]"] + [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    Path("mine.toml").write_text("\n".join(lines))

    def trained(*options: str) -> str:
        result = CliRunner().invoke(app, ["--recipe", "mine.toml", "--device", "cpu", "--resume", *options])
        assert result.exit_code == 0, result.output
        return " ".join(result.output.split())

    for tau in ("0.1", "0.2"):
        trained("--tau-s", tau)
    found = sorted(path.name for path in Path("runs").iterdir())
    dataset = found[0].split("-mine-")[0]
    assert found == [f"{dataset}-mine-xclr-test_vit", f"{dataset}-mine-xclr-test_vit-tau_s0.2"]
    assert f"already finished: runs/{found[1]}" in trained("--tau-s", "0.2")
    said = trained("--objective", "simclr", "--tau-s", "0.2")
    assert "warning: --tau-s changes nothing: simclr trains on no similarity graph" in said
    assert "changes nothing" not in trained("--objective", "simclr")
