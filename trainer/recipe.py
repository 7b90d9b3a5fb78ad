"""Recipes: everything that decides a run, in one TOML file, read into frozen dataclasses.

A recipe holds no path of a machine but those of the shards, of a network of one's own and of weights to start from.
What does not change the result (workers, logging) sits in its own section and, like data.chunk, may differ between the
parts of a resumed run.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_type_hints

from shards.config import from_table, read_toml, typed, unlike_values
from shards.errors import UserError
from shards.remote import shown
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig

__all__ = [
    "DataConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimiserConfig",
    "Recipe",
    "RunConfig",
    "Statistics",
    "TextConfig",
    "as_table",
    "builtin_recipes",
    "changed",
    "differences",
    "load_recipe",
    "stored_recipe",
]


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    shards: str = ""
    """Folder of shards, or its URL on object storage; empty: the one built last below data/."""
    graph: str = ""
    """Graph by name; empty: the only one of the shards."""
    batch_size: int = 1024
    """Samples (not views) of a global batch, over all ranks."""
    window: int = 64
    """Shards shuffled together."""
    grouped: float = 0.0
    """Share of each batch drawn as neighbour groups, which packed shards name; 0: plain random."""
    chunk: int = 0
    """Samples that a device forwards at a time, with cached gradients (step.py); 0: its whole share of the batch."""

    def __post_init__(self) -> None:
        _at_least("data", self, batch_size=2, chunk=0)  # a sample alone has no others to be told from


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    backbone: str = "resnet50"
    """Any timm model, or FILE.py:FUNCTION, which gives a module: [n, 3, size, size] -> [n, features]."""
    start: str = ""
    """Fine-tune from here: a run folder or checkpoint of xclr-train, a file of the backbone's weights, or `timm` for
    timm's own (downloaded)."""
    projector_hidden: int = 0
    """Width of the projector's hidden layer; 0: that of the features."""
    projector_dim: int = 128
    projector_norm: Literal["batch", "layer"] = "batch"
    eval_crop: float = 0.875
    """Share of the shorter side that evaluation crops from the centre; 1: the whole."""
    mean: tuple[float, ...] = ()
    """Of the three channels of pixels in 0..1, by which images are normalised; empty: ImageNet's, or with `start =
    "timm"` those that timm's weights were trained with."""
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _at_least("model", self, projector_hidden=0, projector_dim=1)
        if not 0 < self.eval_crop <= 1:
            raise UserError(f"model.eval_crop is a share of the side above 0 and up to 1, not {self.eval_crop}")
        if len(self.mean) not in (0, 3) or len(self.std) not in (0, 3) or not all(value > 0 for value in self.std):
            raise UserError(
                f"model.mean and model.std are three numbers each, those above 0, not {[*self.mean]} and {[*self.std]}"
            )

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation, of which none is left open."""
        return (self.mean or IMAGENET_MEAN, self.std or IMAGENET_STD)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig:
    name: Literal["xclr", "simclr", "supcon", "clip"] = "xclr"
    tau: float = 0.1
    """Temperature of the image similarities; where clip's learned one begins."""
    tau_s: float = 0.1
    """Temperature of the text similarities (xclr)."""
    tail: Literal["code", "background", "none"] = "code"
    """What stands for the similarity of two texts that are not listed as neighbours (xclr)."""
    implementation: Literal["auto", "dense", "tiled", "fused"] = "auto"
    """How the loss is computed (docs/loss.md): `fused` is for GPUs; auto takes it for large batches on H100, H200."""

    def __post_init__(self) -> None:
        for name in ("tau", "tau_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} is a temperature above 0, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The text tower of the objective clip; the others have none. Defaults: about a third of CLIP's own."""

    width: int = 256
    layers: int = 6
    heads: int = 4
    length: int = 64
    """Most tokens of a caption, begin and end included."""
    words: int = 16384
    """Most words of the vocabulary; others are spelled in bytes."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.length - 2, self.words + 1) < 1:
            raise UserError(f"[text] needs positive sizes and a length of 3 or more, not {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimiserConfig:
    name: Literal["lars", "adamw", "sgd"] = "lars"
    lr: float = 0.075
    """Base learning rate; lr_scaling says what the batch size makes of it."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "sqrt"
    """none: lr. linear: lr * batch / 256. sqrt: lr * sqrt(batch), SimCLR's rule (appendix B.1)."""
    weight_decay: float = 1e-6
    """Not applied to biases and normalisation weights."""
    momentum: float = 0.9
    warmup_epochs: float = 10
    """Linear warm-up, then cosine to 0."""

    def __post_init__(self) -> None:
        _at_least("optimiser", self, lr=0, weight_decay=0, warmup_epochs=0)
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimiser.momentum must be at least 0 and below 1, not {self.momentum}")

    def peak_lr(self, batch_size: int) -> float:
        scale = {"none": 1.0, "linear": batch_size / 256, "sqrt": math.sqrt(batch_size)}[self.lr_scaling]
        return self.lr * scale


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How the run goes, not what comes out of it."""

    workers: int = -1
    """Loader processes a rank; -1: one a core, shared between the ranks of this machine."""
    log_every: int = 20
    """Steps between lines of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; one more at the end, and on SIGTERM or Ctrl-C."""
    checkpoint_minutes: float = 15
    """Minutes after which one is written all the same, where steps are slow; 0: never for that."""
    keep: int = 2
    """Newest checkpoints kept, besides the best."""
    knn_every: int = 1
    """Epochs between online kNN checks (docs/scaling.md); 0: none. With labels an accuracy, without how much more alike
    the captions of near images are than those of random ones."""
    cache_gib: float = 0
    """Tars of shards on object storage that are kept here (below $XCLR_CACHE); 0: nine tenths of the disk's room."""
    track: Literal["", "wandb", "mlflow"] = ""
    """Send the metrics there as well (trackers.py)."""

    def __post_init__(self) -> None:
        _at_least("run", self, workers=-1, log_every=1, checkpoint_every=1, keep=1)
        _at_least("run", self, checkpoint_minutes=0, knn_every=0, cache_gib=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str
    epochs: int = 100
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the model's forward pass; auto: bfloat16 where the device has instructions for it (on a CPU from 32 pixels
    on), float32 elsewhere."""
    compile: bool = False
    """torch.compile the encoder."""
    deterministic: bool = False
    """On a GPU, only kernels that give the same bits each time: a resumed run then ends in the same weights, as it does
    on a CPU anyway, and a step takes longer. Otherwise cuDNN tries its kernels out and keeps the fastest."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    text: TextConfig = field(default_factory=TextConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"epochs must be at least 1, not {self.epochs}")
        if not 0 <= self.seed < 1 << 31:
            raise UserError(f"seed must lie in 0..2^31-1, not {self.seed}")


def builtin_recipes() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files("trainer").joinpath("recipes").iterdir())


def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or a TOML file by path. Raises UserError for unknown names, keys and values."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in builtin_recipes():
            raise UserError(f"unknown recipe {name!r}: give a .toml file or one of {', '.join(builtin_recipes())}")
        path = Path(str(files("trainer").joinpath(f"recipes/{name}.toml")))
    table = read_toml(path)
    return from_table(Recipe, {"name": path.stem, **table}, where=f"recipe {name}")


def stored_recipe(table: dict[str, Any], where: str) -> Recipe:
    """What `as_table` made of a recipe, in this version or an earlier one: new options take their defaults."""
    model = dict(table.get("model", {}))
    if model.pop("pretrained", False):  # until 2026-11
        model["start"] = model.get("start") or "timm"
    recipe = from_table(Recipe, {**table, "model": model}, where=where)
    # Until 2026-11-27 runs kept the URL of their shards whole, with password and signature.
    return replace(recipe, data=replace(recipe.data, shards=shown(recipe.data.shards)))


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some values replaced; keys are dotted (`data.batch_size`), None leaves a value as it is."""
    for key, value in changes.items():
        if value is None:
            continue
        section, _, name = key.rpartition(".")
        if section:
            part = getattr(recipe, section)
            hint = get_type_hints(type(part))[name]
            recipe = replace(recipe, **{section: replace(part, **{name: typed(hint, value, key)})})
        else:
            recipe = replace(recipe, **{name: typed(get_type_hints(Recipe)[name], value, key)})
    return recipe


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """`section.key: this, not that` for everything that decides the result."""
    ours = {"run", "name"}  # where it goes, and what the recipe is called; not objective.name
    return [f"{'.'.join(keys)}: {b!r}, not {a!r}" for keys, a, b in unlike_values(one, other) if keys[0] not in ours]


def as_table(recipe: Recipe) -> dict[str, Any]:
    """Plain dicts, lists and scalars, as JSON would return them; without what is secret in the URL of shards.

    Checkpoints, run.json, model cards and trackers hold it.
    """
    table = asdict(recipe)
    table["data"]["shards"] = shown(recipe.data.shards)
    for section in ("augment", "model"):
        table[section] = {key: list(v) if isinstance(v, tuple) else v for key, v in table[section].items()}
    return table


def _at_least(section: str, config: object, **lowest: int) -> None:
    """Raises UserError for the first of these values that is below its bound."""
    for name, low in lowest.items():
        if not getattr(config, name) >= low:
            raise UserError(f"{section}.{name} must be at least {low}, not {getattr(config, name)}")
