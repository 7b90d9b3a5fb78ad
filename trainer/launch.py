"""`xclr-train --ranks N`: the same command once for each rank of this machine, by PyTorch's own launcher.

torchrun is that launcher too. Here it is called by its Python interface: so a signal ends in a line and an exit code
instead of a traceback, and what the user can mend is said once instead of once for every restart.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from tempfile import TemporaryDirectory
from uuid import uuid4

import torch
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from shards.bars import say
from shards.errors import UserError
from shards.machine import cores
from trainer.plan import check_share

__all__ = ["BY_HAND", "INTERRUPTED", "launch", "ranks_wanted"]

BY_HAND = 130  # 128 + SIGINT
INTERRUPTED = 143  # 128 + SIGTERM: what schedulers take for "was told to stop", and requeue
MENDABLE = 2  # of a rank that has told the user what to mend
RESTARTS = 3  # of all ranks, when one dies; only where they go on from a checkpoint
OPTIONS = {
    "shutdown_timeout": 240,  # seconds that ranks have to write a checkpoint after a signal
    "signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
}


def ranks_wanted(ranks: int, batch_size: int, device: str) -> int:
    """0 is one for each GPU of this machine.

    Raises UserError where there are not as many GPUs, the batch does not divide, or torchrun has started this process.
    """
    if "RANK" in os.environ:
        raise UserError("torchrun has started the ranks already: leave --ranks out, or call xclr-train by itself")
    if ranks < 0:
        raise UserError(f"--ranks is a number of processes, or 0 for one on each GPU, not {ranks}")
    gpus = 0 if device == "cpu" else torch.cuda.device_count()
    count = ranks or max(1, gpus)
    if gpus and count > (1 if ":" in device else gpus):
        seen = f"--device {device} is one GPU" if ":" in device else f"PyTorch sees {gpus} GPUs"
        raise UserError(f"{seen}, too few for --ranks {count}: lower it, or give --device cpu")
    check_share(batch_size, count)
    return count


def launch(count: int, arguments: Sequence[str], *, restart: bool) -> int:
    """Run `xclr-train ARGUMENTS` as `count` ranks, and return the exit code. restart: all of them, when one dies."""
    threads = 1 if torch.cuda.is_available() else max(1, cores() // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    logging.disable()  # the ranks say what is wrong
    rest = _without_ranks(arguments)
    for left in range(RESTARTS if restart else 0, -1, -1):
        try:
            with TemporaryDirectory(prefix="xclr-ranks-") as logs:  # which it leaves behind otherwise
                elastic_launch(_config(count, logs), sys.executable)("-m", "trainer.cli", *rest)
            return 0
        except SignalException as caught:
            return BY_HAND if caught.sigval == signal.SIGINT else INTERRUPTED
        except ChildFailedError as failed:
            codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        rank, code = min(codes.items(), key=lambda found: found[1])  # killed, crashed, told what to mend, stopped
        if code in (MENDABLE, BY_HAND, INTERRUPTED) or not left:
            return code if code > 0 else 128 - code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        say(f"warning: rank {rank} {how}; all ranks start again from the newest checkpoint ({left} times more at most)")
    raise AssertionError


def _config(count: int, logs: str) -> LaunchConfig:
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    for name in {field.name for field in fields(LaunchConfig)} & OPTIONS.keys():  # older versions lack some
        setattr(config, name, OPTIONS[name])
    return config


def _without_ranks(arguments: Sequence[str]) -> list[str]:
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--ranks":
            next(rest, None)
        elif not argument.startswith("--ranks="):
            kept.append(argument)
    return kept
