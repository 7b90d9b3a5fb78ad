"""One copy of a graph a machine: who reads it, what the others see, and what happens where none can be shared."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from shards.errors import UserError
from shards.graph import Graph
from tests.trainer.ranks import Ranks
from trainer import share
from trainer.share import read_for_all
from trainer.table import TextTable
from trainer.world import World

NAME = "memfd:xclr-graph"


def example(*, coded: bool, listed: bool) -> Graph:
    n = 1000
    random = np.random.default_rng(0)
    counts = random.integers(0, 5, n) * listed
    indptr = np.concatenate([[0], np.cumsum(counts)])
    return Graph(
        meta={"source": {"kind": "encoder", "name": "é"}, "k": 4, "recall": 0.5},
        indptr=indptr,
        neighbours=random.integers(0, n, indptr[-1], np.int32),
        similarities=random.random(indptr[-1]).astype(np.float16),
        background_mean=random.random(n, np.float32),
        background_std=random.random(n, np.float32),
        codes=random.integers(-128, 128, (n, 48), np.int8) if coded else None,
        code_scale=random.random(n, np.float32) if coded else None,
    )


class Later:
    """A gather as NCCL's is: under way when the call returns, done when the result is asked for."""

    def __init__(self, x: torch.Tensor, world: World) -> None:
        self.out = x.new_empty((world.size * x.shape[0], *x.shape[1:]))
        self.work = dist.all_gather_into_tensor(self.out, x, async_op=True)

    def tolist(self) -> list[Any]:
        assert self.work is not None
        self.work.wait()
        return self.out.tolist()


def opened_late(opened: Callable[[Any], Graph], seconds: float, offer: Any) -> Graph:
    time.sleep(seconds)
    return opened(offer)


def other_token(offer: share._Offer) -> share._Offer:
    return offer._replace(token=offer.token + 1)


def seen(world: World, local: int, coded: bool, listed: bool, broken: str) -> dict[str, Any]:
    """What a rank of machines of `local` ranks reads, and how."""
    world = replace(world, local_rank=world.rank % local, local_size=local)
    reads = 0

    def read() -> Graph:
        nonlocal reads
        reads += 1
        if broken == "graph" and world.rank == 2:
            raise UserError("graph is damaged")
        return example(coded=coded, listed=listed)

    gc.collect()  # maps of earlier calls
    before = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as patch:
        if broken == "memory":
            patch.setattr(os, "memfd_create", lambda name: os.open("/dev/full", os.O_WRONLY))
        if broken == "container":
            patch.setattr(os, "getpid", lambda: 2**22)
        if broken == "pipe":  # whoever reads from it waits for ever
            patch.setattr(share, "_offered", lambda graph: share._Offer(os.getpid(), os.pipe()[0], 1))
        if broken == "token":  # another container's process of that number, which has shared a graph as well
            offered = share._offered
            patch.setattr(share, "_offered", lambda graph: other_token(offered(graph)))
        if broken == "late":
            patch.setattr(share, "gather", Later)
            patch.setattr(share, "_opened", partial(opened_late, share._opened, 0.5 * world.rank))
        if broken == "system":
            patch.delattr(os, "memfd_create")
        try:
            graph = read_for_all(read, world)
        except UserError as error:
            return {"reads": reads, "error": str(error), "open": len(os.listdir("/proc/self/fd")) - before}
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if NAME in line]
    return {
        "reads": reads,
        "mapped": len(maps),
        "file": {line.split()[4] for line in maps},  # its number
        "open": len(os.listdir("/proc/self/fd")) - before,
        "values": {f.name: np.array(getattr(graph, f.name)) if f.name != "meta" else graph.meta for f in fields(Graph)},
    }


@pytest.mark.parametrize(("coded", "listed"), [(True, True), (False, True), (True, False)])
def test_the_first_rank_of_a_machine_reads_and_all_map_what_it_read(ranks: Ranks, coded: bool, listed: bool) -> None:
    expected = example(coded=coded, listed=listed)
    all_found = ranks(4, seen, 2, coded, listed, "")
    files = [found["file"] for found in all_found]
    assert files[0] == files[1] != files[2] == files[3]  # each machine's own
    for rank, found in enumerate(all_found):
        assert found["reads"] == (rank % 2 == 0)
        assert found["mapped"] == 1
        assert found["open"] <= 1  # Python's map may hold the file by a descriptor of its own
        assert found["values"].pop("meta") == expected.meta
        for name, values in found["values"].items():
            wanted = getattr(expected, name)
            assert values.dtype == np.array(wanted).dtype
            np.testing.assert_array_equal(values, wanted)


def test_the_file_stays_until_the_last_rank_has_opened_it(ranks: Ranks) -> None:
    found = ranks(3, seen, 3, True, True, "late")
    assert [(f["reads"], f["mapped"]) for f in found] == [(1, 1), (0, 1), (0, 1)]


def complete(world: World) -> int:
    """How many maps are left of a complete graph, for whose lists a matrix stands."""
    n = 50
    indptr = np.arange(n + 1) * (n - 1)
    others = np.array([[j for j in range(n) if j != i] for i in range(n)], np.int32).ravel()
    zeros = np.zeros(n, np.float32)
    near = np.ones(len(others), np.float16)
    whole = Graph(
        meta={}, indptr=indptr, neighbours=others, similarities=near, background_mean=zeros, background_std=zeros,
        codes=None, code_scale=None,
    )  # fmt: skip
    table = TextTable.from_graph(
        read_for_all(lambda: whole, replace(world, local_rank=world.rank, local_size=world.size)), world.device
    )
    assert table.matrix is not None
    return Path("/proc/self/maps").read_text().count(NAME)


def test_a_complete_graph_is_let_go(ranks: Ranks) -> None:
    assert ranks(2, complete) == [0, 0]


@pytest.mark.parametrize("broken", ["memory", "container", "system", "pipe", "token"])
def test_where_none_can_be_shared_each_rank_reads_its_own(ranks: Ranks, broken: str) -> None:
    expected = example(coded=True, listed=True)
    for found in ranks(2, seen, 2, True, True, broken):
        assert found["reads"] >= 1  # the first rank's may be read twice
        np.testing.assert_array_equal(found["values"]["codes"], expected.codes)
        assert not found["mapped"]
        assert found["open"] <= (broken == "pipe")  # its other end


def test_a_machine_of_one_rank_shares_nothing(ranks: Ranks) -> None:
    for found in ranks(2, seen, 1, True, True, ""):
        assert found["reads"] == 1
        assert not found["mapped"]


def test_a_graph_that_one_machine_cannot_read_ends_every_rank(ranks: Ranks) -> None:
    found = ranks(4, seen, 2, True, True, "graph")
    assert [f["error"] for f in found] == [
        "rank 2 does not start, and says why",
        "rank 2 does not start, and says why",
        "graph is damaged",
        "rank 2 does not start, and says why",
    ]
    assert all(f["open"] <= 0 for f in found)
