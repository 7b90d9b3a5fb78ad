"""A recipe that is printed says all, and is read as the same."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from shards.errors import UserError
from trainer.cli import app
from trainer.recipe import Recipe, as_table, builtin_recipes, changed, load_recipe
from trainer.template import as_toml, recipe_of


def again(recipe: Recipe, folder: Path) -> Recipe:
    (folder / "again.toml").write_text(as_toml(recipe), encoding="utf-8")
    return replace(load_recipe(str(folder / "again.toml")), name=recipe.name)


@pytest.mark.parametrize("name", builtin_recipes())
def test_what_is_printed_is_read_as_the_same(name: str, tmp_path: Path) -> None:
    assert again(load_recipe(name), tmp_path) == load_recipe(name)


def test_values_of_every_kind_survive(tmp_path: Path) -> None:
    odd = {
        "data.shards": 'a "b"\\ \x7f\t\N{SNOWMAN}',
        "model.mean": [0.1, 0.2, 1 / 3],
        "optimiser.lr": 1e-300,
        "compile": True,
        "run.track": "wandb",
    }
    recipe = changed(Recipe(name="odd"), odd)
    assert again(recipe, tmp_path) == recipe


def test_every_key_is_there_and_most_are_explained() -> None:
    lines = as_toml(Recipe(name="x")).splitlines()
    parts = [Recipe(name="x"), *(part for part in vars_of(Recipe(name="x")) if is_dataclass(part))]
    keys = [field.name for part in parts for field in fields(part) if not is_dataclass(getattr(part, field.name))]
    assert [line.split(" = ")[0] for line in lines if " = " in line and line[0] != "#"] == keys[1:]  # all but its name
    bare = [line.split(" = ")[0] for before, line in pairwise(lines) if " = " in line and before[:1] != "#"]
    assert not {"tau_s", "batch_size", "lr", "lr_scaling", "precision", "grouped", "backbone"} & set(bare)
    assert "# xclr, simclr, supcon, clip" in lines
    assert lines[lines.index("[text]") + 1].startswith("# The text tower of the objective clip")


def vars_of(recipe: Recipe) -> list[object]:
    return [getattr(recipe, field.name) for field in fields(recipe)]


def test_the_recipe_of_a_run_is_printed(tmp_path: Path) -> None:
    recipe = changed(load_recipe("demo"), {"objective.tau_s": 0.07, "seed": 3})
    (tmp_path / "run.json").write_text(json.dumps({"recipe": as_table(recipe)}))
    assert recipe_of(str(tmp_path)) == recipe
    result = CliRunner().invoke(app, ["recipe", str(tmp_path)])
    (tmp_path / "demo.toml").write_text(result.stdout)
    assert load_recipe(str(tmp_path / "demo.toml")) == recipe
    (tmp_path / "run.json").write_text('{"recipe": 5')
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        recipe_of(str(tmp_path))
    with pytest.raises(UserError, match=r"no folder of a run"):
        recipe_of(str(tmp_path.parent))
    result = CliRunner().invoke(app, ["recipe", "nothere"])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("unknown recipe 'nothere'")
    assert result.stdout == ""  # which may be the file of a recipe


def test_the_recipe_of_an_earlier_versions_run_shows_no_password(tmp_path: Path) -> None:
    table = as_table(load_recipe("demo"))
    table["data"]["shards"] = "https://me:hush@host/made?sig=hush"
    (tmp_path / "run.json").write_text(json.dumps({"recipe": table}))
    text = as_toml(recipe_of(str(tmp_path)))
    assert 'shards = "https://host/made"' in text
    assert "hush" not in text


def test_a_folder_of_that_name_is_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert recipe_of("demo") == load_recipe("demo")


def test_without_its_source_there_are_values_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("inspect.getsource", mock.Mock(side_effect=OSError("could not get source code")))
    assert again(load_recipe("demo"), tmp_path) == load_recipe("demo")
