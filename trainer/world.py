"""Which process this is, among how many. Built once in the command line and passed down: nothing else asks
torch.distributed, or the environment, for the rank.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.utils.data import get_worker_info

from shards.errors import UserError

__all__ = ["LoaderGone", "PeerGone", "World", "join_world", "say_gone", "someone_gone", "this_world"]

TIMEOUT = timedelta(minutes=30)
GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # what gloo says of another's end


class PeerGone(UserError):
    """Another rank has ended, for a reason of its own."""

    code = 75


class LoaderGone(UserError):
    """A process that loads this rank's images was killed: as if the rank had been."""

    code = 76


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Ranks of this machine."""
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def this_world(device: torch.device | str) -> World:
    """In a loop that is not ours: the ranks of the process group that is there, or this process alone.

    Raises RuntimeError in a DataLoader's worker of several ranks: forked, it would wait for ever for its like on other
    ranks; spawned, take itself to be alone.
    """
    device = torch.device(device)
    grouped = dist.is_available() and dist.is_initialized()
    several = dist.get_world_size() > 1 if grouped else os.environ.get("WORLD_SIZE", "") not in ("", "1")
    if several and get_worker_info() is not None:
        raise RuntimeError(
            "a DataLoader's worker cannot exchange with other ranks: make the block in the training process, from the "
            "vectors or labels that the worker returns; or, where WORLD_SIZE says more than is so and this process is "
            "alone, give world=trainer.world.World(device=...)"
        )
    if not grouped:
        return World(device=device)
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        device=device,
    )


@contextmanager
def join_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started (nccl on GPUs, gloo on CPU); alone without torchrun.

    device: `auto` takes this rank's GPU where there is one; so does `cuda`. Raises UserError for a device that is not
    there.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_rank, local_size = (int(os.environ.get(name, n)) for name, n in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    world = World(
        rank=rank, size=size, local_rank=local_rank, local_size=local_size, device=_device(device, local_rank)
    )
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size == 1:
        yield world
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    store, _, _ = next(iter(rendezvous("env://", rank, size, timeout=TIMEOUT)))
    store = dist.PrefixStore(_start_of(store, rank, size), store)  # type: ignore[attr-defined]
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:  # the other was there already, and found at once what ends it
        raise _gone(error) or error from None
    try:
        yield world
    except Exception as error:
        say_gone()
        # Of one rank, it may be: what waits for the others, as NCCL's farewell does, would wait until TIMEOUT, and the
        # error would be told after it.
        _abort(backend)
        if gone := _gone(error):
            raise gone from None
        raise
    except BaseException:  # SystemExit after a signal, which all ranks heed together
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def say_gone() -> None:
    """To ranks that wait in the store, where nobody notices that a connection ends."""
    with suppress(RuntimeError, ValueError):  # the store went with the rank that had made it
        dist.distributed_c10d._get_default_store().set("gone", "")


def someone_gone() -> bool:
    """Whether a rank has said so."""
    return bool(dist.distributed_c10d._get_default_store().check(["gone"]))


def _gone(error: Exception) -> PeerGone | None:
    lost = isinstance(error, dist.DistNetworkError)  # the store
    if lost or (isinstance(error, RuntimeError) and any(words in str(error) for words in GONE)):
        return PeerGone("this rank ends because another did, which says why")
    return None


def _abort(backend: str) -> None:
    abort = getattr(dist.distributed_c10d, "_abort_process_group", None)
    if backend == "nccl" and abort is not None:
        with suppress(RuntimeError):
            abort()
    elif backend == "gloo":
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"there is no device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"{name} is no device to train on here: use auto, cpu, cuda or cuda:N")
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UserError(
            f"PyTorch sees {torch.cuda.device_count()} GPUs, which is too few for cuda:{index}: --device cpu"
        )
    return torch.device("cuda", index)


def _start_of(store: Any, rank: int, size: int) -> str:
    """A name for this start of all ranks, the same on each.

    torchrun keeps its store when it starts the ranks again, with the addresses of those that were killed, and its count
    of restarts differs from node to node. So rank 0 makes up a name, and the others ask for it by a name of their own,
    since an answer to an earlier start lies under another key.
    """
    mine = uuid4().hex
    if rank:
        store.set(f"hello/{rank}", mine)
        name: str = store.get(f"name/{rank}/{mine}").decode()
        store.set(f"heard/{name}/{rank}", "")
        return name
    missing, until = set(range(1, size)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for peer in sorted(missing):
            if store.check([f"hello/{peer}"]):  # of this start or of one before: asked again until it has heard
                store.set(f"name/{peer}/{store.get(f'hello/{peer}').decode()}", mine)
            if store.check([f"heard/{mine}/{peer}"]):
                missing.discard(peer)
        if time.monotonic() > until:
            raise UserError(f"ranks {', '.join(map(str, sorted(missing)))} of {size} did not start")
        time.sleep(0.02)
    return mine
