"""The signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["heeded"]

# SIGTERM or SIGUSR1, which schedulers send before they kill, SIGHUP of a terminal that is closed, and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@contextmanager
def heeded(heed: Callable[[int, Sequence[int]], None]) -> Iterator[list[int]]:
    """Yields a list of those that came; heed(number, those before it) is called for each."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        heed(number, caught)
        caught.append(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup's runs outlive their terminal
            signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
