"""Builds that do not begin, or end, and say why in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.build import build_shards
from pipeline.cli import app
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.pipeline.building import build, contents
from tests.pipeline.sources import img2dataset, pictures, write_tar


@pytest.mark.parametrize(
    ("dataset", "make", "message"),
    [
        ("flickr8k", lambda path: path.mkdir(), r"holds no file like \*\.tar"),
        ("tiny-imagenet-100", lambda path: path.mkdir(), "holds no class folders"),
        ("tiny-imagenet-100", lambda path: (path / "train" / "a").mkdir(parents=True), "holds no usable sample"),
        ("tiny-imagenet-100", lambda path: (path / "a" / "train").mkdir(parents=True), r"\(train\).* give .*/in/a;"),
        ("tiny-imagenet-100", lambda path: (path / "a" / "images").mkdir(parents=True), "holds no usable sample"),
        ("flickr8k", lambda path: write_tar(path / "0.tar", []), "holds no usable sample"),
        ("flickr8k", lambda path: None, "there is no .*in: give the folder"),
    ],
)
def test_sources_without_anything(tmp_path: Path, dataset: str, make: Any, message: str) -> None:
    make(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        build(dataset, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"flickr8k needs SOURCE="):
        build("flickr8k", None, tmp_path / "out")
    with pytest.raises(UserError, match=r"cc12m-wds: the Hugging Face hub cannot be reached .*SOURCE= .*local folder"):
        build("cc12m", None, tmp_path / "out")
    with pytest.raises(UserError, match="shell command"):
        open_source(load_dataset("cc12m"), "pipe:curl http://example.org")
    (tmp_path / "list.txt").write_text(f"pipe:touch {tmp_path}/ran\n")
    with pytest.raises(UserError, match="commands are not run"):
        open_source(load_dataset("cc12m"), str(tmp_path / "list.txt"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"unknown data set 'cc13m': known are .*cc12m"):
        load_dataset("cc13m")
    (tmp_path / "mine.toml").write_text('format = "webdataset"\nfile = "x"\n')
    with pytest.raises(UserError, match=r"unknown key 'file' \(did you mean files\?\); known are"):
        load_dataset(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a/../../evil"', "one plain folder name"),
        ('name = ""', "one plain folder name"),
        ('files = ["/abs/*.csv"]', "patterns below SOURCE"),
        ('files = [""]', "patterns below SOURCE"),
    ],
)
def test_data_set_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(f'format = "table"\n{text}\n')
    with pytest.raises(UserError, match=message):
        load_dataset(str(tmp_path / "mine.toml"))


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    for arguments, message in (
        (["demo", "--source", str(tmp_path)], "demo is generated: leave SOURCE="),
        (["demo", "--graph", "none", "--encoder", "x"], "--graph none encodes nothing"),
        (["demo", "--seed", str(2**63)], "the seed must lie in"),
    ):
        result = CliRunner().invoke(app, ["build", *arguments, "--out", str(tmp_path / "out")])
        assert isinstance(result.exception, UserError)
        assert message in str(result.exception)
    assert CliRunner().invoke(app, ["build", "demo", "--memory", "0"]).exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_link_to_nowhere_is_no_place_to_build(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(tmp_path / "not" / "mounted")
    for out in (tmp_path / "data", tmp_path / "data" / "made"):
        with pytest.raises(FileExistsError):
            build("flickr8k", img2dataset(tmp_path / "in"), out)


def test_a_build_that_is_there_needs_no_lock(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in")
    out = build("flickr8k", source, tmp_path / "out")
    out.chmod(0o555)
    before = contents(out)
    try:
        found = open_source(load_dataset("flickr8k"), str(source))
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr("pipeline.build.alone")
            assert build_shards(found, out, BuildSettings()) is False
    finally:
        out.chmod(0o755)
    assert contents(out) == before


def test_pictures_of_one_class_in_several_folders_are_built_as_the_refusal_says(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "cats"
    for year in ("2019", "2020"):
        pictures(folder / year, [f"{year}.jpg"])
    with pytest.raises(UserError, match=r"of one class, move them into .*/in/cats/images$"):
        build("tiny-imagenet-100", tmp_path / "in", tmp_path / "out")
    for year in ("2019", "2020"):
        (folder / "images").mkdir(exist_ok=True)
        (folder / year).rename(folder / "images" / year)
    out = build("tiny-imagenet-100", tmp_path / "in", tmp_path / "out")
    assert Manifest.load(out).classes == ("cats",)
    assert len(Shards.open(out)) == 2


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_budget_that_is_no_share_is_refused_at_once(share: float) -> None:
    with pytest.raises(UserError, match="--max-skipped is a share"):
        BuildSettings(max_skipped=share)
