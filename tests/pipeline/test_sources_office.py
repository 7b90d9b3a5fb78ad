"""Tables as offices, shops and other systems write them: columns in several languages, spreadsheets' habits, and paths
that lead to a file but for how they are spelt."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.benchmarks.registry import open_bench
from pipeline.images import kind
from pipeline.sources.datasets import Dataset
from pipeline.sources.source import Source
from pipeline.sources.tables import find_image, grouped_rows
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.pipeline.building import build, built
from tests.pipeline.sources import data_set, pictures, write_table, write_tar
from trainer.augment import decode

TITLES = [
    {"image": "a.jpg", "fr": "chat", "de": "Katze", "en": "cat"},
    {"image": "b.jpg", "fr": "", "de": "Hund", "en": "dog"},
    {"image": "c.jpg", "fr": "  ", "de": "", "en": "owl"},
    {"image": "d.jpg", "fr": None, "de": None, "en": "yak"},
]
FIRST = {"a.jpg": "chat", "b.jpg": "Hund", "c.jpg": "owl", "d.jpg": "yak"}


def texts(found: dict[str, tuple[bytes, str]]) -> dict[str, str]:
    return {path: text for path, (_, text) in found.items()}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "sparse.jsonl", "parquet", "lists.parquet", "inside.parquet"])
def test_of_several_caption_columns_each_row_takes_the_first_that_is_not_empty(kind: str, tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", list(FIRST))
    table, rows = tmp_path / "in" / f"t.{kind}", [dict(row) for row in TITLES]
    if kind == "csv":
        lines = [",".join(cell or "" for cell in row.values()) for row in rows]
        table.write_text("\n".join(["image,FR,de,en", *lines, ""]))
    elif kind.endswith("jsonl"):
        if kind == "sparse.jsonl":  # the first row lacks the column that the last needs
            rows = [{key: value for key, value in row.items() if key == "image" or key == lang} for row, lang in
                    zip(rows, ("fr", "de", "en", "en"), strict=True)]  # fmt: skip
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        for row in rows if kind == "lists.parquet" else []:
            row["de"] = [row["de"], row["de"]] if row["de"] else []  # type: ignore[assignment]
        for row in rows if kind == "inside.parquet" else []:
            row["image"] = {"bytes": made[str(row["image"])], "path": row["image"]}  # type: ignore[assignment]
        pq.write_table(pa.Table.from_pylist(rows), table)
    mine = data_set(tmp_path / "mine.toml", format="table", captions=["es", "fr", "de", "en"])
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == FIRST
    assert Manifest.load(tmp_path / "out").skipped == {}


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "inside.parquet"])
def test_a_caption_column_that_is_not_there_is_told(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = pictures(tmp_path / "in", ["a.jpg"])
    table, rows = tmp_path / "in" / f"t.{kind}", [{"image": "a.jpg", "de": "Katze", "En": "cat"}]
    if kind == "csv":
        table.write_text("image,de,En\na.jpg,Katze,cat\n")
    elif kind == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        images = [{"bytes": made["a.jpg"], "path": "a.jpg"}] if kind == "inside.parquet" else ["a.jpg"]
        pq.write_table(pa.table({"image": images, "de": ["Katze"], "En": ["cat"]}), table)
    mine = data_set(tmp_path / "mine.toml", format="table", captions=["ed", "de", "en"])
    assert texts(built(mine, tmp_path / "in", tmp_path / "out"))["a.jpg"] == "Katze"
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("has no column") == 1
    assert f"t.{kind} has no column ed: its captions are of de, En alone" in told


def test_the_order_of_caption_columns_is_not_that_of_their_first_rows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    rows = [{"image": "a.jpg", "En": "cat"}, {"image": "b.jpg", "En": "dog", "de": "Hund"}]
    (tmp_path / "in" / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = data_set(tmp_path / "mine.toml", format="table", captions=["de", "en"])
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == {"a.jpg": "cat", "b.jpg": "Hund"}
    assert "has no column" not in capfd.readouterr().err


def test_a_caption_column_that_many_tables_lack_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", [f"{number}.jpg" for number in range(4)])
    for number in range(4):
        (tmp_path / "in" / f"{number}.csv").write_text(
            f"image,{'de' if number else 'en'}\n{number}.jpg,{number} cats\n"
        )
    mine = data_set(tmp_path / "mine.toml", format="table", files=["*.csv"], captions=["de", "en"])
    assert len(texts(built(mine, tmp_path / "in", tmp_path / "out"))) == 4
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("has no column") == 2
    assert "0.csv has no column de: its captions are of en alone" in told
    assert "1.csv has no column en (3 of 4 tables): its captions are of de alone" in told


@pytest.mark.parametrize(
    "empty",
    ["[]", "[ ]", '"[""""]"', "['']", '" "', " " * 90, "\u3000", '"[""nan""]"', "\u00a0", " NaN", "#N/A", "?", "-1"],
)
def test_a_cell_that_says_nothing_is_an_empty_cell(tmp_path: Path, empty: str) -> None:
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    (tmp_path / "in" / "t.csv").write_text(f"image,de,en\na.jpg,{empty},cat\nb.jpg,\"['Hund']\",dog\n", "utf-8")
    mine = data_set(tmp_path / "mine.toml", format="table", captions=["de", "en"])
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == {"a.jpg": "cat", "b.jpg": "Hund"}


@pytest.mark.parametrize("empty", [None, "", " \u00a0\u200a", "n/a", "NULL", ["nan", ""], []])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar", "tar with json"])
def test_cells_that_say_nothing_are_empty_in_every_kind_of_source(tmp_path: Path, kind: str, empty: object) -> None:
    dog = ["Hund"] if isinstance(empty, list) else "Hund"
    rows = {"a": {"de": empty, "en": "cat"}, "b": {"de": dog, "en": "dog"}}
    made = pictures(tmp_path / ("in" if kind == "jsonl" else "other"), ["a.jpg", "b.jpg"])
    (tmp_path / "in").mkdir(exist_ok=True)
    if kind == "jsonl":
        lines = [json.dumps({"image": f"{key}.jpg", **row}) for key, row in rows.items()]
        (tmp_path / "in" / "t.jsonl").write_text("\n".join(lines))
    elif kind == "parquet":
        inside = [{**row, "image": {"bytes": made[f"{key}.jpg"], "path": f"{key}.jpg"}} for key, row in rows.items()]
        pq.write_table(pa.Table.from_pylist(inside), tmp_path / "in" / "t.parquet")
    else:
        members = [(f"{key}.jpg", made[f"{key}.jpg"]) for key in rows]
        if kind == "tar with json":
            members = [
                one
                for key in rows
                for one in ((f"{key}.jpg", made[f"{key}.jpg"]), (f"{key}.json", json.dumps(rows[key]).encode()))
            ]
        else:
            pq.write_table(
                pa.Table.from_pylist([{"key": key, **row} for key, row in rows.items()]), tmp_path / "in" / "t.parquet"
            )
        write_tar(tmp_path / "in" / "t.tar", members)
    mine = data_set(
        tmp_path / "mine.toml", format="webdataset" if kind.startswith("tar") else "table", captions=["de", "en"]
    )
    build(mine, tmp_path / "in", tmp_path / "out")
    assert sorted(Shards.open(tmp_path / "out").texts()) == ["Hund", "cat"]


def test_columns_that_are_called_as_captions_are_do_not_fill_in_for_each_other(tmp_path: Path) -> None:
    """Nobody has asked for the second."""
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    (tmp_path / "in" / "t.csv").write_text("image,caption,comment\na.jpg,a cat,x\nb.jpg,,to be checked\n")
    mine = data_set(tmp_path / "mine.toml", format="table")
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == {"a.jpg": "a cat"}


@pytest.mark.parametrize(("mark", "quoted"), [(";", '"two; 2"'), (",", '"two\nlines"'), ("\t", "two")])
def test_a_line_that_names_the_separator_is_no_header(tmp_path: Path, mark: str, quoted: str) -> None:
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    rows = [f"sep={mark}", f"image{mark}caption", f"a.jpg{mark}{quoted}", f"b.jpg{mark}one"]
    (tmp_path / "in" / "t.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, ""]).encode())
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = texts(built(mine, tmp_path / "in", tmp_path / "out"))
    assert found == {"a.jpg": " ".join(quoted.strip('"').split()), "b.jpg": "one"}


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("sub\\deeper\\a.jpg", "sub/deeper/a.jpg"),
        (" a.jpg ", "a.jpg"),
        ("a.JPG", "a.jpg"),
        ("A.jpeg", "A.JPEG"),
        ("Fr\u00fchjahr/\u00e9.jpg", "Fru\u0308hjahr/e\u0301.jpg"),
        ("e\u0301.jpg", "\u00e9.jpg"),
        (" sub\\\u00fc.JPG", "sub/u\u0308.jpg"),
    ],
)
def test_paths_as_other_systems_write_them(tmp_path: Path, written: str, file: str) -> None:
    made = pictures(tmp_path / "in", [file])
    write_table(tmp_path / "in" / "t.csv", [(written, "there")])
    mine = data_set(tmp_path / "mine.toml", format="table")
    assert list(built(mine, tmp_path / "in", tmp_path / "out").values()) == [(made[file], "there")]


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("sub/a.jpg", "sub\\a.jpg"),
        ("a.jpg", " a.jpg"),
        ("a.jpg", "\u00a0a.jpg"),
        ("a.jpg", ".\\a.jpg"),
        ("a.jpg", "a.JPG"),
        ("\u00e9.jpg", "e\u0301.jpg"),
        ("sub/\u00e9.jpg", "sub\\e\u0301.JPG "),
    ],
)
def test_rows_that_spell_a_path_otherwise_are_of_one_image(tmp_path: Path, file: str, other: str) -> None:
    """So that labels which contradict are met, and no image lies on both sides of a split."""
    made = pictures(tmp_path / "in", ["b.jpg", file, "c.jpg"])
    rows = [
        ("b.jpg", "0", "cat"),
        (other, "1", "dog"),
        (file, "2", "dog"),
        ("c.jpg", "3", "cat"),
        ("B.jpg", "4", "cat"),
    ]
    given = [{"image": name, "caption": caption, "kind": kind} for name, caption, kind in rows]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "in" / "t.parquet")
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind")
    found = built(mine, tmp_path / "in", tmp_path / "out")
    assert found == {"b.jpg": (made["b.jpg"], "0"), other: (made[file], "1\n2"), "c.jpg": (made["c.jpg"], "3")}
    assert Manifest.load(tmp_path / "out").skipped == {"missing file": 1}
    pq.write_table(pa.Table.from_pylist([*given, given[1] | {"image": file, "kind": "cat"}]), tmp_path / "in/t.parquet")
    built(mine, tmp_path / "in", tmp_path / "out2")
    assert Manifest.load(tmp_path / "out2").skipped == {"missing file": 1, "several labels": 1}


def test_files_whose_names_differ_in_their_case_alone_stay_apart(tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", ["a.jpg", "a.JPG", "\u00e9.jpg", "e\u0301.jpg"])
    write_table(tmp_path / "in" / "t.csv", [(name, f"number {i}") for i, name in enumerate(made)])
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = built(mine, tmp_path / "in", tmp_path / "out")
    assert found == {name: (content, f"number {i}") for i, (name, content) in enumerate(made.items())}


def test_names_of_any_bytes_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,caption\n\xe9.jpg,a\n\xe8.jpg,b\n\xe9.JPG,c\n")
    dataset = Dataset(name="mine", format="table")
    source = Source(dataset=dataset, where="", partitions=(), tables=(tmp_path / "t.csv",))
    _, rows, _, _ = grouped_rows(source, tmp_path / "t.arrow", 0, 1)
    assert [name for name, _, _ in rows] == [b"\xe9.jpg", b"\xe8.jpg", b"\xe9.JPG"]


def test_a_file_of_the_very_name_comes_first(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.JPG", "x\\y.jpg", "x/y.jpg"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.jpg").touch()
    (tmp_path / "one" / "b.JPG").touch()
    roots = [tmp_path / "one", tmp_path / "other"]
    for name in ("a.jpg", "a.JPG", "x\\y.jpg", "x/y.jpg"):
        assert find_image(name, roots) == tmp_path / "one" / name
    assert find_image("b.jpg", roots) == tmp_path / "other" / "b.jpg"
    assert find_image("c.jpg", roots) is None


def test_a_folder_that_may_not_be_looked_into_is_no_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"closed/{i}.jpg" for i in range(3)]
    pictures(tmp_path / "in", [*names, "a.jpg"])
    write_table(tmp_path / "in" / "t.csv", [(name, "x") for name in [*names, "a.jpg"]])
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, (str, os.PathLike)) and "/closed/" in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    mine = data_set(tmp_path / "mine.toml", format="table")
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == {"a.jpg": "x"}
    assert Manifest.load(tmp_path / "out").skipped == {"unreadable file": 3}


def test_tables_that_are_not_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who lists two files may mean both."""
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    write_table(tmp_path / "in" / "old.csv", [("a.jpg", "old")])
    write_table(tmp_path / "in" / "new.csv", [("b.jpg", "new")])
    mine = data_set(tmp_path / "mine.toml", format="table", files=["old.csv", "new.csv"])
    assert texts(built(mine, tmp_path / "in", tmp_path / "out")) == {"a.jpg": "old"}
    said = " ".join(capsys.readouterr().err.split())
    assert "note: new.csv is not read (1 such): of several `files` the first that matches counts, old.csv" in said
    both = data_set(tmp_path / "both.toml", format="table", files=["*.csv", "*.tsv"])
    assert texts(built(both, tmp_path / "in", tmp_path / "both")) == {"a.jpg": "old", "b.jpg": "new"}
    assert "is not read" not in capsys.readouterr().err


def test_words_for_nothing_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i}.jpg" for i in range(6)]
    pictures(tmp_path / "in", names)
    cells = ["nan,NaN", "NaN,-1", "#NV,shoe", "a cat,shoe", "nan,boot", "nanny,boot"]
    lines = [f"{name},{cell}" for name, cell in zip(names, cells, strict=True)]
    (tmp_path / "in" / "t.csv").write_text("\n".join(["image,caption,kind", *lines, ""]))
    mine = data_set(tmp_path / "mine.toml", format="table", label="kind")
    built(mine, tmp_path / "in", tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    words = "note: 'nan' (2 samples), 'NaN' (1 samples), '#NV' (1 samples): a caption like any other; if it says that"
    assert words in said
    assert "note: '-1', 'NaN' are classes like any others; if they say that there is no label" in said
    of_class = data_set(tmp_path / "class.toml", format="table", label="kind", captions=[])
    built(of_class, tmp_path / "in", tmp_path / "class")
    assert "a caption like any other" not in capsys.readouterr().err


def test_class_names_that_are_not_utf8_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    table = "image,caption,kind\na.jpg,one,M\u00f6bel\nb.jpg,two,desk\n"
    (tmp_path / "in" / "t.csv").write_bytes(table.encode("cp1252"))
    built(data_set(tmp_path / "mine.toml", format="table", label="kind"), tmp_path / "in", tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert "note: 1 classes have names that are no UTF-8 ('M\ufffdbel'): save the table as UTF-8" in said


def test_the_advice_is_of_what_was_left_out_most(tmp_path: Path) -> None:
    pictures(tmp_path / "in", [f"{i}.jpg" for i in range(20)])
    rows = [(f"{i}.jpg", "") for i in range(20)] + [(f"gone{i}.jpg", "x") for i in range(3)]
    write_table(tmp_path / "in" / "t.csv", rows)
    mine = data_set(tmp_path / "mine.toml", format="table")
    with pytest.raises(UserError, match=r"20 no caption, 3 missing file.*: say which .*columns hold captions") as told:
        built(mine, tmp_path / "in", tmp_path / "out")
    assert "below which folders" not in str(told.value)
    assert "(no caption)" in str(told.value) or "(missing file)" in str(told.value)


def test_pictures_of_rarer_extensions_are_taken_and_other_files_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, written in (("a.jfif", "JPEG"), ("b.JPE", "JPEG"), ("c.avif", "AVIF"), ("d.jp2", "JPEG2000")):
            for label in ("cat", "dog"):
                path = tmp_path / "in" / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path, written)
        for other in ("e.heic", "f.HEIC", "boxes.txt", ".DS_Store", "noext"):
            (tmp_path / "in" / split / "cat" / other).touch()
    mine = data_set(tmp_path / "mine.toml", format="imagefolder", graph="none")
    shards = Shards.open(build(mine, tmp_path / "in", tmp_path / "out"))
    line = "files in class folders that are no pictures by their names, passed over: 2 .heic, 1 .txt"
    assert f"note: {line}" in " ".join(capsys.readouterr().err.split())
    assert len(shards) == 8
    assert Counter(next(e for e in s.parts if e != "json" and e != "txt") for s in shards.samples()) == {
        "jpg": 4, "avif": 2, "jp2": 2,
    }  # fmt: skip
    assert all(decode(shards.image(i)).shape == (16, 16, 3) for i in range(8))
    bench = open_bench("imagefolder", tmp_path / "in")
    assert [len(images) for images in bench.sets] == [8, 8]
    said = " ".join(capsys.readouterr().err.split())
    assert f"note: {tmp_path}/in/train: {line}" in said
    assert f"note: {tmp_path}/in/val: {line}" in said


def test_class_folders_without_pictures_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", ["cat/a.jpg", "dog/deep/b.jpg"])
    mine = data_set(tmp_path / "mine.toml", format="imagefolder", graph="none")
    build(mine, tmp_path / "in", tmp_path / "whole")
    assert "without pictures" not in capsys.readouterr().err
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "notes").mkdir()
    (tmp_path / "in" / "notes" / "a.txt").touch()
    assert Manifest.load(build(mine, tmp_path / "in", tmp_path / "out")).classes == ("cat", "dog", "empty", "notes")
    said = " ".join(capsys.readouterr().err.split())
    assert "note: class folders without pictures (2 of 4, 'empty' among them) are classes all the same" in said


def test_extensions_of_encoded_bytes() -> None:
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name, extension in (("AVIF", "avif"), ("JPEG2000", "jp2"), ("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")):
        file = BytesIO()
        image.save(file, name)
        assert kind(file.getvalue()) == extension
