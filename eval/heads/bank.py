"""A training set of features for a probe or a vote: in memory where it fits, else read in windows from its maps.

Bounded: whatever n is, at most `memory` bytes are held (half of them for the window in hand).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eval.features import Features, device

__all__ = ["Bank", "Floats", "Ints"]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

MEMORY = 2 << 30  # bytes
SEGMENT = 256  # neighbouring rows that are read together, and shuffled among many others
BLOCK = 8192  # rows of a sequential read


class Bank:
    """n rows of d features; positions are 0..n-1."""

    def __init__(self, features: Features, rows: Ints, *, memory: int | None = None) -> None:
        """rows: positions in `features`, rising. memory: bytes; None: MEMORY, or half of what a GPU has free."""
        self.features, self.rows, self.dim = features, rows, features.dim
        self.device = device()
        half = bool(features.parts) and features.parts[0].dtype == np.float16
        self.memory = memory if memory is not None else _memory(self.device)
        self.values: torch.Tensor | None = None
        if len(rows) * self.dim * (2 if half else 4) <= self.memory:
            kind = torch.float16 if half else torch.float32
            self.values = torch.empty(len(rows), self.dim, dtype=kind, device=self.device)
            for start in range(0, len(rows), BLOCK):
                block = features.rows(rows[start : start + BLOCK])
                self.values[start : start + len(block)] = torch.from_numpy(block)

    @classmethod
    def of(cls, values: npt.NDArray[Any], *, memory: int | None = None) -> Bank:
        """A bank of an array [n, d]."""
        rows = np.arange(len(values), dtype=np.int64)
        return cls(Features.of(values), rows, memory=memory)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def streams(self) -> bool:
        """Rows are read from disk as they are used."""
        return self.values is None

    @property
    def copies(self) -> bool:
        """A second copy of the rows, in float32, stays within the memory."""
        return self.values is not None and 4 * self.values.numel() <= self.memory // 2

    def holding(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Bank | None:
        """A bank of the same rows after `change` ([m, d] float32 -> [m, any width]), or None if it would not fit."""
        if self.values is None or not self.copies:
            return None
        other = copy(self)
        parts = [change(self.values[start : start + BLOCK].float()) for start in range(0, len(self), BLOCK)]
        other.values = torch.cat(parts)
        other.dim = other.values.shape[1]
        return other

    def take(self, positions: Ints) -> torch.Tensor:
        """[m, d] float32 on the device."""
        if self.values is not None:
            return self.values[torch.from_numpy(positions).to(self.device, non_blocking=True)].float()
        return torch.from_numpy(self.features.rows(self.rows[positions])).to(self.device)

    def blocks(self, positions: Ints) -> Iterator[tuple[torch.Tensor, Ints]]:
        """(rows, their positions), in the order of `positions`."""
        for start in range(0, len(positions), BLOCK):
            part = positions[start : start + BLOCK]
            yield self.take(part), part

    def shuffled(self, positions: Ints, batch: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, Ints]]:
        """One pass in len(positions) // batch batches; the last, smaller one is left out.

        In memory a uniform permutation. Streamed: segments in random order, shuffled in windows of half the memory.
        """
        if self.values is not None:
            order = rng.permutation(positions)
            for start in range(0, len(order) - batch + 1, batch):
                part = order[start : start + batch]
                yield self.take(part), part
            return
        window = max(batch, self.memory // 2 // (4 * self.dim))
        segments = [positions[start : start + SEGMENT] for start in range(0, len(positions), SEGMENT)]
        waiting: list[Ints] = []
        for number, segment in enumerate(rng.permutation(len(segments))):
            waiting.append(segments[segment])
            last = number == len(segments) - 1
            if last or sum(map(len, waiting)) >= window:
                held = np.sort(np.concatenate(waiting))
                values = self.take(held)
                order = rng.permutation(len(held))
                whole = len(held) // batch * batch
                for start in range(0, whole, batch):
                    part = order[start : start + batch]
                    yield values[torch.from_numpy(part).to(self.device, non_blocking=True)], held[part]
                waiting = [held[order[whole:]]]  # goes on into the next window


def _memory(place: torch.device) -> int:
    return torch.cuda.mem_get_info(place)[0] // 2 if place.type == "cuda" else MEMORY
