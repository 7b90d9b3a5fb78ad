"""The signals that ask a run to stop, each of which is heeded after the step that is under way, or before the first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["INTERRUPTED", "STOPPING", "heeded"]

INTERRUPTED = 143  # exit code, 128 + SIGTERM: what schedulers take for "was told to stop", and requeue

# SIGTERM or SIGUSR1, which schedulers send before they kill, SIGHUP of a terminal that is closed, and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


@contextmanager
def heeded(
    heed: Callable[[int, Sequence[int]], None], numbers: Sequence[signal.Signals] = STOPPING
) -> Iterator[list[int]]:
    """Yields a list of those that came; heed(number, those before it) is called for each."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        heed(number, caught)
        caught.append(number)

    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup's runs outlive their terminal
            signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
