"""Classes of labels: their numbers, names and captions, by whomever they are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from timm.data import ImageNetInfo

from pipeline.sources.class_names import class_names
from pipeline.sources.datasets import load_dataset
from pipeline.sources.labels import Labels
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.make import jpeg
from tests.pipeline.building import build
from tests.pipeline.labelled import ANIMALS, NAMES, labelled, rows, write_table
from tests.pipeline.sources import data_set, images_inside, pictures, write_tar


def test_classes_tsv_names_labels_and_other_names_are_another_build(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows([7, 2]))
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind", captions=[])
    (tmp_path / "in" / "classes.tsv").write_text("7\tgoldfish, Carassius auratus\n")
    out = build(mine, tmp_path / "in", tmp_path / "out")
    assert Manifest.load(out).classes == ("2", "goldfish, Carassius auratus")
    assert {text for text, _ in labelled(out)} == {"a photo of a 2", "a photo of a goldfish"}
    (tmp_path / "in" / "classes.tsv").unlink()
    with pytest.raises(UserError, match="other class names"):
        build(mine, tmp_path / "in", out)


def test_names_that_a_parquet_file_carries(tmp_path: Path) -> None:
    names = ("cat", "dog", "sea_lion")
    images_inside(tmp_path / "in" / "train-0.parquet", [2, 0, -1, 2] * 6, names)  # no dog, and some unknown
    captioned = data_set(tmp_path / "mine.toml", format="table", label="label", captions=[])
    out = build(captioned, tmp_path / "in", tmp_path / "out", max_skipped=0.5)
    manifest = Manifest.load(out)
    assert (manifest.classes, manifest.skipped) == (("cat", "dog", "sea lion"), {"no label": 6})
    lion, cat = ("a photo of a sea lion", "sea lion"), ("a photo of a cat", "cat")
    assert labelled(out)[:3] == [lion, cat, lion]
    assert sorted(set(Shards.open(out).index.label)) == [0, 2]  # the numbers that the data set's authors gave
    with pytest.raises(UserError, match=r'captions = \["\.\.\."\], or captions = \[\] for captions made of the labels'):
        build(data_set(tmp_path / "b.toml", format="table", label="label"), tmp_path / "in", tmp_path / "b")


def test_files_that_name_different_classes(tmp_path: Path) -> None:
    images_inside(tmp_path / "in" / "train-0.parquet", [0, 1] * 6, ANIMALS)
    images_inside(tmp_path / "in" / "train-1.parquet", [0, 1] * 6, ANIMALS[:2])
    values = {"format": "table", "label": "label", "captions": []}
    with pytest.raises(UserError, match=r"number their classes differently, .* classes = \[\.\.\.\] .*, by the names"):
        build(data_set(tmp_path / "a.toml", **values), tmp_path / "in", tmp_path / "a")
    with pytest.raises(UserError, match="number their classes differently"):  # other words do not say which is which
        build(data_set(tmp_path / "b.toml", **values, classes=["ape", "bee", "cow"]), tmp_path / "in", tmp_path / "b")
    with pytest.raises(UserError, match=r"calls a class 'yak', which classes = \[\.\.\.\] of the data set file lacks"):
        build(data_set(tmp_path / "c.toml", **values, classes=["cat", "dog"]), tmp_path / "in", tmp_path / "c")


def test_each_files_numbers_are_read_by_its_own_names(tmp_path: Path) -> None:
    """Two files of one split that number the same classes in another order, and one that knows fewer of them."""
    for number, names in enumerate((["cat", "dog", "yak"], ["yak", "dog", "cat"], ["dog", "cat"])):
        images_inside(tmp_path / "in" / f"train-{number}.parquet", [0, 1] * 6, names)
    values = {"format": "table", "label": "label", "captions": []}
    out = build(
        data_set(tmp_path / "m.toml", **values, classes=["yak", "cat", "dog"]), tmp_path / "in", tmp_path / "out"
    )
    assert Manifest.load(out).classes == ("yak", "cat", "dog")
    expected = ["cat", "dog"] * 6 + ["yak", "dog"] * 6 + ["dog", "cat"] * 6
    assert labelled(out) == [(f"a photo of a {name}", name) for name in expected]


def test_a_file_without_names_beside_one_that_has_the_data_set_files(tmp_path: Path) -> None:
    for number, names in enumerate((["cat", "dog"], None)):
        images_inside(tmp_path / "in" / f"train-{number}.parquet", [0, 1] * 6, names)
    values = {"format": "table", "label": "label", "captions": []}
    out = build(data_set(tmp_path / "m.toml", **values, classes=["cat", "dog"]), tmp_path / "in", tmp_path / "out")
    assert [label for _, label in labelled(out)] == ["cat", "dog"] * 12
    with pytest.raises(UserError, match="or not all name them"):
        build(data_set(tmp_path / "n.toml", **values), tmp_path / "in", tmp_path / "other")


def test_numbers_are_numbers_though_classes_are_called_by_others(tmp_path: Path) -> None:
    """As ClassLabel has it; a list of one's own that could be read either way is refused."""
    images_inside(tmp_path / "in" / "train-0.parquet", [0, 1, 2] * 4, ["2", "3", "1"])
    values = {"format": "table", "label": "label", "captions": []}
    out = build(data_set(tmp_path / "m.toml", **values), tmp_path / "in", tmp_path / "out")
    assert [label for _, label in labelled(out)] == ["2", "3", "1"] * 4
    for names in (["1", "2"], ["-1", "0"], ["1.0", "2.0"]):
        with pytest.raises(UserError, match=r"would be taken for number -?\d: leave classes out"):
            load_dataset(data_set(tmp_path / "n.toml", **values, classes=names))


def test_long_labels_are_not_cut_into_one(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["x" * 1500 + "a", "x" * 1500 + "b"]))
    out = build(data_set(tmp_path / "a.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "a")
    assert len(Manifest.load(out).classes) == 2


def test_names_that_differ_by_an_underscore_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["big_dog", "big dog", "old_cat", "nan"]))
    out = build(data_set(tmp_path / "a.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "a")
    assert Manifest.load(out).classes == ("big dog", "big_dog", "nan", "old cat")
    told = " ".join(capsys.readouterr().err.split())
    assert "'nan' is a class like any other; if it says that there is no label, leave that empty" in told


def test_paths_and_carried_names(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    table = pa.Table.from_pylist(rows([1, 0]))
    features = {"kind": {"_type": "ClassLabel", "names": ["one", "two"]}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(meta), tmp_path / "in" / "t.parquet")
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind")
    found = labelled(build(mine, tmp_path / "in", tmp_path / "out"))
    assert [label for _, label in found[:3]] == ["two", "one", "two"]


def test_names_in_the_data_set_file_by_number_or_by_name(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["dog", 0, -1, 3, "emu", ""]))
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind", classes=ANIMALS)
    out = build(mine, tmp_path / "in", tmp_path / "out", max_skipped=0.5)
    assert [label for _, label in labelled(out)[:4]] == ["dog", "cat", None, None]
    assert Manifest.load(out).skipped == {"unknown label": 8}
    assert Manifest.load(out).classes == ANIMALS


def test_a_label_with_commas_is_one_name(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.jsonl", rows(["dog, small", "cat, large", "_"]))
    mine = data_set(tmp_path / "m.toml", format="table", label="kind", captions=[])
    out = build(mine, tmp_path / "in", tmp_path / "out")
    assert {text for text, _ in labelled(out)} == {f"a photo of a {name}" for name in ("dog, small", "cat, large", "_")}


def test_classes_tsv_beside_tars_of_a_glob(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    members = [pair for i in range(12) for pair in ((f"{i}.jpg", jpeg(rng)), (f"{i}.cls", str(i % 2).encode()))]
    write_tar(tmp_path / "in" / "0.tar", members)
    (tmp_path / "in" / "classes.tsv").write_text("0\tcat\n1\tdog\n")
    mine = data_set(tmp_path / "m.toml", format="webdataset", label="cls", captions=[])
    for number, where in enumerate(("in", "in/0.tar", "in/*.tar")):
        assert Manifest.load(build(mine, tmp_path / where, tmp_path / str(number))).classes == ("cat", "dog")


def test_two_classes_of_one_text_are_told_apart(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows([0, 1]))
    values = {"format": "table", "label": "kind", "captions": []}
    out = build(data_set(tmp_path / "a.toml", **values, classes=["crane", "crane"]), tmp_path / "in", tmp_path / "a")
    assert {text for text, _ in labelled(out)} == {"a photo of a crane, 0", "a photo of a crane, 1"}
    with pytest.raises(UserError, match=r"classes '0' and '1' are both 'a photo of a b c': name them apart"):
        build(data_set(tmp_path / "b.toml", **values, classes=["b c", "b  c"]), tmp_path / "in", tmp_path / "b")


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        ((), [True], ("True", "")),
        ((), [float("nan"), None, " ", {}, 4], ("4", "")),
        ((), [["a"], "a", b" a "], ("a", "")),
        ((), ["a", "b"], ("'a', 'b'", "several labels")),
        ((), ["['a', 'b']"], ("'a', 'b'", "several labels")),
        ((), ["[7]", "[x]"[1:2]], ("'7', 'x'", "several labels")),
        ((), ["[x]"], ("[x]", "")),
        ((), ['["it\'s"]'], ("it's", "")),
        ((), ["['a' 'b']"], ("'a', 'b'", "several labels")),
        ((), ["-1"], ("-1", "")),
        (ANIMALS, ["-1"], ("", "")),
        (ANIMALS, ["yak", 2, "2.0"], ("2", "")),
        (ANIMALS, [3], ("'3'", "unknown label")),
        (("crane", "crane"), ["crane"], ("'crane'", "unknown label")),
        (("crane", "crane"), [1], ("1", "")),
        (("e\u0301a", "b  c"), ["\u00e9a"], ("0", "")),  # however a name is composed
        (("0", "cat"), [0], ("0", "")),
        (("1", "0"), [0], ("0", "")),  # a number before a name
        (ANIMALS, ["²"], ("'²'", "unknown label")),
        (ANIMALS, ["9" * 5000], ("9" * 60, "label of too many characters")),
    ],
)
def test_one_label(names: tuple[str, ...], values: list[object], expected: tuple[str, str]) -> None:
    assert Labels(names).one(values) == expected


def test_classes_named_by_wordnet_ids_are_those_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`imagenet-wds` has the texts of `imagenet`: its numbers are ImageNet's, in the order of the folders."""
    rng, dataset = np.random.default_rng(0), load_dataset("imagenet-wds")
    assert list(dataset.classes) == ImageNetInfo("imagenet-1k").label_names()
    members = []
    for i, number in enumerate((134, 517, 0) * 4):  # both cranes
        members += [(f"{i:03d}.jpg", jpeg(rng)), (f"{i:03d}.cls", str(number).encode())]
    write_tar(tmp_path / "in" / "imagenet1k-train-0000.tar", members)
    write_tar(tmp_path / "in" / "imagenet1k-validation-0000.tar", members)
    out = build("imagenet-wds", tmp_path / "in", tmp_path / "out")
    manifest = Manifest.load(out)
    assert (manifest.samples, manifest.texts, len(manifest.classes)) == (12, 3, 1000)
    assert manifest.settings["wnids"] == list(dataset.classes)
    folders = class_names(dataset.classes, {}, dataset.caption)
    assert labelled(out)[:3] == [(folders[n].caption, folders[n].name) for n in (134, 517, 0)]
    assert "captions are numbers" not in capsys.readouterr().err


def test_captions_that_are_mere_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_inside(tmp_path / "in" / "train-0.parquet", [0, 1] * 6, None)
    mine = data_set(tmp_path / "m.toml", format="table", label="label", captions=[])
    build(mine, tmp_path / "in", tmp_path / "out")
    told = " ".join(capsys.readouterr().err.split())
    assert "captions are numbers, such as 'a photo of a 1', which say nothing" in told


def test_class_folders_that_are_numbers_or_twins_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", ["train/0/a.jpg", "train/17/b.jpg"])
    pictures(tmp_path / "named", ["cat/a.jpg", "Cat/b.jpg", "17/c.jpg"])
    mine = data_set(tmp_path / "m.toml", format="imagefolder", graph="none")
    build(mine, tmp_path / "in", tmp_path / "out")
    numbers = "captions are numbers, such as 'a photo of a 17', which say nothing"
    assert numbers in " ".join(capsys.readouterr().err.split())
    (tmp_path / "in" / "classes.tsv").write_text("0\tlion\n17\tgoose\n")
    build(mine, tmp_path / "in", tmp_path / "mended")
    build(mine, tmp_path / "named", tmp_path / "third")
    told = " ".join(capsys.readouterr().err.split())
    assert "captions are numbers" not in told
    assert "class folders that differ in case alone ('Cat', 'cat') are classes of their own" in told
