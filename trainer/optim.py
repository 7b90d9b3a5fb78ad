"""Optimiser and learning-rate schedule. The rate is a pure function of the step, so resuming needs no scheduler."""

from __future__ import annotations

import math

import torch
from timm.optim import Lars
from torch import nn

from trainer.recipe import OptimiserConfig

__all__ = ["learning_rate", "make_optimiser"]


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Biases and normalisation weights get neither weight decay nor LARS's adaptation (SimCLR, appendix B.6)."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    match config.name:
        case "lars":  # timm's adapts the groups with weight decay only, or those that ask for it
            groups[0]["always_adapt"] = True
            lars: torch.optim.Optimizer = Lars(groups, lr=1.0, momentum=config.momentum)
            return lars
        case "adamw":
            return torch.optim.AdamW(groups, lr=1.0)
        case "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=config.momentum)


def learning_rate(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Linear warm-up over `warmup` steps, then cosine to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
