"""FILE.py:FUNCTION, a network of the user's own, to be trained or evaluated.

Code runs only where a command line names it: a checkpoint that was trained so is evaluated as FILE.py:FUNCTION@RUN.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from shards.atomic import sha256_file
from shards.errors import UserError

__all__ = ["call", "code_id", "is_own", "normal", "short"]

OWN = re.compile(r"(.+\.py):(\w+)")


def is_own(name: str) -> bool:
    return OWN.fullmatch(name) is not None


def short(name: str) -> str:
    """Without its folder, for names of runs and curves."""
    return Path(name).name if is_own(name) else name


def normal(name: str) -> str:
    """One name for a file, however its path is written."""
    return os.path.normpath(name) if is_own(name) else name


def code_id(name: str) -> str:
    """A checksum of the file, which must be there; empty for a name of timm's."""
    match = OWN.fullmatch(name)
    return sha256_file(_file(match)) if match else ""


def _file(match: re.Match[str]) -> Path:
    file = Path(match[1])
    if not file.is_file():
        raise UserError(f"there is no file {file} with a network in it")
    return file


def call(name: str) -> Any:
    """What the function gives; the file's folder is on the path, as if Python ran it.

    Raises UserError where the file, or the function in it, is not there; what their code raises comes through.
    """
    match = OWN.fullmatch(name)
    assert match is not None
    file, function = _file(match), match[2]
    spec = importlib.util.spec_from_file_location(f"own_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if (folder := str(file.parent.resolve())) not in sys.path:
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module  # where dataclasses and pickles look for it
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise UserError(f"{file} has no function {function}()")
    if hasattr(build, "forward") and not isinstance(build, type):
        raise UserError(f"{function} in {file} is a network: name a function, or a class, that makes one")
    return build()
