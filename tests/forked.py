"""Processes forked from one that has imported everything.

Each has its own signals, exit code and end, as one of `python -m` has; but a start costs no seconds of importing
PyTorch, and a kill at a random moment meets work rather than imports.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import sys
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import torch

__all__ = ["forking", "ready", "run", "start"]

PRELOADED = [  # but for the command lines themselves, which are run as `python -m` runs them
    "tests.forked",
    "trainer.advice",
    "trainer.dryrun",
    "trainer.launch",
    "trainer.loop",
    "pipeline.build",
    "pipeline.encode.load",
    "pipeline.estimate",
    "pipeline.graph.build",
    "sentence_transformers",
    "tests.frozen",
]
PATIENCE = 300  # seconds, for a machine that is busy with other things


def forking() -> ForkServerContext:
    """One server of forks in each process that runs tests, whoever asks for it first."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def ready() -> None:
    """Waits until a start takes no longer than the next, for those who measure one."""
    process = forking().Process(target=os.getpid)
    process.start()
    process.join(PATIENCE)


def start(program: str, arguments: Sequence[str], said: Path, *, group: bool = False) -> ForkServerProcess:
    """`python -m PROGRAM ARGUMENTS` with one thread; its stderr goes to the file `said`. group: in one of its own."""
    process = forking().Process(target=_main, args=(program, list(arguments), str(said), group))
    process.start()
    return process


def run(program: str, arguments: Sequence[str], said: Path) -> None:
    process = start(program, arguments, said)
    process.join(PATIENCE)
    assert process.exitcode == 0, said.read_text()


def _main(program: str, arguments: list[str], said: str, group: bool) -> None:
    if group:
        os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.argv = [program, *arguments]
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        # As Python ends, with all that it may say then: multiprocessing's children leave without that.
        ctypes.pythonapi.Py_Exit(end.code if isinstance(end.code, int) else int(end.code is not None))
