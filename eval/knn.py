"""Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

The k training images of the largest cosine c vote for their class with weight exp(c / T).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shards.errors import UserError

__all__ = ["KNN", "KNNConfig"]

BLOCK = 1024  # queries at once
BANK = 65536  # training rows at once: 256 MB of similarities a block


@dataclass(frozen=True, slots=True, kw_only=True)
class KNNConfig:
    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k must be at least 1, not {self.k}")
        if not self.temperature > 0:
            raise UserError(f"the temperature must be above 0, not {self.temperature}")


class KNN:
    """Votes of a labelled bank of features."""

    def __init__(
        self, features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], classes: int, config: KNNConfig
    ) -> None:
        """features [n, d], labels [n] in 0..classes-1."""
        if len(features) < config.k:
            raise UserError(f"kNN asks {config.k} neighbours of {len(features)} training images: lower --k")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bank = functional.normalize(torch.from_numpy(features).to(self.device), dim=1)
        self.labels = torch.from_numpy(labels).to(self.device)
        self.classes, self.config = classes, config

    def neighbours(self, features: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosines [m, k] falling, rows [m, k] of the bank)."""
        queries = functional.normalize(torch.from_numpy(features).to(self.device), dim=1)
        found = [self._nearest(block) for block in torch.split(queries, BLOCK)]
        return torch.cat([cosines for cosines, _ in found]), torch.cat([rows for _, rows in found])

    def scores(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """[m, d] -> votes [m, classes]."""
        cosines, rows = self.neighbours(features)
        # exp((c - 1) / T): the same order as exp(c / T), which would overflow for small T.
        weights = torch.exp((cosines - 1) / self.config.temperature)
        votes = torch.zeros(len(cosines), self.classes, device=self.device)
        votes.scatter_add_(1, self.labels[rows], weights)
        result: npt.NDArray[np.float32] = votes.cpu().numpy()
        return result

    def _nearest(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        best: tuple[torch.Tensor, torch.Tensor] | None = None
        for start in range(0, len(self.bank), BANK):
            part = queries @ self.bank[start : start + BANK].T  # [m, at most BANK]
            cosines, rows = part.topk(min(self.config.k, part.shape[1]), dim=1)
            rows = rows + start
            if best is not None:
                cosines, order = torch.cat([best[0], cosines], 1).topk(min(self.config.k, best[0].shape[1] + cosines.shape[1]), dim=1)
                rows = torch.cat([best[1], rows], 1).gather(1, order)
            best = cosines, rows
        assert best is not None
        return best
