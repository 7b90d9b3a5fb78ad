"""The report's pictures: what they are called, and whose graph and models they are of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eval.suite as module
from eval.benchmarks.bench import LEFT_OUT, Bench, Column, Scorer, Task, top
from eval.benchmarks.scoring import any_of, mapped
from eval.evaluate import Settings
from eval.heads.knn import KNNConfig
from eval.report.gallery import image_strips
from eval.rows import Row
from eval.suite import Suite, run_suite
from tests.eval.make_folders import make_folders, make_model, make_set

CLASSES = ["ant", "bee", "cat", "dog"]


def names(tmp_path: Path, score: Scorer, classes: list[str] = CLASSES) -> list[str]:
    """Of six test pictures; the task that is judged is not the bench's first."""
    images = make_set(6)
    other = Task(name="other", images=images.name, labels=np.zeros(6, np.int64), classes=["x"])
    task = Task(name="t", images=images.name, labels=np.array([0, 0, 1, 1, 2, 2]), classes=classes)
    column = Column(name="top1", task="t", images=images.name, score=score)
    bench = Bench(name="mine", root=tmp_path, sets=(images,), tasks=(other, task), columns=(column,))
    return [strip.query.words for strip in image_strips({}, bench, tmp_path)]


def test_pictures_are_called_by_their_classes(tmp_path: Path) -> None:
    assert names(tmp_path, top([0, 1, 2, 3, 0, 1])) == ["ant", "bee", "cat", "dog", "ant", "bee"]
    several = any_of([[0], [1, 2], [0, 1, 2, 3], [3], [0, 3], [2]])
    assert names(tmp_path, several) == ["ant", "bee, cat", "ant, bee, cat, ...", "dog", "ant, dog", "cat"]
    assert names(tmp_path, mapped([0, 1, 0, 1, 0, 1], [0, 0, 1, LEFT_OUT])) == ["ant, bee", "cat"] * 3
    many = [f"c{i}" for i in range(5000)]
    assert names(tmp_path, top([4999] * 6), many) == [f"{i}.jpg" for i in range(6)]  # too many to try each


@pytest.mark.parametrize("among", [(1, 2), (0, 3), (2, 3)])
def test_classes_that_are_no_choice_are_not_right(tmp_path: Path, among: tuple[int, int]) -> None:
    """Of equal scores the lowest class of the choice wins, also where a class outside has all of the score."""
    low, high = among
    assert names(tmp_path, any_of([[low], [high]] * 3, among=among)) == [CLASSES[low], CLASSES[high]] * 3


def test_of_several_runs_the_first_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}
    monkeypatch.setattr(module, "image_strips", lambda models, *_: shown.update(models) or [])
    models = [replace(make_model(sha=f"{i}" * 64), shards=None) for i in range(3)]
    opened = {"a.pt": models[0], "b.pt": models[1], "c.pt": models[2]}
    monkeypatch.setattr("eval.rows.open_model", lambda spec, untrained: opened[Path(spec).name])
    for name in opened:
        (tmp_path / name).touch()
    make_folders(tmp_path / "pets", 3)
    rows = (Row(method="one", checkpoint="c.pt"), Row(method="two", checkpoints=("b.pt", "a.pt")))
    suite = Suite(name="s", title="S", benches=("imagefolder",), knn=KNNConfig(k=3), rows=rows)
    run_suite(suite, tmp_path, settings=Settings(features=tmp_path / "f"), checkpoints=[], data=tmp_path / "pets")
    assert {method: model.sha256[0] for method, model in shown.items()} == {"one": "2", "two": "1"}


def test_the_graph_shown_is_that_of_the_last_row_trained_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "caption_strips", lambda folder, graph: (folder, graph))
    model = make_model()
    asked = {
        "first": replace(model, shards=tmp_path, graph="old", about={"objective": "xclr"}),
        "xclr": replace(model, shards=tmp_path, graph="new", about={"objective": "xclr"}),
        "control": replace(model, shards=tmp_path, graph="random", about={"objective": "xclr"}),
        "simclr": replace(model, shards=tmp_path, graph=None, about={"objective": "simclr"}),
        "gone": replace(model, shards=tmp_path / "gone", graph="x", about={"objective": "xclr"}),
    }
    assert module._captions(asked) == (tmp_path, "new")
    assert module._captions({"simclr": asked["simclr"]}) == (tmp_path, None)
    assert module._captions({"gone": asked["gone"], "none": model}) is None
