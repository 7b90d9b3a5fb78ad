"""The benchmarks by name. A reader's module is imported only when its benchmark is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast

from eval.bench import Bench, Source
from shards.errors import UserError

__all__ = ["BENCHES", "Entry", "benchmarks_root", "open_bench"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    reader: str
    """`module:function`, a function Source -> Bench."""
    about: str
    """One line: what is scored."""
    where: str
    """One line: where to get it, or how it is given."""


BENCHES: dict[str, Entry] = {
    "demo": Entry(
        reader="eval.benchmarks_demo:open_demo",
        about="the embedded data set: objects on other grounds, colour, texture",
        where="make demo",
    ),
    "imagefolder": Entry(
        reader="eval.benchmarks_imagefolder:open_imagefolder",
        about="any class folders: train/ and val/, or train.tar and val.tar",
        where="--data DIR",
    ),
}


def benchmarks_root() -> Path:
    """$XCLR_BENCHMARKS, or data/benchmarks."""
    return Path(os.environ.get("XCLR_BENCHMARKS") or "data/benchmarks")


def open_bench(name: str, data: Path | None = None, *, partial: bool = False, shards: Path | None = None) -> Bench:
    """A benchmark by name, in `data` or below benchmarks_root(). Raises UserError for an unknown name."""
    if name not in BENCHES:
        raise UserError(f"unknown benchmark {name!r}: give one of {', '.join(BENCHES)}")
    module, function = BENCHES[name].reader.split(":")
    reader = cast(Callable[[Source], Bench], getattr(import_module(module), function))
    root = benchmarks_root()
    return reader(Source(root=data or root / name, benchmarks=root, partial=partial, shards=shards))
