"""What is evaluated: a frozen network that turns normalised images into features, with an identity for its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from shards.atomic import sha256_file
from shards.bars import say
from shards.errors import UserError, first_line
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "Model",
    "Transform",
    "as_it_is_now",
    "evaluating",
    "exact",
    "model_of",
    "tell_of_other_data",
    "transform_table",
    "weights_hash",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """Decoded picture -> network input: shorter side resized to image_size / crop_pct, centre crop, normalised."""

    image_size: int
    """Pixels."""
    crop_pct: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Of pixels in 0..1."""

    def __post_init__(self) -> None:
        """Raises UserError for sizes that are none."""
        if self.image_size < 1 or not 0 < self.crop_pct <= 1:
            raise UserError(
                f"image_size is in pixels and crop_pct a share of the shorter side, above 0 and up to 1, not "
                f"{self.image_size} and {self.crop_pct}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A frozen feature extractor."""

    name: str
    """Of the network: timm's name, or where it came from."""
    network: nn.Module
    """[n, 3, size, size] float32 -> [n, feature_dim]."""
    feature_dim: int
    transform: Transform
    sha256: str
    """Of the weights and what surrounds them: equal weights share cached features, whatever file they came from."""
    about: dict[str, object]
    """For the protocol: checkpoint, its sha256, objective, step."""
    surroundings: str = ""
    """What of the network sha256 is of besides its weights."""
    outputs: list[torch.Tensor] | None = field(default=None, compare=False, repr=False)
    """[1, feature_dim] of a picture of noise, each that was met; None where name and weights decide it."""
    folder: Path | None = None
    """The run, where results go."""
    shards: Path | None = None
    """What it was trained on."""
    data: str = ""
    """sha256 of their manifest.json; empty where that is not known."""
    graph: str | None = None
    """The graph it was trained with, by name; None: the only one."""
    graph_id: str = ""
    """What that graph held (trainer.run_folder.contents_id); empty where that is not known."""
    projector: nn.Module | None = None
    """[n, feature_dim] -> [n, dim], what the loss compared; None where it is not known any more."""


def model_of(
    network: nn.Module,
    name: str,
    transform: Transform,
    about: Mapping[str, object] | None = None,
    config: str | None = None,
    hint: str = "",
) -> Model:
    """A network, [n, 3, size, size] -> [n, dim], as something to evaluate, in eval mode whatever mode it is in.

    config: what decides the outputs besides the name, the weights and the transform, for the hash that kept features
    go by; None takes an output itself, which code may have changed where weights did not. hint: what to do about a
    network that fails. Raises UserError where it gives no features, or other ones each time.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is a torch.nn.Module, not {type(network).__name__}")
    if not isinstance(transform, Transform):
        raise TypeError(f"transform is Transform(image_size=...), not {type(transform).__name__}")
    if max(map(abs, (*transform.mean, *transform.std))) > 1:  # a run may have been trained so
        say(f"note: mean {transform.mean} and std {transform.std} of {name} are of pixels in 0..1: not of 0..255?")
    once, again = (_output(network, name, transform.image_size, hint) for _ in range(2))
    if not torch.allclose(once, again, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(f"{name} gives one picture other features each time, so it has none to be scored by")
    surroundings = name + (_digest(once) if config is None else config)
    return Model(
        name=name,
        network=network,
        feature_dim=once.shape[1],
        transform=transform,
        sha256=weights_hash(network, surroundings),
        surroundings=surroundings,
        outputs=[once] if config is None else None,
        about={"model": name, "step": None, **(about or {})},
    )


def tell_of_other_data(models: Iterable[Model]) -> None:
    """Of models about to be judged on what they were trained on: what lies there now may be something else."""
    others: dict[Path, list[str]] = {}
    for model in models:
        manifest = model.shards / "manifest.json" if model.shards else None
        if manifest and model.data and manifest.is_file() and sha256_file(manifest) != model.data:
            others.setdefault(manifest.parent, []).append(str(model.folder or model.name))
    for folder, runs in others.items():
        more = f" (and {len(runs) - 1} more)" if len(runs) > 1 else ""
        say(
            f"warning: {folder} is not what {runs[0]}{more} was trained on, but other shards, or built anew: name "
            "others by --data (in a suite, benches = ['shards:FOLDER'])"
        )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode, and afterwards, module by module, in the mode that it was in: its owner may be training it."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def exact() -> Iterator[None]:
    """Convolutions in float32: else a GPU's round to TF32's ten bits, and features that a CPU began would be gone on
    with in others."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        yield


def _output(network: nn.Module, name: str, size: int, hint: str = "") -> torch.Tensor:
    """Of a picture of noise, always the same: [1, dim] float32 on the CPU. Raises UserError where it is none."""
    place = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(place)
    try:
        with torch.inference_mode(), torch.autocast(place.type, enabled=False), exact(), evaluating(network):
            found = network(noise)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a network's code may raise anything; timm's raises AssertionError for a wrong size
        kinds = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
        if kinds:
            hint = f"; it has weights of {', '.join(map(str, kinds))}, and images are float32: network.float()"
        what = first_line(error)
        what = what if what == type(error).__name__ else f"{type(error).__name__}: {what}"
        raise UserError(f"{name} is no encoder of images of {size} pixels ({what}){hint}") from error
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UserError(f"{name} gives no pooled features, [n, dim], but {shape}: choose another, or pool them")
    return found.float().cpu()


def _digest(output: torch.Tensor) -> str:
    return hashlib.sha256(output.numpy().tobytes()).hexdigest()


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    """But for rounding: the same network gives other bits in another layout in memory, or on another device."""
    scale = float(other.nan_to_num().abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=1e-4 * scale, equal_nan=True)


def as_it_is_now(model: Model) -> Model:
    """With the checksum of the weights that it has by now, and of what its code makes of them, which may depend on more
    than is in `state_dict`. Raises UserError for a network that gives no features by now."""
    if not model.surroundings:
        return model
    surroundings = model.surroundings
    if model.outputs is not None:
        now = _output(model.network, model.name, model.transform.image_size)
        met = next((output for output in model.outputs if _alike(now, output)), None)
        if met is None:
            model.outputs.append(met := now)
        surroundings = model.name + _digest(met)
        model = replace(model, feature_dim=now.shape[1])
    return replace(model, sha256=weights_hash(model.network, surroundings))


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
