"""Tars and folders that would do harm: nothing leaves its folder, nothing runs, nothing hangs or swells."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import pipeline.scan.files
from pipeline.build import build_shards
from pipeline.cli import app
from pipeline.images import problem
from pipeline.info import describe
from pipeline.scan.samples import Limits
from pipeline.scan.tars import MAX_KEY, MAX_TEXT_MEMBER
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from shards.verify import verify
from tests.make import jpeg
from tests.pipeline.sources import class_folders, pictures, write_tar

IMAGE = jpeg(np.random.default_rng(0))
GOOD = [("good.jpg", IMAGE), ("good.txt", b"good")]


def build(dataset: str, source: Path, out: Path, **settings: Any) -> Manifest:
    build_shards(open_source(load_dataset(dataset), str(source)), out, BuildSettings(**settings), 1)
    assert verify(out) == []
    return Manifest.load(out)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (66,)


def test_nothing_is_unpickled_or_copied_unread(tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb())
    members = [("a.jpg", IMAGE), ("a.json", b'{"caption": "a"}'), ("a.txt", b"t")]
    members += [(f"a.{extension}", bomb) for extension in ("pickle", "pkl", "pyd", "pth", "npy", "cls", "mp4")]
    write_tar(tmp_path / "in" / "0.tar", [*members, ("b.pkl", bomb), ("c.jpg", bomb), ("c.json", bomb)])
    manifest = build("flickr8k", tmp_path / "in", tmp_path / "out")
    assert manifest.skipped == {"no caption": 1, "no image": 1}
    (sample,) = Shards.open(tmp_path / "out").samples()
    assert set(sample.parts) == {"jpg", "txt", "json"}


def test_names_cannot_leave_the_tar(tmp_path: Path) -> None:
    strange = ("/etc/passwd", "../../up", "a/../b", "with blank\n", "dot.ted/x", "nul\ud800"[:3], "ü", "~root", "$(id)")
    members = [m for name in strange for m in ((f"{name}.jpg", IMAGE), (f"{name}.txt", name.encode()))]
    write_tar(tmp_path / "in" / "0.tar", members)
    build("flickr8k", tmp_path / "in", tmp_path / "out")
    keys = Shards.open(tmp_path / "out").index.key.to_pylist()
    assert len(set(keys)) == len(strange)
    assert all(not set(key) & set("/\\.\n $~\0") for key in keys)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        tar.extractall(tmp_path / "extracted", filter="data")
    assert len(list((tmp_path / "extracted").iterdir())) == 3 * len(strange)


def test_names_that_are_no_text_or_endless(tmp_path: Path) -> None:
    long = "x" * 5000
    names = ["caf\udce9", f"{long}1", f"{long}2"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in names:
            for extension, data in (("jpg", IMAGE), ("txt", b"text")):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(buffer.getvalue())
    assert build("flickr8k", tmp_path / "in", tmp_path / "out").samples == 3
    keys = Shards.open(tmp_path / "out").index.key.to_pylist()
    assert sorted(keys)[0] == "00000_caf_"
    assert len(set(keys)) == 3
    assert max(map(len, keys)) == MAX_KEY + len("00000_")


@pytest.mark.parametrize("dataset", ["flickr8k", "tiny-imagenet-100"])
def test_a_compressed_tar_is_called_so(dataset: str, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "0.tar", GOOD)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match=r"0\.tar\.gz is compressed \(gzip\): unpack it, and give what comes out"):
        build(dataset, tmp_path / "0.tar.gz", tmp_path / "out", limits=Limits(use_torn=True))


@pytest.mark.parametrize(("dataset", "name"), [("flickr8k", "train/0.tar"), ("flickr30k", "results.csv")])
def test_compressed_files_alone_in_a_folder_are_called_so(dataset: str, name: str, tmp_path: Path) -> None:
    packed = tmp_path / f"{name}.gz"
    packed.parent.mkdir(exist_ok=True)
    packed.write_bytes(gzip.compress(b"any"))
    with pytest.raises(UserError, match=rf"{name}\.gz is compressed \(gzip\): unpack it"):
        build(dataset, tmp_path, tmp_path / "out")
    packed.write_bytes(b"any")
    with pytest.raises(UserError, match="holds no file like"):
        build(dataset, tmp_path, tmp_path / "out")


def test_names_that_become_one_are_counted(tmp_path: Path) -> None:
    members = [m for name in ("a/b", "a_b", "c_d", "c/d") for m in ((f"{name}.jpg", IMAGE), (f"{name}.txt", b"t"))]
    write_tar(tmp_path / "in" / "0.tar", members)
    assert build("flickr8k", tmp_path / "in", tmp_path / "out").skipped == {"repeated key": 2}
    stay = build("flickr8k", tmp_path / "in", tmp_path / "in-place", layout="in-place")
    assert (stay.samples, stay.skipped) == (4, {})  # under their own keys they differ


def test_keys_are_cut_by_bytes(tmp_path: Path) -> None:
    """Of which file systems count 255 in a name."""
    keys = ["\N{CJK UNIFIED IDEOGRAPH-6F22}" * 90 + end for end in "ab"]
    write_tar(tmp_path / "in" / "0.tar", [m for key in keys for m in ((f"{key}.jpg", IMAGE), (f"{key}.txt", b"t"))])
    assert build("flickr8k", tmp_path / "in", tmp_path / "out").samples == 2
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        tar.extractall(tmp_path / "files", filter="data")
    assert len(list((tmp_path / "files").iterdir())) == 6


@pytest.mark.parametrize(("one", "other"), [("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\u0301"), (" cat", "cat")])
@pytest.mark.parametrize("kind", ["folders", "tar"])
def test_class_folders_that_would_be_one_text_are_refused(one: str, other: str, kind: str, tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", [one, other, "dog"], images=2)
    if kind == "tar":
        write_tar(root / "train.tar", [(f"{name}/0.jpg", IMAGE) for name in (one, other, "dog")])
        shutil.rmtree(root / "train")
    with pytest.raises(UserError, match=r"the class folders .* and .* would both be 'a photo of a .*classes\.tsv"):
        build("tiny-imagenet-100", tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "classes.tsv").write_text(f"{other}\tanother\n")
    assert len(build("tiny-imagenet-100", tmp_path / "in", tmp_path / "out").classes) == 3


def test_images_that_may_not_be_read_are_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "in", ["cat", "dog"], images=3)
    opened = pipeline.scan.files.mapped

    def refusing(path: Path) -> Any:
        if path.name == "dog_1.JPEG":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path)

    monkeypatch.setattr("pipeline.scan.files.mapped", refusing)
    assert build("tiny-imagenet-100", tmp_path / "in", tmp_path / "out").skipped == {"unreadable file": 1}


@pytest.mark.parametrize("place", ["train/dog", "train/cat/deep"])
def test_folders_that_may_not_be_listed_are_told(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(tmp_path / "in", ["cat", "dog"], images=3)
    scandir, closed = os.scandir, str(tmp_path / "in" / place)

    def refusing(path: Any) -> Any:
        if str(path) == closed:  # root may list what others may not
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return scandir(path)

    found = open_source(load_dataset("tiny-imagenet-100"), str(tmp_path / "in"))  # whose files are counted by now
    monkeypatch.setattr(os, "scandir", refusing)
    told = rf"{place} cannot be listed \(Permission denied\): mend it"
    with pytest.raises(UserError, match=told):
        open_source(load_dataset("tiny-imagenet-100"), str(tmp_path / "in"))
    with pytest.raises(UserError, match=told):
        build_shards(found, tmp_path / "out", BuildSettings(), 1)


def test_huge_and_many_members(tmp_path: Path) -> None:
    padded = json.dumps({"caption": "padded", "pad": "x" * MAX_TEXT_MEMBER}).encode()
    deep = b"[" * 1_000_000
    members = [("huge.jpg", IMAGE), ("huge.json", padded), ("deep.jpg", IMAGE), ("deep.json", deep), ("deep.txt", b"d")]
    members += [("long.jpg", IMAGE), ("long.txt", b"word " * 2_000_000)]
    members += [("many.jpg", IMAGE), ("many.txt", b"many"), *((f"many.{i}", b"x") for i in range(10_000))]
    members += [("twin.jpg", IMAGE), ("twin.JPG", b"<html>"), ("twin.txt", b"t")]
    write_tar(tmp_path / "in" / "0.tar", members)
    manifest = build("flickr8k", tmp_path / "in", tmp_path / "out", max_skipped=1.0)
    assert manifest.skipped == {"metadata of too many bytes": 1, "undecodable image": 1}
    texts = sorted(Shards.open(tmp_path / "out").texts())
    assert [text[:6] for text in texts] == ["d", "many", "word w"]
    assert len(texts[2]) == 1999  # of 2,000, the last a blank


def header(name: str, kind: bytes, data: bytes, size: bytes | None = None) -> bytes:
    """A tar member with any size field."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        block[124:136] = size.ljust(12, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (header("x.jpg", b"0", b"", b"-0000001000"), "is torn or no tar"),
        (header("x.jpg", b"0", b"", b"\x80" + b"\xff" * 11), "is torn"),
        (header("p", b"x", b"20 size=-0000000512\n") + header("x.jpg", b"0", b""), "no pax records"),
        (header("p", b"x", b"12 size=1e9\n") + header("x.jpg", b"0", b""), "no pax records"),
        (header("p", b"x", b"22 size=9999999999999\n") + header("x.jpg", b"0", b""), "is torn"),
        (header("p", b"x", b"9" * 900_000), "no pax records"),
        (header("p", b"x", b"8 x=123\n" * 1000 + b"0 a=b"), "no pax records"),
        (header("p", b"x", b"x" * 1_000_000), "no pax records"),
        (header("p", b"x", bytes(2 << 20)), "2097152-byte header"),
        (header("p", b"L", bytes(2 << 20)), "2097152-byte header"),
    ],
)
def test_headers_that_lie(member: bytes, message: str, tmp_path: Path) -> None:
    good = b"".join(header(name, b"0", data) for name, data in [*GOOD, ("last.jpg", IMAGE), ("last.txt", b"x")])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.tar").write_bytes(good + member + bytes(1024))
    with pytest.raises(UserError, match=message):
        build("flickr8k", tmp_path / "in", tmp_path / "out")
    kept = build("flickr8k", tmp_path / "in", tmp_path / "out2", limits=Limits(use_torn=True))
    assert kept.samples == 1  # more of "last" might have come


def test_a_pax_header_of_many_records_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    whole = write_tar(tmp_path / "good.tar", GOOD).read_bytes()
    (tmp_path / "in" / "0.tar").write_bytes(header("p", b"x", b"8 x=123\n" * 100_000) + whole)
    assert build("flickr8k", tmp_path / "in", tmp_path / "out").samples == 1


def test_memory_of_a_scan_is_bounded(tmp_path: Path) -> None:
    """A member of 1.5 GB is skipped by its size, unread."""
    path = tmp_path / "in" / "0.tar"
    path.parent.mkdir()
    size = 1500 << 20
    with path.open("wb") as file:
        for name, length in (("big.jpg", size), ("big.txt", 3)):
            info = tarfile.TarInfo(name)
            info.size = length
            file.write(info.tobuf(tarfile.USTAR_FORMAT))
            file.write(b"abc")
            file.seek(-(-length // 512) * 512 - 3, 1)  # a hole
        file.write(bytes(1024))
    code = (
        "import sys, resource; from pathlib import Path\n"
        "from pipeline.sources.datasets import load_dataset; from pipeline.sources.find import open_source\n"
        "from pipeline.scan.samples import Limits\nfrom pipeline.scan.scan import scan\n"
        "source = open_source(load_dataset('flickr8k'), sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = scan(source, source.partitions[0], Limits(), Path('unused'))\n"
        "print(dict(found.skipped), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    output = subprocess.run([sys.executable, "-c", code, str(path.parent)], check=True, capture_output=True, text=True)
    reasons, grown = output.stdout.rsplit(" ", 1)
    assert reasons == "{'image of too many bytes': 1}"
    assert int(grown) < 50_000  # KB


def test_a_bomb_of_pixels_neither_decodes_nor_warns() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
    for side in (11_000, 60_000):
        data = bytearray(buffer.getvalue())
        data[16:24] = side.to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert problem(bytes(data), 10**8) == "image of too many pixels"
            assert problem(bytes(data), side * side) is None  # whoever raises the cap means it


def test_a_tar_of_class_folders_may_be_deep(tmp_path: Path) -> None:
    """As Tiny-ImageNet's own, and with files that are no pictures: the classes of the same tree as folders."""
    names = [f"train/{folder}/images/{folder}_{i}.JPEG" for folder in ("n02084071", "n02121808") for i in range(3)]
    write_tar(tmp_path / "tar" / "train.tar", [("train/README.txt", b"x"), *((name, IMAGE) for name in names)])
    for name in names:
        path = tmp_path / "folders" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)
    found = [build("tiny-imagenet-100", tmp_path / kind, tmp_path / f"{kind}-out") for kind in ("tar", "folders")]
    assert found[0].classes == found[1].classes
    assert len(found[0].classes) == 2
    labels = [sorted(Shards.open(tmp_path / f"{kind}-out").index.label.tolist()) for kind in ("tar", "folders")]
    assert labels[0] == labels[1] == [0, 0, 0, 1, 1, 1]


def test_a_class_folder_whose_name_is_no_text(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "in", ["a", "b\nc  d"], images=2) / "train"
    odd = Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "x.jpg").write_bytes(IMAGE)
    manifest = build("imagenet", tmp_path / "in", tmp_path / "out")
    assert manifest.skipped == {"file name that is not UTF-8": 1}
    assert manifest.classes == ("a", "b\nc  d", "caf\ufffd")
    assert sorted(Shards.open(tmp_path / "out").texts()) == ["a photo of a a", "a photo of a b c d"]


def test_what_lies_in_class_folders(tmp_path: Path) -> None:
    """Equal stems, links, hidden files, files without an extension, and what is no picture."""
    root = class_folders(tmp_path / "in", ["a", "b"], images=2) / "train"
    made = pictures(root / "a", ["same.jpg", "same.jpeg", "same.png", ".hidden.jpg", "._same.jpg", "noext", "x.txt"])
    pictures(root / "a" / ".cache", ["x.jpg"])
    pictures(tmp_path / "elsewhere", ["linked.jpg"])
    (root / "a" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "linked.jpg")
    (root / "a" / "dangling.jpg").symlink_to(tmp_path / "gone.jpg")
    (root / "a" / "circle").symlink_to(root)
    (root / "c").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(root / "b" / "pipe.jpg")
    Path(os.fsdecode(os.fsencode(root / "b") + b"/caf\xe9.jpg")).write_bytes(IMAGE)
    manifest = build("imagenet", tmp_path / "in", tmp_path / "out", max_skipped=0.5)
    assert manifest.skipped == {"file name that is not UTF-8": 1, "missing file": 2, "no extension": 1}
    found = list(Shards.open(tmp_path / "out").samples())
    paths = [json.loads(sample.parts["json"])["path"] for sample in found]
    assert {path for path in paths if "JPEG" not in path} == {
        "a/same.jpg", "a/same.jpeg", "a/same.png", "a/link.jpg", "c/linked.jpg",
    }  # fmt: skip
    assert len(found) == manifest.samples == 9
    assert made["same.png"] in [sample.parts.get("png") for sample in found]
    before = open_source(load_dataset("imagenet"), str(tmp_path / "in")).fingerprint()
    pictures(root / "b" / "deep", ["new.jpg"])
    assert open_source(load_dataset("imagenet"), str(tmp_path / "in")).fingerprint() != before


def test_linked_images_of_class_tars_are_images(tmp_path: Path) -> None:
    """`tar cf` of a folder with hard links; in place a link has no bytes that a stock reader would find."""
    folder = class_folders(tmp_path / "in", ["a", "b"], images=2) / "train"
    os.link(folder / "a" / "a_1.JPEG", folder / "b" / "linked.JPEG")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(folder, arcname=".")
    out = tmp_path / "out"
    assert build("tiny-imagenet-100", tmp_path / "train.tar", out).samples == 5
    shards = Shards.open(out)
    assert sorted(np.bincount(shards.index.label)) == [2, 3]
    assert shards.samples()


def test_class_tars_in_place_have_each_key_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", [("a/p.1.jpg", IMAGE), ("a/p.2.jpg", IMAGE), ("b/q.jpg", IMAGE)])
    found = build("tiny-imagenet-100", tmp_path / "train.tar", tmp_path / "out", layout="in-place")
    assert (found.samples, found.skipped) == (2, {"repeated key": 1})
    assert build("tiny-imagenet-100", tmp_path / "train.tar", tmp_path / "copied").samples == 3


def test_shards_below_their_source_are_no_class(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in") / "train"
    build("tiny-imagenet-100", source, source / "out")
    assert (
        build("tiny-imagenet-100", source, source / "out").classes
        == build("tiny-imagenet-100", source, tmp_path / "elsewhere").classes
    )


def test_brackets_in_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = class_folders(tmp_path / "in", ["dog [puppy]", "flag"])
    (source / "classes.tsv").write_text("flag\tflag [/i]\n")
    out = tmp_path / "s [b]" / "x[/b]"
    build("tiny-imagenet-100", source, out)
    describe(out)
    shown = " ".join(capsys.readouterr().out.split())
    assert "dog [puppy], flag [/i]" in shown
    assert f"xclr-shards graph {out}" in "".join(shown.split("\n"))
    result = CliRunner().invoke(app, ["verify", str(out)])
    assert result.exit_code == 0, result.output
