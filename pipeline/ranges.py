"""What is known between two bounds, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass

from shards.bars import spoken

__all__ = ["Range", "disk_line", "size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    low: float
    high: float

    def times(self, low: float, high: float | None = None) -> Range:
        return Range(low=self.low * low, high=self.high * (low if high is None else high))

    def plus(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)

    def as_count(self) -> str:
        return _between(f"{round(self.low):,}", f"{round(self.high):,}")

    def as_bytes(self) -> str:
        return _between(size(self.low), size(self.high))

    def as_time(self) -> str:
        return _between(spoken(self.low), spoken(self.high))


def size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def disk_line(disk: Range, work: float, free: int) -> str:
    """work: bytes beside it while it is made, at most."""
    line = f"{disk.as_bytes()}, and up to {size(work)} while it is made; {size(free)} are free"
    if disk.high + work <= free:
        return line
    return line + (": MAY NOT FIT" if disk.low < free else ": DOES NOT FIT")


def _between(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"
