"""What runs are called by default: a sweep lies side by side, and each of its runs is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.make import make_shards
from tests.trainer.small import SIZES, table
from trainer.cli import app
from trainer.names import default_run, unheeded
from trainer.recipe import Recipe, as_table, changed, load_recipe

BASE = load_recipe("default")


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
        ({"model.start": "runs/a b/checkpoints/best.pt"}, "cats-xclr-resnet50-start-a_b-best.pt"),
        ({"model.start": "/x/runs/a"}, "cats-xclr-resnet50-start-x-runs-a"),
        ({"objective.tau_s": 0.10000001}, "cats-xclr-resnet50-tau_s0.10000001"),
        ({"model.backbone": "nets/mine.py:net", "compile": True}, "cats-xclr-mine.py-net-compile"),
        ({"precision": "bfloat16"}, "cats-xclr-resnet50-precision-bfloat16"),
    ],
)
def test_what_differs_from_the_recipe_is_named(changes: dict[str, Any], expected: str) -> None:
    assert name(changes) == expected


def test_a_recipe_that_is_not_the_usual_one_is_named() -> None:
    mine = Recipe(name="mine")
    assert name({}, mine) == "cats-mine-xclr-resnet50"
    assert default_run(BASE, BASE, "imagenet").name == "imagenet-default-xclr-resnet50"
    own = load_recipe("imagenet")
    assert default_run(own, own, "imagenet").name == "imagenet-xclr-resnet50"
    placed = changed(own, {"data.shards": "elsewhere/imagenet"})
    assert default_run(placed, placed, "imagenet").name == "imagenet-xclr-resnet50"
    other = changed(own, {"epochs": 7})  # a file that is called so, and is another
    assert default_run(other, other, "imagenet").name == "imagenet-imagenet-xclr-resnet50"


def test_shards_of_another_folder_are_another_run() -> None:
    for shards, expected in (
        ("data/cats", "cats-"),
        ("/elsewhere/cats/", "cats-"),
        ("data/cats-v2", "cats-v2-"),
        ("s3://bucket/mended", "cats-mended-"),
        (".", "cats-"),
    ):
        assert name({"data.shards": shards}) == f"{expected}xclr-resnet50"


def test_a_run_that_starts_from_another_is_not_called_by_all_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless it was begun under that name."""
    long = "runs/cats-xclr-resnet50-image_size64-epochs3-batch_size256"
    short = name({"model.start": long, "seed": 1})
    assert short.startswith("cats-xclr-resnet50-start-runs-cats-xclr-resnet50-")
    assert short.endswith("-seed1")
    assert len(short) < 75
    assert short != name({"model.start": f"{long}-seed2", "seed": 1})
    former = f"cats-xclr-resnet50-start-{long.replace('/', '-')}-seed1"
    chosen = changed(BASE, {"model.start": long, "seed": 1})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / former).mkdir(parents=True)
    (tmp_path / "runs" / former / "run.json").write_text(json.dumps({"recipe": as_table(chosen)}))
    assert default_run(chosen, BASE, "cats").name == former


def test_names_stay_names() -> None:
    """Not paths, not longer than a file system takes, and of long ones no two alike."""
    assert "/" not in name({"model.start": "a/" + "b" * 300})
    assert default_run(BASE, BASE, "../../cats").parent == Path("runs")
    long = [
        name({"model.start": letter * 300, "seed": seed})
        for letter in ("b", "\N{CJK UNIFIED IDEOGRAPH-4E00}")
        for seed in (1, 2)
    ]
    assert len(set(long)) == 4
    assert max(len(one.encode()) for one in long) < 180


def settled(folder: Path, recipe: Recipe, graph: str = "minilm") -> None:
    """A run's folder, as training leaves it."""
    table = as_table(changed(recipe, {"data.graph": graph, "precision": "float32", "data.shards": "somewhere/cats"}))
    table["model"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"recipe": table}))


def test_a_run_keeps_its_former_name(tmp_path: Path) -> None:
    def where(**changes: Any) -> str:
        given = {"data.shards": "somewhere/cats"} | {key.replace("__", "."): value for key, value in changes.items()}
        return default_run(changed(BASE, given), BASE, "cats", below=tmp_path).name

    assert where(data__graph="minilm") == "cats-xclr-minilm-resnet50"
    run = tmp_path / "cats-xclr-resnet50"
    settled(run, BASE)
    assert where(data__graph="minilm") == run.name  # begun while there was no other graph, and none had to be named
    assert where(data__graph="random") == "cats-xclr-random-resnet50"
    assert where(data__graph="minilm", seed=1) == "cats-xclr-minilm-resnet50-seed1"
    (tmp_path / "cats-xclr-minilm-resnet50").mkdir()
    (tmp_path / "cats-xclr-minilm-resnet50/run.json").write_text("{}")
    assert where(data__graph="minilm") == "cats-xclr-minilm-resnet50"  # that is there as well
    settled(tmp_path / "cats-simclr-resnet50", changed(BASE, {"objective.name": "simclr", "epochs": 5}))
    assert where(objective__name="simclr", epochs=5) == "cats-simclr-resnet50"  # of when settings were not named
    assert where(objective__name="simclr", epochs=6) == "cats-simclr-resnet50-epochs6"
    settled(tmp_path / "cats-clip-resnet50", changed(BASE, {"objective.name": "clip"}))
    for changes, expected in (
        ({}, "cats-clip-resnet50"),
        ({"precision": "float32"}, "cats-clip-resnet50"),
        ({"precision": "bfloat16"}, "cats-clip-resnet50-precision-bfloat16"),
        ({"data__shards": "other/cats2"}, "cats2-clip-resnet50"),
        ({"model__mean": [0.1] * 3}, "cats-clip-resnet50-mean0.1_0.1_0.1"),
    ):
        assert where(objective__name="clip", **changes) == expected  # runs that came later have names of their own
    (tmp_path / "cats-simclr-resnet50/run.json").write_text("[")
    assert where(objective__name="simclr", epochs=5) == "cats-simclr-resnet50-epochs5"


def test_what_is_left_out() -> None:
    given = {"objective.tau_s": 0.1, "objective.tail": None, "data.graph": "a", "epochs": 3}
    assert unheeded("xclr", given) == {}
    assert unheeded("simclr", given) == {"objective.tau_s": "--tau-s"}  # the monitor looks by the graph
    assert unheeded("supcon", given) == {"objective.tau_s": "--tau-s", "data.graph": "--graph"}


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
    assert "warning: --tau-s is left out: simclr trains on no similarity graph" in said
    assert "is left out" not in trained("--objective", "simclr")
