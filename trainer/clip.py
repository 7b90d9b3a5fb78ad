"""CLIP's loss (Radford et al. 2021) between both views of the images and their captions.

As in CLIP, every other caption of the batch counts as wrong, one of equal text included.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from trainer.collectives import gather_with_gradient
from trainer.world import World

__all__ = ["clip_loss"]


def clip_loss(z: torch.Tensor, text: torch.Tensor, world: World) -> torch.Tensor:
    """Mean over this rank's samples of the symmetric cross-entropy; averaged over ranks that of the global batch.

    z: [2b, dim] projections, first views then second views; normalised here. text: [b, dim], their length the
    inverse temperature, which the text tower learns.
    """
    with torch.autocast(z.device.type, enabled=False):
        captions = text.float()
        columns = gather_with_gradient(captions, world)  # [B, dim]
        target = torch.arange(len(text), device=z.device) + world.rank * len(text)
        losses = []
        for view in functional.normalize(z.float(), dim=1).chunk(2):
            images = gather_with_gradient(view, world)
            losses.append(functional.cross_entropy(view @ columns.T, target))
            losses.append(functional.cross_entropy(captions @ images.T, target))
        return torch.stack(losses).mean()
