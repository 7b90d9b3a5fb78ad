"""Recipes: reading, overriding, comparing, and the messages for what is wrong in them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import timm

from shards.errors import UserError
from trainer.optim import learning_rate
from trainer.recipe import (
    OptimiserConfig,
    as_table,
    builtin_recipes,
    changed,
    differences,
    load_recipe,
    stored_recipe,
)


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_load_and_name_real_models(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert timm.is_model(recipe.model.backbone)


def test_round_trip_through_json() -> None:
    recipe = load_recipe("demo")
    again = stored_recipe(json.loads(json.dumps(as_table(recipe))), where="test")
    assert again == recipe
    assert differences(as_table(recipe), as_table(again)) == []


@pytest.mark.parametrize(
    ("pretrained", "start", "expected"), [(False, "", ""), (True, "", "timm"), (True, "runs/a", "runs/a")]
)
def test_what_earlier_versions_stored_is_read(pretrained: bool, start: str, expected: str) -> None:
    table = as_table(load_recipe("demo"))
    table["model"] |= {"pretrained": pretrained, "start": start}
    assert stored_recipe(table, "").model.start == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", r"unknown key 'epoch' \(did you mean epochs\?\); known are"),
        ("[data]\nbatch = 3", r"\[data\]: unknown key 'batch'"),
        ("epochs = 'three'", "epochs is of type int, not 'three'"),
        ("epochs = true", "epochs is of type int, not True"),
        ("[objective]\nname = 'clop'", "one of xclr, simclr, supcon, clip, not 'clop'"),
        ("[objective]\ntau = 0.0", "temperature above 0, not 0.0"),
        ("[augment]\ncrop_scale = 0.3", "list of 2 numbers"),
        ("epochs = ", "Invalid value"),
        ("seed = -1", "seed must lie in"),
        ("epochs = 0", "epochs must be at least 1, not 0"),
        ("[data]\nbatch_size = 1", r"data\.batch_size must be at least 2, not 1"),
        ("[data]\nchunk = -1", r"data\.chunk must be at least 0"),
        ("[augment]\nimage_size = 1_000_000", r"augment\.image_size must lie in 8\.\.4096 pixels, not 1000000"),
        ("[augment]\ncrop_scale = ['a', 1.0]", r"crop_scale\[0\] is of type float, not 'a'"),
        ("[augment]\ncrop_ratio = [0.5, inf]", r"crop_ratio\[1\] is a finite number, not inf"),
        ("[model]\nprojector_dim = 0", r"model\.projector_dim must be at least 1"),
        ("[model]\nprojector_hidden = -3", r"model\.projector_hidden must be at least 0"),
        ("[model]\neval_crop = 0", r"model\.eval_crop is a share .* up to 1, not 0\.0"),
        ("[model]\neval_crop = 5.0", r"model\.eval_crop is a share .* up to 1, not 5\.0"),
        ("[objective]\ntau = inf", "tau is a finite number, not inf"),
        ("[optimiser]\nlr = -1", r"optimiser\.lr must be at least 0, not -1\.0"),
        ("[optimiser]\nlr = nan", "lr is a finite number, not nan"),
        (f"[optimiser]\nlr = 1{'0' * 400}", "lr is a finite number, not inf"),
        ("[optimiser]\nmomentum = 5.0", r"optimiser\.momentum must be at least 0 and below 1, not 5\.0"),
        ("[optimiser]\nweight_decay = -0.1", r"optimiser\.weight_decay must be at least 0"),
        ("[optimiser]\nwarmup_epochs = -1", r"optimiser\.warmup_epochs must be at least 0"),
        ("[run]\nworkers = -7", r"run\.workers must be at least -1"),
        ("[run]\nlog_every = 0", r"run\.log_every must be at least 1"),
        ("[data]\nimage_size = 32", r"\[data\]: unknown key 'image_size' \(image_size belongs in \[augment\]\)"),
        ("shards = 'x'", r"unknown key 'shards' \(shards belongs in \[data\]\)"),
        ("[run]\ncheckpoint_every = 0", r"run\.checkpoint_every must be at least 1"),
        ("[run]\nkeep = 0", r"run\.keep must be at least 1"),
        ("[run]\nknn_every = -1", r"run\.knn_every must be at least 0"),
        ("[run]\ncache_gib = -1", r"run\.cache_gib must be at least 0"),
        ("[run]\ntrack = 'foo'", "track is one of wandb, mlflow or empty, not 'foo'"),
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
