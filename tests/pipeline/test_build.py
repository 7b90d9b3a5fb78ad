"""Sources to shards: what comes out, that it is read by others, that it is the same again, and what goes wrong."""

from __future__ import annotations

import gc
import io
import json
import shutil
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.info import describe
from pipeline.layout import shard_bounds
from pipeline.scan.samples import Limits
from pipeline.sources.class_names import class_names
from pipeline.sources.datasets import builtin_datasets, load_dataset
from pipeline.sources.find import open_source
from shards.class_names import names_file
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from shards.tar import Member, groups
from shards.verify import verify
from tests.make import jpeg
from tests.pipeline.building import build, contents
from tests.pipeline.sources import class_folders, data_set, img2dataset, write_tar


def by_key(root: Path) -> dict[str, tuple[bytes, str, int]]:
    """key -> image, text and label, by random access."""
    shards = Shards.open(root)
    texts, index = shards.texts(), shards.index
    return {
        key: (shards.image(i), texts[index.text_id[i]], int(index.label[i]))
        for i, key in enumerate(index.key.to_pylist())
    }


def test_img2dataset_tars(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in", samples=8, tars=2, failed=3)
    out = build("flickr8k", source, tmp_path / "out", shard_size=5)
    manifest = Manifest.load(out)
    assert (manifest.samples, manifest.texts, len(manifest.shards)) == (16, 16, 4)
    assert manifest.skipped == {"not downloaded": 6}
    assert [shard.samples for shard in manifest.shards] == [4, 4, 4, 4]
    assert verify(out) == []
    found = by_key(out)
    image, text, label = found["00001_000010003"]
    assert text == "picture 3 of tar 1\nanother view of 3"
    assert label == -1
    members = {s.key: s.parts for tar in sorted(source.glob("*.tar")) for s in _samples(tar)}
    assert image == members["000010003"]["jpg"]
    assert {key.partition("_")[2] for key in found} == set(members)
    written = {s.key: s.parts for s in Shards.open(out).samples()}
    assert written["00001_000010003"]["json"] == members["000010003"]["json"]
    assert written["00001_000010003"]["txt"].decode() == text
    assert list(written) == list(found)
    assert list(found) != sorted(found)


def _keys(tar: Path) -> list[str]:
    return [sample.key for sample in _samples(tar)]


def _samples(tar: Path) -> Any:
    from shards.tar import samples

    return samples(tar)


def test_captions_come_from_parquet_json_or_txt(tmp_path: Path) -> None:
    image = jpeg(np.random.default_rng(0))
    beside = img2dataset(tmp_path / "a", samples=2, tars=1)
    inside = img2dataset(tmp_path / "b", samples=2, tars=1, parquet=False)
    bare = tmp_path / "c"
    write_tar(bare / "0.tar", [("x.jpg", image), ("x.txt", b"only \xff text"), ("y.jpg", image), ("y.json", b"{torn"),
                               ("y.txt", b"y")])  # fmt: skip
    texts = [Shards.open(build("flickr8k", path, path / "out")).texts() for path in (beside, inside, bare)]
    assert texts[0] == texts[1] == ["picture 0 of tar 0\nanother view of 0", "picture 1 of tar 0\nanother view of 1"]
    assert texts[2] == ["only \ufffd text", "y"]
    rows = pq.read_table(beside / "00000.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([rows[0] | {"captions": None}, rows[1]]), beside / "00000.parquet")
    first, second = Shards.open(build("flickr8k", beside, tmp_path / "one")).texts()
    assert sorted((first, second)) == ["picture 0 of tar 0", "picture 1 of tar 0\nanother view of 1"]


def test_class_folders_and_a_tar_of_them(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    out = build("tiny-imagenet-100", source, tmp_path / "out")
    manifest = Manifest.load(out)
    assert manifest.classes[0].startswith("dog")
    assert manifest.settings["wnids"] == ["n02084071", "n02121808"]
    assert (manifest.samples, manifest.texts) == (12, 2)
    assert {text: label for _, text, label in by_key(out).values()} == {
        "a photo of a dog": 0,
        "a photo of a domestic cat": 1,
    }
    meta = json.loads(next(iter(Shards.open(out).samples())).parts["json"])
    assert meta["path"].startswith(meta["class"])

    tar = write_tar(
        tmp_path / "tarred" / "train.tar",
        [(str(p.relative_to(source)), p.read_bytes()) for p in sorted(source.rglob("*.JPEG")) if "deep" not in str(p)],
    )
    tarred = by_key(build("tiny-imagenet-100", tar.parent, tmp_path / "out2"))
    folders = by_key(out)
    assert {i for i, _, _ in tarred.values()} < {i for i, _, _ in folders.values()}
    assert len(tarred) == 10
    assert {t: n for _, t, n in tarred.values()} == {t: n for _, t, n in folders.values()}


def test_classes_of_one_name_stay_two_texts(tmp_path: Path) -> None:
    cranes = class_names(["n02012849", "n03126707", "n02085620"], {}, "a photo of a {class}")
    assert len({name.caption for name in cranes}) == 3
    assert cranes[2].caption == "a photo of a Chihuahua"
    (tmp_path / "classes.tsv").write_text("a\tfirst, one\nb\tfirst, two\n")
    assert [n.caption for n in class_names(["a", "b", "c_d"], names_file(tmp_path), "{class}")] == [
        "first, one",
        "first, two",
        "c d",
    ]


def test_the_stock_reader_reads_our_tars(tmp_path: Path) -> None:
    out = build("flickr8k", img2dataset(tmp_path / "in"), tmp_path / "out", shard_size=6)
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library leaves its files to the garbage collector
        pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
        read = list(pipeline.to_tuple("__key__", "jpg", "txt", "json"))
        del pipeline
        gc.collect()
    assert [key for key, *_ in read] == [sample.key for sample in Shards.open(out).samples()]
    for key, image, text, meta in read:
        assert image.size == (32, 32)
        assert text.split("\n")[0] == meta["caption"]
        assert key.endswith(meta["key"])


@pytest.mark.parametrize("processes", [1, 2])
def test_same_input_same_bytes(tmp_path: Path, processes: int) -> None:
    source = img2dataset(tmp_path / "in", samples=12, tars=3)
    build("flickr8k", source, tmp_path / "a", shard_size=7)
    build("flickr8k", source, tmp_path / "b", processes, shard_size=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    build("flickr8k", source, tmp_path / "c", shard_size=7, seed=1)
    assert contents(tmp_path / "c")["train-000000.tar"] != contents(tmp_path / "a")["train-000000.tar"]


def test_in_place_copies_nothing_and_writes_nothing_to_the_source(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in", samples=6, tars=3)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()}
    source.chmod(0o555)
    out = build("flickr8k", source, tmp_path / "out", layout="in-place")
    source.chmod(0o755)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.iterdir()} == before
    assert not list(out.rglob("*.tar"))
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 20_000
    copied = by_key(build("flickr8k", source, tmp_path / "copied"))
    assert by_key(out) == {key.partition("_")[2]: sample for key, sample in copied.items()}
    assert set(by_key(out)) == {key for tar in source.glob("*.tar") for key in _keys(tar)}
    assert verify(out) == []
    with pytest.raises(UserError, match="needs tars"):
        build("tiny-imagenet-100", class_folders(tmp_path / "f"), tmp_path / "no", layout="in-place")


def test_the_embedded_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.demo.pictures.COUNTS", {"train": 40, "test": 20})
    train, test = build("demo", None, tmp_path / "demo"), build("demo-test", None, tmp_path / "test")
    assert Manifest.load(train).split == "train"
    assert Manifest.load(test).split == "test"
    assert len(Manifest.load(train).classes) == 10
    assert len(Shards.open(train)) == 40
    metas = [json.loads(sample.parts["json"]) for sample in Shards.open(test).samples()]
    assert {meta["variant"] for meta in metas} == {"original", "mixed_same", "mixed_rand", "only_fg", "only_bg"}
    assert [meta["object"] for meta in metas] == Shards.open(test).index.label.tolist()


def test_images_are_shrunk_when_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [("a.jpg", jpeg(rng, 64)), ("a.txt", b"a"), ("b.png", _png(rng)), ("b.txt", b"b")]
    write_tar(tmp_path / "in" / "0.tar", pictures)
    out = build("flickr8k", tmp_path / "in", tmp_path / "out", image_size=16)
    for sample in Shards.open(out).samples():
        assert Image.open(io.BytesIO(sample.parts["jpg"])).size == (16, 16)
    assert verify(out) == []


def _png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_unusable_samples_are_counted_within_a_budget(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = jpeg(rng)
    bad = [
        ("html.jpg", b"<html>"), ("html.txt", b"x"), ("cut.jpg", jpeg(rng, 90)[:3000]), ("cut.txt", b"x"),
        ("mute.jpg", image), ("mute.txt", b" \n"), ("blind.txt", b"x"), ("big.jpg", jpeg(rng, 300)), ("big.txt", b"x"),
        ("wide.jpg", jpeg(rng, 101)), ("wide.txt", b"x"),
    ]  # fmt: skip
    good = [member for i in range(20) for member in ((f"{i}.jpg", image), (f"{i}.txt", f"text {i % 7}".encode()))]
    write_tar(tmp_path / "in" / "0.tar", bad + good)
    out = build("flickr8k", tmp_path / "in", tmp_path / "out", limits=Limits(max_pixels=10_000, max_bytes=30_000))
    manifest = Manifest.load(out)
    assert manifest.skipped == {
        "cut image": 1,
        "image of too many bytes": 1,
        "image of too many pixels": 1,
        "no caption": 1,
        "no image": 1,
        "undecodable image": 1,
    }
    assert (manifest.samples, manifest.texts) == (20, 7)
    worse = [m for i in range(12) for m in ((f"w{i}.jpg", b"<html>"), (f"w{i}.txt", b"x"))]
    write_tar(tmp_path / "worse" / "0.tar", worse + good)
    with pytest.raises(UserError, match=r"12 of the first 32 samples are unusable \(12 undecodable.*--max-skipped"):
        build("flickr8k", tmp_path / "worse", tmp_path / "out2")
    build("flickr8k", tmp_path / "worse", tmp_path / "out3", max_skipped=0.5)


def test_the_budget_is_a_share_of_all_wherever_the_bad_ones_lie(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", ["a", "b"], images=150)
    for i in range(12):
        (source / "train" / "a" / f"bad{i}.jpg").write_bytes(b"<html>")
    out = build(data_set(tmp_path / "mine.toml", format="imagefolder"), source, tmp_path / "out")
    assert Manifest.load(out).skipped == {"undecodable image": 12}
    with pytest.raises(UserError, match="12 of the first 312 samples are unusable"):
        build(data_set(tmp_path / "mine.toml", format="imagefolder"), source, tmp_path / "less", max_skipped=0.03)
    strict = data_set(tmp_path / "mine.toml", format="imagefolder", max_skipped=0.03)
    with pytest.raises(UserError, match="12 of the first 312 samples are unusable"):
        build(strict, source, tmp_path / "strict")
    before = (out / "manifest.json").read_bytes()
    assert build(strict, source, out) == out  # another budget is no other build
    assert (out / "manifest.json").read_bytes() == before
    build(strict, source, tmp_path / "strict", max_skipped=0.05)
    with pytest.raises(UserError, match=r"data set mine: max_skipped is a share, 0\.\.1, not 5"):
        build(data_set(tmp_path / "mine.toml", format="imagefolder", max_skipped=5), source, tmp_path / "none")


def test_a_torn_tar_is_refused_and_replaced(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in", samples=6, tars=3)
    torn = source / "00001.tar"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"00001\.tar is torn.*--use-torn"):
        build("flickr8k", source, tmp_path / "out")
    kept = build("flickr8k", source, tmp_path / "kept", limits=Limits(use_torn=True))
    manifest = Manifest.load(kept)
    assert manifest.skipped == {"torn tar": 1}
    assert 12 < manifest.samples < 18
    # What the error advises works where it was said, and the scans of whole tars stay.
    shutil.copytree(tmp_path / "out", tmp_path / "taken")
    assert (tmp_path / "taken" / ".work" / "scan" / "000000.parquet").exists()
    assert contents(build("flickr8k", source, tmp_path / "taken", limits=Limits(use_torn=True))) == contents(kept)
    other = source / "00000.tar"
    other.rename(tmp_path / "kept.tar")
    other.write_bytes((tmp_path / "kept.tar").read_bytes()[:20_000])
    with pytest.raises(UserError, match=r"00000\.tar is torn.*--use-torn.*; torn too: 00001\.tar \(2 in all\)$"):
        build("flickr8k", source, tmp_path / "two")
    assert (tmp_path / "two" / ".work" / "scan" / "000002.parquet").exists()
    (tmp_path / "kept.tar").rename(other)
    torn.write_bytes(whole)
    assert len(by_key(build("flickr8k", source, tmp_path / "out"))) == 18
    fresh = build("flickr8k", source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(fresh)


@pytest.mark.parametrize("parquet", [True, False])
def test_a_tar_cut_between_samples_is_torn_too(tmp_path: Path, parquet: bool) -> None:
    source = img2dataset(tmp_path / "in", samples=20, tars=1, parquet=parquet)
    tar = source / "00000.tar"
    with tar.open("rb") as file:
        ends = [parts["txt"].offset + 512 for _, parts in groups(file)]
    tar.write_bytes(tar.read_bytes()[: ends[15]])
    with pytest.raises(UserError, match=r"torn.*without the zero blocks.*--use-torn"):
        build("flickr8k", source, tmp_path / "out")


def test_a_tar_that_only_its_parquet_file_is_left_of_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = img2dataset(tmp_path / "in", samples=20, tars=3)
    (source / "cc12m.parquet").write_bytes(b"")  # the table of URLs that img2dataset was given
    open_source(load_dataset("flickr8k"), str(source))
    few = data_set(tmp_path / "few.toml", format="webdataset", files=["0000[02].tar"])
    open_source(load_dataset(few), str(source))  # the other is there, and not asked for
    assert "warning" not in capsys.readouterr().err
    (source / "00001.tar").unlink()
    open_source(load_dataset("flickr8k"), str(source))
    assert "00001.parquet is there without its tar (1 such)" in " ".join(capsys.readouterr().err.split())
    open_source(load_dataset("flickr8k"), str(source / "00000.tar"))
    assert "warning" not in capsys.readouterr().err


def test_samples_that_only_the_parquet_names_are_counted(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in", samples=20, tars=2)
    with (source / "00000.tar").open("rb") as file:
        kept = [(key, parts) for key, parts in groups(file)][:15]
        members = [(f"{k}.{e}", _content(file, m)) for k, parts in kept for e, m in parts.items()]
    write_tar(source / "00000.tar", members)
    out = build("flickr8k", source, tmp_path / "out", max_skipped=0.5)
    assert Manifest.load(out).skipped == {"named by the parquet file, not in the tar": 5}


def _content(file: BinaryIO, member: Member) -> bytes:
    file.seek(member.offset)
    return file.read(member.size)


def test_every_built_in_data_set_says_what_it_is() -> None:
    for name in builtin_datasets():
        assert load_dataset(name).about


def test_shard_bounds() -> None:
    for samples, size in ((1, 1), (10, 3), (9, 3), (4097, 4096), (12, 100)):
        bounds = shard_bounds(samples, size)
        sizes = [stop - start for start, stop in bounds]
        assert sum(sizes) == samples
        assert max(sizes) <= size
        assert max(sizes) - min(sizes) <= 1
        assert bounds[0][0] == 0


def test_info_says_that_a_manifest_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = build("flickr8k", img2dataset(tmp_path / "in"), tmp_path / "out")
    describe(out)
    assert "checksum" not in capsys.readouterr().out
    manifest = out / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 7'))
    describe(out)
    assert "does not fit its own checksum" in " ".join(capsys.readouterr().out.split())
