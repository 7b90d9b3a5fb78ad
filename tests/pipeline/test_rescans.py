"""Scans of a begun build that are made again, and what must then be made again with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.build
import pipeline.scans
from pipeline.scan.samples import Limits
from pipeline.sources.datasets import load_dataset
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.eval.make_folders import as_tars, make_folders
from tests.pipeline.building import build, contents
from tests.pipeline.sources import data_set, img2dataset, pictures


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the partitions that are scanned from now on."""
    names, scan = list[str](), pipeline.scans.scan

    def counting(source: Any, partition: Any, *arguments: Any, **options: Any) -> Any:
        names.append(partition.name)
        return scan(source, partition, *arguments, **options)

    monkeypatch.setattr(pipeline.scans, "scan", counting)
    return names


def stop_after_a_shard(dataset: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    write, calls = pipeline.build.write_shard, list[str]()

    def failing(job: Any) -> Any:
        calls.append(job.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(job)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build, "write_shard", failing)
        with pytest.raises(KeyboardInterrupt):
            build(dataset, source, out, shard_size=5, **settings)


def test_a_scan_of_another_version_is_made_again_with_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]
) -> None:
    """That one found a sample less, so the numbers in the shards that were written are not those of now."""
    source, out = img2dataset(tmp_path / "in", samples=10), tmp_path / "out"
    scan = pipeline.scans.scan

    def less(source: Any, partition: Any, *arguments: Any, **options: Any) -> Any:
        found = scan(source, partition, *arguments, **options)
        for column in found.rows.values() if partition.number == 0 else ():
            column.pop(0)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.scans, "scan", less)
        stop_after_a_shard("flickr8k", source, out, patch)
    path = out / ".work" / "scan" / "000000.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["label_value"]), path)
    scanned.clear()
    build("flickr8k", source, out, shard_size=5)
    assert scanned == ["00000.tar"]
    assert contents(out) == contents(build("flickr8k", source, tmp_path / "whole", shard_size=5))
    assert Manifest.load(out).samples == 20


def test_taking_torn_tars_keeps_the_scans_of_whole_ones(tmp_path: Path, scanned: list[str]) -> None:
    source, out = img2dataset(tmp_path / "in", samples=10, tars=3), tmp_path / "out"
    torn = source / "00002.tar"
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    with pytest.raises(UserError, match="--use-torn"):
        build("flickr8k", source, out)
    scanned.clear()
    build("flickr8k", source, out, limits=Limits(use_torn=True))
    assert scanned == ["00002.tar"]


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        ({"captions": ["title"]}, {}),
        ({}, {"limits": Limits(max_caption=3)}),
        ({}, {"layout": "in-place"}),
    ],
)
def test_other_ways_to_read_are_other_scans(values: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """A build that ended before it had more than scans goes on with any settings."""
    source, out = img2dataset(tmp_path / "in", samples=10), tmp_path / "out"
    first = data_set(tmp_path / "m.toml", format="webdataset", captions=["captions"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.build.number_samples", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build(first, source, out, max_skipped=1)
    then = data_set(tmp_path / "m.toml", **{"format": "webdataset", "captions": ["captions"]} | values)
    build(then, source, out, max_skipped=1, **settings)
    whole = build(then, source, tmp_path / "whole", max_skipped=1, **settings)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("format_", ["coco", "table", "webdataset"])
def test_every_format_has_a_test_split(format_: str, tmp_path: Path) -> None:
    pictures(tmp_path / "in", ["val2017/a.jpg"])
    mine = load_dataset(data_set(tmp_path / "m.toml", format=format_, split="test"))
    assert not any("train" in pattern for pattern in mine.patterns)
    for pattern in mine.patterns:
        list(tmp_path.glob(pattern))  # no invalid one


def test_a_test_split_of_class_folders_may_be_called_val(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_folders(tmp_path / "in", classes=3)
    (source / "classes.tsv").write_text("class0\tcat\nclass1\tdog\nclass2\tant\n")
    mine = data_set(tmp_path / "mine-test.toml", format="imagefolder", split="test", graph="none")
    shards = Shards.open(build(mine, source, tmp_path / "mine-test"))
    assert (len(shards), shards.manifest.split, sorted(shards.manifest.classes)) == (15, "test", ["ant", "cat", "dog"])
    assert "its test split is val\n" in capsys.readouterr().err
    tars = as_tars(source, tmp_path / "tars")
    (tars / "train.tar").unlink()
    assert len(Shards.open(build(mine, tars, tmp_path / "of-tar"))) == 15
    make_folders(source / "test", classes=2, train=2)  # test/train/..., test/val/...: two classes of those names
    assert len(Shards.open(build(mine, source, tmp_path / "again"))) == 2 * 2 + 2 * 5


def test_folders_of_other_splits_are_no_classes(tmp_path: Path) -> None:
    source = make_folders(tmp_path / "in", classes=3)
    mine = data_set(tmp_path / "mine-test.toml", format="imagefolder", split="test", graph="none")
    (source / "val").rename(tmp_path / "val")
    with pytest.raises(UserError, match=r"holds no class folders: expected test/CLASS.* \(or val for test\)"):
        build(mine, source, tmp_path / "out")
    classes = source / "train"  # SOURCE/CLASS, with shards that were built beside the classes
    build(mine, classes, classes / "val")
    assert len(Shards.open(build(mine, classes, tmp_path / "out"))) == 36


def test_a_null_caption_beside_a_tar_is_no_caption(tmp_path: Path) -> None:
    """Though KEY.txt holds one: what img2dataset's table says of a sample counts."""
    source = img2dataset(tmp_path / "in", samples=12, tars=1)
    path = source / "00000.parquet"
    table = pq.read_table(path, partitioning=None)
    captions = [None, *table["captions"].to_pylist()[1:]]
    table = table.set_column(table.column_names.index("captions"), "captions", pa.array(captions))
    pq.write_table(table.drop_columns(["caption"]), path)
    out = build("flickr8k", source, tmp_path / "out")
    assert Manifest.load(out).skipped == {"no caption": 1}


@pytest.mark.parametrize("mended", ["00000.tar", "00000.parquet"])
def test_a_file_mended_to_its_old_size_is_scanned_again(
    mended: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scanned: list[str]
) -> None:
    """Tars are filled up to 10 KB: with other captions, or in another order, they are often as large as before."""
    source, out = img2dataset(tmp_path / "in", tars=2, parquet=mended.endswith("parquet")), tmp_path / "out"
    path = source / mended
    if path.suffix == ".parquet":
        pq.write_table(pq.read_table(path, partitioning=None), path, compression="none")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build, "_write_all", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build("flickr8k", source, out)
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"picture 1 of", b"painting 1 o"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    scanned.clear()
    build("flickr8k", source, out)
    assert scanned == ["00000.tar"]
    assert contents(out) == contents(build("flickr8k", source, tmp_path / "fresh"))
    assert any(text.startswith("painting 1") for text in Shards.open(out).texts())
