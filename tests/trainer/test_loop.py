"""Whole runs: one rank against two, killed and resumed against never stopped, and wrong input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.atomic import sha256_file
from shards.errors import UserError
from tests import forked
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import ALONE, SIZES, command, lines_of, losses, recipe, trained, weights
from trainer.checkpoint import checkpoints, find_checkpoint, load_backbone, read_checkpoint
from trainer.cli import main
from trainer.loop import Stopped, train
from trainer.model import build_encoder
from trainer.run_folder import alone, set_status, status_of
from trainer.step import Stepper
from trainer.world import LoaderGone


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=SIZES, classes=6)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 steps, never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(recipe(shards), run, ALONE)
    return run


@pytest.mark.parametrize("objective", ["xclr", "simclr", "supcon", "clip"])
def test_a_run_learns_and_leaves_what_it_should(shards: Path, tmp_path: Path, objective: str) -> None:
    quick = recipe(
        shards, objective__name=objective, epochs=6, model__backbone="test_resnet", model__projector_norm="batch"
    )
    result = train(quick, tmp_path / "run", ALONE)
    curve = losses(tmp_path / "run")
    assert len(curve) == result.steps == 60
    assert sum(curve[-10:]) < sum(curve[:10])
    assert len(checkpoints(tmp_path / "run")) == 2
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    figures = {line["step"]: line["knn"] for line in lines_of(tmp_path / "run") if "knn" in line}
    assert figures[best["step"]] == max(figures.values()) == best["best"]
    lines = lines_of(tmp_path / "run")
    step = next(line for line in lines if "loss" in line)
    assert {"step", "epoch", "lr", "samples_per_s", "data_wait", "mean_cosine"} <= set(step)
    assert objective == "clip" or {"target_entropy", "target_mass_listed", "edges_per_row"} <= set(step)
    assert objective == "clip" or (step["edges_per_row"] > 0) == (objective == "xclr")
    assert any("knn" in line for line in lines)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = set(board.Tags()["scalars"])
    assert {"train/loss", "train/lr", "features/knn", "features/rankme", "data/samples_per_s"} <= tags
    assert objective == "clip" or "target/target_entropy" in tags
    assert [point.step for point in board.Scalars("train/loss")] == list(range(1, 61))


def test_backbone_of_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "a" / "run", ALONE)
    path = find_checkpoint(None, tmp_path)
    assert path == find_checkpoint(tmp_path / "a" / "run") == checkpoints(tmp_path / "a" / "run")[-1]
    older = path.with_name("step-00000001.pt")  # what `cp -r` may do to the times of files
    shutil.copy(path, older)
    os.utime(older, (path.stat().st_mtime + 100,) * 2)
    assert find_checkpoint(None, tmp_path) == path
    (path.parent / "step-00000000.pt").symlink_to("gone")  # replaced by its run after it was listed
    assert find_checkpoint(None, tmp_path) == path
    with pytest.raises(
        UserError, match=rf"no checkpoint or run folder .*: did you mean {tmp_path}/a/run\? Other models"
    ):
        find_checkpoint(tmp_path / "a" / "runs")
    images = torch.randn(3, 3, 16, 16)
    trained, info = load_backbone(path)
    fresh, before = load_backbone(path, untrained=True)
    assert trained(images).shape == (3, info.feature_dim)
    assert not any(module.training for network in (trained, fresh) for module in network.modules())
    assert not torch.allclose(trained(images), fresh(images))
    assert (info.objective, info.step, before.objective, before.step) == ("xclr", 10, "untrained", 0)
    again, _ = load_backbone(path, untrained=True)
    assert torch.equal(fresh(images), again(images))


def test_a_backbone_is_fed_as_its_run_says(shards: Path, tmp_path: Path) -> None:
    """And untrained it has the weights that very run began with."""
    ways: dict[str, Any] = {"eval_crop": 0.95, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    chosen = recipe(shards, epochs=1, seed=3, **{f"model__{key}": value for key, value in ways.items()})
    train(chosen, tmp_path / "run", ALONE)
    path = checkpoints(tmp_path / "run")[-1]
    _, info = load_backbone(path)
    assert (info.image_size, info.crop_pct, [*info.mean], [*info.std]) == (16, *ways.values())
    first, began = load_backbone(path, untrained=True)[0].state_dict(), build_encoder(chosen.model, 16, 3).backbone
    assert all(torch.equal(first[name], value) for name, value in began.state_dict().items())


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_read_again(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """best.pt of a run that goes on: weights and checksum are of one file."""
    train(recipe(shards, run__keep=9), tmp_path / "run", ALONE)
    first, *_, last = checkpoints(tmp_path / "run")
    best = shutil.copy(first, tmp_path / "run" / "checkpoints" / "best.pt")
    read, count = read_checkpoint, []

    def replaced(path: Path) -> Any:
        state = read(path)
        count.append(path)
        if len(count) == 1:
            shutil.copy(last, tmp_path / "new.pt")
            os.replace(tmp_path / "new.pt", best)
        return state

    monkeypatch.setattr("trainer.checkpoint.read_checkpoint", replaced)
    _, info = load_backbone(Path(best))
    assert (info.step, info.sha256, len(count)) == (20, sha256_file(last), 2)


def test_two_ranks_train_as_one(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    """20 steps: the same batches (each rank's half), the same loss to 1e-5, the same weights to rounding.

    The rate is that of the batch of all ranks."""
    chosen = recipe(shards, optimiser__name="sgd", optimiser__lr=0.064, optimiser__lr_scaling="linear")
    for size in (1, 2):
        ranks(size, trained, chosen, tmp_path / f"w{size}")
    one, two = losses(tmp_path / "w1"), losses(tmp_path / "w2")
    assert len(one) == len(two) == 20
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    found = weights(tmp_path / "w2")
    for name, value in weights(tmp_path / "w1").items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_killed_and_resumed_equals_never_stopped(shards: Path, tmp_path: Path) -> None:
    """SIGKILL at a random step, then the same command: weights equal bit for bit, one line of metrics a step."""
    whole = command(shards, tmp_path / "whole", model__backbone="test_resnet", run__workers=1)[3:]
    forked.run("trainer.cli", whole, tmp_path / "said")
    killed = command(shards, tmp_path / "killed", model__backbone="test_resnet", run__workers=1)[3:]
    step = random.randrange(3, 19)
    process = forked.start("trainer.cli", killed, tmp_path / "said")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        time.sleep(0.005)
    process.kill()
    process.join()
    with metrics.open("a") as file:
        file.write('{"step": 1')  # a line cut short, as a kill may leave it
    forked.run("trainer.cli", killed, tmp_path / "said")
    found = weights(tmp_path / "killed")
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(found[name], value), f"{name} differs after a kill at step {step}"
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.fixture
def hangup() -> Iterator[None]:
    """SIGHUP as a terminal's processes have it, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangup")
def test_nohup_is_heeded(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    steps = Stepper.step

    def hang_up(self: Stepper, batch: Any, step: int, total: int) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        return steps(self, batch, step, total)

    monkeypatch.setattr(Stepper, "step", hang_up)
    assert train(recipe(shards, epochs=1), tmp_path / "run", ALONE).steps == 10


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_and_resuming_is_exact(
    shards: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    steps = Stepper.step

    def tell(self: Stepper, batch: Any, step: int, total: int) -> Any:
        if step == 7:
            os.kill(os.getpid(), number)
        return steps(self, batch, step, total)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", tell)
        with pytest.raises(Stopped, match="stopped at step 8 of 20"):
            train(recipe(shards), tmp_path / "run", ALONE)
    train(recipe(shards), tmp_path / "run", ALONE, resume=True)
    found = weights(tmp_path / "run")
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_too(shards: Path, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """As Ctrl-C, `timeout` and schedulers send it: to the loader's workers as well."""
    run = tmp_path / "run"
    arguments = command(shards, run, epochs=300, run__workers=1, run__checkpoint_every=10_000)[3:]
    process = forked.start("trainer.cli", arguments, tmp_path / "said", group=True)
    metrics = run / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and '"step": 3,' in metrics.read_text()):
        time.sleep(0.005)
    assert process.pid
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    step = int(said.split("stopped at step ")[1].split()[0])
    assert step >= 3
    assert checkpoints(run)[-1].name == f"step-{step:08d}.pt"


def hold(run: Path) -> None:
    with alone(run):
        (run / "held").touch()
        time.sleep(60)


def test_a_second_training_into_the_folder_is_refused(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    other = forked.forking().Process(target=hold, args=(run,))
    other.start()
    while not (run / "held").exists():
        assert other.is_alive()
        time.sleep(0.005)
    with pytest.raises(UserError, match="another process is training into"):
        train(recipe(shards, epochs=1), run, ALONE)
    other.kill()
    other.join()
    train(recipe(shards, epochs=1), run, ALONE)


def test_a_torn_checkpoint_costs_the_steps_since_the_one_before(
    shards: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "torn")
    last = checkpoints(tmp_path / "torn")[-1]
    last.write_bytes(last.read_bytes()[:1000])
    train(recipe(shards), tmp_path / "torn", ALONE, resume=True)
    said = capsys.readouterr().err
    assert "not a readable checkpoint" in said
    assert "going on from step 18 of 20" in said
    found = weights(tmp_path / "torn")
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value)
    for path in checkpoints(tmp_path / "torn"):
        path.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"none of the checkpoints of \S+ is readable: delete the folder"):
        train(recipe(shards), tmp_path / "torn", ALONE, resume=True)


def test_a_finished_run_is_reused(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    before = checkpoints(tmp_path / "run")[-1].stat().st_mtime_ns
    assert train(recipe(shards, epochs=1), tmp_path / "run", ALONE, resume=True).already_done
    assert checkpoints(tmp_path / "run")[-1].stat().st_mtime_ns == before


def test_runs_of_another_recipe_or_other_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    with pytest.raises(UserError, match=r"another recipe \(optimiser\.lr: 0\.001, not 0\.5\)"):
        train(recipe(shards, epochs=1, optimiser__lr=0.5), tmp_path / "run", ALONE, resume=True)
    with pytest.raises(UserError, match="step 10: add --resume"):
        train(recipe(shards, epochs=1), tmp_path / "run", ALONE)
    (tmp_path / "other").mkdir()
    other = make_shards(tmp_path / "other" / "s", sizes=SIZES, classes=6, seed=1)
    run = tmp_path / "other" / "run"
    train(recipe(other, epochs=1), run, ALONE)
    make_shards(tmp_path / "other" / "s", sizes=SIZES, classes=6, seed=2)
    with pytest.raises(UserError, match="on other shards"):
        train(recipe(other, epochs=1), run, ALONE, resume=True)


def test_wrong_input_is_refused_in_words(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="84 samples do not fill one batch of 100"):
        train(recipe(shards, data__batch_size=100), run, ALONE)
    with pytest.raises(UserError, match="not a folder of shards"):
        train(recipe(tmp_path / "nowhere"), run, ALONE)
    unlabelled = make_shards(tmp_path / "unlabelled", sizes=(12,), labels=False, graph=False)
    with pytest.raises(UserError, match=r"supcon needs labels, and no sample of .* has one: use xclr"):
        train(recipe(unlabelled, objective__name="supcon"), run, ALONE)
    with pytest.raises(UserError, match="no graph"):
        train(recipe(unlabelled), run, ALONE)
    with pytest.raises(UserError, match="test split"):
        train(recipe(make_shards(tmp_path / "t", split="test")), run, ALONE)
    with pytest.raises(UserError, match="timm has no model 'resnet51'"):
        train(recipe(shards, model__backbone="resnet51"), run, ALONE)
    assert not run.exists()  # nothing is left of what was refused
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="timm has no model 'resnet51'"):
        train(recipe(shards, model__backbone="resnet51"), tmp_path / "made", ALONE)
    assert (tmp_path / "made").is_dir()
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="none of the checkpoints of"):
        train(recipe(shards), run, ALONE, resume=True)


def test_a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not finite at step \d+; the last good checkpoint is|no checkpoint was written"
    ):
        train(recipe(shards, optimiser__lr=1e30, optimiser__name="sgd"), tmp_path / "run", ALONE)
    for path in checkpoints(tmp_path / "run"):
        assert all(torch.isfinite(v).all() for v in read_checkpoint(path)["encoder"].values())


def test_a_missing_graph_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = make_shards(tmp_path / "shards", SIZES)
    shutil.rmtree(shards / "graphs")
    monkeypatch.setattr(sys, "argv", ["xclr-train", "--shards", str(shards), "--batch-size", "100000"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {shards} has no graph: run the build again")


def test_an_error_in_a_loader_process_keeps_its_traceback(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no killed process, and would come again."""

    def broken(*_: Any) -> None:
        raise RuntimeError("a defect in two_views")

    monkeypatch.setattr("trainer.data.two_views", broken)
    monkeypatch.setattr(sys, "argv", command(shards, tmp_path / "run", run__workers=1)[2:])
    with pytest.raises(RuntimeError, match=r"(?s)Traceback .*in __getitems__.*a defect in two_views") as raised:
        main()
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_before_the_first_step_stops_at_once(
    shards: Path, tmp_path: Path, number: signal.Signals, begun: bool
) -> None:
    """Though something has to be waited for; a scheduler starts it again."""
    run = tmp_path / "run"
    if begun:
        train(recipe(shards, run__checkpoint_every=4), run, ALONE)
        for path in checkpoints(run)[1:]:
            path.unlink()
        assert len(checkpoints(run)) == 1
        set_status(run, "stopped")
    program = (
        "import time, trainer.loop\n"
        f"def slow(*_):\n    open({str(tmp_path / 'slow')!r}, 'w'); time.sleep(60)\n"
        "trainer.loop._Loop._ahead = slow\n"
        "from trainer.cli import main; main()"
    )
    words = command(shards, run, run__checkpoint_every=4)[3:]
    told = forked.start(program, words, tmp_path / "said", how="-c")
    while not (tmp_path / "slow").exists():
        assert told.is_alive()
        time.sleep(0.05)
    assert status_of(run) == "running"
    os.kill(told.pid or 0, number)
    told.join(30)
    assert told.exitcode == 143
    assert status_of(run) == "stopped"
    assert (
        "stopped before the first step; the same command with --resume starts again" in (tmp_path / "said").read_text()
    )
    assert train(recipe(shards, run__checkpoint_every=4), run, ALONE, resume=begun).steps == 20


def test_a_killed_loader_process_is_one_line(shards: Path, tmp_path: Path) -> None:
    """As the system does it where memory ends."""
    run = tmp_path / "run"
    told = forked.start("trainer.cli", command(shards, run, epochs=500, run__workers=1)[3:], tmp_path / "said")
    while not (run / "metrics.jsonl").exists() or len(lines_of(run)) < 3:
        assert told.is_alive()
        time.sleep(0.05)
    (worker,) = Path(f"/proc/{told.pid}/task/{told.pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    told.join(60)
    assert told.exitcode == LoaderGone.code
    said = (tmp_path / "said").read_text()
    assert "error: a loader process was killed" in said
    assert "Traceback" not in said
