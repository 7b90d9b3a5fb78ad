"""What loader workers may hold ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards import machine
from shards.errors import UserError


@pytest.mark.parametrize(
    ("size", "workers", "free", "expected"),
    [
        (1 << 20, 2, 1 << 40, 4),
        (308 << 20, 16, 1 << 40, 1),  # 1,024 samples of 224 pixels: 5 GB with a batch each
        (100 << 20, 4, 1 << 40, 4),
        (100 << 20, 8, 6 << 30, 3),
        (30 << 20, 2, 64 << 20, 1),  # docker's default
    ],
)
def test_what_workers_hold_ready_fits_the_shared_memory(
    monkeypatch: pytest.MonkeyPatch, size: int, workers: int, free: int, expected: int
) -> None:
    monkeypatch.setattr(machine, "free_shared_memory", lambda: free)
    assert machine.prefetch(size, workers, "") == expected


def test_ranks_of_a_machine_share_its_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 8 << 30)
    assert machine.prefetch(36 << 20, 12, "", ranks=8) == 1
    with pytest.raises(UserError, match=r"96 loader processes with a batch of 100 MiB each do not fit the 8192 MiB"):
        machine.prefetch(100 << 20, 12, "lower --workers", ranks=8)
    monkeypatch.setattr(machine, "free_shared_memory", lambda: 2 << 30)  # six ranks have taken their shares since
    assert machine.prefetch(36 << 20, 12, "", free=8 << 30, ranks=8) == 1


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 64),
        ({"": "max 100000", "pods/one": "400000 100000"}, 4),
        ({"pods": "150000 100000", "pods/one": "max 100000"}, 2),
        ({"pods/one": "5000 100000"}, 1),
        ({"": "300000 100000"}, 3),  # within a container
    ],
)
def test_cores_are_those_that_a_container_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/pods/one\n")
    for place, text in limits.items():
        (tmp_path / "control" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "control" / place / "cpu.max").write_text(f"{text}\n")
    monkeypatch.setattr(machine, "GROUPS", str(tmp_path / "own"))
    monkeypatch.setattr(machine, "CONTROL", str(tmp_path / "control"))
    assert machine.cores() == expected
