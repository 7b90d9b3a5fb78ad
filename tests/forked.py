"""Processes forked from one that has imported everything.

Each has its own signals, exit code and end, as one of `python -m` has; but a start costs no seconds of importing
PyTorch, and a kill at a random moment meets work rather than imports.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from trainer import launch

__all__ = ["PATIENCE", "Forked", "forking", "ready", "run", "start"]

PRELOADED = [  # but for the command lines themselves, which are run as `python -m` runs them
    "tests.forked",
    "trainer.advice",
    "trainer.dryrun",
    "trainer.launch",
    "trainer.loop",
    "torch.distributed.run",
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


def start(
    program: str, arguments: Sequence[str], said: Path, *, how: str = "-m", group: bool = False
) -> ForkServerProcess:
    """`python -m PROGRAM ARGUMENTS` with one thread; its stderr goes to the file `said`. how: -c for a program's text.

    Ranks that it starts are forked from it. group: in one of its own.
    """
    process = forking().Process(target=_main, args=(how, program, list(arguments), str(said), group))
    process.start()
    return process


def run(program: str, arguments: Sequence[str], said: Path, *, how: str = "-m") -> None:
    process = start(program, arguments, said, how=how)
    process.join(PATIENCE)
    assert process.exitcode == 0, said.read_text()


class Forked(subprocess.Popen[bytes]):
    """`Popen([PYTHON, ..., "-m" or "-c", ...])` that goes on as that program instead of starting Python for it.

    It is a child of this process, and what is asked of it is asked of subprocess.Popen.
    """

    def __init__(
        self, args: Sequence[str], *, env: Mapping[str, str], pass_fds: Collection[int] = (), **options: Any
    ) -> None:
        become = partial(_become, args, env, pass_fds)
        super().__init__(args, env=env, pass_fds=pass_fds, preexec_fn=become, **options)


def _main(how: str, program: str, arguments: list[str], said: str, group: bool) -> None:
    if group:
        os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    launch.subprocess = SimpleNamespace(Popen=Forked)  # type: ignore[assignment]
    subprocess_handler.Popen = Forked  # torchrun's
    _go_on_as(how, program, arguments)


def _become(command: Sequence[str], env: Mapping[str, str], kept: Collection[int]) -> None:
    """In a child of Popen: what Python would be and have after `command` had started it."""
    before = 2
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(before + 1, descriptor)  # among them the one that Popen waits at
        before = descriptor
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(env)
    how = next(i for i, word in enumerate(command) if word in ("-m", "-c"))
    _go_on_as(command[how], command[how + 1], command[how + 2 :])


def _go_on_as(how: str, program: str, arguments: Sequence[str]) -> None:
    """`python -m PROGRAM` or `-c`, to the end of this process."""
    sys.argv = [program if how == "-m" else how, *arguments]
    code = 0
    try:
        if how == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            exec(program, {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # As Python ends, with all that it may say then: multiprocessing's children leave without that.
    ctypes.pythonapi.Py_Exit(code)
