"""Warnings: what gives cause for each, what does not, and once only."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.make import make_shards
from tests.trainer.small import ALONE, SIZES, lines_of, recipe
from trainer.advice import Adviser, at_start, fitting_batch
from trainer.loop import train
from trainer.recipe import ObjectiveConfig, Recipe, builtin_recipes, changed, load_recipe

MANY = 50_000  # samples
FINE = {
    "target_mass_positive": 0.75,
    "target_entropy": 3.0,
    "mean_cosine": 0.2,
    "rankme": 60.0,
    "data_wait": 0.02,
    "loss": 5.0,
}


def test_codes_are_not_advised_where_the_graph_has_none() -> None:
    chosen = replace(Recipe(name="test"), objective=ObjectiveConfig(tail="background"))
    for coded in (True, False):
        watch = Adviser(recipe=chosen, device="cpu", workers=2, coded=coded)
        (said,) = watch.look({**FINE, "target_mass_positive": 0.99, "target_entropy": 0.2})
        assert ("or use --tail code" in said) == coded


def adviser(device: str = "cpu") -> Adviser:
    return Adviser(recipe=Recipe(name="test"), device=device, workers=2)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"target_mass_positive": 0.99, "target_entropy": 0.2}, "SimCLR in all but name: raise --tau-s"),
        ({"target_mass_positive": 0.99}, "SupCon, of texts, in all but name: raise --tau-s"),
        ({"target_entropy": 0.99 * math.log(2047)}, "uniform .*lower --tau-s"),
        ({"mean_cosine": 0.999}, "all alike .*lower --lr"),
        ({"data_wait": 0.8}, "80% of the time .*raise --workers"),
        ({"loss": 7.6, "epoch": 1.0}, "after 1 epochs the loss, 7.60, .* know nothing .*raise --lr"),
    ],
)
def test_each_cause_is_named_with_its_remedy_once(change: dict[str, float], remedy: str) -> None:
    watch = adviser()
    said = [watch.look({**FINE, **change}) for _ in range(6)]
    first = 0 if any(key.startswith("target") for key in change) else 2  # which training does not change
    assert [len(texts) for texts in said] == [number == first for number in range(6)]
    assert re.search(remedy, said[first][0])


def test_a_soft_target_leaves_little_to_fall_at_first() -> None:
    """99 % of chance may be much of what there is to learn: X-CLR on a hundred classes looked so after an epoch."""
    values = {**FINE, "epoch": 1.2, "target_entropy": 6.0, "loss": 7.55}
    watch = adviser()
    assert not any(watch.look(values) for _ in range(6))
    assert any(watch.look({**values, "loss": 7.61}) for _ in range(3))


def test_a_class_graph_is_meant_to_be_supcon() -> None:
    values = {**FINE, "target_mass_positive": 0.999}
    watch = Adviser(recipe=Recipe(name="test"), device="cpu", workers=2, graph_kind="class")
    assert not any(watch.look(values) for _ in range(6))
    assert any(watch.look({**values, "target_entropy": 0.1}) for _ in range(6))


def test_a_rank_of_one_is_said_at_once_and_passing_trouble_is_not() -> None:
    watch = adviser()
    assert "RankMe" in watch.look({"rankme": 1.2})[0]
    for _ in range(10):
        assert watch.look({**FINE, "mean_cosine": 0.999}) == []
        assert watch.look(FINE) == []


def test_a_loss_of_chance_is_no_news_in_the_first_epoch_nor_where_there_is_nothing_to_learn() -> None:
    uniform = {"target_entropy": 0.99 * math.log(2047)}
    for values in ({"epoch": 0.9}, {"epoch": 3.0, **uniform}, {"epoch": 3.0, "mean_cosine": 0.999}):
        watch = adviser()
        said = [text for _ in range(5) for text in watch.look({**FINE, "loss": 7.6, **values})]
        assert not any("know nothing" in text for text in said)


def test_a_gpu_may_not_wait_as_long_as_a_cpu() -> None:
    values = {**FINE, "data_wait": 0.2}
    assert not any(adviser("cpu").look(values) for _ in range(5))
    watch = adviser("cuda")
    assert [len(watch.look(values)) for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(("epochs", "share"), [(2, "20%"), (10, "100%"), (11, None)])
def test_a_warm_up_as_long_as_the_run_is_said(epochs: int, share: str | None) -> None:
    chosen = changed(Recipe(name="test"), {"optimiser.warmup_epochs": 10, "epochs": epochs})
    said = at_start(chosen, samples=MANY, texts=9, classes=2)
    assert [text for text in said if f"to {share} of its peak: lower --warmup-epochs" in text] == said
    assert len(said) == (share is not None)


@pytest.mark.parametrize(
    ("objective", "texts", "classes", "said"),
    [
        ("xclr", 1, 5, "one and the same text"),
        ("clip", 1, 5, "one and the same text"),
        ("supcon", 5, 1, "are of one class"),
        ("xclr", 2, 1, None),
        ("supcon", 1, 2, None),
        ("simclr", 1, 1, None),
    ],
)
def test_samples_that_are_all_alike_are_said(objective: str, texts: int, classes: int, said: str | None) -> None:
    chosen = changed(Recipe(name="test"), {"objective.name": objective})
    found = at_start(chosen, samples=MANY, texts=texts, classes=classes)
    assert len(found) == (said is not None)
    assert not said or (said in found[0] and "--objective simclr" in found[0])


@pytest.mark.parametrize(
    ("samples", "batch", "better"),
    [(6000, 1024, 64), (1024, 1024, 32), (500, 64, 32), (300, 32, None), (10_240, 1024, None), (10_239, 1024, 128)],
)
def test_an_epoch_of_few_steps_is_said(samples: int, batch: int, better: int | None) -> None:
    chosen = changed(Recipe(name="test"), {"data.batch_size": batch})
    found = at_start(chosen, samples=samples, texts=9, classes=2)
    assert [f"--batch-size {better})" in text for text in found] == [True] * (better is not None)


@pytest.mark.parametrize(("samples", "batch"), [(3, 3), (40, 32), (1000, 32), (3840, 64), (10**7, 131_072)])
def test_a_batch_that_fits_few_samples(samples: int, batch: int) -> None:
    assert fitting_batch(samples) == batch


@pytest.mark.parametrize("name", builtin_recipes())
def test_a_recipe_is_fit_for_its_data_set(name: str) -> None:
    """demo has 6,000 images, as flickr8k; what the others are for has more."""
    assert not at_start(load_recipe(name), samples=6000 if name in ("demo", "flickr8k") else MANY, texts=9, classes=2)


def test_a_run_with_a_sharp_target_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_shards(tmp_path / "s", sizes=SIZES, classes=6)
    train(recipe(shards, epochs=1, objective__tau_s=0.005), tmp_path / "run", ALONE)
    warned = [line["text"] for line in lines_of(tmp_path / "run") if line.get("event") == "warning"]
    assert len([text for text in warned if "in all but name" in text]) == 1
    assert "in all but name" in " ".join(capsys.readouterr().err.split())


def test_metrics_are_json(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "s", sizes=SIZES, classes=6)
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    assert all(json.dumps(line) for line in lines_of(tmp_path / "run"))
