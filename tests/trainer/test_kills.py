"""SIGKILL of random ranks, twenty times over one run: the weights end bit-identical. And torchrun does the same.

Two ranks on the CPU. A launcher answers a dead rank by starting all of them again, and --resume takes them from the
newest checkpoint; that is how a long run survives on a cluster (docs/scaling.md). Twenty starts of torchrun would
mostly test how long torch takes to import, so here ranks are forked from a process that has imported it, and one test
starts them as users do, by torchrun and by --ranks.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.config import from_table
from tests import forked
from tests.forked import PATIENCE, forking
from tests.make import make_shards
from tests.trainer.small import SIZES, command, env, losses, table, weights
from trainer.loop import train
from trainer.recipe import Recipe
from trainer.world import join_world

KILLS = 20
CHANGES: dict[str, Any] = {"epochs": 6, "run__checkpoint_every": 1, "run__keep": 3, "run__knn_every": 0}

pytestmark = pytest.mark.slow


def rank_main(recipe: dict[str, Any], run: str, rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        train(from_table(Recipe, recipe, where="test"), Path(run), world, resume=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=SIZES, classes=6)


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never hurt."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ranks = start(shards, run)
    for rank in ranks:
        rank.join(PATIENCE)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    return run


def start(shards: Path, run: Path) -> list[ForkServerProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipe = {"name": "test", **table(shards, **CHANGES)}
    ranks = [forking().Process(target=rank_main, args=(recipe, str(run), rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    return ranks


def steps(run: Path) -> int:
    """Lines of steps written so far."""
    log = run / "metrics.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def test_twenty_kills_of_random_ranks_change_nothing(shards: Path, whole: Path, tmp_path: Path) -> None:
    run, kills = tmp_path / "run", list[int]()
    rng = random.Random(time.time_ns())
    for _ in range(KILLS):
        before, ranks = steps(run), start(shards, run)
        while steps(run) <= before:  # further than at the kill before, so that the run gets somewhere
            assert all(rank.exitcode in (None, 0) for rank in ranks)
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))  # any point of a step, of writing a checkpoint, of deleting one
        rng.choice(ranks).kill()
        kills.append(steps(run))
        for rank in ranks:  # as a launcher does: without its peer a rank is of no use
            rank.kill()
            rank.join()
    assert kills[-1] < 60, f"the run was over before the last kill: {kills}"
    for rank in start(shards, run):
        rank.join(PATIENCE)
        assert rank.exitcode == 0
    found = weights(run)
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value), f"{name} differs after kills at steps {kills}"
    assert losses(run) == losses(whole)


def test_two_agents_bring_a_killed_rank_back(shards: Path, whole: Path, tmp_path: Path) -> None:
    """Two machines, as it were: torchrun's store outlives the ranks, and each agent counts restarts for itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = tmp_path / "run"
    script = command(shards, run, **CHANGES)[3:]
    arguments = [
        "--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test", "-m", "trainer.cli",
    ]  # fmt: skip
    said = [tmp_path / f"said{i}" for i in range(2)]
    agents = [forked.start("torch.distributed.run", [*arguments, *script], file) for file in said]
    try:
        for kill, agent in enumerate(agents):
            while steps(run) < 15 * (kill + 1):
                assert all(agent.is_alive() for agent in agents)
                time.sleep(0.01)
            assert agent.pid
            os.kill(children(agent.pid)[0], signal.SIGKILL)
        for agent in agents:
            agent.join(PATIENCE)
        assert [agent.exitcode for agent in agents] == [0, 0]
    finally:
        for agent in agents:
            agent.kill()
            agent.join()
    # Four ranks for the two of the other run: the same to rounding.
    assert losses(run) == pytest.approx(losses(whole), abs=1e-3)


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.mark.parametrize("by", ["torchrun", "--ranks"])
def test_a_killed_rank_is_brought_back(shards: Path, whole: Path, tmp_path: Path, by: str) -> None:
    run = tmp_path / "run"
    arguments = [*command(shards, run, **CHANGES), "--ranks", "2"]
    if by == "torchrun":
        arguments = command(shards, run, 2, **CHANGES)
        place = arguments.index("--standalone") + 1
        arguments[place:place] = ["--max-restarts", "2", "--monitor-interval", "0.1"]
    said = tmp_path / "said"
    with said.open("w") as file:
        launcher = subprocess.Popen(arguments, env=env(), stdout=subprocess.DEVNULL, stderr=file)
    try:
        while steps(run) < 20:
            assert launcher.poll() is None
            time.sleep(0.01)
        os.kill(random.choice(children(launcher.pid)), signal.SIGKILL)
        assert launcher.wait(timeout=PATIENCE) == 0
        assert by == "torchrun" or said.read_text().count("was killed by SIGKILL; all ranks start again") == 1
    finally:
        launcher.kill()
        launcher.wait()
    found = weights(run)
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value)
    assert losses(run) == losses(whole)
