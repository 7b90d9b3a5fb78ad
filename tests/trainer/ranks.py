"""Several ranks on one machine: a pool of processes that join a gloo group for each call."""

from __future__ import annotations

import faulthandler
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.forked import forking
from trainer.world import World


class Ranks:
    def __init__(self, most: int) -> None:
        self.most = most
        self.pool = self._pool()

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.most, mp_context=forking())

    def end(self) -> None:
        """Without waiting for a rank that hangs."""
        processes = list(self.pool._processes.values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def __call__(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """function(world, *arguments) on each of `size` ranks; the results, rank by rank."""
        try:
            return self._call(size, function, arguments)
        except RuntimeError as error:
            if "connectFullMesh" not in str(error):
                raise
        return self._call(size, function, arguments)  # gloo's own start fails now and then on a busy machine

    def _call(self, size: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            meeting = str(Path(folder) / "store")
            jobs = [self.pool.submit(_run, rank, size, meeting, function, arguments) for rank in range(size)]
            try:
                return [job.result(timeout=420) for job in jobs]
            except BaseException:
                self.end()  # a rank that waits for the one that failed would be one too few for the next test
                self.pool = self._pool()
                raise


def _run(rank: int, size: int, meeting: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    # Before gloo's time runs: on a busy machine the other processes may need a minute to start and to import PyTorch.
    store = dist.FileStore(meeting, size)
    store.set_timeout(timedelta(minutes=4))
    store.set(f"here/{rank}", "")
    store.wait([f"here/{peer}" for peer in range(size)])
    # A rank whose peer failed gives up and frees its process, before `result` does.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2))
    faulthandler.dump_traceback_later(100)  # before its peer gives up, and the test ends both
    try:
        return function(World(rank=rank, size=size, device=torch.device("cpu")), *arguments)
    finally:
        dist.destroy_process_group()
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def pool(most: int) -> Iterator[Ranks]:
    ranks = Ranks(most)
    try:
        yield ranks
    finally:
        ranks.end()
