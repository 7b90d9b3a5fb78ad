"""Rivals: timm's and torchvision's models by name, exported folders, and folders in transformers' format."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from eval.models.model import Model, Transform, weights_hash
from shards.errors import UserError

__all__ = ["open_folder", "open_timm", "open_torchvision"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SEED = 0  # of the initial weights of an untrained model


def open_timm(name: str, *, untrained: bool = False) -> Model:
    """timm:NAME with timm's weights for it (fetched, or from its cache)."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name}*")[:5] or get_close_matches(name, timm.list_models(), 5)
        raise UserError(f"timm has no model {name!r}" + (f"; close names: {', '.join(near)}" if near else ""))
    torch.manual_seed(SEED)
    try:
        network = timm.create_model(name, pretrained=not untrained, num_classes=0)
    except Exception as error:  # the hub, safetensors and urllib each raise their own when weights are out of reach
        raise UserError(f"timm's weights of {name} cannot be had ({_first_line(error)}): check the network") from None
    return _of_timm(network, f"timm:{name}", {"objective": "untrained" if untrained else "timm's weights"})


def open_torchvision(name: str, *, untrained: bool = False) -> Model:
    """torchvision:NAME with its default weights; features are the input of the last linear layer."""
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"torchvision has no classifier {name!r}: torchvision.models.list_models() lists them")
    weights = models.get_model_weights(name).DEFAULT
    torch.manual_seed(SEED)
    try:
        network = models.get_model(name, weights=None if untrained else weights)
    except OSError as error:
        raise UserError(f"torchvision's weights of {name} cannot be had ({_first_line(error)})") from None
    linear = [key for key, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"torchvision:{name} does not end in a linear layer, whose input would be its features")
    last = linear[-1]
    parent, _, child = last.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    preset = weights.transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    transform = Transform(image_size=size, crop_pct=size / resize, mean=_three(preset.mean), std=_three(preset.std))
    objective = "untrained" if untrained else str(weights)
    return _model(network, f"torchvision:{name}", transform, {"objective": objective})


def open_folder(folder: Path) -> Model:
    """A folder with config.json: timm's format (our exports), or transformers'. Raises UserError for any other."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is damaged: {error}") from None
    if "architecture" in config:
        return _open_export(folder)
    if "model_type" in config:
        return _open_transformers(folder, config)
    raise UserError(f"{folder}/config.json is of no known format: it names neither architecture nor model_type")


def _open_export(folder: Path) -> Model:
    import timm

    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} cannot be loaded by timm: {_first_line(error)}") from None
    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
    return _of_timm(network, name, {"objective": folder.name, "checkpoint": str(folder)})


def _open_transformers(folder: Path, config: dict[str, Any]) -> Model:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.manual_seed(SEED)  # of weights that are not in the folder, and not used, but part of the hash
    try:
        network, loading = AutoModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder} cannot be loaded by transformers: {_first_line(error)}") from None
    # A classifier's checkpoint has no pooler, and transformers draws one at random: then its first token counts.
    missing = {key for key in loading["missing_keys"] if "vision_model" in key or not hasattr(network, "vision_model")}
    pooler = {key for key in missing if "pooler." in key}
    if missing - pooler:
        raise UserError(
            f"{folder} lacks {len(missing - pooler)} weights of its model, among them {min(missing - pooler)}: "
            "transformers would draw them at random"
        )
    vision = getattr(network, "vision_model", network)  # of CLIP and its kin
    size = int(getattr(vision.config, "image_size", 224))
    kind = config["model_type"]
    transform = _preprocessor(folder, size)
    if transform is None:
        transform = Transform(image_size=size, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return _model(
        _Pooled(vision, pooler=not pooler),
        f"transformers:{kind}",
        transform,
        {"objective": folder.name, "checkpoint": str(folder)},
        config=json.dumps(config, sort_keys=True),
    )


class _Pooled(nn.Module):
    """The pooled output of a transformers model, or its first token where it has none."""

    def __init__(self, network: nn.Module, *, pooler: bool) -> None:
        super().__init__()
        self.network, self.pooler = network, pooler

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.network(pixel_values=images)
        pooled = getattr(out, "pooler_output", None) if self.pooler else None
        return cast(torch.Tensor, out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1))


def _preprocessor(folder: Path, size: int) -> Transform | None:
    """What preprocessor_config.json says of resizing and normalising; None without one."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    crop = config.get("crop_size") or config.get("size") or size
    crop = int(crop["height"] if isinstance(crop, dict) and "height" in crop else size)
    resize = config.get("size") or crop
    resize = int(resize.get("shortest_edge", crop)) if isinstance(resize, dict) else int(resize)
    return Transform(
        image_size=crop,
        crop_pct=min(1.0, crop / resize),
        mean=_three(config.get("image_mean", IMAGENET_MEAN)),
        std=_three(config.get("image_std", IMAGENET_STD)),
    )


def _of_timm(network: nn.Module, name: str, about: dict[str, object]) -> Model:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(network)
    transform = Transform(
        image_size=int(data["input_size"][-1]),
        crop_pct=float(data["crop_pct"]),
        mean=_three(data["mean"]),
        std=_three(data["std"]),
    )
    return _model(network, name, transform, about)


def _model(network: nn.Module, name: str, transform: Transform, about: dict[str, object], config: str = "") -> Model:
    """config: what decides the outputs besides the name, the weights and the transform."""
    network = network.eval()
    size = transform.image_size
    with torch.inference_mode():
        dim = network(torch.zeros(1, 3, size, size)).shape
    if len(dim) != 2:
        raise UserError(f"{name} gives no pooled features (its output has the shape {tuple(dim)}): choose another")
    return Model(
        name=name,
        network=network,
        feature_dim=int(dim[1]),
        transform=transform,
        sha256=weights_hash(network, name + config),
        about={"model": name, "step": None, **about},
    )


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
