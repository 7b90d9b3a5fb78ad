"""Rivals: timm's and torchvision's models by name, exported folders, and folders in transformers' format."""

from __future__ import annotations

import json
import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from eval.models.model import Model, Transform, model_of
from shards.bars import say
from shards.errors import UserError, first_line
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD
from trainer.model import no_model, patient_hub

__all__ = ["open_folder", "open_timm", "open_torchvision"]

SEED = 0  # of the initial weights of an untrained model


def open_timm(name: str, *, untrained: bool = False) -> Model:
    """timm:NAME with timm's weights for it (fetched, or from its cache)."""
    import timm

    if name.startswith("local-dir:") and not untrained:  # as timm itself is given an export
        return open_folder(Path(name.removeprefix("local-dir:")))
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(no_model(name))
    torch.manual_seed(SEED)
    try:
        with patient_hub(f"timm's weights of {name}"):
            network = timm.create_model(name, pretrained=not untrained, num_classes=0)
    except Exception as error:  # the hub, safetensors and urllib each raise their own when weights are out of reach
        known = timm.list_pretrained(f"{base}.*")
        if known and tag and name not in known:
            raise UserError(f"timm's {base} has no weights {tag!r}: give one of {', '.join(known)}") from None
        if untrained or not known:
            raise UserError(f"timm does not give {name} ({first_line(error)})") from None
        raise UserError(
            f"timm's weights of {name} cannot be had ({first_line(error)}): check the network, or give --checkpoint "
            "what is here (an exported folder, FILE.py:FUNCTION)"
        ) from None
    return _of_timm(network, f"timm:{name}", {"objective": "untrained" if untrained else "timm's weights"})


def open_torchvision(name: str, *, untrained: bool = False) -> Model:
    """torchvision:NAME with its default weights; features are the input of the last linear layer."""
    from torchvision import models

    if name not in models.list_models(module=models):
        near = get_close_matches(name, models.list_models(module=models), 5)
        hint = f"; close names: {', '.join(near)}" if near else ": torchvision.models.list_models() lists them"
        raise UserError(f"torchvision has no classifier {name!r}{hint}")
    weights = models.get_model_weights(name).DEFAULT
    torch.manual_seed(SEED)
    try:
        network = models.get_model(name, weights=None if untrained else weights)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # a damaged file in its cache
        raise UserError(f"torchvision's weights of {name} cannot be had ({first_line(error)})") from None
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
    return model_of(network.eval(), f"torchvision:{name}", transform, {"objective": objective}, config="")


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

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config["architecture"]
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
        plain = timm.create_model(name, num_classes=0)
    except (RuntimeError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded by timm: {first_line(error)}") from None
    # What makes another network of the same weights. The size of pictures is the transform's, and the rest of these
    # timm writes into every export.
    usual = {"img_size", "num_classes", "in_chans", "global_pool"}
    other = {key: value for key, value in config.get("model_args", {}).items() if key not in usual}
    if _pool(network) != _pool(plain):
        other["global_pool"] = _pool(network)
    about: dict[str, object] = {"objective": folder.name, "checkpoint": str(folder)}
    return _of_timm(network, name, about, json.dumps(other, sort_keys=True) if other else "")


def _pool(network: nn.Module) -> str | None:
    """How a timm model pools, by its own name for it: avg, token, ..."""
    for place in (network, getattr(network, "head", None)):
        pool = getattr(place, "global_pool", None)
        if isinstance(name := getattr(pool, "pool_type", pool), str):
            return name
    return None


def _open_transformers(folder: Path, config: dict[str, Any]) -> Model:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.manual_seed(SEED)  # of weights that are not in the folder, and not used, but part of the hash
    try:
        network, loading = AutoModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be loaded by transformers: {first_line(error)}") from None
    network = network.float()  # transformers takes the precision of the file
    marks = ""  # of what these features are, where they were others once: kept ones must not stand for them
    if hasattr(network.config, "mask_ratio"):  # a masked autoencoder would look at a random quarter of its patches
        network.config.mask_ratio = 0.0
        marks += " whole"
    # A classifier's checkpoint has no pooler, and transformers draws one at random: then its first token counts.
    missing = {key for key in loading["missing_keys"] if "vision_model" in key or not hasattr(network, "vision_model")}
    pooler = {key for key in missing if "pooler." in key}
    if missing - pooler:
        raise UserError(
            f"{folder} lacks {len(missing - pooler)} weights of its model, among them {min(missing - pooler)}: "
            "transformers would draw them at random"
        )
    vision = getattr(network, "vision_model", network)  # of CLIP and its kin
    size = _side(getattr(vision.config, "image_size", None), 224)
    kind = config["model_type"]
    transform = _preprocessor(folder, size)
    if transform is None:
        say(f"{folder} has no preprocessor_config.json: pictures are cut and normalised as for ImageNet's models")
        transform = Transform(image_size=size, crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pooled = _Pooled(vision, pooler=not pooler)
    if pooler or getattr(vision, "pooler", None) is None:
        marks += "" if pooled.class_token else " mean"
    return model_of(
        pooled,
        f"transformers:{kind}",
        transform,
        {"objective": folder.name, "checkpoint": str(folder)},
        config=json.dumps(config, sort_keys=True) + marks,
    )


class _Pooled(nn.Module):
    """The pooled output of a transformers model; where it has none its class token, else the mean of its tokens."""

    def __init__(self, network: nn.Module, *, pooler: bool) -> None:
        super().__init__()
        self.network, self.pooler = network, pooler
        names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
        self.class_token = bool(names & {"cls_token", "class_token", "class_embedding"})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.network(pixel_values=images)
        pooled = getattr(out, "pooler_output", None) if self.pooler else None
        if pooled is not None:
            return cast(torch.Tensor, pooled.flatten(1))
        hidden = cast(torch.Tensor, out.last_hidden_state)
        if hidden.dim() == 4:  # maps
            return hidden.mean((2, 3))
        return hidden[:, 0] if self.class_token else hidden.mean(1)


def _preprocessor(folder: Path, size: int) -> Transform | None:
    """What preprocessor_config.json, or processor_config.json, says of resizing and normalising; None without either.

    size: the model's own. Raises UserError for what a Transform cannot say.
    """
    config = _settings(folder)
    if config is None:
        return None
    if config.get("do_flip_channel_order"):
        raise UserError(f"{folder} wants pictures with their colours in reverse order, which is not done here")
    kind = str(config.get("image_processor_type", ""))
    if kind.startswith("EfficientNet") and config.get("include_top"):
        raise UserError(f"{folder} wants pictures divided by their deviation twice, which is not done here")
    plain = config.get("do_normalize") is False
    try:
        if config.get("do_rescale") is False or abs(float(config.get("rescale_factor") or 1 / 255) * 255 - 1) > 1e-3:
            raise UserError(f"{folder} wants pictures that are not scaled to 0..1, which is not done here")
        wanted, cut = _side(config.get("size"), size), config.get("crop_size")
        if cut is not None and config.get("do_center_crop") is not False:
            crop, share = _side(cut, size), config.get("crop_pct")
            resize = max(wanted, crop)
            if share or kind.startswith("Levit"):
                resize = round(wanted / (share or 224 / 256))
        else:
            # ConvNeXt's way: cut from more below 384 pixels, resized to the square from there on.
            crop, share = wanted, config.get("crop_pct")
            resize = round(crop / share) if share and crop < 384 else crop
        return Transform(
            image_size=crop,
            crop_pct=crop / resize,
            mean=(0.0, 0.0, 0.0) if plain else _three(config.get("image_mean") or IMAGENET_MEAN),
            std=(1.0, 1.0, 1.0) if plain else _three(config.get("image_std") or IMAGENET_STD),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder}: its preprocessor's settings cannot be understood ({error})") from None


def _settings(folder: Path) -> dict[str, Any] | None:
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found.get(key) if key else found
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}") from None
        if isinstance(found, dict):
            return found
    return None


def _side(value: Any, otherwise: int) -> int:
    """224, [224, 224], {"height": 224, "width": 224} or {"shortest_edge": 224}."""
    if isinstance(value, dict):
        value = value.get("shortest_edge") or value.get("height")
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return int(value or otherwise)


def _of_timm(network: nn.Module, name: str, about: dict[str, object], config: str = "") -> Model:
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(network)
    if data["crop_mode"] != "center":
        say(f"{name} is meant for whole pictures (crop_mode {data['crop_mode']}): here their central square is cut")
    size, share = int(data["input_size"][-1]), float(data["crop_pct"])
    side = int(size / share)  # timm rounds down
    transform = Transform(
        image_size=size,
        crop_pct=share if round(size / share) == side else size / side,
        mean=_three(data["mean"]),
        std=_three(data["std"]),
    )
    return model_of(network.eval(), name, transform, about, config)


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
