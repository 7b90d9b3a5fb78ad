"""Training from shards on a server: as from the disk, within the room that the cache has."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.manifest import FileEntry
from shards.mirror import RemoteShards, open_shards
from tests.make import make_shards
from tests.served import Files, new_handler, serving
from tests.trainer.ranks import Ranks
from tests.trainer.small import ALONE, lines_of, recipe, weights
from trainer import setup
from trainer.ahead import TRIES, Ahead, cache_limit
from trainer.checkpoint import checkpoints
from trainer.cli import _announce
from trainer.dryrun import estimate
from trainer.export import export
from trainer.loop import train
from trainer.names import default_run
from trainer.plan import BatchPlan
from trainer.world import World

SIZES = (20, 17, 23, 19, 21, 16)
GIB = 2**30


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("served") / "made", sizes=SIZES)


def plan_of(shards: RemoteShards, **changes: int) -> BatchPlan:
    sizes = [shard.samples for shard in shards.manifest.shards]
    settings = {"shard_sizes": sizes, "batch_size": 8, "seed": 0, "window": 1, **changes}
    return BatchPlan(**settings)  # type: ignore[arg-type]


def fetched(handler: type[Files]) -> list[str]:
    return [path.rpartition("/")[2] for path, _ in handler.asked if path.endswith(".tar")]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_url_is_training_from_the_disk(
    made: Path, url: str, handler: type[Files], tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also half from the one and half from the other, and with room for two of six tars."""
    monkeypatch.setattr("trainer.monitor.SAMPLES", 30)  # fewer than there are
    changes = {"data__window": 1, "run__workers": workers, "run__checkpoint_every": 14}
    local = recipe(made, **changes)
    train(local, tmp_path / "local", ALONE)
    room = 1.05 * sum(sorted(path.stat().st_size for path in made.glob("*.tar"))[-2:]) / GIB
    distant = recipe(url, **changes, run__cache_gib=room)  # type: ignore[arg-type]
    train(distant, tmp_path / "remote", ALONE)
    expected, found = weights(tmp_path / "local"), weights(tmp_path / "remote")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    watched = [[line for line in lines_of(tmp_path / run) if "knn" in line] for run in ("local", "remote")]
    assert watched[0] == watched[1] != []
    assert len(fetched(handler)) > len(SIZES)  # two epochs, and no room to keep the first one's
    checkpoint = tmp_path / "moved" / "checkpoints" / "step-00000014.pt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "local" / "checkpoints" / checkpoint.name, checkpoint)
    train(distant, tmp_path / "moved", ALONE, resume=True)
    moved = weights(tmp_path / "moved")
    assert all(torch.equal(expected[name], moved[name]) for name in expected)


def test_what_is_secret_in_a_url_stays_out_of_all_that_is_kept_and_said(
    made: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = recipe(f"{url.replace('//', '//me:hush@')}?sig=hush", epochs=1, data__graph="made")  # type: ignore[arg-type]
    named = default_run(secret, recipe(made), "made")
    _announce(secret, named, 1, "cpu", dry_run=False)
    train(secret, tmp_path / "run", ALONE)
    folder = export(checkpoints(tmp_path / "run")[-1], tmp_path / "exported")
    assert url in (tmp_path / "run" / "run.json").read_text() + (folder / "README.md").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".tar" not in path.name]
    assert len(files) > 10
    assert [str(path) for path in files if b"hush" in path.read_bytes()] == []
    said = capsys.readouterr()
    assert "hush" not in "".join([str(named), said.out, said.err, *map(str, files)])
    assert train(recipe(made, epochs=1, data__graph="made"), tmp_path / "run", ALONE, resume=True).already_done


@pytest.mark.parametrize("window", [1, 2])
def test_the_room_is_kept_and_the_windows_come_in_their_order(
    url: str, handler: type[Files], window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = RemoteShards.mirror(url)
    plan = plan_of(shards, window=window)
    limit = cache_limit(shards, plan, sum(sorted(map(shards.bytes_of, range(6)))[-2 * window :]) / GIB + 1e-6)
    most, lock, fetch = [0], threading.Lock(), RemoteShards._fetch

    def counted(self: RemoteShards, name: str, entry: object) -> None:
        with lock:
            # By inode: a file that is renamed while the folder is read comes under both names.
            found = [path.stat() for path in self.root.rglob("*.tar") if path.exists()]
            most[0] = max(most[0], sum({file.st_ino: file.st_size for file in found}.values()))
        fetch(self, name, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(RemoteShards, "_fetch", counted)
    steps = 3 * plan.steps_per_epoch
    ahead = Ahead(shards, plan, start=0, stop=steps, limit=limit)
    ahead.fill()
    assert set(shards.here()) == set(plan.windows(0)[0])
    with ahead:
        for step in range(steps):
            ahead.at(step)
            epoch, batch = divmod(step, plan.steps_per_epoch)
            for sample in plan.order(epoch)[batch * 8 : batch * 8 + 8]:
                until = time.monotonic() + 30
                while not shards.tar_path(shards.index.shard[sample]).exists():
                    assert time.monotonic() < until, "not fetched ahead"
                    time.sleep(0.001)
                shards.image(int(sample))
            assert sum(map(shards.bytes_of, ahead.held)) <= limit
    assert most[0] <= limit
    order = [f"train-{shard:06d}.tar" for epoch in range(3) for part in plan.windows(epoch) for shard in sorted(part)]
    seen = fetched(handler)
    # What is still here from the window before is not fetched again; nothing is fetched more often than it is needed.
    assert len(set(seen)) == 6
    assert all(seen.count(name) <= order.count(name) for name in seen)


def test_with_room_for_all_each_tar_is_fetched_once_and_before_it_is_needed(url: str, handler: type[Files]) -> None:
    shards = RemoteShards.mirror(url)
    plan = plan_of(shards)
    ahead = Ahead(shards, plan, start=0, stop=5 * plan.steps_per_epoch, limit=cache_limit(shards, plan, 0))
    with ahead:
        for thread in ahead.threads:
            thread.join(30)
    assert sorted(shards.here()) == list(range(6))
    assert sorted(fetched(handler)) == [f"train-{i:06d}.tar" for i in range(6)]


def test_a_tar_that_comes_back_meanwhile_is_not_counted_twice(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = RemoteShards.mirror(url)
    for shard in range(6):
        shards.local_tar(shard)
    plan = plan_of(shards)
    ahead = Ahead(shards, plan, start=0, stop=5, limit=cache_limit(shards, plan, 0))
    looks = iter([False])  # another run had given it up, and has fetched it again
    monkeypatch.setattr(ahead, "_is_here", lambda shard: next(looks, True))
    monkeypatch.setattr(shards, "drop", lambda shard: pytest.fail("drops a tar for one that is here"))
    assert not ahead._make_room(3, ahead.current)


def test_what_is_here_costs_a_look_each_time_it_is_due(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one at all that are here: with thousands of tars and a hundred epochs that took hours."""
    shards = RemoteShards.mirror(url)
    for shard in range(6):
        shards.local_tar(shard)
    asked, tar_path, plan = [], shards.tar_path, plan_of(shards)
    monkeypatch.setattr(shards, "tar_path", lambda shard: asked.append(shard) or tar_path(shard))
    ahead = Ahead(shards, plan, start=0, stop=5 * plan.steps_per_epoch, limit=cache_limit(shards, plan, 0))
    asked.clear()
    with ahead:
        for thread in ahead.threads:
            thread.join(30)
    assert 0 < len(asked) <= 6 * 6  # five epochs, of which the last one's end may reach beyond


@pytest.mark.parametrize("named", [False, True])
def test_only_a_graph_that_is_named_is_fetched_to_watch_by(
    url: str, handler: type[Files], named: bool, tmp_path: Path
) -> None:
    """CC12M's are 8 GB, for the codes of a thousand pictures, and other ranks would wait in vain."""
    chosen = recipe(url, objective__name="simclr", epochs=1, data__graph="made" if named else "")  # type: ignore[arg-type]
    shards = open_shards(url)
    label = np.full(len(shards), -1)
    shards.index = replace(shards.index, label=label)  # type: ignore[misc]
    assert setup.graph_of(chosen, shards, ALONE) is None
    graph = setup.monitors_graph(chosen, shards)
    assert (graph is not None) == named
    assert any("graphs/made" in path for path, _ in handler.asked) == named


def test_what_another_run_gave_up_is_fetched_again(url: str) -> None:
    """Two runs on the same shards share the folder, as those of a sweep do."""
    shards = RemoteShards.mirror(url)
    plan = plan_of(shards)
    for shard in range(6):
        shards.local_tar(shard)
    ahead = Ahead(shards, plan, start=0, stop=plan.steps_per_epoch, limit=cache_limit(shards, plan, 0))
    for shard in range(6):
        RemoteShards.mirror(url).drop(shard)
    with ahead:
        for thread in ahead.threads:
            thread.join(30)
    assert sorted(shards.here()) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_does_not_come_is_told_in_one_line(made: Path, url: str, tmp_path: Path, workers: int) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(made, broken)
    last = int(plan_of(RemoteShards.mirror(url)).windows(0)[-1][0])  # so that it is a loader that meets it
    (broken / f"train-{last:06d}.tar").write_bytes(b"torn")
    with serving(tmp_path, new_handler()) as served:
        settings = recipe(
            f"{served}/broken",  # type: ignore[arg-type]
            data__window=1,
            run__workers=workers,
            run__knn_every=0,
        )
        with pytest.raises(UserError, match=rf"^http.*train-{last:06d}\.tar") as raised:
            train(settings, tmp_path / "run", ALONE)
    assert "Traceback" not in str(raised.value)


def test_a_tar_that_does_not_come_is_asked_for_a_few_times_only(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may stand in one window for hours."""
    monkeypatch.setattr("trainer.ahead.AGAIN", 0.001)
    monkeypatch.setenv("XCLR_CACHE", str(tmp_path / "cache"))
    broken = shutil.copytree(made, tmp_path / "broken")
    handler = new_handler()
    with serving(tmp_path, handler) as served:
        shards = RemoteShards.mirror(f"{served}/broken")
        plan = plan_of(shards)
        last = int(plan.windows(0)[-1][0])
        tar = broken / f"train-{last:06d}.tar"
        tar.write_bytes(tar.read_bytes()[:-1] + b"!")  # of the right size
        ahead = Ahead(shards, plan, start=0, stop=plan.steps_per_epoch, limit=cache_limit(shards, plan, 0))
        ahead.fill()
        waits = list[float]()
        monkeypatch.setattr(ahead.ended, "wait", lambda seconds: bool(waits.append(seconds)))
        with ahead:
            for thread in ahead.threads:
                thread.join(60)
                assert not thread.is_alive()
        assert waits == [0.001 * 2**attempt for attempt in range(TRIES)]
        assert fetched(handler).count(tar.name) == TRIES
        assert len(shards.here()) == len(SIZES) - 1


def meeting(world: World, url: str, cache: Path, run: Path) -> int:
    """Trains with collectives that wait for two seconds, and a server that takes longer for each tar."""
    os.environ["XCLR_CACHE"] = str(cache)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=2))  # type: ignore[attr-defined]
    fetch = RemoteShards._fetch

    def slow(self: RemoteShards, name: str, entry: FileEntry) -> None:
        time.sleep(3 if name.endswith(".tar") else 0)
        fetch(self, name, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteShards, "_fetch", slow)
        local = replace(world, local_rank=world.rank, local_size=world.size)
        chosen = recipe(url, epochs=1, data__window=6, run__knn_every=0)  # type: ignore[arg-type]
        return train(chosen, run, local).steps


def test_ranks_wait_for_the_first_tars_however_long_they_take(
    url: str, handler: type[Files], tmp_path: Path, ranks: Ranks
) -> None:
    assert ranks(2, meeting, url, tmp_path / "cache", tmp_path / "run") == [14, 14]
    assert sorted(fetched(handler)) == [f"train-{n:06d}.tar" for n in range(len(SIZES))]


def test_too_little_room_is_refused_with_what_would_fit(url: str) -> None:
    shards = RemoteShards.mirror(url)
    plan = plan_of(shards, window=3)
    largest = sorted(map(shards.bytes_of, range(6)))
    room = sum(largest[-4:]) / GIB + 1e-7
    with pytest.raises(UserError, match=r"two windows of 3 shards.*data\.window to 2, or raise --cache-gib"):
        cache_limit(shards, plan, room)
    assert cache_limit(shards, replace(plan, window=2), room) == int(room * GIB)
    with pytest.raises(UserError, match=r"may hold 0\.00: raise --cache-gib"):
        cache_limit(shards, plan, 1e-9)


def test_a_dry_run_fetches_a_tar_or_two(url: str, handler: type[Files]) -> None:
    shards = open_shards(url)
    assert len(shards) == sum(SIZES)
    estimate(recipe(url, run__knn_every=0), ALONE)  # type: ignore[arg-type]
    assert 0 < len(fetched(handler)) < 6


@pytest.mark.parametrize(("window", "batch"), [(1, 8), (2, 8), (4, 30), (64, 8)])
def test_window_at_names_the_window_of_the_first_sample(window: int, batch: int) -> None:
    plan = BatchPlan(shard_sizes=SIZES, batch_size=batch, seed=3, window=window)
    home = np.repeat(np.arange(6), SIZES)
    for step in range(2 * plan.steps_per_epoch):
        epoch, number = plan.window_at(step)
        first = plan.order(epoch)[(step % plan.steps_per_epoch) * batch]
        assert home[first] in plan.windows(epoch)[number]
