"""Builds that were stopped or killed, and folders that hold another: pieces are kept, settings and sources compared."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import pipeline.build
from pipeline.arrow import open_table
from pipeline.build import build_shards
from pipeline.built import say_left_out
from pipeline.cli import app
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests import forked
from tests.pipeline.building import build, contents
from tests.pipeline.sources import class_folders, data_set, img2dataset, pictures


def test_other_settings_and_a_changed_source_are_refused(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in")
    out = build("flickr8k", source, tmp_path / "out")
    found = open_source(load_dataset("flickr8k"), str(source))
    assert build_shards(found, out, BuildSettings()) is False
    before = contents(out)
    with pytest.raises(UserError, match=r"was built with seed 0, not 1; .*delete that folder"):
        build("flickr8k", source, out, seed=1, shard_size=3)
    img2dataset(source, samples=9)
    with pytest.raises(UserError, match="was built with other source files"):
        build("flickr8k", source, out)
    assert contents(out) == before


def test_a_stopped_build_names_the_source_file_that_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = img2dataset(tmp_path / "in", samples=6, tars=3)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.build._write_all", stop)
    with pytest.raises(KeyboardInterrupt):
        build("flickr8k", source, tmp_path / "out")
    img2dataset(tmp_path / "other", samples=9, tars=2)
    shutil.copyfile(tmp_path / "other" / "00001.tar", source / "00001.tar")
    with pytest.raises(UserError, match=r"was begun with other source files \(\S*00001\S* has changed, or is new\)"):
        build("flickr8k", source, tmp_path / "out")


class Stop(Exception):
    pass


def stopped_after_scanning(dataset: str, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build._write_all", stop)
        with pytest.raises(Stop):
            build(dataset, source, out)


def test_a_table_that_is_mended_after_a_stop_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as before, and for the second time."""
    pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    mine, table = data_set(tmp_path / "mine.toml", format="table"), tmp_path / "in" / "t.csv"
    table.write_text("image,caption\na.jpg,cat\nb.jpg,old\n")
    stopped_after_scanning(mine, tmp_path / "in", tmp_path / "out", monkeypatch)
    (tmp_path / "out" / ".work" / "samples.arrow").unlink()
    table.write_text("image,caption\na.jpg,cat\nb.jpg,new\n")
    build(mine, tmp_path / "in", tmp_path / "out")
    assert sorted(Shards.open(tmp_path / "out").texts()) == ["cat", "new"]
    table.write_text("image,caption\na.jpg,cat\nb.jpg,dog\n")
    with pytest.raises(UserError, match="was built with other source files"):
        build(mine, tmp_path / "in", tmp_path / "out")


def test_long_lists_are_told_in_part(tmp_path: Path) -> None:
    """Of ImageNet's thousand classes a message names three."""
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    out = build(mine, class_folders(tmp_path / "in", ["0", "1", "2", "3", "4"]), tmp_path / "out")
    with pytest.raises(UserError, match=r"wnids \['0', '1', '2', and 2 more\], not \['a', 'b'\]: choose another"):
        build(mine, class_folders(tmp_path / "other", ["a", "b"]), out)


def test_other_class_names_are_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, names = class_folders(tmp_path / "in", ["0", "1", "2"]), tmp_path / "in" / "classes.tsv"
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    names.write_bytes("\ufeff0\tcat\n1\tdog\n2\tcr\xeape\n".encode("latin-1", "replace"))
    build(mine, source, tmp_path / "broken")  # not UTF-8 is read as far as it goes
    names.write_text("\ufeff0\tcat\n1\tdog\n2\thorse\n")
    out = build(mine, source, tmp_path / "out")
    assert Manifest.load(out).classes == ("cat", "dog", "horse")
    stopped_after_scanning(mine, source, tmp_path / "begun", monkeypatch)
    (tmp_path / "begun" / ".work" / "samples.arrow").unlink()
    names.write_text("0\tplane\n1\tdog\n2\tcat\n")
    with pytest.raises(UserError, match=r"was built with other class names: choose another OUT="):
        build(mine, source, out)
    build(mine, source, tmp_path / "begun")
    shards = Shards.open(tmp_path / "begun")
    texts = {label: shards.texts()[text] for label, text in zip(shards.index.label, shards.index.text_id, strict=True)}
    assert texts == {0: "a photo of a plane", 1: "a photo of a dog", 2: "a photo of a cat"}


def test_other_captions_beside_a_tar_are_another_source(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in")
    build("flickr8k", source, tmp_path / "out")
    path = source / "00001.parquet"
    table = pq.read_table(path, partitioning=None)
    longer = [[f"longer {caption}" for caption in captions] for captions in table["captions"].to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("captions"), "captions", pa.array(longer)), path)
    with pytest.raises(UserError, match="was built with other source files"):
        build("flickr8k", source, tmp_path / "out")


def test_a_stopped_build_follows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved, or named from another folder."""
    whole = build("flickr8k", img2dataset(tmp_path / "in"), tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    stopped_after_scanning("flickr8k", Path("in"), Path("out"), monkeypatch)
    (tmp_path / "in").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "whole")
    build("flickr8k", Path("../moved"), Path("../out"))
    tar = "train-000000.tar"
    assert contents(tmp_path / "out")[tar] == contents(whole)[tar]


def test_a_picture_that_changed_after_the_scan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = class_folders(tmp_path / "in"), tmp_path / "out"
    stopped_after_scanning("tiny-imagenet-100", source, out, monkeypatch)
    path = next(source.rglob("*_1.JPEG"))
    data = path.read_bytes()
    for other in (data + b"more", data[:-9]):
        path.write_bytes(other)
        with pytest.raises(UserError, match=r"_1\.JPEG has changed since it was scanned: delete the unfinished folder"):
            build("tiny-imagenet-100", source, out)
    path.rename(path.with_name("x"))
    with pytest.raises(UserError, match=r"_1\.JPEG is gone since it was scanned"):
        build("tiny-imagenet-100", source, out)


def test_samples_of_many_partitions_lie_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers take rows of it for each shard, which in many pieces costs as much as all of it."""
    stopped_after_scanning("flickr8k", img2dataset(tmp_path / "in", tars=5), tmp_path / "out", monkeypatch)
    table = open_table(tmp_path / "out" / ".work" / "samples.arrow")
    assert {column.num_chunks for column in table.columns} == {1}
    assert {str(kind) for kind in table.schema.types} == {"large_string", "int64", "int32"}


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    """The source's own, even, whose tars may be called as ours are."""
    source = img2dataset(tmp_path / "in", tars=1)
    (source / "00000.tar").rename(source / "train-000000.tar")
    (source / "00000.parquet").unlink()
    before = contents(source)
    with pytest.raises(UserError, match=r"in holds other files \(train-000000\.tar\): choose a new or an empty folder"):
        build("flickr8k", source, source)
    assert contents(source) == before
    (source / "manifest.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"damaged, or no manifest of shards .*choose another OUT="):
        build("flickr8k", source, source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").touch()
    build("flickr8k", source, tmp_path / "out")


def test_another_description_is_no_other_build(tmp_path: Path) -> None:
    """Nor is another default graph: neither decides a byte of the shards."""
    source = img2dataset(tmp_path / "in")
    build("flickr8k", source, tmp_path / "out")
    dataset = replace(load_dataset("flickr8k"), about="in other words", graph="none")
    assert build_shards(open_source(dataset, str(source)), tmp_path / "out", BuildSettings()) is False


def test_of_a_changed_data_set_file_the_keys_that_differ_are_named(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    out = build(data_set(tmp_path / "mine.toml", format="imagefolder"), source, tmp_path / "out")
    mine = data_set(tmp_path / "mine.toml", format="imagefolder", images=["y"], files=["x"])
    with pytest.raises(
        UserError, match=r"was built with dataset files none, not \['x'\]; dataset images none, not \['y'\]:"
    ):
        build(mine, source, out)


def test_a_dry_run_says_what_is_there(tmp_path: Path) -> None:
    source, out = img2dataset(tmp_path / "in"), tmp_path / "out"
    arguments = ["build", "flickr8k", "--source", str(source), "--out", str(out), "--graph", "none", "--dry-run"]
    runner = CliRunner()
    assert "already" not in runner.invoke(app, arguments, catch_exceptions=False).stdout
    assert not out.exists()
    build("flickr8k", source, out)
    assert "the shards are there already" in runner.invoke(app, arguments, catch_exceptions=False).stdout
    with pytest.raises(UserError, match="was built with seed 0, not 1"):
        runner.invoke(app, [*arguments, "--seed", "1"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recall", "7"], r"recall to reach must lie in 0\.\.1"),
        (["--encoder", "no/such/encoder"], "neither a folder nor a repository name"),
        (
            ["--graph", "class", "--encoder", "minilm"],
            "--graph class needs class labels, and flickr8k has none: use encoder, or say in a data set file",
        ),
    ],
)
def test_the_graphs_options_are_checked_before_a_shard_is_written(
    tmp_path: Path, options: list[str], message: str
) -> None:
    arguments = ["build", "flickr8k", "--source", str(img2dataset(tmp_path / "in")), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_finished_build_says_what_it_left_out(tmp_path: Path) -> None:
    made = pictures(tmp_path / "in", ["a.jpg", "b.jpg"])
    (tmp_path / "in" / "t.csv").write_text("image,caption\na.jpg,cat\nb.jpg,dog\n")
    mine = data_set(tmp_path / "mine.toml", format="table")
    arguments = ["build", mine, "--source", str(tmp_path / "in"), "--graph", "none", "--out"]
    (tmp_path / "in" / "b.jpg").unlink()
    runner = CliRunner()
    first = runner.invoke(app, [*arguments, str(tmp_path / "out")], catch_exceptions=False)
    assert "left out" not in first.output
    (tmp_path / "in" / "b.jpg").write_bytes(made["b.jpg"])
    again = runner.invoke(app, [*arguments, str(tmp_path / "out")], catch_exceptions=False)
    assert "note: left out when it was built: 1 sample of the source. If those were mended since, " in again.output
    runner.invoke(app, [*arguments, str(tmp_path / "anew")], catch_exceptions=False)
    whole = runner.invoke(app, [*arguments, str(tmp_path / "anew")], catch_exceptions=False)
    assert "already there, 2 samples" in whole.output
    assert "left out" not in whole.output


@pytest.mark.parametrize(
    ("skipped", "told"),
    [({"torn tar": 2}, "the rest of 2 torn tars."),
     ({"no caption": 1200, "torn tar": 1}, "1,200 samples of the source and the rest of 1 torn tar.")],
)  # fmt: skip
def test_torn_tars_are_no_samples(
    skipped: dict[str, int], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mock.patch.object(Manifest, "load", return_value=SimpleNamespace(skipped=skipped)):
        say_left_out(tmp_path)
    assert f"left out when it was built: {told} If" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["a tar is gone", "a tar is cut"])
def test_damaged_shards_are_not_called_finished(tmp_path: Path, damage: str) -> None:
    out = build("flickr8k", img2dataset(tmp_path / "in"), tmp_path / "out")
    tar = next(out.glob("*.tar"))
    if damage == "a tar is gone":
        tar.unlink()
    else:
        os.truncate(tar, 5000)
    with pytest.raises(UserError, match=rf"{tar} (is missing|has 5,000 bytes).*: run `xclr-shards verify {out}`"):
        build("flickr8k", tmp_path / "in", out)
    told = CliRunner().invoke(app, ["verify", str(out)])
    assert told.exit_code == 1
    assert f"copy these files again if there is another copy of {out}; else delete it" in " ".join(told.output.split())
    shutil.rmtree(out)
    build("flickr8k", tmp_path / "in", out)
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 0
    (out / "graphs/torn").mkdir(parents=True)
    (out / "graphs/torn/graph.json").write_text("{")
    told = CliRunner().invoke(app, ["verify", str(out)])  # the shards are sound
    assert (told.exit_code, "copy these files" in told.output) == (1, False)


def test_two_builds_in_one_folder(tmp_path: Path) -> None:
    from pipeline.work import alone

    source = img2dataset(tmp_path / "in")
    with alone(tmp_path / "out", "wait"), pytest.raises(UserError, match="another process is building"):
        build("flickr8k", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build("flickr8k", source, tmp_path / "out")


def test_a_lock_of_a_folder_that_was_removed_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened just before another builder, done, took the folder away."""
    from pipeline import work

    real, taken = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not taken:
            taken.append(file)
            shutil.rmtree(tmp_path / "out" / ".work")
        real(file, how)

    monkeypatch.setattr(work.fcntl, "flock", flock)
    with work.alone(tmp_path / "out", "wait"):
        assert (tmp_path / "out" / ".work" / "lock").exists()
        with pytest.raises(UserError, match="another process is building"), work.alone(tmp_path / "out", "wait"):
            pass


def test_a_shard_that_went_after_a_stop_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = img2dataset(tmp_path / "in", samples=10), tmp_path / "out"
    whole = build("flickr8k", source, tmp_path / "whole", shard_size=5)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "save", lambda manifest, root: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            build("flickr8k", source, out, shard_size=5)
    (out / "train-000001.tar").unlink()
    build("flickr8k", source, out, shard_size=5)
    assert contents(out) == contents(whole)


def test_a_stopped_build_goes_on_from_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = img2dataset(tmp_path / "in", samples=10, tars=2)
    whole = build("flickr8k", source, tmp_path / "whole", shard_size=5)
    write, calls = pipeline.build.write_shard, []

    def failing(job: Any) -> Any:
        calls.append(job.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(job)

    monkeypatch.setattr(pipeline.build, "write_shard", failing)
    with pytest.raises(KeyboardInterrupt):
        build("flickr8k", source, tmp_path / "out", shard_size=5)
    build("flickr8k", source, tmp_path / "out", shard_size=5)
    assert calls == [f"train-00000{i}" for i in (0, 1, 2, 2, 3)]
    assert contents(tmp_path / "out") == contents(whole)


def command(source: Path, out: Path, processes: int) -> list[str]:
    arguments = ["build", "tiny-imagenet-100", "--source", str(source), "--out", str(out), "--shard-size", "5"]
    return [*arguments, "--graph", "class", "--processes", str(processes)]


@pytest.mark.slow
def test_killed_at_25_random_moments(tmp_path: Path) -> None:
    """SIGKILL over the whole build, shards and graph, each time followed by the same command.

    Every third has processes, which take as long to start as all else takes.
    """
    source = class_folders(tmp_path / "in", [f"class_{i}" for i in range(12)], images=5)
    whole, out, said = tmp_path / "whole", tmp_path / "out", tmp_path / "said"
    program = [sys.executable, "-m", "pipeline.cli"]
    subprocess.run([*program, *command(source, whole, 2)], check=True, capture_output=True)
    forked.ready()
    lengths = dict[int, float]()
    for processes in (1, 2):
        begin = time.perf_counter()
        forked.run("pipeline.cli", command(source, tmp_path / f"timed{processes}", processes), said)
        lengths[processes] = time.perf_counter() - begin
    kills, attempts = 0, 0
    while attempts < 25 or (kills <= 5 and attempts < 75):  # `lengths` are a busy machine's, if most come to their end
        processes = 2 if attempts % 3 == 0 else 1
        attempts += 1
        process = forked.start("pipeline.cli", command(source, out, processes), said)
        # Progress stays, so later builds are shorter: from their beginning to past their end.
        process.join(random.uniform(0.1, 1.1) * lengths[processes])
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), said.read_text()
        if process.exitcode == 0:
            assert contents(out) == contents(whole)
            shutil.rmtree(out)
    forked.run("pipeline.cli", command(source, out, 2), said)
    assert kills > 5
    assert contents(out) == contents(whole)
