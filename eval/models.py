"""What is evaluated: a frozen network that turns normalised images into features, with an identity for its cache.

runs/NAME, or a file in it       a checkpoint of xclr-train
DIR with config.json             an export of ours (timm's format), or a model in transformers' format
timm:NAME, torchvision:NAME      their pretrained weights
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from shards.errors import UserError
from trainer.checkpoint import find_checkpoint, load_backbone, read_checkpoint

__all__ = ["Model", "Transform", "open_checkpoint", "open_model", "transform_table", "weights_hash"]


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


def open_model(spec: str | None, *, untrained: bool = False) -> Model:
    """A model by what the user calls it (see above); None: the newest run. Raises UserError."""
    from eval import models_other as other  # transformers and torchvision are slow to import

    openers: dict[str, Callable[[str], Model]] = {
        "timm:": lambda name: other.open_timm(name, untrained=untrained),
        "torchvision:": lambda name: other.open_torchvision(name, untrained=untrained),
    }
    for prefix, opener in openers.items():
        if spec and spec.startswith(prefix):
            return opener(spec.removeprefix(prefix))
    path = Path(spec) if spec else None
    if path and (path / "config.json").is_file():
        if untrained:
            raise UserError(f"{path} is a finished model and knows no initial weights: leave out --untrained")
        return other.open_folder(path)
    return open_checkpoint(path, untrained=untrained)


def open_checkpoint(path: Path | None, *, untrained: bool = False) -> Model:
    """A checkpoint of xclr-train, a run folder, or (None) the newest run. Raises UserError."""
    file = find_checkpoint(path)
    network, info = load_backbone(file, untrained=untrained)
    data = json.loads(read_checkpoint(file)["recipe"])["data"]
    transform = Transform(image_size=info.image_size, crop_pct=info.crop_pct, mean=info.mean, std=info.std)
    return Model(
        name=info.model,
        network=network,
        feature_dim=info.feature_dim,
        transform=transform,
        sha256=weights_hash(network, info.model),
        about={
            "model": info.model,
            "checkpoint": str(file),
            "checkpoint_sha256": info.sha256,
            "objective": info.objective,
            "step": info.step,
        },
        folder=file.parent.parent if file.parent.name == "checkpoints" else file.parent,
        shards=Path(data["shards"]) if data.get("shards") else None,
        graph=data.get("graph") or None,
    )


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
