"""--dry-run: its ranges hold what a build then comes to, and nothing stays of it."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import pipeline.graph.estimate
from pipeline.build import build_shards
from pipeline.cli import app
from pipeline.costs import costs_path, read_costs
from pipeline.estimate import Cost, estimate, lines
from pipeline.graph.build import build_graph
from pipeline.graph.estimate import _search_probe
from pipeline.ranges import Range, size
from pipeline.scan.samples import Limits
from pipeline.search.plan import LARGE, SMALL
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.manifest import Manifest
from tests.pipeline.sources import class_folders, data_set, images_inside, img2dataset, pictures, write_tar
from tests.pipeline.texts import text_shards
from tests.standin import stand_in_gpu


def cost_of(dataset: str, source: Path, out: Path, **changes: Any) -> Cost:
    settings = {"copy": True, "image_size": None, "encoder": None, "k": 32, "code_dim": 384, "processes": 2} | changes
    return estimate(open_source(load_dataset(dataset), str(source)), out, Limits(), **settings)


def within(value: float, bounds: Range) -> bool:
    return bounds.low <= value <= bounds.high


@pytest.mark.parametrize("kind", ["flickr8k", "tiny-imagenet-100"])
def test_ranges_hold_what_a_build_comes_to(tmp_path: Path, kind: str) -> None:
    if kind == "flickr8k":
        source = img2dataset(tmp_path / "in", samples=30, tars=4, failed=2)
    else:
        source = class_folders(tmp_path / "in", [f"class {i}" for i in range(5)])
    cost = cost_of(kind, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    build_shards(open_source(load_dataset(kind), str(source)), tmp_path / "out", BuildSettings(), 1)
    manifest = Manifest.load(tmp_path / "out")
    assert within(manifest.samples, cost.samples)
    assert within(manifest.texts, cost.texts)
    assert cost.skipped == 0  # what was not downloaded is no fault of the source
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert within(size, cost.disk.times(0.5, 2))
    assert cost.graph.encode is None
    assert 0 < cost.total.low <= cost.total.high


def test_in_place_takes_next_to_nothing(tmp_path: Path) -> None:
    source = img2dataset(tmp_path / "in", samples=30, tars=2)
    cost = cost_of("flickr8k", source, tmp_path / "out", copy=False)
    assert cost.disk.high < 0.1 * cost_of("flickr8k", source, tmp_path / "out").disk.low
    assert cost.write.high == 0
    small = cost_of("flickr8k", source, tmp_path / "out", image_size=8)
    assert small.disk.high < cost_of("flickr8k", source, tmp_path / "out").disk.high


def test_searching_costs_more_with_more_texts() -> None:
    sizes = (1000, SMALL, LARGE, 12_000_000)
    found = [_search_probe(Range(low=n, high=n), 64, 8) for n in sizes]
    assert [method for _, method, _ in found] == ["exact", "exact", "tiles", "descent"]
    seconds = [cost.low for cost, _, _ in found]
    assert seconds == sorted(seconds)
    assert found[3][0].low < 20 * 12_000_000 / LARGE * found[2][0].high  # linear beyond LARGE
    memory = [held for _, _, held in found]
    assert memory[3] > memory[2] > memory[0]


def test_where_there_is_a_gpu_its_search_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pipeline.graph.estimate, "ON_GPU", (3000, 200))
    with stand_in_gpu():
        (small, method, _), (large, _, _) = (_search_probe(Range(low=n, high=n), 64, 8) for n in (10**5, 10**7))
    assert method == "gpu"
    assert 0 < small.low < small.high
    assert 1000 < large.low / small.low < 100_000  # brute force: quadratic, and no probe takes equally long twice
    assert _search_probe(Range(low=SMALL, high=SMALL), 64, 8)[1] == "exact"
    with stand_in_gpu():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 << 30, 8 << 30))  # others hold the rest
        assert _search_probe(Range(low=10**5, high=10**5), 64, 8)[1] == "tiles"


def test_the_command_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = img2dataset(tmp_path / "in", samples=8, tars=2)
    spool = tmp_path / "tmp"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    monkeypatch.chdir(spool)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["build", "flickr8k", "--source", str(source), "--dry-run", "--out", str(tmp_path / "deep" / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    # torch makes an empty folder for its compiler wherever it is imported.
    assert [path for path in sorted(tmp_path.rglob("*")) if "torchinductor" not in path.name] == before
    rows = result.stdout.splitlines()
    assert len(rows) < 24
    assert max(map(len, rows)) < 120
    assert rows[-1] == "dry run: nothing was built"
    assert any(row.startswith("encode") and "nothing" not in row for row in rows)
    assert any(row.startswith("search") and "method exact" in row for row in rows)


def test_a_graph_alone(tmp_path: Path) -> None:
    texts = [f"{i} birds by the {i % 7} lakes\na second caption" for i in range(200)]
    root = text_shards(tmp_path / "s", texts)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, ["graph", str(root), "--k", "8", "--dry-run"])
    assert result.exit_code == 0, result.output
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["texts"] == "200"
    assert "method exact" in rows["search"]
    assert result.stdout.endswith("dry run: nothing was built\n")
    assert sorted(tmp_path.rglob("*")) == before
    folder = build_graph(root, k=8)
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    least, most = (float(bound) for bound in re.findall(r"([\d.]+) MB", rows["disk"])[:2])
    assert 0.5 * least < size / 1e6 < 2 * most
    other = CliRunner().invoke(app, ["graph", str(root), "--kind", "class", "--dry-run"])
    assert "nothing to encode or search" in other.stdout
    of_file = ["graph", str(root), "--kind", "file", "--dry-run", "--source"]
    np.save(tmp_path / "v.npy", np.zeros((200, 24), np.float16))
    own = CliRunner().invoke(app, [*of_file, str(tmp_path / "v.npy")])
    assert "method exact" in own.stdout
    assert "nothing to encode" in own.stdout
    np.save(tmp_path / "few.npy", np.zeros((199, 24)))
    assert "199 rows" in str(CliRunner().invoke(app, [*of_file, str(tmp_path / "few.npy")]).exception)
    np.save(tmp_path / "m.npy", np.eye(200))
    own = CliRunner().invoke(app, [*of_file, str(tmp_path / "m.npy")])
    assert "nothing to encode or search" in own.stdout
    wrong = CliRunner().invoke(app, ["graph", str(root), "--kind", "file", "--dry-run"])
    assert isinstance(wrong.exception, UserError)


def test_the_first_partition_may_be_empty_and_tables_count_once(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in", ["b", "c"], images=30)
    (source / "train" / "a").mkdir()
    cost = cost_of(data_set(tmp_path / "mine.toml", format="imagefolder"), source, tmp_path / "out")
    assert cost.samples.low <= 60 <= cost.samples.high
    assert cost.source == "3 folders, 60 files"
    pictures(tmp_path / "t", [f"{i}.jpg" for i in range(10)])
    table = tmp_path / "t" / "t.csv"
    table.write_text("".join(["image,caption\n", *(f"{i}.jpg,{i}\n" for i in range(10))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sources.find.TABLE_PART", 20)
        found = cost_of(data_set(tmp_path / "table.toml", format="table"), tmp_path / "t", tmp_path / "out")
    assert found.source == f"1 files, {size(table.stat().st_size)}"
    assert found.samples.low <= 10 <= found.samples.high


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    cost = cost_of("tiny-imagenet-100", class_folders(tmp_path / "in"), tmp_path)
    assert not [line for line in lines(cost, 0.05) if "FIT" in line]
    values = {name: getattr(cost, name) for name in Cost.__dataclass_fields__}
    assert [line for line in lines(Cost(**values | {"free": 10}), 0.05) if "DOES NOT FIT" in line]
    write_tar(tmp_path / "empty" / "0.tar", [("a.jpg", b"<html>"), ("a.txt", b"a")])
    with pytest.raises(UserError, match=r"0\.tar, the first of .* holds no usable sample"):
        cost_of("flickr8k", tmp_path / "empty", tmp_path)
    images_inside(tmp_path / "some.parquet", [0], ["cat"])
    pq.ParquetWriter(tmp_path / "none.parquet", pq.read_schema(tmp_path / "some.parquet")).close()
    with pytest.raises(UserError, match=r"none\.parquet holds no sample: check the source"):
        cost_of(
            data_set(tmp_path / "i.toml", format="table", label="label", captions=[]),
            tmp_path / "none.parquet",
            tmp_path,
        )
    assert np.isclose(Range(low=1, high=2).times(2).plus(Range(low=1, high=1)).high, 5)


def test_estimates_are_kept_beside_the_real_figures(tmp_path: Path) -> None:
    """Next to the folder, whose bytes do not depend on the clock; info shows them."""
    root = text_shards(tmp_path / "s", [f"number {i}" for i in range(20)])
    build_graph(root, k=4)
    assert read_costs(root)[0]["step"] == "search of minilm-k4"
    shown = " ".join(CliRunner().invoke(app, ["info", str(root)]).stdout.split())
    assert "search of minilm-k4, exact: 1 s estimated, 0 s taken" in shown
    assert not list(root.rglob("*cost*"))
    costs_path(root).write_text('{"step": "older"}\ntorn {\n[1]\n')
    assert read_costs(root) == [{"step": "older"}]
    assert "older" in CliRunner().invoke(app, ["info", str(root)]).stdout
    shutil.rmtree(root / "graphs")
    costs_path(root).unlink()
    costs_path(root).mkdir()  # cannot be written: only a note
    build_graph(root, k=4)
    assert read_costs(root) == []
