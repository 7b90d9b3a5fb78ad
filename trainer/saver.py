"""Checkpoints written beside the training: the step waits for a copy in memory, not for the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["Saver"]


class Saver:
    """Context manager; runs one job at a time, in order. Leaving waits for the last one, and raises what it raised."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.running: Future[object] | None = None

    def save(self, state: dict[str, Any], write: Callable[[dict[str, Any]], object]) -> None:
        """Copy the tensors of `state` to memory now, and call write(copy) beside what follows."""
        self.wait()  # at most one copy waits for the disk
        self.running = self.pool.submit(write, _copied(state))

    def check(self) -> None:
        """Raises what the last job has raised, as soon as it has."""
        if self.running and self.running.done():
            self.wait()

    def wait(self) -> None:
        if self.running:
            self.running.result()
            self.running = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.wait()
        finally:
            self.pool.shutdown()


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copied(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    return value
