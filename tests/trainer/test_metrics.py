"""What a run writes down of its steps, and what of it stays when the run goes on from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.trainer.small import lines_of
from trainer.metrics import Metrics


def test_a_run_that_goes_on_tells_one_story(tmp_path: Path) -> None:
    """Lines up to its checkpoint stay, those after it go, in the file as on the board."""
    with Metrics(tmp_path, start=0, stop=4, title="made") as metrics:
        metrics.event("start", step=0)
        for step in (1, 2, 3):
            metrics.step({"step": step, "epoch": step / 4, "loss": float(step)})
            assert lines_of(tmp_path)[-1]["loss"] == step  # at once: a kill costs no line
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a kill
    with Metrics(tmp_path, start=2, stop=4, title="made") as metrics:
        assert [line["step"] for line in lines_of(tmp_path)] == [0, 1, 2]
        metrics.event("resume", step=2)
        metrics.step({"step": 3, "epoch": 0.75, "loss": 30.0})
    lines = lines_of(tmp_path)
    assert [line.get("event") for line in lines] == ["start", None, None, "resume", None]
    assert [(line["step"], line["loss"]) for line in lines if "loss" in line] == [(1, 1), (2, 2), (3, 30)]
    points = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(point.step, point.value) for point in points] == [(1, 1), (2, 2), (3, 30)]
