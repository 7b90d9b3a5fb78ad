"""A network of the user's own, named by a Python file and a function."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eval.models.open import open_model
from shards.errors import UserError
from tests.eval.make_folders import make_folders
from tests.eval.runs import run_eval, train_run
from tests.make import make_shards
from tests.trainer.small import command
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.cli import app
from trainer.export import export
from trainer.model import build_encoder
from trainer.recipe import ModelConfig

FILE = """
import torch
from torch import nn
from eval.models.model import Transform
from helper_of_mine import POWER

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) ** POWER * self.scale.repeat_interleave(4)

def small():
    return Network(), Transform(image_size=16, crop_pct=1.0)

def stem():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def wider():
    return nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def alone():
    return Network()

def maps():
    return nn.Identity()

def nothing():
    return "nothing"

def several():
    return Several()

class Several(Network):
    def forward(self, images):
        return (super().forward(images),)

class Asserts(Network):
    def forward(self, images):
        assert images.shape[-1] == 32, "Input height (224) doesn't match model (32)."
        return super().forward(images)

def asserts():
    return Asserts()

class Raises(Network):
    def forward(self, images):
        raise KeyError()

def raises():
    return Raises()

def broken():
    raise KeyError("of the user's own")

constant = 1
made = small()[0]
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Beside it a module that it imports."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "helper_of_mine.py").write_text("POWER = 1")
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    yield path
    sys.modules.pop("helper_of_mine", None)


def test_it_is_evaluated_like_any_other(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folders(tmp_path / "pictures")
    arguments = ["knn", "--bench", "imagefolder", "--data", "pictures", "--checkpoint", "mine.py:small", "--k", "5"]
    assert run_eval(arguments) == 0
    assert re.search(r"kNN on imagefolder:\s+mine.py:small\s*\n", capsys.readouterr().out)  # its objective is no other
    result = json.loads((tmp_path / "runs/eval/mine.py-small/knn-imagefolder-pictures.json").read_text())
    assert result["columns"]["top1"]["accuracy"] > 60  # colours are easy
    assert result["model"]["checkpoint"] == "mine.py"
    assert result["protocol"]["transform"]["image_size"] == 16


def test_what_it_is_told_by_is_its_output(mine: Path) -> None:
    """Weights and file may be the same where a module beside it has changed."""
    first = open_model(f"{mine}:small")
    assert first.feature_dim == 12
    assert open_model(f"{mine}:small").sha256 == first.sha256
    sys.modules.pop("helper_of_mine")
    (mine.parent / "helper_of_mine.py").write_text("POWER = 23")
    assert open_model(f"{mine}:small").sha256 != first.sha256
    assert open_model(f"{mine}:alone").transform.image_size == 224


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("missing", r"mine.py has no function missing\(\)"),
        ("constant", r"mine.py has no function constant\(\)"),
        ("made", "made in .*mine.py is a network: name a function, or a class, that makes one"),
        ("nothing", "gives str: a torch.nn.Module is wanted"),
        ("maps", r"gives no pooled features, \[n, dim\], but \(1, 3, 224, 224\)"),
        (
            "asserts",
            r"of 224 pixels .AssertionError: Input height \(224\).*; for another size asserts\(\) returns \(network, ",
        ),
        ("raises", r"is no encoder of images of 224 pixels \(KeyError\); for another size"),
        ("several", "gives no pooled features.* but tuple"),
    ],
)
def test_what_cannot_be_scored_is_told(mine: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_model(f"{mine}:{function}")


@pytest.fixture
def trained(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """By the command line."""
    monkeypatch.chdir(tmp_path)
    make_shards(tmp_path / "shards", sizes=(24, 25), classes=6)
    arguments = command(tmp_path / "shards", tmp_path / "run", epochs=2)[3:]
    done = CliRunner().invoke(app, [*arguments, "--model", "mine.py:stem"])
    assert done.exit_code == 0, done.output
    assert "--checkpoint mine.py:stem@" in done.output
    return tmp_path / "run"


def test_a_suite_takes_it_like_any_other(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "pictures")
    checkpoints = {"absolute": str(tmp_path / "mine.py:small"), "below": "../mine.py:small"}
    checkpoints |= {"trained": "../mine.py:stem@../run"}
    rows = [f"[[rows]]\nmethod = '{name}'\ncheckpoint = '{spec}'\n" for name, spec in checkpoints.items()]
    (tmp_path / "suite.toml").write_text("benches = ['imagefolder']\n" + "".join(rows))
    call = ["suite", "--config", "suite.toml", "--data", "pictures", "--out", "out"]
    assert run_eval(call) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [row["method"] for row in found] == list(checkpoints)
    assert found[0]["knn"] == found[1]["knn"]
    assert found[2]["runs"][0]["model"]["checkpoint"].endswith(".pt")
    trained.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert run_eval(call) == 2
    assert "runs that are not there: mine.py:stem@run (looked for from " in capsys.readouterr().err
    mine = tmp_path / "mine.py"
    mine.unlink()
    (tmp_path / "suite.toml").write_text("benches = ['imagefolder']\n" + rows[0])
    assert run_eval(call) == 2
    assert f"there is no file {mine} with a network" in capsys.readouterr().err


def test_it_is_trained_like_any_other(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model("mine.py:stem@run")
    assert (model.name, model.feature_dim, model.folder) == ("mine.py:stem", 8, Path("run"))
    assert model.transform.image_size == 16
    weight = read_checkpoint(checkpoints(trained)[-1])["encoder"]["backbone.0.weight"]
    assert torch.equal(model.network.state_dict()["0.weight"], weight)
    first = open_model("mine.py:stem@run", untrained=True).network.state_dict()["0.weight"]
    assert not torch.equal(first, weight)
    assert torch.equal(first, build_encoder(ModelConfig(backbone="mine.py:stem"), 16, seed=0).backbone[0].weight)  # type: ignore[index]


def test_a_checkpoint_has_no_code_run_that_it_names_itself(trained: Path) -> None:
    for call in (lambda: open_model("run"), lambda: export(checkpoints(trained)[-1], Path("out"))):
        with pytest.raises(UserError, match=r"network of your own, .* mine.py:stem@.*run$"):
            call()
    assert not Path("out").exists()
    with pytest.raises(UserError, match=r"does not fit mine.py:wider: size mismatch"):
        open_model("mine.py:wider@run")


def test_code_before_a_checkpoint_of_timms_is_refused(mine: Path, tmp_path: Path) -> None:
    run = train_run(make_shards(tmp_path / "shards", sizes=(24,)), tmp_path / "run")
    with pytest.raises(UserError, match="is of timm's test_vit: leave out"):
        open_model(f"{mine}:stem@{run}")


@pytest.mark.parametrize(
    ("function", "message"),
    [("nothing", "gives str, not a torch.nn.Module"), ("maps", r"of 16 pixels but \(1, 3, 16, 16\)")],
)
def test_what_cannot_be_trained_is_told(mine: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_encoder(ModelConfig(backbone=f"{mine}:{function}"), 16, seed=0)
    with pytest.raises(UserError, match="leave out --start timm"):
        build_encoder(ModelConfig(backbone=f"{mine}:stem", start="timm"), 16, seed=0)


def test_other_mistakes(mine: Path) -> None:
    with pytest.raises(UserError, match="there is no file other"):
        open_model("other.py:small")
    with pytest.raises(UserError, match="leave out --untrained"):
        open_model(f"{mine}:small", untrained=True)
    with pytest.raises(KeyError, match="of the user's own"):  # with its traceback
        open_model(f"{mine}:broken")
    with pytest.raises(UserError, match="a:b"):
        open_model(str(mine.parent / "a:b"))  # a path like others
