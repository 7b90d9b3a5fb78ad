"""Which process this is, among how many. Built once in the command line and passed down.

Nothing else reads the environment or asks torch.distributed who we are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

__all__ = ["World", "join_world"]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPU); alone without torchrun.

    device: `auto` takes this rank's GPU where there is one.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    world = World(rank=rank, size=size, local_rank=local_rank, device=torch.device(device))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size == 1:
        yield world
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=30)
    store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=timeout)))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):
        # On one node torchrun keeps its store when it starts the ranks again. Without a name for each start, a rank may
        # read the address of a peer that was killed, and be refused. (Nodes count their restarts each for itself.)
        store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
        )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield world
    finally:
        dist.destroy_process_group()
