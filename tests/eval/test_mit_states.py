"""MIT-States: labels from folder names, the three splits, and a whole run of the command line."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from eval.benchmarks.bench import LEFT_OUT, Bench, Source
from eval.benchmarks.mit_states import SEEDS, even_split, open_mit_states, split_text
from eval.report.gallery import image_strips, thumbnail
from eval.report.published import published_rows
from shards.errors import UserError
from tests.eval.make_folders import make_model
from tests.eval.trees import desk, picture, scored, xclr_eval

KEYS = [f"broken_fence/{i:02d}.jpg" for i in range(11)]


def make_states(root: Path, space: str = "_", each: int = 12) -> Path:
    """Two objects in two states each, the colour says which; and pictures without a state."""
    for state, noun, hue in (("broken", "fence", 0), ("painted", "fence", 3), ("broken", "fan", 6), ("huge", "fan", 9)):
        for i in range(each):
            picture(root / "images" / f"{state}{space}{noun}" / f"{i}.jpg", hue, seed=i)
    picture(root / "images" / f"adj{space}fan" / "x.jpg", 5)
    return root


def opened(root: Path) -> Bench:
    return open_mit_states(Source(root=root, benchmarks=root.parent, partial=True))


def test_splits_are_even_seeded_and_the_same_everywhere() -> None:
    sides = [even_split(KEYS, seed) for seed in SEEDS]
    assert [int(side.sum()) for side in sides] == [5, 5, 5]
    assert len({side.tobytes() for side in sides}) == 3
    assert even_split(KEYS[::-1], 1).tolist() == sides[1].tolist()[::-1]  # a matter of the name, not of the order
    digest = hashlib.sha256(split_text(KEYS, sides[0])).hexdigest()
    assert (
        digest == "9660b9ded9d7e065adaf46697861b8ba7c1028ff27a6af53cb9105e0395a08fa"
    )  # fixed: published figures name it


def test_splits_are_random() -> None:
    """Halves of 4,000: each picture trains in half of the splits, two splits agree on half of the pictures."""
    keys = [f"old_car/{i}.jpg" for i in range(4000)]
    first, second = even_split(keys, 0), even_split(keys, 1)
    assert abs((first == second).mean() - 0.5) < 0.04
    assert abs(first[:2000].mean() - 0.5) < 0.04


def test_labels_are_the_two_words_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(tmp_path, monkeypatch)
    bench = opened(make_states(tmp_path / "a"))
    images = bench.by_name["mit-states"]
    assert len(images) == 48  # the picture without a state is left out
    for task, part in (("object_seed0", 1), ("attribute_seed1", 0)):
        head = next(t for t in bench.tasks if t.name == task)
        names = [key.split("/")[0].split("_")[part] for key in images.keys]
        assert set(head.classes) == set(names)
        trained = [(head.classes[label], name) for label, name in zip(head.labels, names, strict=True) if label >= 0]
        assert len(trained) == 24
        assert all(ours == own for ours, own in trained)


def test_each_picture_is_trained_on_or_counted_never_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(tmp_path, monkeypatch)
    bench = opened(make_states(tmp_path / "a", each=5))
    for task, column in zip(bench.tasks, bench.columns, strict=True):
        assert column.task == task.name
        hits = column.score(np.zeros((20, len(task.classes)), np.float32), np.arange(20))
        np.testing.assert_array_equal(np.isnan(hits), task.labels != LEFT_OUT)
    assert Counter(task.name.split("_")[0] for task in bench.tasks) == {"object": 3, "attribute": 3}


def test_the_releases_spelling_gives_the_same_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(tmp_path, monkeypatch)
    ours, release = make_states(tmp_path / "a"), make_states(tmp_path / "b" / "release_dataset", space=" ")
    first, second = opened(ours), opened(release.parent)
    assert first.splits == second.splits
    assert dict(zip(first.sets[0].keys, first.tasks[0].labels.tolist(), strict=True)) == dict(
        zip(second.sets[0].keys, second.tasks[0].labels.tolist(), strict=True)
    )


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = desk(tmp_path, monkeypatch)
    make_states(benchmarks / "mit-states")
    result = scored("mit-states", "--partial")
    for head in ("object", "attribute"):
        values = [result["columns"][f"{head}_seed{seed}"] for seed in SEEDS]
        assert [value["n"] for value in values] == [24, 24, 24]
        assert min(value["accuracy"] for value in values) > 90
        figures = [value["accuracy"] for value in values]
        assert result["summaries"][head]["value"] == pytest.approx(mean(figures), abs=0.01)
        assert result["summaries"][f"{head}_deviation"]["value"] == pytest.approx(stdev(figures), abs=0.01)
    for seed, split in result["notes"]["splits"].items():
        text = Path(split["file"]).read_bytes()
        assert hashlib.sha256(text).hexdigest() == split["sha256"]
        assert Counter(line.split("\t")[0] for line in text.decode().splitlines()) == {"train": 24, "test": 24}, seed
    assert {"images: 48 of 53,753", "pairs: 4 of 1,962", "attributes: 3 of 115", "objects: 2 of 245"} <= set(
        result["partial"]
    )
    refused = str(xclr_eval("linear-probe", "--bench", "mit-states").exception)
    assert "images: 48 of 53,753" in refused


def test_the_gallery_keeps_the_halves_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(tmp_path, monkeypatch)
    bench = opened(make_states(tmp_path / "a"))
    half = {key: label != LEFT_OUT for key, label in zip(bench.sets[0].keys, bench.tasks[0].labels, strict=True)}
    pictures = {thumbnail(bench.sets[0], i): key for i, key in enumerate(bench.sets[0].keys)}
    for strip in image_strips({"m": make_model()}, bench, tmp_path / "features"):
        assert not half[pictures[strip.query.source]]
        assert pictures[strip.query.source].split("/")[0].endswith(strip.query.words)  # painted_fence/..., fence
        for neighbour in strip.neighbours["m"]:
            assert half[pictures[neighbour.source]]
            assert neighbour.words


def test_published_figures_name_its_columns(tmp_path: Path) -> None:
    bench = opened(make_states(tmp_path))
    assert len(published_rows([(bench.name, summary.name) for summary in bench.summaries])) == 3


def test_genuine_pictures_and_names(data_root: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if data_root is None:
        pytest.skip("needs genuine MIT-States pictures (XCLR_TEST_DATA)")
    desk(tmp_path, monkeypatch)
    folder = data_root / "benchmarks" / "mit-states"
    bench = opened(folder)
    assert sorted(key.split("/")[0] for key in bench.sets[0].keys) == ["broken_fan", "broken_fence", "painted_fence"]
    assert {task.name: list(task.classes) for task in bench.tasks}["object_seed0"] == ["fan", "fence"]
    # Every published pair, as a folder, is taken apart into a published attribute and object.
    for pair in (folder / "all_pairs.txt").read_text().splitlines():
        picture(tmp_path / "all" / "images" / pair.replace(" ", "_") / "1.jpg", 0, size=8)
    everything = opened(tmp_path / "all")
    classes = {task.name: list(task.classes) for task in everything.tasks}
    assert classes["attribute_seed0"] == sorted((folder / "all_attrs.txt").read_text().split())
    assert classes["object_seed0"] == sorted((folder / "all_objs.txt").read_text().split())
    assert [words.split(":")[0] for words in everything.partial] == ["images"]  # 1,962 pairs, 115 and 245 are right


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no \S*states \(mit-states: release_dataset\.zip"):
        opened(tmp_path / "states")
    (tmp_path / "states.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"states\.zip is no folder: unpack it"):
        opened(tmp_path / "states.zip")
    picture(tmp_path / "states" / "fence" / "1.jpg", 1)
    with pytest.raises(UserError, match="the folder 'fence': folders must be named ADJ_NOUN"):
        opened(tmp_path / "states")
