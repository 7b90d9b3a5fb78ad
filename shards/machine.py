"""What of this machine the process may use."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from shards.errors import NO_LOCKS, UserError

__all__ = ["cores", "free_memory", "free_shared_memory", "lock_file", "peak_memory", "prefetch"]

GROUPS, CONTROL = "/proc/self/cgroup", "/sys/fs/cgroup"
MEMORY = "/proc/meminfo"
VERSION_2 = ("memory.max", "memory.current", "")  # files of a control group, and what its counts begin with
FIRST_VERSION = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
UNKNOWN = 1 << 62  # bytes, where the system does not say how many
AHEAD = 4 << 30  # bytes that the workers of one loader may hold ready


def cores() -> int:
    """Processors that it may run on, which taskset, schedulers and containers limit."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(count, _quota())))


def _quota() -> float:
    """Processors' worth of time that its control groups allow (docker run --cpus, Kubernetes); infinite without."""
    least = math.inf
    for folder in _control_groups():
        with suppress(OSError, ValueError):  # the topmost has no such file, except in a container; "max": no limit
            quota, period = (folder / "cpu.max").read_text().split()
            least = min(least, int(quota) / int(period))
    return least


def _control_groups() -> list[Path]:
    """The folders of those that this process is in, from the innermost outwards; none of their first version."""
    return _groups_of("", Path(CONTROL))


def _groups_of(controllers: str, root: Path) -> list[Path]:
    """Of the line of /proc/self/cgroup, `NUMBER:CONTROLLERS:/PLACE`, with these controllers."""
    try:
        lines = [line.split(":", 2) for line in Path(GROUPS).read_text().splitlines()]
        place = Path(next(place for _, names, place in lines if controllers in names.split(",")).lstrip("/"))
    except (OSError, StopIteration, ValueError):
        return []
    return [root / folder for folder in (place, *place.parents)]


def free_memory() -> int:
    """Bytes that this process may still take: of the machine's, and of what its control groups allow (docker run
    --memory, SLURM); files that the system keeps in memory make room. Any number where the system does not say."""
    free = UNKNOWN
    with suppress(OSError, StopIteration, ValueError):
        line = next(line for line in Path(MEMORY).read_text().splitlines() if line.startswith("MemAvailable:"))
        free = int(line.split()[1]) * 1024
    first = [(folder, FIRST_VERSION) for folder in _groups_of("memory", Path(CONTROL) / "memory")]
    for folder, (limit, taken, prefix) in [*((folder, VERSION_2) for folder in _control_groups()), *first]:
        with suppress(OSError, ValueError, KeyError):  # "max": no limit
            most = int((folder / limit).read_text())
            kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            files = sum(int(kinds[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
            free = min(free, max(0, most - int((folder / taken).read_text()) + files))
    return free


def lock_file(file: IO[Any] | int) -> None:
    """Wait for the file, and hold it until it is closed. Disks without locks are taken as they are."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def free_shared_memory() -> int:
    """Bytes in /dev/shm, through which processes hand each other tensors; any number on systems without it."""
    if not Path("/dev/shm").is_dir():
        return UNKNOWN
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def prefetch(size: int, workers: int, remedy: str, *, free: int | None = None, ranks: int = 1) -> int:
    """Batches of `size` bytes that each of a loader's workers may have ready, 1 to 4.

    free: bytes in /dev/shm before any loader of this machine began; None: now. ranks: of this machine, each with a
    loader of its own.

    Raises UserError, naming `remedy`, where the shared memory cannot hold one of each.
    """
    free = (free_shared_memory() if free is None else free) // ranks
    if size * workers > free:
        raise UserError(
            f"{ranks * workers} loader processes with a batch of {size / 2**20:.0f} MiB each do not fit the "
            f"{ranks * free / 2**20:.0f} MiB that are free in /dev/shm: {remedy}, or enlarge it (docker run --shm-size)"
        )
    return max(1, min(4, min(AHEAD, free // 2) // (size * workers)))
