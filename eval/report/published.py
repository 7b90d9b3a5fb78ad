"""Linear-probe accuracies from the X-CLR paper (Sobal et al., ICLR 2025, arXiv 2407.18134), in percent.

Quoted for orientation only: a ResNet-50 trained for 100 epochs, probes trained on augmented views. All but two figures
are from memory of the paper's tables and marked approximate wherever they are shown; ImageNet 63.4 (SimCLR) and 74.3
(SupCon) are as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

__all__ = ["COLUMNS", "published_rows"]

COLUMNS = (
    ("imagenet", "top1"),
    ("imagenet-real", "real"),
    ("imagenet9", "mixed_same"),
    ("imagenet9", "mixed_rand"),
    ("objectnet", "objectnet"),
    ("mit-states", "object"),
    ("mit-states", "attribute"),
)
"""(benchmark, column) of each figure below; which of ObjectNet's two scorings the paper used, it does not say."""

FIGURES: dict[str, tuple[float | None, ...]] = {
    "SimCLR on ImageNet": (63.4, 67.5, 45.5, 38.3, 12.5, 40.7, 29.1),
    "SupCon on ImageNet": (74.3, 79.7, 63.3, 58.8, 24.1, 45.3, 31.1),
    "X-CLR on ImageNet": (75.6, 81.6, 66.5, 62.3, 27.7, 45.8, 30.9),
    "SimCLR on CC3M": (57.0, 64.0, 24.4, 18.9, 10.8, None, None),
    "CLIP on CC3M": (41.0, 47.6, 12.5, 10.6, 7.8, None, None),
    "X-CLR on CC3M": (58.2, 65.6, 26.7, 20.3, 11.5, None, None),
    "SimCLR on CC12M": (58.9, 66.0, 24.6, 19.8, 12.7, None, None),
    "CLIP on CC12M": (58.8, 66.1, 20.5, 17.1, 11.9, None, None),
    "X-CLR on CC12M": (59.4, 66.7, 26.1, 20.4, 13.4, None, None),
}
SOURCED = {("SimCLR on ImageNet", "imagenet"), ("SupCon on ImageNet", "imagenet")}


def published_rows(columns: Collection[tuple[str, str]]) -> list[dict[str, Any]]:
    """{"method", "figures": {(benchmark, column): accuracy}, "approximate": the benchmarks of uncertain figures}.

    Only rows that have a figure in one of the columns.
    """
    rows = []
    for method, values in FIGURES.items():
        figures = {
            place: value for place, value in zip(COLUMNS, values, strict=True) if place in columns and value is not None
        }
        if figures:
            rows.append(
                {
                    "method": method,
                    "figures": figures,
                    "approximate": [place for place in figures if (method, place[0]) not in SOURCED],
                }
            )
    return rows
