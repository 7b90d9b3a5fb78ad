"""What of this machine the process may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores", "free_shared_memory"]


def cores() -> int:
    """Processors that it may run on, which taskset and schedulers limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_shared_memory() -> int:
    """Bytes in /dev/shm, through which processes hand each other tensors; any number on systems without it."""
    if not Path("/dev/shm").is_dir():
        return 1 << 62
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize
