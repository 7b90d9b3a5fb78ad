"""`xclr-train --ranks N`: the same command once for each rank of this machine.

torchrun does so too, and for several machines. Here a signal ends in a line and an exit code, what the user can mend is
not tried again, and a rank that has stopped does not have the others killed over a checkpoint that is being written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from hashlib import sha256

import torch
import torch.distributed as dist

from shards.bars import say
from shards.errors import UserError
from shards.machine import cores
from trainer.plan import check_share
from trainer.signals import INTERRUPTED, heeded
from trainer.world import LoaderGone, PeerGone

__all__ = ["BY_HAND", "first_to_say", "launch", "ranks_wanted", "stop_without_launcher"]

BY_HAND = 130  # 128 + SIGINT
FINAL = (0, UserError.code, BY_HAND, INTERRUPTED)  # done, something to be mended, told to stop
RESTARTS = 3  # of all ranks, when one dies; only where they go on from a checkpoint
TO_STOP = 240.0  # seconds after a rank has stopped: another may be writing the checkpoint
TO_FAIL = 30.0  # after one has died: others may wait for it in vain
TO_ASK = timedelta(seconds=5)
LIFELINE = "XCLR_LIFELINE"  # environment: a pipe's end at which a rank sees that the launcher is gone


def ranks_wanted(ranks: int, batch_size: int, device: str) -> int:
    """0 is one for each GPU of this machine.

    Raises UserError where there are not as many GPUs, the batch does not divide, or torchrun has started this process.
    """
    if "RANK" in os.environ:
        raise UserError("torchrun has started the ranks already: leave --ranks out, or call xclr-train by itself")
    if ranks < 0:
        raise UserError(f"--ranks is a number of processes, or 0 for one on each GPU, not {ranks}")
    gpus = 0 if device == "cpu" else 1 if ":" in device else torch.cuda.device_count()
    count = ranks or max(1, gpus)
    if count > gpus and (gpus or device.startswith("cuda")):
        seen = f"--device {device} is one GPU" if ":" in device else f"PyTorch sees {gpus} GPUs"
        raise UserError(f"{seen}, too few for --ranks {count}: lower it, or give --device cpu")
    check_share(batch_size, count)
    return count


def launch(
    count: int, arguments: Sequence[str], *, on_gpus: bool, restart: bool, newest: Callable[[], object] = object
) -> int:
    """Run `xclr-train ARGUMENTS` as `count` ranks, and return the exit code.

    restart: all of them, when one dies. newest: the checkpoint that they go on from; an error that comes again before
    there is another one would only come again.
    """
    # -P: as the command itself, not with this folder's trainer.py before ours.
    command = [sys.executable, "-P", "-m", "trainer.cli", *_without_ranks(arguments)]
    threads = os.environ.get("OMP_NUM_THREADS", "1" if on_gpus else str(max(1, cores() // count)))
    left, before = RESTARTS if restart else 0, newest()
    while True:
        rank, code = _run(command, count, threads)
        if code in FINAL:
            return code
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        now = newest()
        killed = code < 0 or code == LoaderGone.code
        if not left or (not killed and now == before):
            why = " (for lack of memory, perhaps)" if code == -signal.SIGKILL else ""
            remedy = "; no checkpoint had been written yet (run.checkpoint_every, run.checkpoint_minutes in a recipe)"
            if now:
                remedy = "; with --resume the same command goes on from the newest checkpoint"
            say(f"error: rank {rank} {how}{why}{remedy}")
            return code if code >= 0 else 128 - code
        say(f"warning: rank {rank} {how}; all ranks start again from the newest checkpoint ({left} times more at most)")
        left, before = left - 1, now


def _run(command: Sequence[str], count: int, threads: str) -> tuple[int, int]:
    """One start of all ranks: which of them decided how it ended, and its exit code, negative for a signal."""
    # It outlives each rank.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # PyTorch's names for a store that no rank makes
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": threads,
    }
    ranks, forwarded = list[subprocess.Popen[bytes]](), list[tuple[int, int]]()
    theirs, ours = os.pipe()

    def forward(number: int, before: Sequence[int]) -> None:
        forwarded.append((number, len(ranks)))
        _tell(ranks, number)

    try:
        with heeded(forward) as signals:
            for rank in range(count):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), LIFELINE: str(theirs)}
                # In a group of its own: the terminal's Ctrl-C comes once, by this process.
                process = subprocess.Popen(
                    command, env={**os.environ, **shared, **own}, pass_fds=[theirs], process_group=0
                )
                ranks.append(process)
            for number, told in forwarded:  # while ranks were still to be started
                _tell(ranks[told:], number)
            return _wait(ranks, signals)
    finally:
        os.close(theirs)
        os.close(ours)


def first_to_say(line: str) -> bool:
    """Whether no other rank of this machine has this line to say: of eight GPUs' all find the same misspelt model.

    Of one start, since torchrun keeps its store. True as well where there is no other rank, or no store to be asked.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    told = [os.environ.get(name) for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")]
    key = f"said/{told}/{sha256(line.encode()).hexdigest()}"
    try:
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*where, is_master=False, timeout=TO_ASK)  # type: ignore[attr-defined]
        return bool(store.add(key, 1) == 1)
    except (LookupError, ValueError, RuntimeError):
        return True


def stop_without_launcher() -> None:
    """In a rank: should the launcher be killed, it is as if SIGTERM had come. Nothing else would end the ranks."""
    if LIFELINE in os.environ:
        threading.Thread(target=_watch, args=(int(os.environ.pop(LIFELINE)),), daemon=True).start()


def _watch(lifeline: int) -> None:
    os.read(lifeline, 1)  # nobody writes: it returns when the other end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def _wait(ranks: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> tuple[int, int]:
    ended, until = dict[int, int](), float("inf")
    try:
        while len(ended) < len(ranks):
            for rank, process in enumerate(ranks):
                code = process.poll()
                if code is None or rank in ended:
                    continue
                ended[rank] = code
                if code and until == float("inf"):
                    stopped = code in (BY_HAND, INTERRUPTED)
                    until = time.monotonic() + (TO_STOP if stopped else TO_FAIL)
                    if not stopped and code != PeerGone.code:  # whom it has lost is about to say why
                        _tell(ranks, signal.SIGTERM)
            if time.monotonic() > until or signals.count(signal.SIGINT) > 2:
                _tell(ranks, signal.SIGKILL)
            time.sleep(0.05)
    finally:
        _tell(ranks, signal.SIGKILL)  # of an error here: none outlives this process
    failed = {rank: code for rank, code in ended.items() if code}  # in the order in which they ended
    rank, code = next((found for found in failed.items() if found[1] != PeerGone.code), (0, 0))
    if failed and not code:
        rank, code = next(iter(failed.items()))
    if signals and code not in FINAL:
        code = BY_HAND if signals[0] == signal.SIGINT else INTERRUPTED
    return rank, code


def _tell(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)


def _without_ranks(arguments: Sequence[str]) -> list[str]:
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--ranks":
            next(rest, None)
        elif not argument.startswith("--ranks="):
            kept.append(argument)
    return kept
