"""What a build left out: counted against the budget, and by name in skipped.jsonl.

A line is {"reason": "no caption", "sample": "00001.jpg of 00000.tar"}; or, of the many that a tar or a table lost for
one reason, {"reason", "in", "more"} behind the first ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.atomic import atomic_file
from shards.errors import OverBudget, SkipBudget

__all__ = ["SKIPPED", "LeftOut", "judge"]

SKIPPED = "skipped.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Samples of one partition that were left out for one reason."""

    partition: str
    reason: str
    count: int
    names: Sequence[str]
    """Of the first ones, and the last."""


def judge(budget: SkipBudget, found: Sequence[LeftOut], path: Path) -> None:
    """Write `path`, and count all of `found`. Raises OverBudget, which says where they are named."""
    _write(path, found)
    for one in found:
        budget.count(one.reason, one.count)
    try:
        for one in found[-1:]:
            why = f" ({one.reason})" if len(budget.reasons) > 1 else ""
            budget.check(f"{one.names[-1]}{why}" if one.names else f"in {one.partition}")
    except OverBudget as error:
        raise OverBudget(f"{error}; {path} names them") from None


def _write(path: Path, found: Sequence[LeftOut]) -> None:
    """Nothing where nothing was left out."""
    if not found:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as file:
        for one in found:
            lines: list[Mapping[str, object]] = [{"reason": one.reason, "sample": name} for name in one.names]
            if more := one.count - len(one.names):
                lines.append({"reason": one.reason, "in": one.partition, "more": more})
            for line in lines:  # a file's name may be no text
                file.write(f"{json.dumps(line, ensure_ascii=False)}\n".encode("utf-8", "replace"))
