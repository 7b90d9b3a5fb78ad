"""What is evaluated: a frozen network that turns normalised images into features, with an identity for its cache."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

__all__ = ["Model", "Transform", "transform_table", "weights_hash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Decoded picture -> network input: shorter side resized to image_size / crop_pct, centre crop, normalised."""

    image_size: int
    """Pixels."""
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of pixels in 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A frozen feature extractor."""

    name: str
    """Of the network: timm's name, or where it came from."""
    network: nn.Module
    """[n, 3, size, size] float32 -> [n, feature_dim]; in eval mode."""
    feature_dim: int
    transform: Transform
    sha256: str
    """Of the weights and what surrounds them: equal weights share cached features, whatever file they came from."""
    about: dict[str, object]
    """For the protocol: checkpoint, its sha256, objective, step."""
    folder: Path | None = None
    """The run, where results go."""
    shards: Path | None = None
    """What it was trained on."""
    graph: str | None = None
    """The graph it was trained with, by name; None: the only one."""


def weights_hash(network: nn.Module, name: str) -> str:
    """sha256 over the name and every tensor of the state."""
    digest = hashlib.sha256(name.encode())
    for key, tensor in sorted(network.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def transform_table(transform: Transform) -> dict[str, object]:
    """Plain values, for hashes and JSON."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(transform).items()}
