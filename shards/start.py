"""The commands' first lines. What they import takes some tenths of a second, in which Ctrl-C is no error either."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module

__all__ = ["evaluate", "shards", "train"]


def shards() -> None:
    _main("pipeline.cli")


def train() -> None:
    _main("trainer.cli")


def evaluate() -> None:
    _main("eval.cli")


def _main(module: str) -> None:
    # OpenCV writes a line for each damaged picture, which does not say for which: they are counted, and named, here.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text, nor in a terminal's letters
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        main = import_module(module).main
    except KeyboardInterrupt:
        sys.exit(130)  # 128 + SIGINT
    main()
