"""Progress bars on stderr, one look for every stage, and lines for the user between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["bar", "say", "spoken"]


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields a function that moves the bar on by so many units; any thread may call it."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda units: progress.advance(task, units)


def spoken(seconds: float) -> str:
    """A duration for the user: `45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def say(line: str) -> None:
    """One line for the user, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(line)
