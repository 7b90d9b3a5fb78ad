"""What a run does when the world changes under it: graphs, damaged or partial files, full disks, lasting errors."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from shards.atomic import TEMPORARY
from shards.errors import UserError
from shards.graph import write_graph
from shards.manifest import Manifest
from shards.reader import Shards
from shards.verify import verify
from tests.make import make_graph, make_shards
from tests.trainer.test_loop import ALONE, SIZES, command, recipe, weights
from trainer import checkpoint
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.cli import app
from trainer.loop import Stopped, train
from trainer.model import build_encoder, feature_dim
from trainer.recipe import ModelConfig
from trainer.step import Stepper
from trainer.world import _device, _start_of


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", sizes=SIZES, classes=6)


def add_graph(root: Path, name: str, seed: int = 0, **meta: Any) -> None:
    graph = make_graph(6, seed=seed)
    graph.meta.update(meta)
    write_graph(root, name, graph, np.zeros(6, np.int32), [s.name for s in Manifest.load(root).shards])


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def stop_at(monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    steps = Stepper.step

    def tell(self: Stepper, batch: Any, step: int, total: int) -> Any:
        if step == stop:
            raise Stopped("stopped", by=15)
        return steps(self, batch, step, total)

    monkeypatch.setattr(Stepper, "step", tell)


def test_a_run_without_a_graph_does_not_mind_new_ones(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its online kNN looks at one: the first by name."""
    simclr = recipe(shards, objective__name="simclr")
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        with pytest.raises(Stopped):
            train(simclr, tmp_path / "run", ALONE)
    add_graph(shards, "another", seed=1)
    assert train(simclr, tmp_path / "run", ALONE, resume=True).steps == 20


def test_a_run_keeps_its_graph_when_others_come(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(shards), tmp_path / "whole", ALONE)
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        with pytest.raises(Stopped):
            train(recipe(shards), tmp_path / "run", ALONE)
    add_graph(shards, "another", seed=1)
    with pytest.raises(UserError, match=r"several graphs \(another, made\)"):
        train(recipe(shards), tmp_path / "new", ALONE)
    resumed = CliRunner().invoke(app, [*command(shards, tmp_path / "run")[3:], "--resume"], catch_exceptions=False)
    assert resumed.exit_code == 0
    assert all(torch.equal(weights(tmp_path / "run")[name], v) for name, v in weights(tmp_path / "whole").items())


def test_files_of_another_size_are_found_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    texts = shards / "texts.parquet"
    texts.write_bytes(texts.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"texts\.parquet has [\d,]+ bytes, not [\d,]+: run `xclr-shards verify"):
        train(recipe(shards), tmp_path / "run", ALONE)
    texts.unlink()
    with pytest.raises(UserError, match=r"texts\.parquet is missing: run `xclr-shards verify"):
        train(recipe(shards), tmp_path / "run", ALONE)


def test_a_run_does_not_go_on_with_a_graph_that_was_replaced(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 10)
        with pytest.raises(Stopped):
            train(recipe(shards), tmp_path / "run", ALONE)
    shutil.rmtree(shards / "graphs" / "made")
    add_graph(shards, "made", seed=1)
    with pytest.raises(UserError, match="another graph than has its name now"):
        train(recipe(shards), tmp_path / "run", ALONE, resume=True)


def test_a_graph_of_other_shards_is_refused(shards: Path, tmp_path: Path) -> None:
    add_graph(shards, "right", texts_sha256=Manifest.load(shards).files["texts.parquet"].sha256)
    add_graph(shards, "foreign", texts_sha256="0" * 64)
    assert verify(shards) == [f"{shards / 'graphs' / 'foreign'} was made of other texts, as many as these"]
    assert len(Shards.open(shards).graph("right")) == 6
    with pytest.raises(UserError, match="foreign was made of other texts, as many as these"):
        train(recipe(shards, data__graph="foreign"), tmp_path / "run", ALONE)


def test_run_json_tells_stopped_from_failed(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers start the first kind again, and not the second."""
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            train(recipe(shards), tmp_path / "stopped", ALONE)
    assert status(tmp_path / "stopped") == "stopped"
    with pytest.raises(UserError, match="not finite"):
        train(recipe(shards, optimiser__lr=1e30, optimiser__name="sgd"), tmp_path / "failed", ALONE)
    assert status(tmp_path / "failed") == "failed"
    train(recipe(shards), tmp_path / "stopped", ALONE, resume=True)
    assert status(tmp_path / "stopped") == "finished"


def test_a_loss_that_is_not_finite_is_found_before_the_online_knn(shards: Path, tmp_path: Path) -> None:
    """Also where the epoch ends between two lines of the log."""
    wild = recipe(shards, optimiser__lr=1e30, optimiser__name="sgd", run__log_every=50, run__checkpoint_every=500)
    with pytest.raises(UserError, match="the loss is not finite at step 10; no checkpoint was written yet"):
        train(wild, tmp_path / "run", ALONE)


def test_what_a_killed_run_was_writing_is_swept(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for partial in (run / f"{TEMPORARY}a.json", run / "checkpoints" / f"{TEMPORARY}b.pt"):
        partial.write_bytes(b"half")
    train(recipe(shards, epochs=1), run, ALONE)
    assert not list(run.rglob(f"{TEMPORARY}*"))


def test_a_checkpoint_of_flipped_bytes_is_not_read(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    path = checkpoints(tmp_path / "run")[-1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable checkpoint: it is damaged"):
        read_checkpoint(path)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save has an error of its own for it, in which the system's is lost."""

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    watched = checkpoint._Watched
    monkeypatch.setattr(checkpoint, "_Watched", lambda file: watched(Full(file)))  # type: ignore[arg-type]
    with pytest.raises(OSError, match=r"No space left on device.*step-00000001") as caught:
        checkpoint.write_checkpoint(tmp_path, 1, {"encoder": {"w": torch.zeros(100_000)}}, keep=1)
    assert caught.value.errno == errno.ENOSPC
    assert not list((tmp_path / "checkpoints").iterdir())


def test_bad_images_are_named(tmp_path: Path) -> None:
    many = make_shards(tmp_path / "many", sizes=SIZES, classes=6, bad=tuple(range(0, 80, 3)))
    with pytest.raises(UserError, match=r"the last was 0000\d\d of train-00000\d\.tar.*take them out and build"):
        train(recipe(many, run__knn_every=0), tmp_path / "run", ALONE)
    none = make_shards(tmp_path / "none", sizes=(16,), classes=6, bad=tuple(range(16)))
    with pytest.raises(UserError, match="for the online kNN 0 can be read"):
        train(recipe(none), tmp_path / "none-run", ALONE)


def test_a_handful_of_samples_can_be_trained_on(tmp_path: Path) -> None:
    few = make_shards(tmp_path / "few", sizes=(5,), classes=3)
    train(recipe(few, data__batch_size=2), tmp_path / "run", ALONE)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "test_efficientnet"])
def test_the_width_of_features_is_what_comes_out(name: str) -> None:
    """MobileNetV3 has a layer between its last map and its classifier."""
    encoder = build_encoder(replace(ModelConfig(), backbone=name), 32, seed=0).eval()
    assert encoder.backbone(torch.randn(2, 3, 32, 32)).shape == (2, feature_dim(encoder.backbone))


@pytest.mark.parametrize(("name", "message"), [("foo", "no device 'foo'"), ("cuda:99", "too few for cuda:99")])
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _device(name, 0)


def test_cuda_is_the_ranks_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _device("cuda", 3) == torch.device("cuda:3")
    assert _device("cuda:1", 3) == torch.device("cuda:1")


def test_every_start_of_the_ranks_has_one_name_of_its_own(tmp_path: Path) -> None:
    """On a store that keeps what earlier starts left there, as torchrun's does; some ranks of them never came."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), -1)
    store.set("hello/1", "of a rank that was killed")
    script = f"""
import sys, torch
from trainer.world import _start_of
store = torch.distributed.FileStore({str(tmp_path / "store")!r}, -1)
print(_start_of(store, int(sys.argv[1]), 3))
"""
    names = set()
    for _ in range(2):
        others = [
            subprocess.Popen([sys.executable, "-c", script, str(rank)], stdout=subprocess.PIPE, text=True)
            for rank in (1, 2)
        ]
        mine = _start_of(store, 0, 3)
        assert [other.communicate(timeout=60)[0].strip() for other in others] == [mine, mine]
        names.add(mine)
    assert len(names) == 2
