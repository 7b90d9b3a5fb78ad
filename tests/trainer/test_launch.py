"""--ranks: what is made of a rank's end, of signals, and of the command line. Ranks are scripts of a few lines here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.info import describe
from shards.errors import UserError
from tests import forked
from tests.make import make_shards
from tests.trainer.small import SIZES, command, lines_of, recipe
from trainer import launch as launch_module
from trainer import world as world_module
from trainer.cli import _announce
from trainer.launch import BY_HAND, _run, _without_ranks, launch, ranks_wanted
from trainer.signals import INTERRUPTED
from trainer.world import PeerGone, join_world

CALM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import time; time.sleep(60)"


@pytest.mark.parametrize(
    ("gpus", "ranks", "device", "count"),
    [
        (4, 4, "auto", 4),
        (8, 2, "cuda", 2),
        (3, 0, "auto", 3),
        (0, 6, "auto", 6),
        (8, 6, "cpu", 6),
        (0, 0, "auto", 1),
        (8, 0, "cuda:1", 1),
    ],
)
def test_how_many_ranks(gpus: int, ranks: int, device: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert ranks_wanted(ranks, 24, device) == count


@pytest.mark.parametrize(
    ("gpus", "ranks", "device", "message"),
    [
        (2, 4, "auto", "PyTorch sees 2 GPUs, too few for --ranks 4"),
        (0, 2, "cuda", "PyTorch sees 0 GPUs, too few for --ranks 2"),
        (8, 2, "cuda:1", "--device cuda:1 is one GPU, too few for --ranks 2"),
        (8, -1, "auto", "--ranks is a number of processes"),
        (8, 5, "auto", "a batch of 24 does not divide over 5 ranks"),
    ],
)
def test_ranks_that_cannot_be(
    gpus: int, ranks: int, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(UserError, match=message):
        ranks_wanted(ranks, 24, device)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="torchrun has started the ranks already"):
        ranks_wanted(1, 24, "cpu")


def test_the_ranks_are_not_told_to_start_ranks() -> None:
    assert _without_ranks(["--ranks", "4", "--epochs", "3", "--ranks=4", "--resume"]) == ["--epochs", "3", "--resume"]


def of_each(*programs: str) -> list[str]:
    """One program a rank."""
    return [sys.executable, "-c", f"import os\nexec({programs!r}[int(os.environ['RANK'])])"]


@pytest.mark.parametrize(
    ("programs", "cause"),
    [
        (("pass", "pass"), (0, 0)),
        ((CALM, "raise SystemExit(2)"), (1, 2)),
        (("import time; time.sleep(60)", "raise SystemExit(1)"), (1, 1)),
        (("import time; time.sleep(0.5); raise SystemExit(75)", "os.kill(os.getpid(), 9)"), (1, -9)),
        (("raise SystemExit(75)", "import time; time.sleep(0.5); raise SystemExit(1)"), (1, 1)),
        (("raise SystemExit(75)", CALM), (1, -9)),
        (("import time; time.sleep(2); raise SystemExit(143)", "raise SystemExit(143)"), (1, 143)),
        (("raise SystemExit(75)", "raise SystemExit(75)"), (0, 75)),
    ],
)
def test_which_rank_decides(
    programs: tuple[str, str],
    cause: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The first to fail, though it has lost no other; the others are ended, but for those that are stopping."""
    # A rank may take seconds to start on a busy machine; one that has to be killed may be killed before.
    monkeypatch.setattr(launch_module, "TO_FAIL", 1.0 if CALM in programs else 5.0)
    before = time.monotonic()
    rank, code = _run(of_each(*programs), 2, "1")
    assert code == cause[1]
    assert rank == cause[0] or code == 75
    assert time.monotonic() - before < 40
    if 143 in cause:
        assert time.monotonic() - before > 2


@pytest.mark.parametrize(
    ("restart", "fails", "code", "starts"), [(True, 2, 0, 3), (True, 9, 1, 4), (False, 9, 1, 1), (True, 0, 0, 1)]
)
def test_all_start_again_a_few_times(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    restart: bool,
    fails: int,
    code: int,
    starts: int,
) -> None:
    log = tmp_path / "starts"
    program = f"f = open({str(log)!r}, 'a+'); f.write('x'); f.seek(0); raise SystemExit(len(f.read()) <= {fails})"
    run = launch_module._run
    monkeypatch.setattr(launch_module, "_run", lambda _, count, threads: run(of_each("pass", program), count, threads))
    assert launch(2, [], on_gpus=False, restart=restart) == code
    assert len(log.read_text()) == starts
    assert capfd.readouterr().err.count("rank 1 ended with code 1; all ranks start again") == starts - 1


def test_an_error_that_comes_again_is_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One checkpoint further, then none: two starts after the first would be one too many."""
    log, kept = tmp_path / "starts", tmp_path / "kept"
    program = (
        f"f = open({str(log)!r}, 'a+'); f.write('x'); f.seek(0); n = len(f.read())\n"
        f"open({str(kept)!r}, 'w').write(str(min(n, 2))); raise SystemExit(1)"
    )
    run = launch_module._run
    monkeypatch.setattr(launch_module, "_run", lambda _, count, threads: run(of_each("pass", program), count, threads))
    newest = lambda: kept.read_text() if kept.exists() else None  # noqa: E731
    assert launch(2, [], on_gpus=False, restart=True, newest=newest) == 1
    assert len(log.read_text()) == 3
    assert "error: rank 1 ended with code 1; with --resume" in capfd.readouterr().err


def test_a_killed_loader_counts_as_a_killed_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "starts"
    program = f"f = open({str(log)!r}, 'a+'); f.write('x'); f.seek(0); raise SystemExit(76 * (len(f.read()) < 3))"
    run = launch_module._run
    monkeypatch.setattr(launch_module, "_run", lambda _, count, threads: run(of_each("pass", program), count, threads))
    assert launch(2, [], on_gpus=False, restart=True, newest=lambda: None) == 0
    assert len(log.read_text()) == 3


def test_a_rank_that_was_killed_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run = launch_module._run
    programs = of_each("import time; time.sleep(0.5); raise SystemExit(75)", "os.kill(os.getpid(), 9)")
    monkeypatch.setattr(launch_module, "_run", lambda _, count, threads: run(programs, count, threads))
    assert launch(2, [], on_gpus=False, restart=False) == 137
    assert "error: rank 1 was killed by SIGKILL (for lack of memory, perhaps)" in capfd.readouterr().err


def test_a_signal_that_comes_while_ranks_are_started_reaches_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the second of three was started, and before the launcher knows of it."""
    counts = [tmp_path / f"rank{rank}" for rank in range(3)]
    program = (
        "import signal, sys, time\n"
        "def note(*_): open({!r}, 'a').write('x')\n"
        "signal.signal(signal.SIGUSR1, note); time.sleep(2); sys.exit(143)"
    )
    started = []

    class Late(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            time.sleep(0.5)  # until it has set its handler
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(launch_module, "subprocess", SimpleNamespace(Popen=Late))
    assert _run(of_each(*(program.format(str(count)) for count in counts)), 3, "1")[1] == INTERRUPTED
    assert [count.read_text() for count in counts] == ["x"] * 3


def two_of(program: str) -> str:
    """A program that starts two ranks, which write to file 2 what they have to say."""
    return f"import sys; from trainer.launch import _run; sys.exit(_run({of_each(program, program)!r}, 2, '1')[1])"


def before_the_end(said: Path) -> str:
    """Without what Triton 3.9's bindings say as a forked process ends."""
    return said.read_text().partition("nanobind: ")[0]


def test_another_rank_s_store_is_met(tmp_path: Path) -> None:
    program = (
        "import torch; from trainer.world import join_world\n"
        "with join_world('cpu') as world: x = torch.ones(1); torch.distributed.all_reduce(x)\n"
        "os.write(2, f'{world.rank} {int(x)}\\n'.encode())"
    )
    forked.run(two_of(program), [], tmp_path / "said", how="-c")
    assert sorted(before_the_end(tmp_path / "said").split("\n")) == ["", "0 2", "1 2"]


@pytest.mark.parametrize(
    ("words", "kind"), [("Connection closed by peer [127.0.0.1]:1", PeerGone), ("no such device", RuntimeError)]
)
def test_a_rank_that_leaves_while_ranks_meet(words: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found at once what ends it, and says so; the others have no error of their own."""

    def meet(*_: object, **__: object) -> None:
        raise RuntimeError(f"Gloo connectFullMesh failed with {words}")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(world_module, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, 2)]))
    monkeypatch.setattr(world_module, "_start_of", lambda *_: "x")
    monkeypatch.setattr(dist, "init_process_group", meet)
    with pytest.raises(kind) as raised, join_world("cpu"):
        pass
    assert type(raised.value) is kind


def test_a_line_is_said_once_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import torch; from trainer.launch import first_to_say; from trainer.world import join_world\n"
        "rank = os.environ['RANK']\n"
        "for line in ('all', rank):\n"
        "    if first_to_say(line): os.write(2, f'{line} '.encode())\n"
        "with join_world('cpu') as world: torch.distributed.barrier()"
    )
    for _ in range(2):  # another start says it again
        forked.run(two_of(program), [], tmp_path / "said", how="-c")
        assert sorted(before_the_end(tmp_path / "said").split()) == ["0", "1", "all"]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for name, value in (("GROUP_RANK", "0"), ("GROUP_RANK", "1"), ("TORCHELASTIC_RESTART_COUNT", "1")):
        monkeypatch.setenv(name, value)
        assert [launch_module.first_to_say("all") for _ in range(3)] == [True, False, False]
    monkeypatch.setenv("MASTER_PORT", "1")  # a store that is gone
    monkeypatch.setattr(launch_module, "TO_ASK", timedelta(seconds=0.2))
    assert launch_module.first_to_say("all")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=SIZES, classes=6)


def test_a_test_split_is_told_before_its_graph_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = make_shards(tmp_path / "mine-test", split="test", graph=False)
    with pytest.raises(UserError, match=r"mine-test holds the test split of .*, not training data"):
        _announce(recipe(shards), tmp_path / "run", 1, "cpu", dry_run=False)
    describe(shards)
    assert "no graph: a test split needs none" in capsys.readouterr().out


def test_what_the_user_can_mend_is_not_tried_again(shards: Path, tmp_path: Path) -> None:
    arguments = command(shards, tmp_path / "wrong", model__backbone="resnet17")[3:]
    wrong = forked.start("trainer.cli", [*arguments, "--ranks", "2"], tmp_path / "said")
    wrong.join(120)
    assert wrong.exitcode == 2
    said = (tmp_path / "said").read_text()
    lines = [line for line in said.splitlines() if line.startswith("error:") and "ends because" not in line]
    assert len(lines) == 1
    assert "resnet17" in lines[0]
    assert "Traceback" not in said
    assert "start again" not in said


@pytest.mark.parametrize(
    ("number", "to_a_rank", "code"),
    [
        (signal.SIGTERM, False, INTERRUPTED),
        (signal.SIGINT, False, BY_HAND),
        (signal.SIGUSR1, True, INTERRUPTED),
        (signal.SIGHUP, False, INTERRUPTED),
    ],
)
def test_a_signal_ends_in_a_checkpoint_and_a_code(
    shards: Path, tmp_path: Path, number: signal.Signals, to_a_rank: bool, code: int
) -> None:
    run = tmp_path / "run"
    told = forked.start("trainer.cli", [*command(shards, run, epochs=500)[3:], "--ranks=2"], tmp_path / "said")
    while not (run / "metrics.jsonl").exists() or len(lines_of(run)) < 3:
        assert told.is_alive()
        time.sleep(0.05)
    assert told.pid
    children = Path(f"/proc/{told.pid}/task/{told.pid}/children").read_text().split()
    os.kill(int(children[1]) if to_a_rank else told.pid, number)
    told.join(60)
    assert told.exitcode == code
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said
    assert "start again" not in said
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_ranks_save_and_stop_when_their_launcher_is_killed(shards: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    killed = forked.start("trainer.cli", [*command(shards, run, epochs=500)[3:], "--ranks=2"], said)
    while not (run / "metrics.jsonl").exists() or len(lines_of(run)) < 3:
        assert killed.is_alive()
        time.sleep(0.05)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    killed.kill()
    killed.join()
    try:
        until = time.monotonic() + 60
        while any(alive(child) for child in children):
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        for child in filter(alive, children):
            os.kill(int(child), signal.SIGKILL)
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert "Traceback" not in said.read_text()


def alive(process: str) -> bool:
    """A zombie is not: who its new parent is, and whether it waits for it, is the machine's affair."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_third_ctrl_c_leaves_no_rank_behind(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'up')!r} + os.environ['RANK'], 'w'); time.sleep(60)"
    )
    told = forked.start(two_of(deaf), [], tmp_path / "said", how="-c")
    try:
        while len(list(tmp_path.glob("up*"))) < 2:
            assert told.is_alive()
            time.sleep(0.05)
        assert told.pid
        children = Path(f"/proc/{told.pid}/task/{told.pid}/children").read_text().split()
        assert len(children) == 2
        for _ in range(3):
            os.kill(told.pid, signal.SIGINT)
            time.sleep(0.3)
        told.join(20)
        assert told.exitcode == BY_HAND
    finally:
        told.kill()
    assert not any(Path(f"/proc/{child}").exists() for child in children)
