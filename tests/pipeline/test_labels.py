"""Labels beside captions, in every place where they stand: numbered, named, and used by graphs of classes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.graph.classes import text_classes
from pipeline.sources.datasets import load_dataset
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.make import jpeg
from tests.pipeline.building import build, contents
from tests.pipeline.labelled import ANIMALS, NAMES, labelled, rows, write_table
from tests.pipeline.sources import data_set, images_inside, pictures, write_tar


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [(("yak", "cat", None), ("cat", "yak")), ((10, 9, 10), ("9", "10")), ((3.0, 5.0, None), ("3", "5"))],
)
def test_labels_of_tables(labels: Sequence[Any], classes: tuple[str, ...], suffix: str, tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / f"t.{suffix}", rows(labels))
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind")
    found = labelled(build(mine, tmp_path / "in", tmp_path / "out"))
    assert Manifest.load(tmp_path / "out").classes == classes
    expected = [None if labels[i % 3] is None else str(labels[i % 3]).removesuffix(".0") for i in range(24)]
    assert found == [(f"picture {name}", label) for name, label in zip(NAMES, expected, strict=True)]


def test_rows_of_one_image_agree_on_its_label_or_it_is_left_out(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    second = [row | {"caption": "another", "kind": None if row["image"] != "3.jpg" else "dog"} for row in rows(["cat"])]
    write_table(tmp_path / "in" / "t.csv", [*rows(["cat"]), *second, *rows([" cat "])])
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind")
    found = labelled(build(mine, tmp_path / "in", tmp_path / "out"))
    assert found == [(f"picture {name}\nanother", "cat") for name in NAMES if name != "3.jpg"]
    assert Manifest.load(tmp_path / "out").skipped == {"several labels": 1}


def test_a_column_of_classes_alone_makes_the_captions(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["n02085620", "grey_wolf", None]))
    values = {"format": "table", "label": "kind", "captions": [], "caption": "a drawing of a {class}"}
    mine = data_set(tmp_path / "mine.toml", **values)
    out = build(mine, tmp_path / "in", tmp_path / "out", max_skipped=0.5)
    assert set(labelled(out)) == {("a drawing of a Chihuahua", "Chihuahua"), ("a drawing of a grey wolf", "grey wolf")}
    manifest = Manifest.load(out)
    assert manifest.skipped == {"no label": 8}
    assert manifest.texts == 2
    assert manifest.settings["wnids"] == ["grey_wolf", "n02085620"]  # by which WordNet finds a class
    before = contents(out)
    assert contents(build(mine, tmp_path / "in", out, max_skipped=0.5)) == before  # finished, and known as such


def test_the_exact_column_comes_before_one_that_is_written_otherwise(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    given = [{"image": n, "caption": n, "Kind": "wrong", "kind": ANIMALS[i % 3]} for i, n in enumerate(NAMES)]
    write_table(tmp_path / "in" / "t.csv", given)
    out = build(data_set(tmp_path / "a.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "a")
    assert Manifest.load(out).classes == ANIMALS
    with pytest.raises(UserError, match="has 2 columns KIND; it has image, caption, Kind, kind: rename all but one"):
        build(data_set(tmp_path / "b.toml", format="table", label="KIND"), tmp_path / "in", tmp_path / "b")


@pytest.mark.parametrize("values", [[["1"], ["0"]], [[1], [0]], [True, False], [None, 1.0]])
def test_columns_of_parquet_of_any_type(values: list[Any], tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.parquet", rows(values))
    out = build(data_set(tmp_path / "a.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "a")
    expected = {True: ("False", "True"), None: ("1",)}.get(values[0] if values[0] in (True, None) else 0, ("0", "1"))
    assert Manifest.load(out).classes == expected


def test_a_begun_build_takes_a_mended_data_set_file(tmp_path: Path) -> None:
    """Scans by the old one are made anew."""
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["cat", "dog"]))
    mine = tmp_path / "m.toml"
    with pytest.raises(UserError, match=r"24 unknown label; the last was \S*23.jpg: 'dog'"):
        build(data_set(mine, format="table", label="kind", classes=["kat", "hund"]), tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="24 unknown label"):  # as it was, for another column of the same rows
        build(
            data_set(mine, format="table", label="caption", classes=["kat", "hund"]), tmp_path / "in", tmp_path / "out"
        )
    mended = data_set(mine, format="table", label="kind", captions=["image"])
    assert labelled(build(mended, tmp_path / "in", tmp_path / "out"))[:2] == [("0.jpg", "cat"), ("1.jpg", "dog")]


def test_a_dry_run_tells_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_inside(tmp_path / "in" / "train-0.parquet", [0, 1, -1] * 6, ANIMALS)
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "m.toml", format="table", label="label", captions=[], graph="none")
    told = CliRunner().invoke(app, ["build", "m.toml", "--source", "in", "--dry-run"], catch_exceptions=False).stdout
    assert "33.3% of those looked at are unusable (6 no label): A BUILD MAY STOP FOR IT (--max-skipped 0.05)" in told
    assert re.search(r"labels +2 of 3 classes among those looked at\n", told)
    assert re.search(r"texts +2 to 3\n", told)


@pytest.mark.parametrize("place", ["json", "cls", "parquet", "captions beside"])
def test_labels_of_tars(place: str, tmp_path: Path) -> None:
    rng, members, beside = np.random.default_rng(0), [], []
    for i in range(12):
        key, kind = f"{i:05d}", ("cat", "dog", None)[i % 3]
        members += [(f"{key}.jpg", jpeg(rng)), (f"{key}.txt", f"picture {i}".encode())]
        if place == "json":
            members.append((f"{key}.json", json.dumps({"kind": kind, "caption": ""}).encode()))
        elif place in ("cls", "captions beside") and kind:
            members.append((f"{key}.kind", f"{kind}\n".encode()))
        beside.append({"key": key, "kind": kind, "status": "success"})
    write_tar(tmp_path / "in" / "0.tar", members)
    if place == "parquet":
        pq.write_table(pa.Table.from_pylist(beside), tmp_path / "in" / "0.parquet")
    if place == "captions beside":  # and no labels there
        table = pa.Table.from_pylist(beside).drop_columns(["kind"])
        captions = pa.array([f"picture {i}" for i in range(12)])
        pq.write_table(table.append_column("caption", captions), tmp_path / "in" / "0.parquet")
    mine = data_set(tmp_path / "mine.toml", format="webdataset", label=".kind" if place == "cls" else "kind")
    for layout in ("shuffled", "in-place"):
        out = build(mine, tmp_path / "in", tmp_path / layout, layout=layout)
        expected = [(f"picture {i}", ("cat", "dog", None)[i % 3]) for i in range(12)]
        assert labelled(out) == expected


def test_label_0_of_key_json(tmp_path: Path) -> None:
    rng, members = np.random.default_rng(0), []
    for i in range(12):
        fields = json.dumps({"kind": i % 2, "caption": f"picture {i}"}).encode()
        members += [(f"{i:05d}.jpg", jpeg(rng)), (f"{i:05d}.json", fields)]
    write_tar(tmp_path / "in" / "0.tar", members)
    mine = data_set(tmp_path / "mine.toml", format="webdataset", label="kind", classes=["cat", "dog"])
    found = labelled(build(mine, tmp_path / "in", tmp_path / "out"))
    assert found == [(f"picture {i}", ("cat", "dog")[i % 2]) for i in range(12)]


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (pa.array([1.5, 0.25] * 12, pa.float32()), ("0.25", "1.5")),
        (pa.array([[0.5], [float("nan")]] * 12), ("0.5",)),
        (pa.array([[True], [False]] * 12), ("False", "True")),
        (pa.array(["a", "b"] * 12).dictionary_encode(), ("a", "b")),
    ],
)
def test_a_column_gives_the_same_labels_wherever_images_are(
    column: pa.Array, classes: tuple[str, ...], tmp_path: Path
) -> None:
    made = pictures(tmp_path / "in", NAMES)
    mine = data_set(tmp_path / "m.toml", format="table", label="kind")
    table = pa.table({"image": NAMES, "caption": NAMES, "kind": column})
    pq.write_table(table, tmp_path / "in" / "t.parquet")
    inside = table.set_column(0, "image", pa.array([made[name] for name in NAMES]))
    (tmp_path / "inside").mkdir()
    pq.write_table(inside, tmp_path / "inside" / "t.parquet")
    for source in ("in", "inside"):
        assert Manifest.load(build(mine, tmp_path / source, tmp_path / f"out-{source}")).classes == classes


def test_a_class_graph_of_captions_takes_the_most_frequent_label(tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    given = [{"image": name, "caption": f"text {i % 6}", "kind": ANIMALS[i % 3]} for i, name in enumerate(NAMES)]
    given[0]["kind"], given[1]["kind"] = "dog", None
    write_table(tmp_path / "in" / "t.jsonl", given)
    out = build(data_set(tmp_path / "m.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "out")
    shards = Shards.open(out)
    found = dict(zip(shards.texts(), text_classes(shards), strict=True))
    assert found == {f"text {i}": i % 3 for i in range(6)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label": "breed"}, r'has no column breed; it has image, caption, kind: .* label = "\.\.\."'),
        ({"label": "kind"}, r"none of 24 samples of .* has a label in 'kind'"),
        ({"label": "kind", "captions": []}, "unusable"),
        ({"label": "kind", "classes": ["cat"]}, "two at least"),
        ({"label": "kind", "classes": ["cat", ""]}, "two at least"),
        ({"classes": ["cat", "dog"]}, "say where these stand"),
        ({"captions": []}, "captions = .. makes captions of labels: say where these stand"),
        ({"format": "webdataset", "label": "jpg"}, "label = 'jpg' is the image"),
        ({"format": "coco", "label": "kind"}, "label is of webdataset and table; categories of coco are not read"),
        ({"format": "demo", "label": "kind"}, "label is of webdataset and table; demo has its own"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows([None]))
    with pytest.raises(UserError, match=message):
        build(data_set(tmp_path / "m.toml", **{"format": "table"} | values), tmp_path / "in", tmp_path / "out")


def test_labels_that_may_be_no_classes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", NAMES)
    mine = data_set(tmp_path / "m.toml", format="table", label="kind")
    case, ids = "differ in case alone ('Frog', 'frog')", "looks like a column of ids"
    for number, (labels, told) in enumerate(
        [
            (["Frog", "frog", "toad"], {case}),
            ([*range(13), *[None] * 11], set()),  # too few to say
            ([*range(13), *range(11)], {ids}),
            ([*range(12), *range(12)], set()),
            (["Frog", "frog", *range(22)], {case, ids}),
        ]
    ):
        write_table(tmp_path / "in" / "t.csv", rows(labels))
        build(mine, tmp_path / "in", tmp_path / f"out{number}")
        said = " ".join(capsys.readouterr().err.split())
        assert {one for one in (case, ids) if one in said} == told
    test = data_set(tmp_path / "t.toml", format="table", label="kind", split="test")  # may have few to a class
    build(test, tmp_path / "in", tmp_path / "test")
    assert ids not in " ".join(capsys.readouterr().err.split())
    (tmp_path / "in" / "classes.tsv").write_text("Frog\tfrog\nfrog\tanother frog\n")
    build(mine, tmp_path / "in", tmp_path / "named")
    assert case not in " ".join(capsys.readouterr().err.split())


def test_flickr_lines_hold_no_labels(tmp_path: Path) -> None:
    (tmp_path / "captions.token").write_text("a.jpg#0\tone\n")
    mine = data_set(tmp_path / "m.toml", format="table", files=["*.token"], label="kind")
    with pytest.raises(UserError, match="hold no labels"):
        build(mine, tmp_path, tmp_path / "out")


def test_settings_of_data_sets_without_labels_are_as_they_were(tmp_path: Path) -> None:
    """Shards of earlier versions stay what they are."""
    pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / "t.csv", rows(["cat"]))
    out = build(data_set(tmp_path / "m.toml", format="table"), tmp_path / "in", tmp_path / "out")
    assert not {"label", "classes"} & Manifest.load(out).settings["dataset"].keys()
    assert load_dataset(str(tmp_path / "m.toml")).label == ""
    assert Manifest.load(out).classes == ()


def test_a_test_split_takes_the_test_files(tmp_path: Path) -> None:
    images_inside(tmp_path / "in" / "data" / "train-0.parquet", [0, 1] * 6, ANIMALS)
    images_inside(tmp_path / "in" / "data" / "validation-0.parquet", [1] * 12, ANIMALS)
    values = {"format": "table", "label": "label", "captions": []}
    train = build(data_set(tmp_path / "a.toml", **values), tmp_path / "in", tmp_path / "a")
    test = build(data_set(tmp_path / "a-test.toml", **values, split="test"), tmp_path / "in", tmp_path / "a-test")
    assert [len(set(Shards.open(out).index.label)) for out in (train, test)] == [2, 1]
    images_inside(tmp_path / "in" / "data" / "test-0.parquet", [2] * 12, ANIMALS)
    test = build(data_set(tmp_path / "b-test.toml", **values, split="test"), tmp_path / "in", tmp_path / "b-test")
    assert set(Shards.open(test).index.label) == {2}
