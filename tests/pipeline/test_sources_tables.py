"""Tables of images and captions in every format that is read, and what is wrong with real ones."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.build import build_shards
from pipeline.settings import BuildSettings
from pipeline.sources import find
from pipeline.sources.columns import holds_images
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.pipeline.building import built, grouped
from tests.pipeline.sources import data_set, pictures, write_table, write_tar

NAMES = ("a.jpg", "b.jpg", "sub/c.jpg")
EXPECTED = {"a.jpg": 'one\na "quoted" one', "b.jpg": "two, with a comma", "sub/c.jpg": "drei: ü"}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_table(suffix: str, tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", NAMES)
    write_table(tmp_path / "in" / f"table.{suffix}")
    found = built(data_set(tmp_path / "mine.toml", format="table"), tmp_path / "in", tmp_path / "out")
    assert found == {name: (made[name], EXPECTED[name]) for name in NAMES}


def test_columns_lists_and_folders_of_ones_own(tmp_path: Path) -> None:
    made = pictures(tmp_path / "in" / "pixels", NAMES)
    rows = [{"pic": "a.jpg", "de": ["eins", "zwei"]}, {"pic": "b.jpg", "de": []}, {"pic": "sub/c.jpg", "de": ["drei"]}]
    values = {"format": "table", "image": "pic", "captions": ["DE"], "images": ["nowhere", "pixels"]}
    mine = data_set(tmp_path / "mine.toml", **values)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "t.parquet")
    expected = {"a.jpg": (made["a.jpg"], "eins\nzwei"), "sub/c.jpg": (made["sub/c.jpg"], "drei")}
    assert built(mine, tmp_path / "in", tmp_path / "out", max_skipped=0.5) == expected
    assert Manifest.load(tmp_path / "out").skipped == {"no caption": 1}
    (tmp_path / "in" / "t.parquet").unlink()
    (tmp_path / "in" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert built(mine, tmp_path / "in", tmp_path / "out2", max_skipped=0.5) == expected
    other = data_set(tmp_path / "other.toml", format="table", captions=["en"])
    with pytest.raises(UserError, match=r"t\.jsonl has no column image or path .*it has pic, de: .*image = "):
        built(other, tmp_path / "in", tmp_path / "out3")
    wrong = data_set(tmp_path / "wrong.toml", format="table", image="pic", images=["nowhere"])
    with pytest.raises(UserError, match="has no folder nowhere"):
        built(wrong, tmp_path / "in", tmp_path / "out3")


def test_lists_in_cells_are_several_captions_and_joined_lines_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    mine = data_set(tmp_path / "mine.toml", format="table")
    expected = {"a.jpg": (made["a.jpg"], "one, a\ntwo"), "b.jpg": (made["b.jpg"], "three four")}
    rows = [("a.jpg", "['one, a', 'two']"), ("b.jpg", "three\nfour")]
    for suffix in ("jsonl", "parquet", "csv"):
        write_table(tmp_path / suffix / f"t.{suffix}", rows)
        if suffix == "csv":
            (tmp_path / "csv" / "t.csv").write_text(
                'image,caption\na.jpg,"[""one, a"", ""two""]"\nb.jpg,"three\nfour"\n'
            )
        (tmp_path / suffix / "images").symlink_to(tmp_path / "in")
        assert built(mine, tmp_path / suffix, tmp_path / f"out-{suffix}") == expected
        assert "note: 1 of 3 captions held several lines" in capfd.readouterr().err


def test_many_parts_and_many_tables_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.jpg" for i in range(20)]
    pictures(tmp_path / "in", names)
    rows = [(name, f"{name} for the {i}. time") for i in range(3) for name in names]
    write_table(tmp_path / "in" / "one.csv", rows)
    mine = data_set(tmp_path / "mine.toml", format="table")
    whole = built(mine, tmp_path / "in", tmp_path / "whole")
    assert whole["7.jpg"][1].split("\n") == [f"7.jpg for the {i}. time" for i in range(3)]
    monkeypatch.setattr(find, "TABLE_PART", 200)
    assert len(open_source(load_dataset(mine), str(tmp_path / "in")).partitions) > 5
    assert built(mine, tmp_path / "in", tmp_path / "parts") == whole
    tars = [(tmp_path / out / "train-000000.tar").read_bytes() for out in ("whole", "parts")]
    assert tars[0] == tars[1]
    before = open_source(load_dataset(mine), str(tmp_path / "in")).fingerprint()
    (tmp_path / "in" / "one.csv").rename(tmp_path / "in" / "other.csv")
    assert open_source(load_dataset(mine), str(tmp_path / "in")).fingerprint() != before
    (tmp_path / "in" / "other.csv").unlink()
    for i in range(3):
        write_table(tmp_path / "in" / f"{i}.csv", rows[20 * i : 20 * (i + 1)])
    assert built(mine, tmp_path / "in", tmp_path / "several") == whole


def test_processes_share_one_grouping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.jpg" for i in range(8)]
    pictures(tmp_path / "in", names)
    write_table(tmp_path / "in" / "t.csv", [(name, name) for name in names])
    mine = data_set(tmp_path / "mine.toml", format="table")
    built(mine, tmp_path / "in", tmp_path / "one")
    monkeypatch.setattr(find, "TABLE_PART", 40)
    build_shards(open_source(load_dataset(mine), str(tmp_path / "in")), tmp_path / "two", BuildSettings(), 2)
    tars = [(tmp_path / out / "train-000000.tar").read_bytes() for out in ("one", "two")]
    assert tars[0] == tars[1]


def test_rows_that_lead_nowhere(tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", ["a.jpg", "noext", "odd.php"]) | pictures(tmp_path, ["out.jpg"])
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    (tmp_path / "in" / "sub.jpg").mkdir()
    rows = [
        ("a.jpg", "here"), ("../out.jpg", "beside"), (str(tmp_path / "out.jpg"), "absolute"), ("noext", "x"),
        ("odd.php", "y"), ("http://example.org/a.jpg", "u"), ("s3://b/a.jpg", "u"), ("gone.jpg", "g"), ("", "e"),
        ("pipe.jpg", "p"), ("sub.jpg", "d"), ("x" * 5000, "l"), ("a\0b", "n"), ("file:///etc/passwd", "f"),
    ]  # fmt: skip
    (tmp_path / "in" / "t.jsonl").write_text(
        "".join(json.dumps({"image": i, "text": c}) + "\n" for i, c in rows) + 'no json\n[1]\n\n{"image": 3}\n'
    )
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = built(mine, tmp_path / "in", tmp_path / "out", max_skipped=0.9)
    assert {path: text for path, (_, text) in found.items()} == {
        "a.jpg": "here",
        "../out.jpg": "beside",
        str(tmp_path / "out.jpg"): "absolute",
        "noext": "x",
        "odd.php": "y",
    }
    assert found["noext"][0] == made["noext"]
    assert {next(e for e in s.parts if e not in ("txt", "json")) for s in Shards.open(tmp_path / "out").samples()} == {
        "jpg"
    }
    skipped = {"missing file": 6, "not downloaded": 3, "unreadable row": 2}
    assert Manifest.load(tmp_path / "out").skipped == skipped
    write_table(tmp_path / "lost" / "t.csv", [("", f"caption {i}") for i in range(11)])
    with pytest.raises(UserError, match=r"11 of the first 11 samples are .*11 missing file"):
        built(mine, tmp_path / "lost", tmp_path / "out2")
    pictures(tmp_path / "mute", [f"{i}.jpg" for i in range(11)])
    write_table(tmp_path / "mute" / "t.csv", [(f"{i}.jpg", "") for i in range(11)])
    with pytest.raises(UserError, match=r"11 no caption.*: say which .*columns hold captions") as told:
        built(mine, tmp_path / "mute", tmp_path / "out2")
    assert "below which folders" not in str(told.value)  # no file is missed
    write_table(tmp_path / "few" / "t.csv", [(f"{i}.jpg", "x") for i in range(11)])
    with pytest.raises(
        UserError,
        match=r"11 of the first 11 samples are .*11 missing file.*`images = .*absolute paths.*cut them.*--max-skipped",
    ):
        built(mine, tmp_path / "few", tmp_path / "out2")


def test_spellings_of_a_path_are_one_image(tmp_path: Path) -> None:
    root = tmp_path / "in"
    made = pictures(root, ["b.jpg", "a.jpg", "images/c.jpg"])
    names = ["b.jpg", "./a.jpg", "a.jpg", str(root / "a.jpg"), "c.jpg", f"{root}//images/./c.jpg", "x//gone.jpg",
             "images/../a.jpg", "http://x//a.jpg", "http://x/a.jpg"]  # fmt: skip
    write_table(root / "t.jsonl", [(name, f"caption {i}") for i, name in enumerate(names)])
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = built(mine, root, tmp_path / "out")
    assert found == {
        "b.jpg": (made["b.jpg"], "caption 0"),
        "./a.jpg": (made["a.jpg"], "caption 1\ncaption 2\ncaption 3"),
        "c.jpg": (made["images/c.jpg"], "caption 4\ncaption 5"),
        "images/../a.jpg": (made["a.jpg"], "caption 7"),
    }
    assert Manifest.load(tmp_path / "out").skipped == {"missing file": 1, "not downloaded": 2}
    assert sorted(Shards.open(tmp_path / "out").index.key.to_pylist()) == [f"{i:08d}" for i in (0, 1, 2, 4)]


def test_captions_that_are_not_utf8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", ["a.jpg"])
    mine = data_set(tmp_path / "mine.toml", format="table")
    (tmp_path / "in" / "t.csv").write_bytes(b'image,caption\na.jpg,"caf\xe9\n au lait"\n')
    assert built(mine, tmp_path / "in", tmp_path / "out")["a.jpg"][1] == "caf\ufffd au lait"
    assert "note: 1 of 1 captions held bytes that are no UTF-8" in capfd.readouterr().err
    (tmp_path / "in" / "t.csv").unlink()
    (tmp_path / "in" / "t.jsonl").write_bytes(b'{"file_name": "a.jpg", "title": "half \\ud83d of it"}\n')
    assert built(mine, tmp_path / "in", tmp_path / "out2")["a.jpg"][1] == "half ? of it"


def test_flickr30k_as_kaggle_has_it(tmp_path: Path) -> None:
    made = pictures(tmp_path / "flickr30k_images" / "flickr30k_images", ["1.jpg", "2.jpg"])
    (tmp_path / "flickr30k_images" / "results.csv").write_text(
        "image_name| comment_number| comment\n"
        '1.jpg| 0| Two men , one says " hi .\n1.jpg| 1| Two "friends" .\n'
        "2.jpg| 0| A dog\n2.jpg| 4   A dog runs across the grass .\n"
    )
    found = built("flickr30k", tmp_path, tmp_path / "out")
    assert found["1.jpg"] == (made["1.jpg"], 'Two men , one says " hi .\nTwo "friends" .')
    assert found["2.jpg"] == (made["2.jpg"], "A dog")
    assert Manifest.load(tmp_path / "out").skipped == {"unreadable row": 1}


@pytest.mark.parametrize("name", ["results_20130124.token", "captions.txt"])
def test_flickrs_other_files(name: str, tmp_path: Path) -> None:
    made = pictures(tmp_path / "Images", ["1_a.jpg", "2_b.jpg"])
    text = "1_a.jpg#0\tA man , a plan .\n1_a.jpg#1\tA canal\n2_b.jpg#0\t# 1 dog\n"
    if name == "captions.txt":
        text = 'image,caption\n1_a.jpg,"A man , a plan ."\n1_a.jpg,A canal\n2_b.jpg,# 1 dog\n'
    (tmp_path / name).write_text(text)
    found = built("flickr30k", tmp_path, tmp_path / "out")
    assert found == {
        "1_a.jpg": (made["1_a.jpg"], "A man , a plan .\nA canal"),
        "2_b.jpg": (made["2_b.jpg"], "# 1 dog"),
    }
    token = tmp_path / "Flickr8k.token.txt"
    token.write_text("1_a.jpg#0\tA man\n")
    mine = data_set(tmp_path / "mine.toml", format="table", images=["Images"])
    assert built(mine, token, tmp_path / "out2") == {"1_a.jpg": (made["1_a.jpg"], "A man")}


def coco(root: Path, images: str, name: str = "captions_train2017.json") -> dict[str, bytes]:
    made = pictures(root / images, ["000009.jpg", "000025.jpg", "000030.jpg"])
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": 1} for i in (25, 9, 30)],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": "nine "},
            {"id": 2, "image_id": 25, "caption": "A giraffe.\n"},
            {"id": 3, "image_id": 9, "caption": "also nine"},
            {"id": 4, "image_id": 4, "caption": "of no image"},
        ],
    }
    path = root / "annotations" / name
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return made


@pytest.mark.parametrize("images", ["train2017", "images/train2017", "images"])
def test_coco(images: str, tmp_path: Path) -> None:
    made = coco(tmp_path, images)
    found = built("coco-captions", tmp_path, tmp_path / "out")
    assert found == {
        "000025.jpg": (made["000025.jpg"], "A giraffe."),
        "000009.jpg": (made["000009.jpg"], "nine\nalso nine"),
    }
    assert Manifest.load(tmp_path / "out").skipped == {"no caption": 1, "unreadable row": 1}
    again = built("coco-captions", tmp_path / "annotations" / "captions_train2017.json", tmp_path / "out2")
    assert again == found
    mine = data_set(tmp_path / "mine.toml", format="table", files=["annotations/*.json"])
    with pytest.raises(UserError, match=r'is no list of objects: COCO.*format = "coco"'):
        built(mine, tmp_path, tmp_path / "out3")


def test_parquet_with_images_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{i}.png" for i in range(9)]
    made = pictures(tmp_path / "p", names)
    cells = [{"bytes": made[name], "path": name} for name in names] + [{"bytes": None, "path": "gone.png"}]
    table = pa.table({"image": cells, "caption": [[name, "pic"] for name in names] + [["gone"]]})
    (tmp_path / "in" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "in" / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    pq.write_table(table, tmp_path / "in" / "data" / "test-00000-of-00001.parquet")
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = built(mine, tmp_path / "in", tmp_path / "out")
    assert found == {name: (made[name], f"{name}\npic") for name in names}
    assert Manifest.load(tmp_path / "out").skipped == {"no image": 1}
    monkeypatch.setattr(find, "GROUP_PART", 1)
    assert len(open_source(load_dataset(mine), str(tmp_path / "in")).partitions) == 5
    assert built(mine, tmp_path / "in", tmp_path / "parts") == found

    plain = pa.table({"jpg": [made[name] for name in names], "txt": names})
    pq.write_table(plain, tmp_path / "plain.parquet")
    other = data_set(tmp_path / "other.toml", format="table", image="jpg", captions=["txt"])
    build_shards(open_source(load_dataset(other), str(tmp_path / "plain.parquet")), tmp_path / "o", BuildSettings(), 1)
    assert {s.parts["jpg"] for s in Shards.open(tmp_path / "o").samples()} == set(made.values())
    with pytest.raises(UserError, match=r"layout in-place needs tars, and .* has none"):
        built(mine, tmp_path / "in", tmp_path / "no", layout="in-place")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv is empty: expected a header line"),
        ("t.csv", b"\xef\xbb\xbf\r\n;;\r\n", "t.csv is empty: expected a header line"),
        ("t.csv", b"a|b;c\na|b;c\n", r"t\.csv has no column image or .*; it has a, b;c: name one"),
        ("t.csv", b"just words\n", r"has one column, 'just words': expected a header line"),
        ("t.csv", b"image,words\n", "no column caption or captions or text"),
        ("t.csv", b"image,caption\n", "no usable sample"),
        ("t.json", b"{torn", r"cannot read .*t\.json as a table"),
        ("t.json", b'{"image": {"0": "a.jpg"}}', r'no list of objects \(pandas: orient="records"\)'),
        ("t.json", b"[" * 100_000, r"cannot read .*t\.json as a table"),
        ("t.jsonl", b"", "no usable sample"),
        ("t.parquet", b"PAR1 not", r"cannot read .*t\.parquet as parquet"),
        ("t.csv", "image,caption\na.jpg,a\n".encode("utf-16"), r"t\.csv is UTF-16: save it as UTF-8"),
        ("t.csv", "image,légende\na.jpg,a\n".encode("latin1"), r"t\.csv is not UTF-8: save it as that"),
        ("t.csv", gzip.compress(b"image,caption\na.jpg,a\n", mtime=0), r"t\.csv is compressed \(gzip\): unpack it"),
        ("t.jsonl", gzip.compress(b"{}", mtime=0), r"t\.jsonl is compressed \(gzip\): unpack it"),
        ("t.xlsx", b"", r"holds no file like .* or \*\.csv or"),
    ],
)
def test_tables_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        built(data_set(tmp_path / "mine.toml", format="table"), tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or "no usable" in str(error.value)


def test_images_in_base64_are_called_so_in_few_words(tmp_path: Path) -> None:
    made = pictures(tmp_path / "p", [f"{i}.jpg" for i in range(11)])
    cells = [base64.b64encode(content).decode() for content in made.values()]
    write_table(tmp_path / "in/t.csv", [(cell, "x") for cell in cells])
    mine = data_set(tmp_path / "mine.toml", format="table")
    with pytest.raises(
        UserError, match=rf"the last was {re.escape(cells[-1][:50])}\.\.\..*\(base64, it seems: write"
    ) as told:
        built(mine, tmp_path / "in", tmp_path / "out")
    assert len(str(told.value)) < 700 + len(str(tmp_path))
    lines = (tmp_path / "out/.work/skipped.jsonl").read_text().splitlines()
    assert max(map(len, lines)) < 250
    (tmp_path / "in/t.csv").write_text(f"{cells[0]},a caption\n")
    with pytest.raises(UserError, match=rf"it has {re.escape(cells[0][:60])}, a caption: name one"):
        built(mine, tmp_path / "in", tmp_path / "out")


def test_a_table_of_urls_is_called_so(tmp_path: Path) -> None:
    write_table(tmp_path / "in/t.csv", [*((f"http://x/{i}.jpg", "a") for i in range(60)), ("gone.jpg", "b")])
    mine = data_set(tmp_path / "mine.toml", format="table")
    with pytest.raises(UserError, match=r"^60 of 61 images that .*in names are URLs, .*img2dataset.*= .webdataset"):
        built(mine, tmp_path / "in", tmp_path / "out")
    write_table(tmp_path / "in/t.csv", [("http://x/a.jpg", "a"), ("gone.jpg", "b")])
    with pytest.raises(UserError, match=r"no usable sample \(1 missing file, 1 not downloaded\)"):
        built(mine, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "start"), [("t.xlsx", b"PK\3\4"), ("t.ODS", b"PK\3\4"), ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")]
)
def test_spreadsheets_are_called_so(name: str, start: bytes, tmp_path: Path) -> None:
    made = pictures(tmp_path, ["a.jpg"])
    (tmp_path / name).write_bytes(start + bytes(100))
    mine = data_set(tmp_path / "mine.toml", format="table", files=[name])
    with pytest.raises(UserError, match=rf"{name} is a spreadsheet: save it as CSV"):
        built(mine, tmp_path, tmp_path / "out")
    (tmp_path / name).write_text("image\tcaption\na.jpg\tone\n")
    assert built(mine, tmp_path, tmp_path / "out") == {"a.jpg": (made["a.jpg"], "one")}


def test_coco_images_without_an_id_of_their_own_are_counted(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(4)]
    pictures(tmp_path / "train1", names)
    images: list[Any] = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    images += [{"id": 2, "file_name": "3.jpg"}, {"file_name": "3.jpg"}, {"id": [1], "file_name": "3.jpg"}, 3, {"id": 9}]
    captions: list[Any] = [{"image_id": i, "caption": f"number {i}"} for i in range(4)]
    captions += [{"image_id": [1], "caption": "x"}, {"caption": "x"}, "x"]
    (tmp_path / "captions_train1.json").write_text(json.dumps({"images": images, "annotations": captions}))
    found = built(data_set(tmp_path / "mine.toml", format="coco"), tmp_path, tmp_path / "out")
    assert {name: text for name, (_, text) in found.items()} == {name: f"number {name[0]}" for name in names}
    assert Manifest.load(tmp_path / "out").skipped == {"unreadable row": 8}


def test_a_missing_file_is_named_with_the_place_that_was_tried(tmp_path: Path) -> None:
    write_table(tmp_path / "in" / "t.csv", [(f"{i}.jpg", "a") for i in range(20)])
    with pytest.raises(UserError, match=r"20 missing file; the last was .*in/19\.jpg\), over the budget"):
        built(data_set(tmp_path / "mine.toml", format="table"), tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "good", "bad", "shown"),
    [
        ("t.csv", "image,caption\n{},a\n", b"x,b,c\n", "'x,b,c'"),
        ("t.jsonl", '{{"image": "{}", "caption": "a"}}\n', b"{torn\n", r"line 13 \('{torn'\)"),
        ("Flickr8k.token.txt", "{}#0\ta\n", b"torn\n", r"line 13 \('torn'\)"),
    ],
)
def test_a_row_that_cannot_be_read_is_shown(tmp_path: Path, name: str, good: str, bad: bytes, shown: str) -> None:
    pictures(tmp_path / "in", ["a.jpg"])
    (tmp_path / "in" / name).write_bytes(good.format("a.jpg").encode() + bad * 12)
    mine = data_set(tmp_path / "mine.toml", format="table", files=[name])
    with pytest.raises(UserError, match=rf"12 unreadable row; the last was {shown}\)"):
        built(mine, tmp_path / "in", tmp_path / "out")


def test_a_sample_without_a_caption_is_named(tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", [f"{i}.jpg" for i in range(12)])
    write_table(tmp_path / "in" / "t.jsonl", [(name, "") for name in made])
    mine = data_set(tmp_path / "mine.toml", format="table")
    with pytest.raises(UserError, match=r"12 no caption; the last was \S*in/11\.jpg\)"):
        built(mine, tmp_path / "in", tmp_path / "out")
    write_tar(tmp_path / "tars" / "0.tar", [(f"k{name}", content) for name, content in made.items()])
    with pytest.raises(UserError, match=r"12 no caption; the last was k11 of 0\.tar\)"):
        built("flickr8k", tmp_path / "tars", tmp_path / "out2")


def test_coco_files_that_are_none(tmp_path: Path) -> None:
    mine = data_set(tmp_path / "mine.toml", format="coco")
    for content in ({}, [], {"images": {}, "annotations": []}, {"images": [], "annotations": 3}):
        (tmp_path / "captions_train1.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"is no COCO .*file"):
            built(mine, tmp_path, tmp_path / "out")


def test_cocos_detections_are_no_captions(tmp_path: Path) -> None:
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 1, 1]}]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": boxes, "categories": [{"id": 3}]}
    (tmp_path / "captions_train1.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="hold no captions, and categories are not read as labels"):
        built(data_set(tmp_path / "mine.toml", format="coco"), tmp_path, tmp_path / "out")


def test_bytes_of_any_kind_are_images() -> None:
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.struct([("bytes", pa.binary())])):
        assert holds_images(kind)
    assert not holds_images(pa.string())


def test_rows_of_json_need_not_all_have_a_caption(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"image": "a.jpg"}\n{"image": "b.jpg", "caption": "b"}\n')
    assert grouped(path) == {"a.jpg": [], "b.jpg": ["b"]}
    path.write_text('{"image": "a.jpg"}\n' * 2)
    with pytest.raises(UserError, match="has no column caption"):
        grouped(path)
