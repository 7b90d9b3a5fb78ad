"""Images that do not decode: counted on all ranks and after a stop, named, and too many stop the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import ALONE, SIZES, lines_of, recipe, stop_at, trained
from trainer import bad_images
from trainer.loop import Stopped, train


def test_too_many_bad_images_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = make_shards(tmp_path / "few", sizes=SIZES, classes=6, bad=(3,))
    train(recipe(few, epochs=2, run__log_every=1), tmp_path / "few-run", ALONE)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("with grey pictures in their place: 1 (the last was 000003 of train-000000.tar); at more") == 1
    warned = [line["text"] for line in lines_of(tmp_path / "few-run") if line.get("event") == "warning"]
    assert sum("did not decode" in text for text in warned) == 1
    many = make_shards(tmp_path / "many", sizes=SIZES, classes=6, bad=tuple(range(0, 80, 3)))
    with pytest.raises(UserError, match=r"undecodable image.*over the budget"):
        train(recipe(many), tmp_path / "many-run", ALONE)


def test_the_budget_is_a_share_of_all_images_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not of those before it: a batch of thousands may well have some."""
    monkeypatch.setattr(bad_images, "LIMIT", 0.2)
    bad = make_shards(tmp_path / "bad", sizes=(100,), classes=6, bad=tuple(range(11)))
    train(recipe(bad, data__batch_size=100, epochs=1, run__knn_every=0), tmp_path / "run", ALONE)


def test_bad_images_are_named(tmp_path: Path) -> None:
    many = make_shards(tmp_path / "many", sizes=SIZES, classes=6, bad=tuple(range(0, 80, 3)))
    with pytest.raises(
        UserError, match=r"the last was 0000\d\d of train-00000\d\.tar.*verify .* --decode` names all: take them out"
    ):
        train(recipe(many, run__knn_every=0), tmp_path / "run", ALONE)
    none = make_shards(tmp_path / "none", sizes=(16,), classes=6, bad=tuple(range(16)))
    with pytest.raises(UserError, match="for the online kNN 0 can be read"):
        train(recipe(none), tmp_path / "none-run", ALONE)


def test_damage_on_any_rank_is_counted(tmp_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = make_shards(tmp_path / "bad", sizes=SIZES, classes=6, bad=(3, 20, 41, 60))
    chosen = recipe(bad, epochs=2, run__knn_every=0, run__log_every=1)
    counts = {}
    for size in (1, 2):
        ranks(size, trained, chosen, tmp_path / f"run{size}")
        counts[size] = [line["bad_images"] for line in lines_of(tmp_path / f"run{size}") if "loss" in line]
    assert counts[1] == counts[2]
    assert counts[1][-1] > 4
    run = tmp_path / "run1"  # the same, stopped and gone on with
    shutil.rmtree(run)
    with monkeypatch.context() as patch:
        stop_at(patch, counts[1].index(counts[1][-1] - 2) + 1)
        with pytest.raises(Stopped):
            train(replace(chosen, run=replace(chosen.run, checkpoint_every=1)), run, ALONE)
    ranks(2, trained, chosen, run, True)
    assert [line["bad_images"] for line in lines_of(run) if "loss" in line] == counts[1]
