"""The encoder: a timm backbone and a two-layer projector (Chen et al. 2020, section 4.2)."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import get_pretrained_cfg
from torch import nn

from shards.bars import say
from shards.errors import UserError, first_line
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD
from trainer.described import described
from trainer.own import call, is_own
from trainer.recipe import ModelConfig, Statistics

__all__ = [
    "TIMM",
    "Encoder",
    "build_backbone",
    "build_encoder",
    "feature_dim",
    "load_weights",
    "no_model",
    "patient_hub",
    "statistics_of_run",
    "with_statistics",
]


TIMM = "timm"  # as a place to start from: timm's weights of the backbone
# The hub's lines of a try that failed; others say that no token is given, say, and nothing is wrong.
FAILED_TRY = ("thrown while requesting", "Error while downloading")


class Encoder(nn.Module):
    """Images -> projections. The projector is thrown away after training: what lies before it transfers better."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.text: nn.Module | None = None
        """clip's tower of captions."""

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[n, 3, height, width], [b, length] -> [n, projector_dim], [b, projector_dim]; not normalised."""
        z = self.projector(self.backbone(images))
        return z, self.text(tokens) if self.text is not None else None

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[n, 3, height, width] -> [n, feature_dim] float32, the pooled features of the backbone."""
        return cast(torch.Tensor, self.backbone(images)).float()


def build_encoder(config: ModelConfig, image_size: int, seed: int) -> Encoder:
    """An encoder whose initial weights are a function of (config, image_size, seed), and of where it starts from."""
    torch.manual_seed(seed)
    backbone = build_backbone(config.backbone, image_size, pretrained=config.start == TIMM)
    if config.start and config.start != TIMM:
        load_weights(backbone, Path(config.start))
    width = feature_dim(backbone)
    _try(backbone, config.backbone, image_size, width)
    hidden = config.projector_hidden or width
    norm = nn.BatchNorm1d(hidden) if config.projector_norm == "batch" else nn.LayerNorm(hidden)
    projector = nn.Sequential(
        nn.Linear(width, hidden, bias=False), norm, nn.ReLU(inplace=True), nn.Linear(hidden, config.projector_dim)
    )
    return Encoder(backbone, projector)


def with_statistics(config: ModelConfig, before: Statistics | None = None) -> ModelConfig:
    """With the mean and deviation that images are normalised by: those of the weights that it starts from.

    before: those of the run that is gone on with.
    """
    mean, std = before or _statistics_of_start(config) or config.statistics
    return replace(config, mean=tuple(config.mean or mean), std=tuple(config.std or std))


def _statistics_of_start(config: ModelConfig) -> Statistics | None:
    """timm's, a run's or an export's own; None where nothing says them."""
    if config.start == TIMM:
        known = get_pretrained_cfg(config.backbone, allow_unregistered=True)
        return (known.mean, known.std) if known else None
    if not config.start:
        return None
    path = Path(config.start)
    folder = path if path.is_dir() else path.parent
    with suppress(OSError, ValueError, KeyError, TypeError):
        if (folder / "config.json").is_file():
            known = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
            return tuple(known["mean"]), tuple(known["std"])
    run = folder.parent if folder.name == "checkpoints" else folder
    return statistics_of_run(run)


def statistics_of_run(run: Path) -> Statistics | None:
    """By which a run's images are normalised; None where its run.json does not say."""
    with suppress(KeyError, TypeError, AttributeError):
        model = described(run)["recipe"]["model"]
        # Before there was a choice, ImageNet's.
        return tuple(model.get("mean") or IMAGENET_MEAN), tuple(model.get("std") or IMAGENET_STD)
    return None


def build_backbone(name: str, image_size: int, *, pretrained: bool = False) -> nn.Module:
    """A timm model without its classifier, or FILE.py:FUNCTION, giving pooled features [n, feature_dim(model)].

    Models of a fixed input size (ViT) are built for image_size. Raises UserError for unknown names.
    """
    if is_own(name):
        if pretrained:
            raise UserError(f"timm has no weights of {name}: leave out --start timm")
        return _own(name, image_size)
    if not timm.is_model(name):
        raise UserError(no_model(name))
    fixed = getattr(get_pretrained_cfg(name), "fixed_input_size", False)
    options = {"img_size": image_size} if fixed else {}
    try:
        with patient_hub(f"timm's weights of {name}"):
            model = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except OSError as error:
        raise UserError(f"timm's weights of {name} cannot be had: {first_line(error)}") from None
    except (RuntimeError, AssertionError, ValueError) as error:  # sizes that do not fit
        raise UserError(f"timm cannot build {name} for {image_size} pixels: {first_line(error)}") from None
    if not isinstance(getattr(model, "num_features", None), int):
        raise UserError(f"{name} gives no pooled features: choose another backbone")
    backbone: nn.Module = model
    return backbone


def no_model(name: str) -> str:
    """That timm has no such model, and which are called nearly so."""
    near = get_close_matches(name, timm.list_models(), 5) or timm.list_models(f"*{name}*")[:5]
    hint = f"; close names: {', '.join(near)}" if near else "; `timm.list_models()` lists them"
    return f"timm has no model {name!r}{hint}"


@contextmanager
def patient_hub(what: str) -> Iterator[None]:
    """One line of ours, at the first try that fails, for the hub's: two of each of a dozen tries, within a minute."""
    logger, ours = logging.getLogger("huggingface_hub"), _Waiting(what)
    theirs, logger.handlers = logger.handlers, [ours]
    try:
        yield
    finally:
        logger.handlers = theirs


class _Waiting(logging.Handler):
    def __init__(self, what: str) -> None:
        super().__init__(logging.WARNING)
        self.what: str | None = what

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if self.what and any(words in said for words in FAILED_TRY):
            say(f"the hub does not give {self.what} yet; trying for a minute ({said.splitlines()[0]})")
            self.what = None


def _own(name: str, image_size: int) -> nn.Module:
    made = call(name)
    network = made[0] if isinstance(made, tuple) and made else made  # with the Transform that evaluation may be given
    if not isinstance(network, nn.Module):
        raise UserError(f"{name}() gives {type(made).__name__}, not a torch.nn.Module")
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, 3, image_size, image_size))
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise UserError(f"{name} gives no pooled features, [n, dim], of {image_size} pixels but {what}: pool them")
    network.head_hidden_size = features.shape[1]  # type: ignore[assignment]
    return network


@torch.no_grad()
def _try(backbone: nn.Module, name: str, image_size: int, width: int) -> None:
    """Raises UserError for models whose size does not fit, which some tell when they are fed only."""
    try:
        features = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} does not take {image_size} pixels ({first}): choose another --image-size") from None
    backbone.train()
    if features.shape != (1, width):
        raise UserError(
            f"{name} gives features of shape {[*features.shape]}, not [1, {width}]: choose another backbone"
        )


def feature_dim(backbone: nn.Module) -> int:
    """Width of the features that a timm model without its classifier gives.

    Some (MobileNetV3, VGG) have layers between the last map, of num_features channels, and the classifier.
    """
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Load a backbone from a run folder, a checkpoint, or a file of weights (.safetensors, or torch.save's).

    Raises UserError where the file does not hold this backbone; a classifier in it is left out.
    """
    state = _backbone_state(path)
    wanted = backbone.state_dict()
    missing = [name for name in wanted if name not in state]
    unlike = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if missing or unlike:
        example = (missing or unlike)[0]
        raise UserError(
            f"{path} does not fit the backbone: {len(missing)} of {len(wanted)} weights are missing and {len(unlike)} "
            f"of another shape ({example}); choose the --model and --image-size that it was made with"
        )
    backbone.load_state_dict({name: state[name] for name in wanted})


def _backbone_state(path: Path) -> dict[str, torch.Tensor]:
    if path.is_dir():
        found = sorted(path.glob("checkpoints/step-*.pt")) or sorted(path.glob("*.safetensors"))
        if not found:
            raise UserError(f"{path} holds neither checkpoints/step-*.pt nor a .safetensors file to start from")
        path = found[-1]
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        hint = "; timm's own weights of --model are --start timm" if str(path).startswith("timm:") else ""
        raise UserError(f"there is no file {path} to start from{hint}") from None
    except (RuntimeError, pickle.UnpicklingError, SafetensorError, LookupError, EOFError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable file of weights: it is damaged, or none at all ({type(error).__name__})"
        ) from None
    for key in ("encoder", "state_dict", "model"):  # ours, and what other trainers call it
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict) and all(isinstance(name, str) for name in state):
        state = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    else:
        raise UserError(f"{path} holds no weights by name: give a run folder, or a file of a model's state_dict")
    if any(name.startswith("backbone.") for name in state):
        return {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    return {name.removeprefix("module."): value for name, value in state.items()}
