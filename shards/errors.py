"""Errors a user can act on.

    ValueError
    └── UserError           what happened, the numbers, what to do about it; shown as one line
        ├── TornTar         a tar that ends in the middle of a member
        └── OverBudget      more unusable samples than the caller allows

Everything else that is raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
from collections import Counter
from textwrap import shorten

__all__ = ["NO_LOCKS", "OverBudget", "SkipBudget", "TornTar", "UserError", "first_line"]


class UserError(ValueError):
    """Something the user can mend. The message is one line: what happened, the numbers, what to do."""

    code = 2
    """The command's exit code."""


class TornTar(UserError):
    """A tar file ends inside a header or a member."""


class OverBudget(UserError):
    """Too many unusable samples: going on would train on a data set other than the one asked for."""


def first_line(error: BaseException) -> str:
    """Of another library's message, for one of ours: with the second line, where the first only announces it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return shorten(" ".join(lines[: 2 if lines[0].rstrip().endswith(":") else 1]), 300, placeholder=" ...")


class SkipBudget:
    """Counts unusable samples and stops the work when they are more than a share of what was seen.

    limit: largest tolerated share, 0..1, of the samples seen so far.
    minimum: skips always tolerated, so that one bad image in the first ten does not stop a large job.

    MemoryError and ImportError are never bad data: callers catch the narrow exceptions of their decoder only.
    """

    def __init__(
        self, name: str, limit: float, minimum: int = 10, remedy: str = "check the source, or raise --max-skipped"
    ) -> None:
        if not 0 <= limit <= 1:
            raise UserError(f"the budget for unusable samples must lie in 0..1, not {limit}")
        self.name = name
        self.limit = limit
        self.minimum = minimum
        self.remedy = remedy
        self.seen = 0
        self.reasons: Counter[str] = Counter()

    def ok(self, count: int = 1) -> None:
        self.seen += count

    def skip(self, reason: str, what: str, count: int = 1) -> None:
        """Count `what` (a key or file) as skipped for `reason`; raises OverBudget past the limit."""
        self.count(reason, count)
        self.check(what)

    def count(self, reason: str, count: int = 1) -> None:
        """Without asking for the limit, which `check` does once all are known."""
        self.seen += count
        self.reasons[reason] += count

    def check(self, last: str) -> None:
        """Raises OverBudget past the limit. last: the sample that was skipped last."""
        skipped = self.reasons.total()
        if skipped > max(self.minimum, self.limit * self.seen):
            counts = ", ".join(f"{number} {why}" for why, number in self.reasons.most_common())
            raise OverBudget(
                f"{self.name}: {skipped} of the first {self.seen} samples are unusable ({counts}; the last was "
                f"{last}), over the budget of {self.limit:.1%}: {self.remedy}"
            )

    @property
    def counts(self) -> dict[str, int]:
        return dict(sorted(self.reasons.items()))


NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What some shared disks (Lustre without -o flock, NFS without lockd) answer where a file is to be locked."""
