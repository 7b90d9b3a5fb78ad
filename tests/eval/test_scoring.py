"""Scores on crafted logits against independent statements of each rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from timm.data import ImageNetInfo, RealLabelsImagenet

from eval.benchmarks.bench import LEFT_OUT, Bench, Column, Summary, Task, top
from eval.benchmarks.imagenet9 import imagenet9_mapping
from eval.benchmarks.imagenet_labels import real_labels
from eval.benchmarks.objectnet import objectnet_classes
from eval.benchmarks.scoring import any_of, mapped
from eval.evaluate import Settings, evaluate, evaluation_hash, wilson
from eval.heads.knn import KNN, KNNConfig
from tests.eval.make_folders import make_model, make_set

# ImageNet-9 by torchvision's class numbers, the runs of consecutive ones: (first, one past the last, broad class).
RANGES = [(0, 7, 8), (7, 25, 1), (33, 69, 3), (87, 101, 1), (127, 147, 1), (151, 171, 0), (173, 269, 0), (269, 281, 4)]
RANGES += [(286, 300, 4), (300, 327, 5), (356, 363, 4), (365, 385, 7), (387, 389, 4), (389, 398, 8)]
VEHICLES = (
    "407 408 428 436 444 468 511 547 555 561 565 569 573 586 603 609 612 627 656 661 665 670 671 675 690 "
    "705 717 734 751 757 791 802 803 817 820 829 847 864 866 867 870 880 "
)
INSTRUMENTS = "401 402 420 432 486 494 513 541 546 558 566 577 579 593 594 641 642 683 684 687 699 776 822 875 881 889 "

# A few of ObjectNet's classes and the ImageNet names they stand for, the ones with several names among them.
NAMES = {
    "alarm_clock": {"analog clock", "digital clock"},
    "banana": {"banana"},
    "chair": {"barber chair", "folding chair", "rocking chair, rocker"},
    "pen": {"ballpoint, ballpoint pen, ballpen, Biro", "quill, quill pen", "fountain pen"},
    "skirt": {"hoopskirt, crinoline", "miniskirt, mini", "overskirt"},
    "tie": {"bow tie, bow-tie, bowtie", "Windsor tie"},
    "t-shirt": {"jersey, T-shirt, tee shirt"},
    "air_freshener": set[str](),
}


def logits(rows: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 1000)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 5])
def test_real_equals_timm(k: int) -> None:
    """Random logits, half of the rows with a ReaL label raised, against timm's own scorer."""
    count, scores = 3000, logits(3000)
    for row in range(0, count, 2):
        scores[row, list(real_labels()[row])[:1]] += 4
    reference = RealLabelsImagenet([f"val/ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(50_000)], topk=(k,))
    reference.add_result(torch.from_numpy(scores))
    score = any_of(real_labels(), k)
    hits = np.concatenate([score(scores[rows], rows) for rows in np.array_split(np.arange(count), 7)])
    assert 100 * np.nanmean(hits) == pytest.approx(reference.get_accuracy(k), abs=1e-4)
    assert 0.2 < np.nanmean(hits) < 0.9
    assert np.isnan(hits).sum() == sum(not labels for labels in real_labels()[:count]) > 0


def official_in9(data_root: Path | None) -> dict[str, int]:
    """in_to_in9.json, or what it says."""
    if data_root is not None:
        table: dict[str, int] = json.loads((data_root / "benchmarks/imagenet9/in_to_in9.json").read_text())
        return table
    table = {str(number): -1 for number in range(1000)}
    table |= {str(number): broad for first, end, broad in RANGES for number in range(first, end)}
    return table | dict.fromkeys(VEHICLES.split(), 2) | dict.fromkeys(INSTRUMENTS.split(), 6)


def test_imagenet9_equals_the_official_rule(data_root: Path | None) -> None:
    """Argmax, map through the official file, compare with the folder, divide by all images."""
    to_nine, scores = official_in9(data_root), logits(2000, seed=1)
    labels = np.random.default_rng(2).integers(0, 9, 2000)
    right = 0
    for row in range(2000):
        prediction = max(range(1000), key=lambda number: scores[row, number])
        right += to_nine[str(prediction)] == labels[row]
    hits = mapped(labels, imagenet9_mapping())(scores, np.arange(2000))
    assert hits.sum() == right > 0
    assert not np.isnan(hits).any()  # a class of none of the nine is wrong, not left out
    assert imagenet9_mapping().tolist() == [to_nine[str(number)] for number in range(1000)]


def official_objectnet(data_root: Path | None) -> dict[str, set[int]]:
    """Folder -> class numbers through ObjectNet's own files, or a few of them through timm's names."""
    if data_root is None:
        info = ImageNetInfo("imagenet-1k")
        numbers = {info.index_to_description(i): i for i in range(1000)}
        return {folder: {numbers[name] for name in names} for folder, names in NAMES.items()}
    folder = data_root / "benchmarks/objectnet"
    names, overlap, torch_to_line = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("folder_to_objectnet_label", "objectnet_to_imagenet_1k", "pytorch_to_imagenet_2012_id")
    )
    lines = (folder / "imagenet_to_label_2012_v2").read_text().splitlines()
    number = {lines[line]: int(torch_number) for torch_number, line in torch_to_line.items()}
    return {
        key: {number[part] for part in overlap[name].split("; ")} if name in overlap else set()
        for key, name in names.items()
    }


def test_objectnet_equals_the_official_mapping(data_root: Path | None) -> None:
    official = official_objectnet(data_root)
    ours = {folder: set(ids) for folder, ids in objectnet_classes().items()}
    assert {folder: ours[folder] for folder in official} == official
    assert len(ours) == 313
    assert sum(map(bool, ours.values())) == 113


def test_objectnet_both_ways(data_root: Path | None) -> None:
    """Argmax over the overlap's classes and over all, written as loops over the mapping."""
    classes = {folder: ids for folder, ids in objectnet_classes().items() if ids}
    among = sorted({number for ids in classes.values() for number in ids})
    folders = list(np.random.default_rng(3).choice(sorted(classes), 1500))
    scores = logits(1500, seed=4)
    scores[::3, among] += 2  # so that both ways have something to find
    within = [max(among, key=lambda n: scores[row, n]) in classes[f] for row, f in enumerate(folders)]
    overall = [int(np.argmax(scores[row])) in classes[f] for row, f in enumerate(folders)]
    right = [classes[folder] for folder in folders]
    assert any_of(right, among=among)(scores, np.arange(1500)).tolist() == within
    assert any_of(right)(scores, np.arange(1500)).tolist() == overall
    assert 0 < sum(overall) < sum(within)


def test_intervals_hold_the_shares_that_fit() -> None:
    """Wilson's ends are the shares p of which the one found lies just 1.96 standard deviations sqrt(p (1 - p) / n)."""
    for right, count in ((0, 20), (20, 20), (1, 1), (7, 20), (31_000, 50_000)):
        share = right / count
        low, high = wilson(share, count)
        fits = [p for p in np.linspace(0, 1, 100_001) if abs(share - p) <= 1.959964 * (p * (1 - p) / count) ** 0.5]
        assert (low, high) == pytest.approx((min(fits), max(fits)), abs=1.1e-5)
        assert low <= share <= high
        assert high - low > 0.005


def test_a_head_is_asked_once_for_all_columns_of_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = make_set(40), make_set(20, name="val", seed=1)
    labels, truth = np.arange(40) % 10, np.arange(20) % 10
    column = Column(name="top1", task="hue", images="val", score=top(truth))
    bench = Bench(
        name="hues",
        root=tmp_path,
        sets=(train, replace(test, may_train=False)),
        tasks=(Task(name="hue", images="train", labels=labels, classes=[str(i) for i in range(10)]),),
        columns=(
            column,
            replace(column, name="top3", score=top(truth, 3)),
            replace(column, name="half", score=top(np.where(truth < 5, truth, LEFT_OUT))),
            replace(column, name="seen", images="train", score=top(labels)),
        ),
    )
    asked: list[int] = []
    whole = KNN.scores
    monkeypatch.setattr(KNN, "scores", lambda self, block: asked.append(len(block)) or whole(self, block))
    settings = Settings(features=tmp_path, knn=KNNConfig(k=3))
    columns = evaluate(make_model(), bench, "knn", settings)["columns"]
    assert asked == [20, 40]
    assert {name: found["n"] for name, found in columns.items()} == {"top1": 20, "top3": 20, "half": 10, "seen": 40}
    assert columns["top3"]["accuracy"] >= columns["top1"]["accuracy"] > 20


def test_summaries_are_made_of_their_columns(tmp_path: Path) -> None:
    train, labels = make_set(40), np.arange(40) % 10
    truths = {"all": labels, "few": np.where(labels < 4, labels, 9), "none": np.where(labels < 9, 9, 0)}
    kinds: tuple[Literal["difference", "mean", "deviation"], ...] = ("difference", "mean", "deviation")
    bench = Bench(
        name="hues",
        root=tmp_path,
        sets=(train,),
        tasks=(Task(name="hue", images="train", labels=labels, classes=[str(i) for i in range(10)]),),
        columns=tuple(Column(name=name, task="hue", images="train", score=top(of)) for name, of in truths.items()),
        summaries=tuple(Summary(name=kind, kind=kind, columns=tuple(truths)) for kind in kinds),
    )
    found = evaluate(make_model(), bench, "knn", Settings(features=tmp_path, knn=KNNConfig(k=1)))
    figures = [column["accuracy"] for column in found["columns"].values()]
    assert figures == [100, 50, 0]
    expected = {"difference": 50, "mean": mean(figures), "deviation": stdev(figures)}
    assert {kind: one["value"] for kind, one in found["summaries"].items()} == expected


def test_other_labels_to_train_on_are_another_evaluation(tmp_path: Path) -> None:
    labels = np.arange(40) % 10

    def named(trained: npt.NDArray[np.int64]) -> str:
        bench = Bench(
            name="hues",
            root=tmp_path,
            sets=(make_set(40),),
            tasks=(Task(name="hue", images="train", labels=trained, classes=[str(i) for i in range(10)]),),
            columns=(Column(name="top1", task="hue", images="train", score=top(labels)),),
        )
        return evaluation_hash(make_model(), bench, "knn", Settings(features=tmp_path))

    assert named(labels) == named(labels.copy()) != named(np.where(np.arange(40) < 10, 9, labels))


def test_ties_go_to_the_lower_class() -> None:
    scores = np.array([[1, 3, 3, 0], [3, 3, 3, 3], [0, 0, 0, 1]], np.float32)
    rows = np.arange(3)
    assert any_of([{2}, {0}, {0, 3}])(scores, rows).tolist() == [0, 1, 1]
    assert any_of([{2}, {1}, {2}], k=2)(scores, rows).tolist() == [1, 1, 0]
    assert any_of([{2, 1}, {3}, {3}])(scores, rows).tolist() == [1, 0, 1]
    assert any_of([{2}, {3}, {3}], among=[2, 3])(scores, rows).tolist() == [1, 0, 1]
    assert mapped([1, 0, 1], [0, 1, 0, 1])(scores, rows).tolist() == [1, 1, 1]
    assert top([2, 0, 3])(scores, rows).tolist() == [0, 1, 1]
    assert top([2, 1, 2], 2)(scores, rows).tolist() == [1, 1, 0]


def test_left_out_and_not_a_number() -> None:
    """An empty set or no label is not counted; a row with a NaN is wrong however many names would fit."""
    scores = np.array([[0, 1, 2], [0, 1, np.nan], [np.nan, 1, 0]], np.float32)
    rows = np.arange(3)
    np.testing.assert_array_equal(any_of([set(), {1}, {0, 1}])(scores, rows), [np.nan, 0, 0])
    np.testing.assert_array_equal(mapped([LEFT_OUT, 0, 0], [0, 0, 0])(scores, rows), [np.nan, 0, 0])
    np.testing.assert_array_equal(top([LEFT_OUT, 1, 0])(scores, rows), [np.nan, 0, 0])
    with pytest.raises(ValueError, match="not among"):
        any_of([{2}], among=[0, 1])
