"""What a run does when the world changes under it: graphs, damaged or partial files, full disks, lasting errors."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
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
from tests.trainer.small import ALONE, SIZES, command, recipe, stop_at, weights
from trainer import checkpoint, run_folder
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.cli import app
from trainer.dryrun import estimate
from trainer.loop import Stopped, train
from trainer.model import Encoder, _backbone_state
from trainer.monitor import Monitor
from trainer.run_folder import contents_id
from trainer.step import Stepper


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", sizes=SIZES, classes=6)


def add_graph(root: Path, name: str, seed: int = 0, **meta: Any) -> None:
    graph = make_graph(6, seed=seed)
    graph.meta.update(meta)
    write_graph(root, name, graph, np.zeros(6, np.int32), [s.name for s in Manifest.load(root).shards])


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


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
    found = weights(tmp_path / "run")
    assert all(torch.equal(found[name], v) for name, v in weights(tmp_path / "whole").items())


def test_a_torn_description_of_a_run_asks_for_the_graph(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    add_graph(shards, "second")
    (tmp_path / "run" / "run.json").write_text('{"recipe": ')
    with pytest.raises(UserError, match="several graphs"):
        train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True)


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


def test_a_graph_of_an_earlier_version_is_the_same_graph() -> None:
    """Which lacks a count that no training reads."""
    graph = make_graph(6)
    counted = replace(graph, meta={**graph.meta, "as_another": 0})
    assert contents_id(counted) == contents_id(graph)
    assert contents_id(replace(graph, meta={**graph.meta, "k": 9})) != contents_id(graph)


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
    hidden = (shards / "train-000001.tar").rename(tmp_path / "hidden.tar")
    with pytest.raises(UserError, match=r"train-000001\.tar"):
        train(recipe(shards), tmp_path / "stopped", ALONE, resume=True)
    assert status(tmp_path / "stopped") == "failed"  # or a scheduler would start it again for ever
    hidden.rename(shards / "train-000001.tar")
    with pytest.raises(UserError, match="of another recipe"):
        train(recipe(shards, objective__tau=0.2), tmp_path / "stopped", ALONE, resume=True)
    train(recipe(shards), tmp_path / "stopped", ALONE, resume=True)
    assert status(tmp_path / "stopped") == "finished"
    with pytest.raises(UserError, match="of another recipe"):
        train(recipe(shards, objective__tau=0.2), tmp_path / "stopped", ALONE, resume=True)
    assert status(tmp_path / "stopped") == "finished"
    run_folder.set_status(tmp_path / "stopped", "running")  # killed between the last checkpoint and this line
    assert train(recipe(shards), tmp_path / "stopped", ALONE, resume=True).already_done
    assert status(tmp_path / "stopped") == "finished"
    for content in ("{}", "torn"):
        (tmp_path / "stopped" / "run.json").write_text(content)
        assert train(recipe(shards, data__graph="made"), tmp_path / "stopped", ALONE, resume=True).already_done
    blank = (tmp_path / "stopped").rename(tmp_path / "a run")
    with pytest.raises(UserError, match=f"with --start '{blank}' to begin"):  # as a shell takes it
        train(recipe(shards, objective__tau=0.2), blank, ALONE, resume=True)


def test_a_loss_that_is_not_finite_is_found_before_the_online_knn(shards: Path, tmp_path: Path) -> None:
    """Also where the epoch ends between two lines of the log."""
    wild = recipe(shards, optimiser__lr=1e30, optimiser__name="sgd", run__log_every=50, run__checkpoint_every=500)
    message = "the loss is not finite at step 10; no checkpoint was written yet: lower the learning rate, or lengthen"
    with pytest.raises(UserError, match=message) as caught:
        train(wild, tmp_path / "run", ALONE)
    assert "float32" not in str(caught.value)  # which it is


def test_weights_that_are_not_finite_are_not_kept(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is of the weights before the step that broke them."""
    steps = Stepper.step

    def broken(self: Stepper, batch: Any, step: int, total: int) -> Any:
        outcome = steps(self, batch, step, total)
        if step == 11:
            with torch.no_grad():
                next(iter(self.encoder.parameters())).view(-1)[0] = float("inf")
        return outcome

    monkeypatch.setattr(Stepper, "step", broken)
    message = "the weights are not finite at step 12; the last good checkpoint is .*step-00000009.pt"
    with pytest.raises(UserError, match=message):
        train(recipe(shards, run__knn_every=0), tmp_path / "run", ALONE)
    assert torch.stack([v.isfinite().all() for v in weights(tmp_path / "run").values()]).all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_running_statistics_that_are_not_finite_are_not_kept(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """In training nothing looks at them."""
    steps = Stepper.step

    def broken(self: Stepper, batch: Any, step: int, total: int) -> Any:
        outcome = steps(self, batch, step, total)
        if step == 11:
            self.encoder.projector[1].running_var[0] = value  # type: ignore[index, union-attr]
        return outcome

    monkeypatch.setattr(Stepper, "step", broken)
    with pytest.raises(UserError, match="the weights are not finite at step 12"):
        train(recipe(shards, model__projector_norm="batch", run__knn_every=0), tmp_path / "run", ALONE)


def test_features_that_are_not_finite_cost_the_online_knn_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Encoder.features
    monkeypatch.setattr(Encoder, "features", lambda *a: whole(*a).index_fill_(1, torch.tensor([3]), float("inf")))
    train(recipe(shards), tmp_path / "run", ALONE)
    assert status(tmp_path / "run") == "finished"
    assert "the online kNN is left out" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "checkpoints" / "best.pt").exists()


def test_a_run_that_goes_on_keeps_its_best_encoder(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worse one of later does not take its place."""
    figures = iter((0.9, 0.1))
    monkeypatch.setattr(Monitor, "measure", lambda *_: {"knn": next(figures)})
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Stopped):
            train(recipe(shards), tmp_path / "run", ALONE)
    train(recipe(shards), tmp_path / "run", ALONE, resume=True)
    assert not list(figures)
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")["step"] == 10


def test_a_torn_checkpoint_does_not_stay_the_newest(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that keeps one checkpoint would be left with it alone."""
    chosen = recipe(shards, run__keep=1, run__checkpoint_every=5)
    train(chosen, tmp_path / "whole", ALONE)
    with monkeypatch.context() as patch:
        stop_at(patch, 12)
        with pytest.raises(Stopped):
            train(chosen, tmp_path / "run", ALONE)
    torn = tmp_path / "run" / "checkpoints" / "step-00000018.pt"
    torn.write_bytes(checkpoints(tmp_path / "run")[-1].read_bytes()[:999])
    with monkeypatch.context() as patch:
        stop_at(patch, 17)
        with pytest.raises(Stopped):
            train(chosen, tmp_path / "run", ALONE, resume=True)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000015.pt"]
    assert torn.with_suffix(".torn").exists()
    train(chosen, tmp_path / "run", ALONE, resume=True)
    found = weights(tmp_path / "run")
    assert all(torch.equal(v, found[k]) for k, v in weights(tmp_path / "whole").items())


@pytest.mark.parametrize(
    "change", [{"objective__name": "supcon"}, {"objective__name": "clip"}, {"optimiser__name": "sgd"}]
)
def test_a_run_keeps_its_objective_and_its_optimiser(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            train(recipe(shards, objective__name="simclr"), tmp_path / "run", ALONE)
    key = next(iter(change)).replace("__", ".")
    other = recipe(shards, **{"objective__name": "simclr", **change})
    with pytest.raises(UserError, match=f"a run of another recipe .*{key}: '(simclr|adamw)', not '"):
        train(other, tmp_path / "run", ALONE, resume=True)


def test_fewer_samples_at_a_time_may_go_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As fewer GPUs may have to."""
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            train(recipe(shards), tmp_path / "run", ALONE)
    train(recipe(shards, data__chunk=4), tmp_path / "run", ALONE, resume=True)
    assert "note: 4 samples of a rank at a time" in " ".join(capsys.readouterr().err.split())
    assert status(tmp_path / "run") == "finished"


def test_run_json_may_be_lost_or_torn_while_the_run_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, run = Stepper.step, tmp_path / "run" / "run.json"

    def spoiled(self: Stepper, batch: Any, number: int, total: int) -> Any:
        if number == 1:
            run.unlink()
        if number == 9:
            run.write_text("{")
        return step(self, batch, number, total)

    monkeypatch.setattr(Stepper, "step", spoiled)
    train(recipe(shards), tmp_path / "run", ALONE)
    assert status(tmp_path / "run") == "finished"


@pytest.mark.parametrize("objective", ["simclr", "supcon"])
def test_settings_that_change_nothing_are_no_other_recipe(shards: Path, tmp_path: Path, objective: str) -> None:
    """Former versions kept them as they were given."""
    old = recipe(shards, objective__name=objective, objective__tau_s=0.3, objective__tail="none", epochs=1)
    old = replace(old, data=replace(old.data, graph="toy"))
    train(old, tmp_path / "run", ALONE)
    now = recipe(shards, objective__name=objective, epochs=1)
    assert train(now, tmp_path / "run", ALONE, resume=True).already_done
    with pytest.raises(UserError, match=r"another recipe \(objective.tau: 0.1, not 0.2\)"):
        train(recipe(shards, objective__name=objective, objective__tau=0.2, epochs=1), tmp_path / "run", ALONE)


@pytest.mark.parametrize(
    ("change", "said"), [({"tau_s": 0.2}, "tau_s: 0.1, not 0.2"), ({"tail": "none"}, "tail: 'code', not 'none'")]
)
def test_a_run_keeps_its_target(shards: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    other = recipe(shards, epochs=1, **{f"objective__{name}": value for name, value in change.items()})
    with pytest.raises(UserError, match=rf"another recipe \(objective\.{said}\)"):
        train(other, tmp_path / "run", ALONE, resume=True)


def test_a_dry_run_of_a_begun_run_keeps_its_graph(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    add_graph(shards, "another")
    assert estimate(recipe(shards, epochs=1), ALONE, tmp_path / "run").steps == 10
    with pytest.raises(UserError, match="several graphs"):
        estimate(recipe(shards, epochs=1), ALONE)


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


@pytest.mark.parametrize("read", [read_checkpoint, _backbone_state])
def test_weights_run_no_code(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path, ran = tmp_path / "step-000001.pt", tmp_path / "ran"
    torch.save({"version": 1, "encoder": {}, "state_dict": Pickled(ran)}, path)
    with pytest.raises(UserError, match=r"step-000001.pt is not a readable"):
        read(path)
    assert not ran.exists()


class Pickled:
    """Whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_cannot_be_read_is_not_called_torn(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    newest = checkpoints(tmp_path / "run")[-1]

    def refused(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.zipfile, "ZipFile", refused)
        with pytest.raises(UserError, match=r"step-00000010\.pt cannot be read: Permission denied"):
            train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True)

    def large(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", large)
        with pytest.raises(UserError, match="does not fit this machine's memory"):
            train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True)
    assert newest.exists()
    assert train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True).already_done


def test_a_disk_without_locks_is_trained_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "lockf", none)
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    assert "has no locks: see to it that nothing else trains" in " ".join(capsys.readouterr().err.split())


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


def test_a_checkpoint_that_could_not_be_written_ends_the_run_before_the_next_is_due(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, steps, made, told = checkpoint.write_checkpoint, Stepper.step, [], threading.Event()

    def full(run: Path, step: int, *rest: Any) -> Any:
        if step > 5:
            told.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(run, step, *rest)

    def waiting(self: Stepper, batch: Any, step: int, total: int) -> Any:
        made.append(step)
        if step == 10:
            assert told.wait(60)
        return steps(self, batch, step, total)

    monkeypatch.setattr("trainer.loop.write_checkpoint", full)
    monkeypatch.setattr(Stepper, "step", waiting)
    with pytest.raises(OSError, match="No space left"):
        train(recipe(shards, run__checkpoint_every=5, run__knn_every=0), tmp_path / "run", ALONE)
    assert 10 <= made[-1] < 14  # step 14 is followed by the next
    assert status(tmp_path / "run") == "failed"
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000005.pt"]


def test_a_run_that_has_lost_its_checkpoints_says_that_it_starts_anew(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True)
    assert "starts anew" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True)
    assert "was at step 10 and has no checkpoints any more: it starts anew" in " ".join(capsys.readouterr().err.split())


def test_a_run_does_not_go_into_its_shards(shards: Path) -> None:
    before = sorted(path.name for path in shards.iterdir())
    with pytest.raises(UserError, match="is a folder of shards: choose another --out"):
        train(recipe(shards), shards, ALONE)
    assert sorted(path.name for path in shards.iterdir()) == before
