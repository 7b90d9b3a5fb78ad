"""Run a function over jobs in processes, and hand on the results in order. The processes end when the parent dies."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache, partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeVar

from shards.errors import UserError

__all__ = ["Workers"]

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 4  # jobs a process that may be finished before their turn


class Workers:
    """Processes for several loops, started when the first of them needs any; a context manager that ends them."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def ordered(self, function: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """function(job) for each job, in order; in this process for one process or one job.

        On an exception jobs that have not begun are dropped, and it is raised here.
        """
        if min(self.processes, len(jobs)) <= 1:
            yield from map(function, jobs)
            return
        if self.pool is None:
            # spawn: the parent runs threads (progress bars, Arrow), which a fork would copy in an unknown state.
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_die_with_parent)
        waiting: list[Future[Result]] = []
        with _filed(function) as call:
            try:
                waiting += [self.pool.submit(call, job) for job in jobs[: AHEAD * self.processes]]
                for following in range(len(waiting), len(jobs) + len(waiting)):
                    result = waiting.pop(0).result()
                    if following < len(jobs):
                        waiting.append(self.pool.submit(call, jobs[following]))
                    yield result
            except BrokenProcessPool:
                raise UserError(
                    "a process was killed, for lack of memory perhaps: run the same command again, it goes on; fewer "
                    "--processes need less"
                ) from None
            finally:
                for future in waiting:
                    future.cancel()


@contextmanager
def _filed(function: Callable[[Job], Result]) -> Iterator[Callable[[Job], Result]]:
    """The function, in a file that each process reads once.

    Sent with every job it would carry its source along, which names each of 20,000 class folders: hours of pickling.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "function"
        try:
            path.write_bytes(pickle.dumps(function))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}: make room there, or set TMPDIR to a larger disk") from None
        yield partial(_call, path)


def _call(path: Path, job: Any) -> Any:
    return _read(path)(job)


@lru_cache(maxsize=1)
def _read(path: Path) -> Callable[[Any], Any]:
    function: Callable[[Any], Any] = pickle.loads(path.read_bytes())
    return function


def _die_with_parent() -> None:
    """A killed parent cannot tell its processes; without this they would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
