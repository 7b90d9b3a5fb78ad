"""What loader workers may hold ready."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 8 << 30),
        ({"pods/one": ("max", 1 << 30, 0)}, 8 << 30),
        ({"pods": (4 << 30, 3 << 30, 0)}, 1 << 30),
        ({"pods": (4 << 30, 3 << 30, 1 << 30), "pods/one": ("max", 1, 0)}, 2 << 30),  # files make room
        ({"pods/one": (1 << 30, 2 << 30, 0)}, 0),  # lowered since
        ({"pods/one": (100 << 30, 0, 0)}, 8 << 30),
    ],
)
def test_free_memory_is_what_a_container_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: dict[str, tuple[int | str, int, int]], expected: int
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable:   {8 << 20} kB\n")
    (tmp_path / "own").write_text("0::/pods/one\n")
    for place, (limit, taken, files) in limits.items():
        folder = tmp_path / "control" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files // 2}\nactive_file {files - files // 2}\n")
    for name, path in (("MEMORY", "meminfo"), ("GROUPS", "own"), ("CONTROL", "control")):
        monkeypatch.setattr(machine, name, str(tmp_path / path))
    assert machine.free_memory() == expected


def test_free_memory_of_the_first_version_of_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable: {64 << 20} kB\n")
    (tmp_path / "own").write_text("9:cpu,cpuacct:/x\n8:memory:/job/7\n0::/\n")
    for place, limit in (("", 1 << 62), ("job", 8 << 30), ("job/7", 1 << 62)):
        folder = tmp_path / "control" / "memory" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{7 << 30}\n")
        (folder / "memory.stat").write_text(
            f"active_file 1\ntotal_inactive_file {1 << 30}\ntotal_active_file {2 << 30}\n"
        )
    for name, path in (("MEMORY", "meminfo"), ("GROUPS", "own"), ("CONTROL", "control")):
        monkeypatch.setattr(machine, name, str(tmp_path / path))
    assert machine.free_memory() == 4 << 30


def test_bytes_are_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shared memory, which the system counts in blocks, and of the most that was held, in kilobytes."""
    found = SimpleNamespace(f_bavail=3, f_bfree=5, f_frsize=4096)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: found)
    assert machine.free_shared_memory() == 3 * 4096
    assert 1 << 24 < machine.peak_memory() < 1 << 40


def test_a_lock_keeps_others_out(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open("w") as other:
        machine.lock_file(mine)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_system_that_says_nothing_of_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "MEMORY", str(tmp_path / "none"))
    monkeypatch.setattr(machine, "GROUPS", str(tmp_path / "none"))
    assert machine.free_memory() > 1 << 60
