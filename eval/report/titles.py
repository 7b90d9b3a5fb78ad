"""What tables call the methods."""

from __future__ import annotations

__all__ = ["TITLES"]

TITLES = {"linear_probe": "linear probe", "knn": "kNN"}
