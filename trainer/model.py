"""The encoder: a timm backbone and a two-layer projector (Chen et al. 2020, section 4.2)."""

from __future__ import annotations

from typing import cast

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from shards.errors import UserError
from trainer.recipe import ModelConfig

__all__ = ["Encoder", "build_backbone", "build_encoder"]


class Encoder(nn.Module):
    """Images -> projections. The projector is thrown away after training: what lies before it transfers better."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, height, width] -> [n, projector_dim], not normalised."""
        return cast(torch.Tensor, self.projector(self.backbone(images)))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, height, width] -> [n, feature_dim] float32, the pooled features of the backbone."""
        return cast(torch.Tensor, self.backbone(images)).float()


def build_encoder(config: ModelConfig, image_size: int, seed: int) -> Encoder:
    """An encoder whose initial weights are a function of (config, image_size, seed)."""
    torch.manual_seed(seed)
    backbone = build_backbone(config.backbone, image_size, pretrained=config.pretrained)
    width = cast(int, backbone.num_features)
    hidden = config.projector_hidden or width
    norm = nn.BatchNorm1d(hidden) if config.projector_norm == "batch" else nn.LayerNorm(hidden)
    projector = nn.Sequential(
        nn.Linear(width, hidden, bias=False), norm, nn.ReLU(inplace=True), nn.Linear(hidden, config.projector_dim)
    )
    return Encoder(backbone, projector)


def build_backbone(name: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model without its classifier, giving pooled features [n, num_features].

    Models of a fixed input size (ViT) are built for image_size. Raises UserError for unknown names.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5]
        hint = f"; close names: {', '.join(near)}" if near else "; `timm.list_models()` lists them"
        raise UserError(f"timm has no model {name!r}{hint}")
    fixed = getattr(get_pretrained_cfg(name), "fixed_input_size", False)
    options = {"img_size": image_size} if fixed else {}
    try:
        model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, AssertionError, ValueError, OSError) as error:  # sizes that do not fit, hub out of reach
        raise UserError(f"timm cannot build {name} for {image_size} pixels: {str(error).splitlines()[0]}") from None
    if not isinstance(getattr(model, "num_features", None), int):
        raise UserError(f"{name} gives no pooled features: choose another backbone")
    backbone: nn.Module = model
    return backbone
