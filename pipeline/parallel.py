"""Run a function over jobs in processes, and hand on the results in order. The processes end when the parent dies."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

__all__ = ["cores", "ordered"]

Job = TypeVar("Job")
Result = TypeVar("Result")
AHEAD = 4  # jobs a process that may be finished before their turn


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(function: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """function(job) for each job, in order; in this process for one process or one job.

    On an exception jobs that have not begun are dropped, and it is raised here.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from map(function, jobs)
        return
    # spawn: the parent runs threads (progress bars, Arrow), which a fork would copy in an unknown state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_die_with_parent) as pool:
        try:
            waiting = [pool.submit(function, job) for job in jobs[: AHEAD * processes]]
            for following in range(len(waiting), len(jobs) + len(waiting)):
                result = waiting.pop(0).result()
                if following < len(jobs):
                    waiting.append(pool.submit(function, jobs[following]))
                yield result
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A killed parent cannot tell its processes; without this they would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
