"""What tables call methods and models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["TITLES", "model_parts"]

TITLES = {"linear_probe": "linear probe", "knn": "kNN"}


def model_parts(model: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    """(model, objective, checkpoint) of Model.about; None for what is not known, and for what the name of a network of
    one's own, FILE.py:FUNCTION, says already."""
    name, objective, checkpoint = str(model["model"]), model.get("objective"), model.get("checkpoint")
    if objective and name.endswith(f":{objective}"):
        objective = None
    if checkpoint and name.startswith(f"{checkpoint}:"):
        checkpoint = None
    return name, objective, checkpoint
