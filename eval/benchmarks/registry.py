"""The benchmarks by name. A reader's module is imported only when its benchmark is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from eval.benchmarks.bench import Bench, Source
from shards.config import did_you_mean
from shards.errors import UserError

__all__ = ["BENCHES", "Entry", "benchmarks_root", "check_bench", "open_bench"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    reader: str
    """`module:function`, a function Source -> Bench."""
    about: str
    """One line: what is scored."""
    where: str
    """One line: where to get it, or how it is given."""
    own: bool = False
    """Data of the user's own, which --data names: results are called after its folder."""


BENCHES: dict[str, Entry] = {
    "demo": Entry(
        reader="eval.benchmarks.demo:open_demo",
        about="the embedded data set: objects on other grounds, colour, texture",
        where="make demo",
    ),
    "imagefolder": Entry(
        reader="eval.benchmarks.imagefolder:open_imagefolder",
        about="any class folders: train/ and val/, or train.tar and val.tar",
        where="--data DIR",
        own=True,
    ),
    "backgrounds": Entry(
        reader="eval.benchmarks.backgrounds:open_backgrounds",
        about="such folders with a box around each object (boxes.csv): the objects on other grounds",
        where="--data DIR",
        own=True,
    ),
    "shards": Entry(
        reader="eval.benchmarks.shards:open_labelled",
        about="any labelled shards, on the test shards beside them (NAME and NAME-test)",
        where="--data SHARDS",
        own=True,
    ),
    "imagenet": Entry(
        reader="eval.benchmarks.imagenet:open_imagenet",
        about="ImageNet-1k's validation images, top-1 and top-5",
        where="ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit from image-net.org",
    ),
    "imagenet-real": Entry(
        reader="eval.benchmarks.imagenet:open_imagenet_real",
        about="the same images by ReaL's labels",
        where="imagenet; timm carries the labels",
    ),
    "imagenet9": Entry(
        reader="eval.benchmarks.imagenet9:open_imagenet9",
        about="the backgrounds challenge: eight variants, and how much is owed to backgrounds",
        where="backgrounds_challenge_data.tar.gz from github.com/MadryLab/backgrounds_challenge/releases",
    ),
    "objectnet": Entry(
        reader="eval.benchmarks.objectnet:open_objectnet",
        about="ObjectNet's 113 classes that overlap ImageNet's",
        where="objectnet-1.0.zip from objectnet.dev",
    ),
    "mit-states": Entry(
        reader="eval.benchmarks.mit_states:open_mit_states",
        about="objects and their states, three random even splits",
        where="release_dataset.zip from web.mit.edu/phillipi/Public/states_and_transformations",
    ),
}


def benchmarks_root() -> Path:
    """$XCLR_BENCHMARKS, or data/benchmarks."""
    return Path(os.environ.get("XCLR_BENCHMARKS") or "data/benchmarks")


def check_bench(name: str, where: str = "") -> None:
    """Raises UserError, that begins with `where`, for an unknown name."""
    if name not in BENCHES:
        hint = did_you_mean(name, BENCHES)
        raise UserError(f"{where}unknown benchmark {name!r}{hint}: give one of {', '.join(BENCHES)}")


def open_bench(name: str, data: Path | None = None, *, partial: bool = False, shards: Path | None = None) -> Bench:
    """A benchmark by name, in `data` or below benchmarks_root(). Raises UserError for an unknown name."""
    check_bench(name)
    module, function = BENCHES[name].reader.split(":")
    reader = cast(Callable[[Source], Bench], getattr(import_module(module), function))
    root = benchmarks_root()
    return reader(Source(root=Path(data) if data else root / name, benchmarks=root, partial=partial, shards=shards))
