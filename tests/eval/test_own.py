"""A network of the user's own, named by a Python file and a function."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.models.open import open_model
from shards.errors import UserError
from tests.eval.make_folders import make_folders
from tests.eval.runs import run_eval

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

def broken():
    raise KeyError("of the user's own")

constant = 1
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


def test_it_is_evaluated_like_any_other(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folders(tmp_path / "pictures")
    arguments = ["knn", "--bench", "imagefolder", "--data", "pictures", "--checkpoint", "mine.py:small", "--k", "5"]
    assert run_eval(arguments) == 0
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
        ("nothing", "gives str: a torch.nn.Module is wanted"),
        ("maps", r"gives no pooled features, \[n, dim\], but \(1, 3, 224, 224\)"),
        ("several", "gives no pooled features.* but tuple"),
    ],
)
def test_what_cannot_be_scored_is_told(mine: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_model(f"{mine}:{function}")


def test_other_mistakes(mine: Path) -> None:
    with pytest.raises(UserError, match="there is no file other"):
        open_model("other.py:small")
    with pytest.raises(UserError, match="leave out --untrained"):
        open_model(f"{mine}:small", untrained=True)
    with pytest.raises(KeyError, match="of the user's own"):  # with its traceback
        open_model(f"{mine}:broken")
    with pytest.raises(UserError, match="a:b"):
        open_model(str(mine.parent / "a:b"))  # a path like others
