"""Recipes: reading, overriding, comparing, and the messages for what is wrong in them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import timm

from shards.config import from_table
from shards.errors import UserError
from trainer.optim import learning_rate
from trainer.recipe import (
    OptimiserConfig,
    Recipe,
    as_table,
    builtin_recipes,
    changed,
    differences,
    load_recipe,
)


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_load_and_name_real_models(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert timm.is_model(recipe.model.backbone)


def test_round_trip_through_json() -> None:
    recipe = load_recipe("demo")
    again = from_table(Recipe, json.loads(json.dumps(as_table(recipe))), where="test")
    assert again == recipe
    assert differences(as_table(recipe), as_table(again)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown epoch; known are"),
        ("[data]\nbatch = 3", r"\[data\]: unknown batch"),
        ("epochs = 'three'", "epochs is of type int, not 'three'"),
        ("epochs = true", "epochs is of type int, not True"),
        ("[objective]\nname = 'clop'", "one of xclr, simclr, supcon, clip, not 'clop'"),
        ("[objective]\ntau = 0.0", "temperature above 0, not 0.0"),
        ("[augment]\ncrop_scale = 0.3", "list of 2 numbers"),
        ("epochs = ", "Invalid value"),
        ("seed = -1", "seed must lie in"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_recipe(str(tmp_path / "r.toml"))


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'cc13m': .*cc12m"):
        load_recipe("cc13m")
    with pytest.raises(UserError, match="no file nowhere"):
        load_recipe("nowhere.toml")


def test_changes_and_differences() -> None:
    recipe = load_recipe("demo")
    other = changed(recipe, {"data.batch_size": 64, "objective.tau_s": None, "seed": 3, "run.workers": 7})
    assert (other.data.batch_size, other.seed, other.run.workers) == (64, 3, 7)
    assert differences(as_table(recipe), as_table(other)) == ["data.batch_size: 64, not 256", "seed: 3, not 0"]
    with pytest.raises(UserError, match=r"objective\.name is one of"):
        changed(recipe, {"objective.name": "infonce"})


def test_learning_rate_scaling_and_schedule() -> None:
    assert OptimiserConfig(lr=0.075, lr_scaling="sqrt").peak_lr(1024) == pytest.approx(2.4)  # SimCLR at 1024
    assert OptimiserConfig(lr=0.3, lr_scaling="linear").peak_lr(4096) == pytest.approx(4.8)  # SimCLR's ImageNet rate
    rates = [learning_rate(step, peak=2.0, warmup=10, total=100) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[10:]))
