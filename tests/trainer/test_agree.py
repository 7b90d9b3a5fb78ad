"""Ranks that were not told the same, or are not there at the same time."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import recipe
from trainer.agree import alike, meet, settings
from trainer.loop import train
from trainer.recipe import Recipe
from trainer.world import PeerGone, World, _gone

ALONE = World(device=torch.device("cpu"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=(30, 25))


def told(world: World, recipes: list[Recipe], run: Path) -> str:
    """What a rank says that trains its own recipe."""
    try:
        train(recipes[world.rank], run, world)
    except UserError as error:
        return str(error)
    return "trained"


def test_ranks_that_were_given_other_things_do_not_train(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    ours = recipe(shards, epochs=1, data__graph="made")
    others = make_shards(tmp_path / "others", sizes=(30, 26))
    unlike = {
        "shards (manifest.json)": recipe(others, epochs=1, data__graph="made"),
        "objective.tau": recipe(shards, epochs=1, objective__tau=0.5),
        "optimiser.lr, seed": recipe(shards, epochs=1, optimiser__lr=0.5, seed=7),
        "precision": recipe(shards, epochs=1, precision="bfloat16"),
        "objective.name": recipe(shards, epochs=1, objective__name="simclr", data__graph="made"),
        "optimiser.name": recipe(shards, epochs=1, optimiser__name="sgd"),
        "run.knn_every": recipe(shards, epochs=1, run__knn_every=2),  # where the others would wait
    }
    for what, theirs in unlike.items():
        said = ranks(2, told, [ours, theirs], tmp_path / "run")
        assert said == [f"rank 1 was given another {what} than rank 0: all ranks must train the same"] * 2
    assert not list(tmp_path.glob("run/checkpoints/*"))
    alright = replace(theirs, name="other", run=replace(ours.run, workers=1))
    assert ranks(2, told, [ours, alright], tmp_path / "run") == ["trained"] * 2


def test_graphs_of_one_name_may_be_unlike(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    """Of the same shards, copied to two machines, on which a graph was built again."""
    other = make_shards(tmp_path / "copy", sizes=(30, 25))
    path = next(other.glob("graphs/*/graph.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "seed": 12345}))
    recipes = [recipe(place, epochs=1) for place in (shards, other)]
    said = ranks(2, told_of_graphs, recipes, tmp_path / "run")
    assert said == ["rank 1 was given another graph (graph.json) than rank 0: all ranks must train the same"] * 2


def told_of_graphs(world: World, recipes: list[Recipe], run: Path) -> str:
    return told(replace(world, local_rank=0, local_size=1), recipes, run)  # each on a machine of its own


def test_a_network_of_ones_own_is_the_same_code_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for folder, text in (("a", "x = 1"), ("b", "x = 1"), ("c", "x = 2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(text)
        found.append(settings(recipe(tmp_path, model__backbone=f"{tmp_path / folder}/mine.py:net"), "id"))
    assert found[0] == found[1] != found[2]
    alike(found[0], ALONE)
    meet(ALONE, "here")


def late(world: World, seconds: float) -> list[float]:
    """How long a rank waits, twice in one place; the last one comes late."""
    waited = []
    for _ in range(2):
        begin = time.monotonic()
        if world.rank == world.size - 1:
            time.sleep(seconds)
        meet(world, "here")
        waited.append(time.monotonic() - begin)
    return waited


@pytest.mark.parametrize(("failing", "how"), [(0, "told"), (1, "told"), (0, "killed")])
def test_a_rank_does_not_wait_for_one_that_has_failed(failing: int, how: str) -> None:
    """Without a launcher that ends it; rank 0 has made the store, which goes with it."""
    program = (
        "import os, sys, time\n"
        "from shards.command import run_cli\nfrom shards.errors import UserError\n"
        "from trainer.agree import meet\n"
        "from trainer.world import join_world\n"
        "def app(**_):\n"
        "    with join_world('cpu') as world:\n"
        "        if world.rank == int(sys.argv[1]):\n"
        "            time.sleep(1)\n"
        "            if sys.argv[2] == 'killed': os.kill(os.getpid(), 9)\n"
        "            raise UserError('a tar is lost')\n"
        "        meet(world, 'tars')\n"
        "run_cli(app)"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(2):
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": str(rank)}
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", program, str(failing), how],
                env={**os.environ, **shared, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120)[1] for process in ranks]
    assert ("error: a tar is lost" in said[failing]) == (how == "told")
    assert "error: this rank ends because another did, which says why" in said[1 - failing]
    assert "Traceback" not in "".join(said)
    assert ranks[failing].returncode == (2 if how == "told" else -9)
    assert ranks[1 - failing].returncode == 75


def test_a_store_that_goes_away_is_a_rank_that_has_gone() -> None:
    """In whatever words."""
    with pytest.raises(PeerGone, match="this rank ends because another did"):
        raise _gone(dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed.")) or KeyError
    assert _gone(RuntimeError("a defect")) is None


def test_ranks_wait_for_the_last(ranks: Ranks) -> None:
    for waited in ranks(3, late, 0.7):
        assert min(waited) >= 0.6
