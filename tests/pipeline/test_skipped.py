"""What was left out is named: in the folder of shards, and where a build stops for it."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.scan.samples import NAMED, Scan
from shards.errors import OverBudget, UserError
from shards.manifest import Manifest
from shards.verify import verify
from tests.make import jpeg
from tests.pipeline.building import build, contents
from tests.pipeline.sources import data_set


def folders(root: Path, good: int, bad: int) -> Path:
    """Two classes, of one of which the first `bad` images are none."""
    for name, cut in (("cats", 0), ("dogs", bad)):
        (root / name).mkdir(parents=True)
        for number in range(good + cut):
            content = b"no image" if number < cut else jpeg(np.random.default_rng(number))
            (root / name / f"{number:04d}.jpg").write_bytes(content)
    return root


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_is_named_with_its_reason(tmp_path: Path) -> None:
    source = folders(tmp_path / "in", 30, 3)
    (source / "cats" / "README").write_text("no picture")
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    out = build(mine, source, tmp_path / "out", max_skipped=0.5)
    found = lines(out / "skipped.jsonl")
    assert Counter(line["reason"] for line in found) == Manifest.load(out).skipped
    assert [Path(line["sample"]).name for line in found] == ["README", "0000.jpg", "0001.jpg", "0002.jpg"]
    assert verify(out) == []
    again = build(mine, source, tmp_path / "again", max_skipped=0.5)
    assert contents(again) == contents(out)
    whole = build(mine, folders(tmp_path / "whole", 30, 0), tmp_path / "sound")
    assert not (whole / "skipped.jsonl").exists()


def test_a_build_that_stops_for_them_says_where_they_are_named(tmp_path: Path) -> None:
    source = folders(tmp_path / "in", 30, 20)
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    with pytest.raises(OverBudget, match=r"the last was .*0019\.jpg.*; .*out/\.work/skipped\.jsonl names them") as told:
        build(mine, source, tmp_path / "out", max_skipped=0.01)
    named = Path(str(told.value).removesuffix(" names them").rpartition("; ")[2])
    assert len(lines(named)) == 20
    assert not (tmp_path / "out" / "skipped.jsonl").exists()
    out = build(mine, source, tmp_path / "out", max_skipped=0.5)
    assert len(lines(out / "skipped.jsonl")) == 20


def test_a_lower_budget_costs_nothing_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be given by mistake, and taken back."""
    source = folders(tmp_path / "in", 30, 20)
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build._write_all", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(mine, source, tmp_path / "out", max_skipped=0.5)
    before = sorted(path.name for path in (tmp_path / "out/.work").rglob("*"))
    assert "samples.arrow" in before
    with pytest.raises(OverBudget):
        build(mine, source, tmp_path / "out", max_skipped=0.01)
    assert set(before) <= {path.name for path in (tmp_path / "out/.work").rglob("*")}


def test_what_was_mended_is_not_named_any_more(tmp_path: Path) -> None:
    source = folders(tmp_path / "in", 30, 20)
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    with pytest.raises(OverBudget):
        build(mine, source, tmp_path / "out", max_skipped=0.01)
    for number in range(20):
        (source / "dogs" / f"{number:04d}.jpg").write_bytes(jpeg(np.random.default_rng(number)))
    out = build(mine, source, tmp_path / "out", max_skipped=0.01)
    assert Manifest.load(out).skipped == {}
    assert not (out / "skipped.jsonl").exists()


def test_a_source_without_a_usable_sample_is_looked_at_again(tmp_path: Path) -> None:
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    source = folders(tmp_path / "in", 0, 5)
    (source / "cats" / "0.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"no usable sample \(6 .*out/\.work/skipped\.jsonl names them"):
        build(mine, source, tmp_path / "out")
    for path in source.glob("*/*.jpg"):
        path.write_bytes(jpeg(np.random.default_rng(1)))
    assert Manifest.load(build(mine, source, tmp_path / "out")).samples == 6


def test_of_many_the_first_and_the_last_are_kept(tmp_path: Path) -> None:
    found = Scan()
    for number in range(3 * NAMED):
        found.skip("no caption", str(number))
    assert found.examples["no caption"] == [*map(str, range(NAMED - 1)), str(3 * NAMED - 1)]
    source = folders(tmp_path / "in", 300, NAMED + 50)
    out = build(data_set(tmp_path / "mine.toml", format="imagefolder"), source, tmp_path / "out", max_skipped=0.5)
    *first, more = lines(out / "skipped.jsonl")
    assert len(first) == NAMED
    assert more == {"reason": first[0]["reason"], "in": "dogs", "more": 50}
    assert first[-1]["sample"].endswith(f"{NAMED + 49:04d}.jpg")


def test_the_command_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "mine.toml", format="imagefolder")
    call = ["build", "mine.toml", "--source", str(folders(tmp_path / "in", 30, 3)), "--graph", "none"]
    said = CliRunner().invoke(app, call, catch_exceptions=False).output
    assert "note: they were built from" not in CliRunner().invoke(app, call).output
    copy = shutil.copytree(tmp_path / "in", tmp_path / "copy")
    again = CliRunner().invoke(app, [*call[:3], str(copy), *call[4:]], catch_exceptions=False).output
    assert f"note: they were built from {tmp_path}/in, whose files" in " ".join(again.split())
    assert re.search(r"60 samples .*, 3 .* \(by name in data/mine/skipped\.jsonl\)", " ".join(said.split()))
