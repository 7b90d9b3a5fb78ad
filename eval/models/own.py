"""FILE.py:FUNCTION, a network of the user's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import nn

from eval.models.model import Model, Transform, model_of
from shards.errors import UserError

__all__ = ["open_own"]


def open_own(file: Path, function: str) -> Model:
    """What the function gives: a network, or (network, Transform); alone it sees ImageNet's 224 pixels.

    The file's folder is on the path, as if Python ran it. Raises UserError where it, or the function, is not there or
    gives something else; what their code raises comes through.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file} with a network in it")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent.resolve()))
    spec.loader.exec_module(module)
    build = getattr(module, function, None)
    if not callable(build):
        raise UserError(f"{file} has no function {function}()")
    made = build()
    network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, Transform(image_size=224))
    if not isinstance(network, nn.Module) or not isinstance(transform, Transform):
        raise UserError(
            f"{file}:{function}() gives {type(made).__name__}: a torch.nn.Module is wanted, or (module, "
            "eval.models.model.Transform(image_size=...))"
        )
    return model_of(network, f"{file.name}:{function}", transform, {"objective": function, "checkpoint": str(file)})
