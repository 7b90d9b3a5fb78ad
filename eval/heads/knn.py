"""Weighted k-nearest-neighbour vote on frozen features (Wu et al. 2018, arXiv 1805.01978, section 3.4).

The k training images of the largest cosine c vote for their class with weight exp(c / T).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from eval.heads.bank import Bank, Floats, Ints
from shards.errors import UserError

__all__ = ["KNN", "KNNConfig", "check_neighbours"]

BLOCK = 1024  # queries at once


@dataclass(frozen=True, slots=True, kw_only=True)
class KNNConfig:
    k: int = 20
    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UserError(f"k must be at least 1, not {self.k}")
        if not self.temperature > 0:
            raise UserError(f"the temperature must be above 0, not {self.temperature}")


def check_neighbours(images: int, config: KNNConfig) -> None:
    """Raises UserError where there are fewer training images than neighbours that vote."""
    if images < config.k:
        raise UserError(
            f"kNN asks {config.k} neighbours of {images} training images: give more, or lower --k (a suite: k of [knn])"
        )


class KNN:
    """Votes of a labelled bank of features."""

    def __init__(self, bank: Bank, labels: Ints, classes: int, config: KNNConfig) -> None:
        """labels [n of the bank] in 0..classes-1."""
        check_neighbours(len(bank), config)
        self.bank = bank
        self.labels = torch.from_numpy(labels).to(bank.device)
        self.classes, self.config = classes, config

    def neighbours(self, features: Floats) -> tuple[torch.Tensor, torch.Tensor]:
        """(cosines [m, k] falling, positions [m, k] in the bank). The bank is gone through once, block by block."""
        queries = functional.normalize(torch.from_numpy(features).to(self.bank.device), dim=1)
        best = [(q[:, :0], q[:, :0].long()) for q in torch.split(queries, BLOCK)]  # none yet
        for x, part in self.bank.blocks(np.arange(len(self.bank), dtype=np.int64)):
            rows = functional.normalize(x, dim=1)
            positions = torch.from_numpy(part).to(self.bank.device)
            for number, block in enumerate(torch.split(queries, BLOCK)):
                best[number] = self._merge(best[number], block @ rows.T, positions)
        return torch.cat([cosines for cosines, _ in best]), torch.cat([rows for _, rows in best])

    def scores(self, features: Floats) -> Floats:
        """[m, d] -> votes [m, classes]."""
        cosines, rows = self.neighbours(features)
        # Over the nearest's weight, which changes no order: at small T exp(c / T) overflows, exp((c - 1) / T) is 0.
        weights = torch.exp((cosines - cosines[:, :1]) / self.config.temperature)
        votes = torch.zeros(len(cosines), self.classes, device=self.bank.device)
        votes.scatter_add_(1, self.labels[rows], weights)
        result: Floats = votes.cpu().numpy()
        return result

    def _merge(
        self, best: tuple[torch.Tensor, torch.Tensor], cosines: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k best of those kept [m, <= k] and a block's [m, rows]."""
        near, within = cosines.topk(min(self.config.k, cosines.shape[1]), dim=1)
        together, places = torch.cat([best[0], near], 1), torch.cat([best[1], positions[within]], 1)
        values, order = together.topk(min(self.config.k, together.shape[1]), dim=1)
        return values, places.gather(1, order)
