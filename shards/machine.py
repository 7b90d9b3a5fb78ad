"""What of this machine the process may use."""

from __future__ import annotations

import os
from pathlib import Path

from shards.errors import UserError

__all__ = ["cores", "free_shared_memory", "prefetch"]

AHEAD = 4 << 30  # bytes that the workers of one loader may hold ready


def cores() -> int:
    """Processors that it may run on, which taskset and schedulers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_shared_memory() -> int:
    """Bytes in /dev/shm, through which processes hand each other tensors; any number on systems without it."""
    if not Path("/dev/shm").is_dir():
        return 1 << 62
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize


def prefetch(size: int, workers: int, remedy: str) -> int:
    """Batches of `size` bytes that each of a loader's workers may have ready, 1 to 4.

    Raises UserError, naming `remedy`, where the shared memory cannot hold one of each.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine, each with a loader of its own
    free = free_shared_memory() // ranks
    if size * workers > free:
        raise UserError(
            f"{ranks * workers} loader processes with a batch of {size / 2**20:.0f} MiB each do not fit the "
            f"{ranks * free / 2**20:.0f} MiB that are free in /dev/shm: {remedy}, or enlarge it (docker run --shm-size)"
        )
    return max(1, min(4, min(AHEAD, free // 2) // (size * workers)))
