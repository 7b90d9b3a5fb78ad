"""How fast a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Samples a second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.samples, self.wait, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.wait += time.perf_counter() - begin

    def count(self, samples: int) -> None:
        self.samples += samples

    def read(self) -> tuple[float, float]:
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        values = self.samples / elapsed, self.wait / elapsed
        self._start()
        return values
