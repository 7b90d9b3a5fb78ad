"""Jobs in processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pipeline.parallel import Workers
from shards.errors import UserError


class Carrier:
    """A function that counts how often it is sent."""

    sent = 0

    def __getstate__(self) -> dict[str, int]:
        Carrier.sent += 1
        return {"number": 1}

    def __call__(self, job: int) -> int:
        return job + 1


def test_what_a_function_carries_is_sent_once() -> None:
    with Workers(2) as workers:
        for _ in range(2):
            Carrier.sent = 0
            assert list(workers.ordered(Carrier(), list(range(50)))) == list(range(1, 51))
            assert Carrier.sent == 1
        assert list(workers.ordered(str, [1, 2, 3])) == ["1", "2", "3"]


def test_a_process_that_was_killed_is_one_line() -> None:
    with Workers(2) as workers, pytest.raises(UserError, match="a process was killed, for lack of memory perhaps"):
        list(workers.ordered(os._exit, [9, 9, 9]))
    with Workers(2) as workers:
        slow = (time.sleep(0.3) for _ in workers.ordered(end_at, list(range(40))))  # broken while this process is busy
        with pytest.raises(UserError, match="a process was killed, for lack of memory perhaps"):
            list(slow)


def test_the_processes_of_a_build_load_neither_faiss_nor_torch() -> None:
    """There is one a core."""
    code = "import sys, pipeline.scans, pipeline.write; sys.exit(bool({'torch', 'faiss'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def end_at(number: int) -> None:
    if number == 3:
        os._exit(9)
