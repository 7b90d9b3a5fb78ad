"""A comparison as plain values, for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from eval.similarity.compare import Compared, Followed, Place
from eval.similarity.pictures import GraphPictures
from eval.similarity.rank import SEED, difference

__all__ = ["as_table"]


def as_table(pictures: GraphPictures, compared: Compared) -> dict[str, Any]:
    """Of `xclr-eval similarity`."""
    first = compared.models[0]

    def of(found: Followed, place: Place) -> dict[str, Any]:
        table: dict[str, Any] = {"pairs": _figure(found.pairs[place].value, found.pairs[place].reach)}
        if found is not first and place in first.pairs:
            table[f"pairs_over_{first.name}"] = _figure(*difference(found.pairs[place], first.pairs[place]))
        if place in found.texts:
            table["texts"] = _figure(found.texts[place].value, found.texts[place].reach)
        table["curve"] = [[_rounded(g), _rounded(c)] for g, c in found.curve[place]]
        if place in found.same:
            table["same_text"] = _rounded(found.same[place])
        return table

    return {
        "shards": str(pictures.shards),
        "split": pictures.split,
        "graph": pictures.graph,
        "graph_of": str(pictures.graph_of),
        "seed": SEED,
        "pictures": compared.pictures,
        "pictures_sha256": pictures.images.fingerprint,
        "left_out": len(pictures.images) - compared.pictures,
        "unknown_texts": pictures.unknown,
        "texts": len(compared.texts),
        "pairs": compared.pairs,
        "pairs_of_one_text": compared.same,
        "largest_possible": _rounded(compared.most),
        "models": {
            found.name: {"about": found.about, **{place: of(found, place) for place in found.pairs}}
            for found in compared.models
        },
    }


def _figure(value: float, reach: float | None) -> dict[str, float | None]:
    return {"spearman": _rounded(value), "half_interval": _rounded(reach)}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 6)
