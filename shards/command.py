"""How a command ends: what the user can mend becomes one line, Ctrl-C no traceback."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

from shards.errors import UserError, first_line
from shards.remote import is_url, shown

if TYPE_CHECKING:
    import typer

__all__ = ["run_cli"]

BY_URL = ("--shards", "--source")
"""Options that take a URL. Elsewhere one would become a folder called `s3:` in the working directory."""
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
        _end(f"{_in_our_words(error.format_message())}{where}")
    if code == INTERRUPTED:
        print(f"stopped: {again} to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse_urls(arguments: Sequence[str]) -> None:
    for before, value in pairwise(arguments):
        option, _, given = value.partition("=") if value.startswith("--") else (before, "", value)
        if is_url(given) and option not in BY_URL:
            place = option if option.startswith("--") else "this command"
            _end(
                f"{shown(given)} is a URL, and {place} takes a folder or file of this machine: give one, and copy what "
                "lies there, or is to lie there, yourself (xclr-train --shards and xclr-shards build --source read by "
                "URL)"
            )


def _in_our_words(said: str) -> str:
    """Of what pydantic found wrong with an option, which typer hands on."""
    plain = re.sub(r": Input should be ([^,]*).*", r": it should be \1", said)
    return plain.replace(": Value error, ", ": ").rstrip(".")


def _end(message: str, code: int = UserError.code) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {''.join(c if c.isprintable() else '?' for c in line)}", file=sys.stderr)
    sys.exit(code)
