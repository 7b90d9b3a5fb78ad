"""A test split held out of one source: which samples, in every format, and the road from one file to a benchmark."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline.build
from eval.benchmarks.registry import open_bench
from pipeline.cli import app
from pipeline.held_out import image_hashes, on_side
from pipeline.room import room_to_fetch
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from pipeline.sources.source import Partition, Source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from shards.verify import verify
from tests.make import jpeg
from tests.pipeline.building import build, contents
from tests.pipeline.labelled import write_table
from tests.pipeline.sources import class_folders, data_set, images_inside, img2dataset, pictures, write_tar

ANIMALS = ("cat", "dog", "yak")
FORMATS: dict[str, dict[str, Any]] = {
    "tars": {"format": "webdataset"},
    "folders": {"format": "imagefolder"},
    "table": {"format": "table", "files": ["t.csv"], "label": "kind", "captions": []},
    "inside": {"format": "table", "files": ["t.parquet"], "label": "label", "captions": []},
}


def source_of(kind: str, root: Path, more: bool = False) -> Path:
    """60 samples; or some more, which come before, between and behind those."""
    match kind:
        case "tars":
            img2dataset(root, samples=30, tars=3 if more else 2)
        case "folders":
            class_folders(root, ["b", "d"], images=30)
            if more:
                class_folders(root, ["a", "e"], images=5)
                shutil.copyfile(root / "train" / "a" / "a_1.JPEG", root / "train" / "b" / "a.JPEG")
        case "table":
            names = [f"{i:02d}.jpg" for i in range(70 if more else 60)]
            pictures(root, names)
            rows = [{"image": name, "kind": ANIMALS[i % 3]} for i, name in enumerate(names)]
            write_table(root / "t.csv", rows[::-1] if more else rows)
        case "inside":
            images_inside(root / "t.parquet", [i % 3 for i in range(70 if more else 60)], ANIMALS)
    return root


def images(out: Path) -> list[bytes]:
    shards = Shards.open(out)
    return [shards.image(i) for i in range(len(shards))]


def both(mine: str, source: Path, root: Path, **settings: Any) -> tuple[Path, Path]:
    train = build(mine, source, root / "mine", **settings)
    return train, build(mine, source, root / "mine-test", held_out=True, **settings)


def test_a_share_of_the_samples_by_their_bytes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [b"picture %d" % i for i in range(5000)]
    path = tmp_path / "images"
    path.write_bytes(b"".join(made))
    ends = np.cumsum([len(image) for image in made]).tolist()
    hashes = image_hashes((str(path), end - len(image), len(image)) for image, end in zip(made, ends, strict=True))
    assert hashes[0] == 0xB6864EDF273B0D66  # as everywhere
    assert len(set(hashes)) == 5000
    scan = tmp_path / "scan.parquet"
    pq.write_table(pa.table({"hash": pa.array(hashes, pa.uint64())}), scan)
    before = np.zeros(5000, bool)
    for share in (0.01, 0.1, 0.5, 0.9):
        held, others = (on_side(share, side, [scan], "here") for side in (True, False))
        assert held is not None
        assert others is not None
        assert abs(held.mean() - share) < 4 * (share * (1 - share) / 5000) ** 0.5
        assert np.array_equal(held, ~others)
        assert held.tolist() == [one < share * 2**64 for one in hashes]  # as in shards that were built before
        assert held[before].all()  # a larger share holds the smaller one's
        before = held
        said = " ".join(capsys.readouterr().err.split())
        built, left = said.index("samples, which are built here"), said.index("samples, which are left out here")
        assert built < left  # as they were asked for
    assert on_side(0, False, [scan], "here") is None


@pytest.mark.parametrize("kind", FORMATS)
def test_both_splits_are_disjoint_and_together_the_whole(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path / "in")
    whole = build(data_set(tmp_path / "whole.toml", **FORMATS[kind]), source, tmp_path / "whole")
    mine = data_set(tmp_path / "mine.toml", **FORMATS[kind], held_out=0.25)
    train, test = both(mine, source, tmp_path, processes=2)
    assert sorted(images(train) + images(test)) == sorted(images(whole))
    assert not set(images(train)) & set(images(test))
    assert 5 <= len(images(test)) <= 25
    manifests = [Manifest.load(out) for out in (train, test)]
    assert [manifest.split for manifest in manifests] == ["train", "test"]
    assert [manifest.shards[0].name for manifest in manifests] == ["train-000000", "test-000000"]
    assert [manifest.settings["dataset"]["held_out"] for manifest in manifests] == [0.25, 0.25]
    assert [manifest.settings.get("held_out") for manifest in manifests] == [None, True]
    assert manifests[0].classes == manifests[1].classes == Manifest.load(whole).classes
    assert manifests[0].skipped == Manifest.load(whole).skipped  # what is held out is usable
    assert verify(train) == verify(test) == []
    for out in (train, test):  # each image has the text and class that it has in the whole
        assert described(out).items() <= described(whole).items()


def described(out: Path) -> dict[bytes, tuple[str, str]]:
    shards = Shards.open(out)
    texts, names = shards.texts(), (*shards.manifest.classes, "")
    index = shards.index
    pairs = zip(images(out), index.text_id, index.label, strict=True)
    return {image: (texts[text], names[label]) for image, text, label in pairs}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_sample_stays_on_its_side_when_others_come(kind: str, tmp_path: Path) -> None:
    mine = data_set(tmp_path / "mine.toml", **FORMATS[kind], held_out=0.25)
    before = [set(images(out)) for out in both(mine, source_of(kind, tmp_path / "in"), tmp_path / "a")]
    after = [set(images(out)) for out in both(mine, source_of(kind, tmp_path / "more", more=True), tmp_path / "b")]
    assert before[0] < after[0]
    assert before[1] <= after[1]


def test_copies_of_an_image_lie_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = [jpeg(rng) for _ in range(30)]
    mine = data_set(tmp_path / "mine.toml", **FORMATS["inside"], held_out=0.3)
    images_inside(tmp_path / "in" / "t.parquet", [0, 1] * 45, ANIMALS, made * 3)
    train, test = both(mine, tmp_path / "in", tmp_path)
    assert not set(images(train)) & set(images(test))
    assert len(images(train)) + len(images(test)) == 90
    names = [f"{i % 30}-{i // 30}.jpg" for i in range(90)]  # and under other names
    for name, image in zip(names, made * 3, strict=True):
        (tmp_path / "in" / name).write_bytes(image)
    write_table(tmp_path / "in" / "t.csv", [{"image": name, "kind": "ab"[i % 2]} for i, name in enumerate(names)])
    again = data_set(tmp_path / "again.toml", **FORMATS["table"], held_out=0.3)
    assert [sorted(images(out)) for out in both(again, tmp_path / "in", tmp_path / "again")] == [
        sorted(images(out)) for out in (train, test)
    ]


def test_captions_of_an_image_stay_together(tmp_path: Path) -> None:
    pictures(tmp_path / "in", [f"{i}.jpg" for i in range(40)])
    write_table(
        tmp_path / "in" / "t.csv", [{"image": f"{i % 40}.jpg", "caption": f"{i % 40} by {i}"} for i in range(80)]
    )
    mine = data_set(tmp_path / "mine.toml", format="table", held_out=0.25)
    train, test = (Shards.open(out) for out in both(mine, tmp_path / "in", tmp_path))
    assert sorted(train.texts() + test.texts()) == sorted(f"{i} by {i}\n{i} by {i + 40}" for i in range(40))


@pytest.mark.parametrize("held_out", [False, True])
def test_the_same_bytes_with_any_number_of_processes(held_out: bool, tmp_path: Path) -> None:
    mine = data_set(tmp_path / "mine.toml", **FORMATS["tars"], held_out=0.25)
    source = source_of("tars", tmp_path / "in")
    one, two = (build(mine, source, tmp_path / str(n), processes=n, held_out=held_out) for n in (1, 2))
    assert contents(one) == contents(two)


def test_another_share_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without shards yet, it begins anew; no sample of the earlier share is left."""
    source = source_of("tars", tmp_path / "in")

    def stopped(where: str, held_out: float) -> None:
        def stop(*arguments: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pipeline.build, where, stop)
            with pytest.raises(KeyboardInterrupt):
                build(file(held_out), source, tmp_path / "out")

    def file(held_out: float) -> str:
        return data_set(tmp_path / "mine.toml", **FORMATS["tars"], held_out=held_out)

    fresh = build(file(0.5), source, tmp_path / "fresh")
    for share in (0.0, 0.25):
        stopped("number_samples", share)
        assert contents(build(file(0.5), source, tmp_path / "out")) == contents(fresh)
        shutil.rmtree(tmp_path / "out")
    stopped("_write_all", 0.25)
    with pytest.raises(UserError, match=r"was begun with dataset held_out 0\.25, not 0\.5: choose another OUT="):
        build(file(0.5), source, tmp_path / "out")
    with pytest.raises(UserError, match="was begun with held_out none, not True"):
        build(file(0.25), source, tmp_path / "out", held_out=True)
    assert build(file(0.25), source, tmp_path / "out")
    with pytest.raises(UserError, match=r"was built with dataset held_out 0\.25, not none"):
        build(file(0), source, tmp_path / "out")


def test_settings_without_a_held_out_share_are_as_they_were(tmp_path: Path) -> None:
    """Shards of earlier versions stay what they are."""
    mine = data_set(tmp_path / "mine.toml", **FORMATS["tars"])
    settings = Manifest.load(build(mine, source_of("tars", tmp_path / "in"), tmp_path / "out")).settings
    assert "held_out" not in {*settings, *settings["dataset"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"held_out": 1.0}, r"held_out is a share of the samples below 1, not 1\.0"),
        ({"held_out": -0.1}, "held_out is a share"),
        ({"held_out": 0.1, "split": "test"}, 'split = "test" says that all of these are one: leave one out'),
        ({"held_out": 0.1, "format": "demo"}, "demo has one"),
        ({"held_out": 1e-9}, r"holds out none of 60 samples of \S*in: raise it in the data set file"),
        ({"held_out": 0.9999999}, r"holds out all of 60 samples of \S*in: lower it"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = source_of("tars", tmp_path / "in")
    for held_out in (False, True):
        with pytest.raises(UserError, match=message):
            build(
                data_set(tmp_path / "m.toml", **FORMATS["tars"] | values), source, tmp_path / "out", held_out=held_out
            )


def test_a_source_without_a_sample_is_said_as_ever(tmp_path: Path) -> None:
    images_inside(tmp_path / "some.parquet", [0], ANIMALS)
    pq.ParquetWriter(tmp_path / "none.parquet", pq.read_schema(tmp_path / "some.parquet")).close()
    mine = data_set(tmp_path / "mine.toml", **FORMATS["inside"], held_out=0.5)
    with pytest.raises(UserError, match="holds no usable sample"):
        build(mine, tmp_path / "none.parquet", tmp_path / "out")


def test_nothing_is_held_out_without_a_share(tmp_path: Path) -> None:
    mine = data_set(tmp_path / "mine.toml", **FORMATS["tars"])
    with pytest.raises(UserError, match=r"mine holds no samples out: write `held_out = 0\.1`"):
        build(mine, source_of("tars", tmp_path / "in"), tmp_path / "out", held_out=True)
    assert not (tmp_path / "out").exists()


def test_an_image_that_goes_while_it_is_hashed_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.jpg has changed since it was scanned \(No such file"):
        image_hashes([(str(tmp_path / "gone.jpg"), 0, 1)])


def test_unusable_samples_are_counted_once_and_held_out_ones_never(tmp_path: Path) -> None:
    source = source_of("tars", tmp_path / "in")
    rng = np.random.default_rng(9)
    bad = [("bad.jpg", b"<html>"), ("bad.txt", b"a"), ("a.jpg", jpeg(rng)), ("a.txt", b"a")]
    write_tar(source / "00009.tar", bad)
    mine = data_set(tmp_path / "mine.toml", **FORMATS["tars"], held_out=0.5)
    for out in both(mine, source, tmp_path, max_skipped=0.0):
        assert Manifest.load(out).skipped == {"undecodable image": 1}


def run(*arguments: str) -> str:
    return CliRunner().invoke(app, ["build", *arguments], catch_exceptions=False).stdout


@pytest.mark.parametrize("layout", ["shuffled", "in-place"])
def test_the_road_from_one_file_to_a_benchmark(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng, members = np.random.default_rng(0), []
    for i in range(80):
        members += [(f"{i:05d}.jpg", jpeg(rng)), (f"{i:05d}.cls", b"%d" % (i % 12)), (f"{i:05d}.txt", b"text %d" % i)]
    write_tar(tmp_path / "in put" / "0.tar", members)
    data_set(tmp_path / "mine.toml", format="webdataset", label="cls", held_out=0.25, graph="class")
    told = run("mine.toml", "--source", "in put", "--layout", layout, "--max-caption", "9", "--k", "3")
    command = f"xclr-shards build mine.toml --source 'in put' --layout {layout} --max-caption 9 --held-out"
    assert told.endswith(f"held out: some 0.25 of the samples, a test split that is built with `{command}`\n")
    with pytest.raises(UserError, match=r"data/mine leaves 0\.25 of the samples out") as missing:
        open_bench("shards", Path("data/mine"))
    assert "`xclr-shards build mine.toml --source 'in put' --out data/mine-test --held-out`" in str(missing.value)
    assert "held out" not in run(*shlex.split(command)[2:])
    assert not (tmp_path / "data" / "mine-test" / "graphs").exists()
    assert verify(Path("data/mine-test")) == []
    capsys.readouterr()
    bench = open_bench("shards", Path("data/mine"))
    counts = [len(bench.by_name[name].keys) for name in ("train", "test")]
    assert bench.notes["of_training"] == {"compared": counts[1], "found": 0}
    assert sum(counts) == 80
    assert not set(bench.by_name["train"].keys) & set(bench.by_name["test"].keys)


def test_the_command_names_the_test_folder_of_another_out(tmp_path: Path) -> None:
    mine, source = (
        data_set(tmp_path / "mine.toml", **FORMATS["tars"], held_out=0.25),
        source_of("tars", tmp_path / "in"),
    )
    told = run(mine, "--source", str(source), "--out", str(tmp_path / "x"), "--use-torn", "--graph", "none")
    assert f"--out {tmp_path}/x-test --use-torn --held-out`" in told
    shown = [
        CliRunner().invoke(app, ["info", str(out)]).stdout
        for out in (tmp_path / "x", build(mine, source, tmp_path / "x-test", held_out=True))
    ]
    assert "0.25 of the source's samples; they are not in these shards" in shown[0]
    assert "0.25 of the source's samples; these are they" in shown[1]


def test_a_dry_run_expects_the_share(tmp_path: Path) -> None:
    mine, source = (
        data_set(tmp_path / "mine.toml", **FORMATS["tars"], held_out=0.25),
        source_of("tars", tmp_path / "in"),
    )
    arguments = (mine, "--source", str(source), "--graph", "none", "--dry-run", "--out", str(tmp_path / "x"))
    counted = [told.split("samples    ")[1].split(";")[0] for told in (run(*arguments), run(*arguments, "--held-out"))]
    low, high = ([int(bound) for bound in told.split(" to ")] for told in counted)
    assert low[0] <= 45 <= low[1] < 60
    assert high[0] <= 15 <= high[1] < 20
    assert "--held-out`" in run(*arguments)


def test_a_rare_class_that_is_held_out_whole_is_left_out_of_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{i}.jpg" for i in range(60)]
    made = pictures(tmp_path / "in", names)
    mine = data_set(tmp_path / "mine.toml", **FORMATS["table"], held_out=0.25)
    write_table(tmp_path / "in" / "t.csv", [{"image": name, "kind": "cat"} for name in names])
    held = set(images(build(mine, tmp_path / "in", tmp_path / "first", held_out=True)))
    side = {name: made[name] in held for name in names}
    ours, theirs = ([name for name in names if side[name] is which] for which in (False, True))
    kinds = dict.fromkeys(names, "cat") | {theirs[0]: "bee", ours[0]: "ant"} | dict.fromkeys(ours[1:9], "dog")
    write_table(tmp_path / "in" / "t.csv", [{"image": name, "kind": kinds[name]} for name in names])
    train, test = both(mine, tmp_path / "in", tmp_path)
    assert Manifest.load(train).classes == Manifest.load(test).classes == ("ant", "bee", "cat", "dog")
    capsys.readouterr()
    bench = open_bench("shards", train)
    assert f"{test}: 1 pictures are left out, of classes of which all are held out" in capsys.readouterr().err
    assert bench.tasks[0].classes == ["ant", "cat", "dog"]
    assert len(bench.by_name["test"].keys) == len(theirs) - 1
    assert bench.notes["unlabelled"] == {"train": 0, "test": 0}


def test_training_shards_that_hold_some_of_the_test_images_are_refused(tmp_path: Path) -> None:
    source = source_of("table", tmp_path / "in")
    for held_out in (0.25, 0.5):
        mine = data_set(tmp_path / "mine.toml", **FORMATS["table"], held_out=held_out)
        train, test = (tmp_path / f"{held_out}{end}" for end in ("", "-test"))
        build(mine, source, train)
        build(mine, source, test, held_out=True)
    shutil.move(tmp_path / "0.25", tmp_path / "mine")
    shutil.copytree(tmp_path / "0.5-test", tmp_path / "mine-test")
    with pytest.raises(UserError, match=r"mine-test holds 0\.5 of the samples of .* leaves only 0\.25 of them out"):
        open_bench("shards", tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine-test")
    # Of another source any share will do.
    other = data_set(tmp_path / "other.toml", **FORMATS["table"], held_out=0.5)
    build(other, source_of("table", tmp_path / "more", more=True), tmp_path / "mine-test", held_out=True)
    assert len(open_bench("shards", tmp_path / "mine").by_name["test"])
    shutil.rmtree(tmp_path / "mine-test")
    shutil.move(tmp_path / "0.25-test", tmp_path / "0.5-test-small")
    shutil.rmtree(tmp_path / "0.5-test")
    shutil.move(tmp_path / "0.5-test-small", tmp_path / "0.5-test")
    assert open_bench("shards", tmp_path / "0.5").notes["of_training"]["found"] == 0  # fewer than were left out


def test_room_is_asked_for_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Partition(number=0, name="0.tar", path=Path("0.tar"), bytes=100, url="https://host/0.tar")
    source = Source(dataset=load_dataset("cc12m"), where="https://host", partitions=(remote,))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=150))
    room_to_fetch(source, tmp_path, tmp_path, 0.1)
    with pytest.raises(UserError, match="free"):
        room_to_fetch(source, tmp_path, tmp_path, 0.9)
    asked = list[float]()
    monkeypatch.setattr(pipeline.build, "room_to_fetch", lambda *arguments: asked.append(arguments[-1]))
    monkeypatch.setattr(pipeline.build, "room_to_write", lambda *arguments: None)
    both(data_set(tmp_path / "m.toml", **FORMATS["tars"], held_out=0.25), source_of("tars", tmp_path / "in"), tmp_path)
    assert asked == [0.75, 0.25]


def test_the_test_split_is_read_from_the_training_files(tmp_path: Path) -> None:
    """Also where there are test files: those are another split."""
    class_folders(tmp_path / "in", images=30)
    shutil.copytree(tmp_path / "in" / "train" / "n02084071", tmp_path / "in" / "test" / "n02084071")
    mine = data_set(tmp_path / "mine.toml", **FORMATS["folders"], held_out=0.25)
    found = open_source(load_dataset(mine), str(tmp_path / "in"))
    assert {partition.path.parent.name for partition in found.partitions} == {"train"}
    test = build(mine, tmp_path / "in", tmp_path / "out", held_out=True)
    assert len(set(Shards.open(test).index.label)) == 2
