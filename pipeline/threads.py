"""Work on several cores at once in this process: cores that share one small product would wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shards.machine import cores

__all__ = ["threaded"]

Job = TypeVar("Job")
Result = TypeVar("Result")


def threaded(function: Callable[[Job], Result], jobs: Iterable[Job], most: int | None = None) -> list[Result]:
    """function(job) for each job, in order, in a thread a core, at most `most`, each with its share of PyTorch's own.

    On an exception jobs that have not begun are dropped, and it is raised here.
    """
    import torch

    threads = torch.get_num_threads()
    usable = min(threads, cores())
    lanes = usable if most is None else max(1, min(usable, most))

    def single(job: Job) -> Result:
        torch.set_num_threads(usable // lanes)  # of this thread
        return function(job)

    try:
        with ThreadPoolExecutor(lanes) as pool:
            return list(pool.map(single, jobs))
    finally:
        torch.set_num_threads(threads)
