"""Errors a user can act on.

    ValueError
    └── UserError           what happened, the numbers, what to do about it; shown as one line
        ├── TornTar         a tar that ends in the middle of a member
        └── OverBudget      more unusable samples than the caller allows

Everything else that is raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from textwrap import shorten
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

__all__ = ["NO_LOCKS", "OverBudget", "SkipBudget", "TornTar", "UserError", "first_line", "run_cli"]


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


BY_URL = ("--shards", "--source")
"""Options that take a URL. Elsewhere one would become a folder called `s3:` in the working directory."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What some shared disks (Lustre without -o flock, NFS without lockd) answer where a file is to be locked."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # of a write, which does not know its file's name
INTERRUPTED = 130  # 128 + SIGINT
PLACE = {
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose a folder that may be written",
    errno.ENOTDIR: "a file lies where a folder is needed: choose another path",
    errno.EEXIST: "a file lies where a folder is needed: choose another path",
    errno.EISDIR: "a folder lies where a file is needed: choose another path",
    errno.ELOOP: "a link leads back to itself: mend or delete it",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ENOSPC: "make room and {again}",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f) and {again}",
    errno.EDQUOT: "make room and {again}",
}
"""What to do about a path that the system refuses, whichever command met it."""


def run_cli(
    app: typer.Typer, *, say: Callable[[str], bool] = lambda line: True, again: str = "run the same command again"
) -> None:
    """Run a command line. What the user can mend becomes one line on stderr and exit code 2, Ctrl-C exit code 130.

    say: whether this process is to say it, and not another of the same command. again: how the work is gone on with.
    """
    _refuse_urls(sys.argv)
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        if not say(str(error)):
            sys.exit(error.code)
        _end(str(error), error.code)
    except BrokenPipeError:  # `xclr-... | head`: the reader has left, which is no error of the user's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in PLACE or (error.filename is None and error.errno not in FULL):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _end(f"{where}{error.strerror}; {PLACE[error.errno].format(again=again)}")
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which takes seconds to import
            _end(f"a GPU has no room ({first_line(error)}): free it, or hide it (CUDA_VISIBLE_DEVICES=) and {again}")
        if not hasattr(error, "format_message"):  # click's, which typer carries under a name of its own
            raise
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(context.get_help() if context else error.format_message())
            sys.exit(2)
        where = f" ({context.command_path} --help shows what there is)" if context else ""
        said = error.format_message().replace(": Value error, ", ": ")  # pydantic's words, which typer hands on
        _end(f"{said.rstrip('.')}{where}")
    if code == INTERRUPTED:
        print(f"stopped: {again} to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_urls(arguments: Sequence[str]) -> None:
    from shards.remote import is_url, shown

    for before, value in pairwise(arguments):
        option, _, given = value.partition("=") if value.startswith("--") else (before, "", value)
        if is_url(given) and option not in BY_URL:
            place = option if option.startswith("--") else "this command"
            _end(
                f"{shown(given)} is a URL, and {place} takes a folder or file of this machine: give one, and copy what "
                "lies there, or is to lie there, yourself (xclr-train --shards and xclr-shards build --source read by "
                "URL)"
            )


def _end(message: str, code: int = UserError.code) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    sys.exit(code)
