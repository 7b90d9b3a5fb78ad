"""What loader workers may hold ready."""

from __future__ import annotations

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
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert machine.prefetch(36 << 20, 12, "") == 1
    with pytest.raises(UserError, match=r"96 loader processes with a batch of 100 MiB each do not fit the 8192 MiB"):
        machine.prefetch(100 << 20, 12, "lower --workers")
