"""Miniature benchmarks in the exact layout of the published ones, of coloured noise: one colour a class."""

from __future__ import annotations

import json
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo, RealLabelsImagenet
from typer.testing import CliRunner

from eval.cli import app
from tests.make import jpeg
from trainer.checkpoint import write_checkpoint
from trainer.model import build_encoder
from trainer.recipe import AugmentConfig, ModelConfig, Recipe, as_table

CHIHUAHUA, ALARM_CLOCK, CHAIR, COCK = "n02085620", "n02708093", "n02791124", "n01514668"
COLOURS = {CHIHUAHUA: 0, ALARM_CLOCK: 3, CHAIR: 6, COCK: 9}
QUICK = ("--learning-rates", "1", "--weight-decays", "0", "--kinds", "standardised", "--epochs", "60")
VAL = "ILSVRC2012_val_{:08d}.JPEG"


@cache
def synsets() -> list[str]:
    """ImageNet's WordNet ids by class, as timm has them."""
    return list(ImageNetInfo("imagenet-1k").label_names())


@cache
def real() -> list[list[int]]:
    """ReaL's labels of image 1, 2, ..., as timm has them."""
    labels = RealLabelsImagenet([""] * 50_000).real_labels
    return [labels[VAL.format(number)] for number in range(1, 50_001)]


def numbers_of(wnid: str, count: int) -> list[int]:
    """Image numbers whose only ReaL label is this class."""
    own = [synsets().index(wnid)]
    return [number for number, labels in enumerate(real(), 1) if labels == own][:count]


def picture(path: Path, hue: int, seed: int = 0, size: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(np.random.default_rng([hue, seed]), size, hue))
    return path


def png(path: Path, hue: int, seed: int = 0, *, border: int = 2, alpha: int | None = None) -> Path:
    """A lossless picture with a frame of pure red, as ObjectNet's."""
    inner = np.asarray(Image.open(BytesIO(jpeg(np.random.default_rng([hue, seed]), 32, hue))))
    framed = np.full((32 + 2 * border, 32 + 2 * border, 3), (255, 0, 0), np.uint8)
    framed[border : border + 32, border : border + 32] = inner
    if alpha is not None:
        framed = np.dstack([framed, np.full(framed.shape[:2], alpha, np.uint8)])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(framed).save(path)
    return path


def make_train(root: Path, each: int = 16) -> Path:
    """imagenet/train of the four classes."""
    for wnid, hue in COLOURS.items():
        for i in range(each):
            picture(root / "train" / wnid / f"{wnid}_{i}.JPEG", hue, seed=100 + i)
    return root


def make_imagenet(root: Path, each: int = 3) -> Path:
    """imagenet/train and imagenet/val as class folders."""
    make_train(root)
    for wnid, hue in COLOURS.items():
        for number in numbers_of(wnid, each):
            picture(root / "val" / wnid / VAL.format(number), hue, seed=number)
    return root


def make_run(folder: Path) -> Path:
    """A run whose checkpoint holds a small ResNet at its initial weights."""
    recipe = Recipe(
        name="tiny",
        augment=AugmentConfig(image_size=32),
        model=ModelConfig(backbone="test_resnet", projector_hidden=8, projector_dim=8, eval_crop=1.0),
    )
    encoder = build_encoder(recipe.model, 32, seed=0)
    write_checkpoint(folder, 1, {"encoder": encoder.state_dict(), "recipe": json.dumps(as_table(recipe))}, keep=1)
    return folder


def desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the working directory, with runs/tiny in it; benchmarks lie in its data/benchmarks by default."""
    monkeypatch.chdir(folder)
    for name in ("XCLR_BENCHMARKS", "XCLR_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    make_run(folder / "runs" / "tiny")
    return folder / "data" / "benchmarks"


def xclr_eval(*arguments: str | Path) -> Any:
    """Run the command line in this process, on one thread: on such small matrices more only get in each other's way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)


def scored(bench: str, *arguments: str | Path) -> dict[str, Any]:
    """`xclr-eval linear-probe --bench BENCH ...` in the working directory, and the JSON it writes into the run."""
    result = xclr_eval("linear-probe", "--bench", bench, *QUICK, *arguments)
    if result.exception:
        raise result.exception
    table: dict[str, Any] = json.loads(Path(f"runs/tiny/eval/linear-probe-{bench}.json").read_text())
    return table
