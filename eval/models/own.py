"""FILE.py:FUNCTION, a network of the user's own, with the weights that its function gives it."""

from __future__ import annotations

from torch import nn

from eval.models.model import Model, Transform, model_of
from shards.errors import UserError
from trainer.own import call, short

__all__ = ["open_own"]


def open_own(name: str) -> Model:
    """The function gives a network, which alone sees ImageNet's 224 pixels, or (network, Transform).

    Raises UserError where it gives something else.
    """
    made = call(name)
    network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, Transform(image_size=224))
    if not isinstance(network, nn.Module) or not isinstance(transform, Transform):
        raise UserError(
            f"{name}() gives {type(made).__name__}: a torch.nn.Module is wanted, or (module, "
            "eval.models.model.Transform(image_size=...))"
        )
    file, _, function = name.rpartition(":")
    hint = f"; for another size {function}() returns (network, eval.models.model.Transform(image_size=...))"
    return model_of(network.eval(), short(name), transform, {"objective": function, "checkpoint": file}, hint=hint)
