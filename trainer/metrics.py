"""What a run writes down: metrics.jsonl, TensorBoard, the progress bar, and a tracker if one is asked for. Main rank
only.

metrics.jsonl holds one JSON object a line: steps (step, epoch, loss, lr, ...), and events, which have an `event` key
(start, resume, warning, end). A resumed run drops the lines after its checkpoint, so that the file tells one story.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch.utils.tensorboard import SummaryWriter

from shards.atomic import atomic_file
from trainer.trackers import Tracker

__all__ = ["Metrics"]

SHOWN = {
    "loss": "loss {:.4g}",
    "knn": "knn {:.3g}",
    "knn_similarity": "knn similarity {:+.3g}",
    "samples_per_s": "{:.0f} samples/s",
    "data_wait": "wait {:.0%}",
}
SECTIONS = {  # TensorBoard shows one for each word before the slash; what stands nowhere here is of the target's block
    "train": ("loss", "lr", "epoch"),
    "features": ("knn", "knn_similarity", "graph_correlation", "rankme", "mean_cosine"),
    "data": ("samples_per_s", "data_wait", "bad_images"),
}
SECTION = {name: section for section, names in SECTIONS.items() for name in names}


class Metrics:
    """Context manager; `step` and `event` write lines, `advance` moves the bar."""

    def __init__(self, run: Path, *, start: int, stop: int, title: str, tracker: Tracker | None = None) -> None:
        self.path = run / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_after(start)
        self.file = self.path.open("a", encoding="utf-8")
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)  # purges it, and all after it
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=8),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
        )
        self.interactive = console.is_terminal
        self.title, self.stop, self.tracker = title, stop, tracker
        self.shown: dict[str, str] = {}
        self.task = self.progress.add_task(title, total=stop, completed=start, status="")

    def __enter__(self) -> Metrics:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        self.board.close()
        self.file.close()
        if self.tracker:
            with suppress(Exception):  # a server that is away does not fail a run that is done
                self.tracker.close(failed=error is not None)

    def advance(self, step: int) -> None:
        self.progress.update(self.task, completed=step)

    def step(self, values: dict[str, float]) -> None:
        """Write a line of metrics; `values` names step and epoch."""
        self._write(values)
        step = int(values["step"])
        for name, value in values.items():
            if name != "step":
                self.board.add_scalar(f"{SECTION.get(name, 'target')}/{name}", value, step)
        self._track(values, step)
        fresh = {name: text.format(values[name]) for name, text in SHOWN.items() if name in values}
        self.shown |= fresh  # between two figures of the kNN the last one stays
        status = "  ".join(self.shown[name] for name in SHOWN if name in self.shown)
        self.progress.update(self.task, status=status)
        if fresh and not self.interactive:  # a log file wants lines, not a bar
            print(f"{self.title}  step {step}/{self.stop}  {'  '.join(fresh.values())}", file=sys.stderr, flush=True)

    def event(self, name: str, **values: Any) -> None:
        self._write({"event": name, "time": round(time.time(), 1), **values})

    def say(self, message: str) -> None:
        """A line above the progress bar."""
        self.progress.console.print(message, highlight=False)

    def _track(self, values: dict[str, float], step: int) -> None:
        """Days of training do not end because a server is away."""
        if not self.tracker:
            return
        try:
            self.tracker.step({name: value for name, value in values.items() if name != "step"}, step)
        except Exception as error:
            why = escape(" ".join(str(error).split()))
            self.say(f"[yellow]warning:[/] the tracker is left out from step {step} on: {why}")
            self.tracker = None

    def _write(self, values: dict[str, Any]) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def _drop_after(self, start: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                continue  # the line that a killed process was writing
            if values.get("step", 0) <= start:
                kept.append(line + "\n")
        with atomic_file(self.path) as file:  # a full disk must not cost the history
            file.write("".join(kept).encode())
