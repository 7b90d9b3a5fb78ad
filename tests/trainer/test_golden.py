"""The first 50 steps of a fixed run against the losses written down in golden_losses.json.

Finds changes of the method that no other test looks at: batches, augmentations, initial weights, loss, optimiser.
After a change that is meant to alter them, write the file anew and say so in the commit:

    python -m tests.trainer.test_golden

The pictures are PNG, since JPEG decoders differ in a grey level. Float32 sums in another order on another CPU: one
thread on AVX-512 against two with SSE alone (torch, oneDNN and OpenCV told so) differed by 8e-6 at most over the 50
steps, 2026-11-24. With batch statistics of eight samples it was 0.1 and more.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import cast
from unittest.mock import patch

import cv2
import numpy as np
import pytest

from tests.make import make_shards
from tests.trainer.small import ALONE, losses, recipe
from trainer.loop import train

GOLDEN = Path(__file__).with_name("golden_losses.json")
TOLERANCE = 2e-4  # batches alone differ by a hundred times that


def png(rng: np.random.Generator, hue: int) -> bytes:
    """Noise of 32 x 32 about a colour of the kind."""
    colour = np.array([40 * hue, 255 - 40 * hue, 128])
    pixels = (0.5 * rng.integers(0, 256, (32, 32, 3)) + 0.5 * colour).astype(np.uint8)
    return cast(bytes, cv2.imencode(".png", pixels)[1].tobytes())


def golden_run(folder: Path) -> list[float]:
    """50 steps of X-CLR on six classes, five epochs of ten."""
    with patch("tests.make.jpeg", png):
        shards = make_shards(folder / "shards", sizes=(30, 25, 29), classes=6)
    # A ViT, since it has no batch statistics, and a low rate, so that the features do not collapse at once.
    chosen = recipe(shards, epochs=5, optimiser__name="sgd", optimiser__lr=3e-4, run__knn_every=0)
    train(chosen, folder / "run", ALONE)
    return losses(folder / "run")


def test_losses_are_those_written_down(tmp_path: Path) -> None:
    found, golden = golden_run(tmp_path), json.loads(GOLDEN.read_text())
    assert len(found) == len(golden) == 50
    assert max(golden) - min(golden) > 20 * TOLERANCE  # it is about something
    assert found == pytest.approx(golden, abs=TOLERANCE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps([round(loss, 6) for loss in golden_run(Path(scratch))], indent=0) + "\n")
    print(f"wrote {GOLDEN}")
