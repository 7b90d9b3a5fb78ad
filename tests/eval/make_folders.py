"""Image folders and models in miniature."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from eval.benchmarks.bench import ImageSet, fingerprint
from eval.models.model import Model, Transform
from tests.make import jpeg

NORMAL = (0.5, 0.5, 0.5)


class Colours(nn.Module):
    """Mean colour of each quarter of the picture: features that tell the classes of make_folders apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(images).flatten(1) * self.scale
        return pooled


def make_model(size: int = 16, sha: str = "0" * 64) -> Model:
    return Model(
        name="colours",
        network=Colours().eval(),
        feature_dim=12,
        transform=Transform(image_size=size, crop_pct=1.0, mean=NORMAL, std=NORMAL),
        sha256=sha,
        about={"model": "colours", "objective": "none"},
    )


def make_set(count: int, *, bad: tuple[int, ...] = (), name: str = "train", seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    data = [b"no picture" if i in bad else jpeg(rng, 16, i % 10) for i in range(count)]
    return ImageSet(
        name=name,
        keys=[f"{i}.jpg" for i in range(count)],
        read=data.__getitem__,
        fingerprint=fingerprint([count, bad, seed]),
        may_train=True,
    )


def make_folders(root: Path, classes: int = 4, train: int = 12, val: int = 5, *, nested: bool = False) -> Path:
    """root/train and root/val; each class has a colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}" / ("images" if nested else "")
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.JPEG").write_bytes(jpeg(rng, 20, 2 * label))
    return root


def as_tars(root: Path, out: Path) -> Path:
    """train.tar and val.tar with members train/CLASS/picture, as Tiny ImageNet comes."""
    out.mkdir()
    for split in ("train", "val"):
        with tarfile.open(out / f"{split}.tar", "w") as tar:
            for path in sorted((root / split).rglob("*.JPEG")):
                tar.add(path, str(path.relative_to(root)))
    return out
