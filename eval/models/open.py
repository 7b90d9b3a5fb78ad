"""A model by what the user calls it:

runs/NAME, or a file in it       a checkpoint of xclr-train
DIR with config.json             an export of ours (timm's format), or a model in transformers' format
timm:NAME, torchvision:NAME      their pretrained weights
FILE.py:FUNCTION                 what the function gives, a network of the user's own
FILE.py:FUNCTION@runs/NAME       that network with the weights of a checkpoint of xclr-train
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from eval.models.model import Model, Transform, model_of
from eval.models.own import open_own
from shards.atomic import sha256_file
from shards.errors import UserError
from shards.mirror import local_folder
from shards.reader import is_finished
from trainer.checkpoint import BackboneInfo, NotRead, checkpoints, find_checkpoint, load_encoder, run_of
from trainer.own import is_own

__all__ = ["NAMELESS", "open_checkpoint", "open_model", "open_models"]

OWN = "give --checkpoint FILE.py:FUNCTION, a function that builds the network and loads them (docs/evaluation.md)"
"""What to do about weights that do not say of what network they are."""
NAMELESS = "a checkpoint is given that has no name: leave it out, or name one"


def open_model(spec: str | None, *, untrained: bool = False) -> Model:
    """A model by what the user calls it (see above); None: the newest run. Raises UserError."""
    if spec == "":  # of a shell's variable that is not set: the newest run would pass for the one that was meant
        raise UserError(NAMELESS)
    from eval.models import rivals as other  # transformers and torchvision are slow to import

    openers: dict[str, Callable[[str], Model]] = {
        "timm:": lambda name: other.open_timm(name, untrained=untrained),
        "torchvision:": lambda name: other.open_torchvision(name, untrained=untrained),
    }
    for prefix, opener in openers.items():
        if spec and spec.startswith(prefix):
            return opener(spec.removeprefix(prefix))
    if spec and is_own(spec):
        if untrained:
            raise UserError(f"{spec} says itself which weights it has: leave out --untrained")
        return open_own(spec)
    if spec and spec.endswith(".py"):
        raise UserError(f"say which of its functions gives the network: {spec}:FUNCTION")
    code, _, run = (spec or "").partition("@")
    if run and is_own(code):
        return open_checkpoint(Path(run), untrained=untrained, own=code)
    path = Path(spec) if spec else None
    if path and (path / "config.json").is_file():
        if untrained:
            raise UserError(f"{path} is a finished model and knows no initial weights: leave out --untrained")
        return other.open_folder(path)
    if path and not checkpoints(path) and (weights := sorted(path.glob("*.safetensors"))):
        raise UserError(f"{path} has weights ({weights[0].name}) but no config.json, which says of what network: {OWN}")
    return open_checkpoint(path, untrained=untrained)


def open_models(specs: Sequence[str | None], *, untrained: bool = False) -> dict[str, Model]:
    """Models by what a table calls them: their runs' names, where these tell them apart. Raises UserError.

    untrained: the initial weights of the first as well, behind all.
    """
    models = [open_model(spec) for spec in specs]
    names = [model.folder.resolve().name if model.folder else model.name for model in models]
    if len(set(names)) < len(names):
        names = [str(spec) for spec in specs]
    places = [Path(spec).resolve() if spec else None for spec in specs]
    twice = next((name for name, place in zip(names, places, strict=True) if places.count(place) > 1), None)
    if twice:
        raise UserError(f"{twice} is given twice: leave one of them out")
    named = dict(zip(names, models, strict=True))
    if untrained:
        free = next(name for name in ("untrained", "initial weights", f"{specs[0]}, untrained") if name not in named)
        named[free] = open_model(specs[0], untrained=True)
    return named


def open_checkpoint(path: Path | None, *, untrained: bool = False, own: str | None = None) -> Model:
    """A checkpoint of xclr-train, a run folder, or (None) the newest run. Raises UserError."""
    file = find_checkpoint(path)
    try:
        backbone, projector, info = load_encoder(file, untrained=untrained, own=own)
    except NotRead:
        raise
    except UserError as error:
        raise UserError(_foreign(file) or str(error)) from None
    transform = Transform(image_size=info.image_size, crop_pct=info.crop_pct, mean=info.mean, std=info.std)
    about = {
        "checkpoint": str(file),
        "checkpoint_sha256": info.sha256,
        "objective": info.objective,
        "step": info.step,
    }
    model = model_of(backbone, info.model, transform, about, config=None if own else "")
    return replace(
        model,
        folder=run_of(file),
        shards=_shards(info, run_of(file)),
        data=info.data,
        graph=info.recipe.data.graph or None,
        graph_id=info.graph,
        projector=projector,
    )


def _shards(info: BackboneInfo, run: Path) -> Path | None:
    """Where a run says that its shards lie; of a path from the folder that it was started in, which need not be this
    one, the place that has them."""
    folder = local_folder(info.recipe.data.shards) if info.recipe.data.shards else None
    if folder is None or folder.is_absolute():
        return folder
    named, real = (path.parent.parent / folder for path in (run.absolute(), run.resolve()))  # runs/NAME; either a link
    places = [place for place in (folder, named, real) if is_finished(place)]
    very = (place for place in places if sha256_file(place / "manifest.json") == info.data)
    return next(very, places[0] if places else folder)


def _foreign(file: Path) -> str:
    """What a file is that is no checkpoint of xclr-train, and what to do with it; empty where that cannot be told."""
    try:
        with safe_open(file, "pt"):
            return (
                f"{file} does not say of what network its weights are: give its folder if it has config.json, or {OWN}"
            )
    except (SafetensorError, OSError):
        pass
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if archive.testzip():
                    return ""
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises anything
        if not any(words in str(error) for words in ("Unsupported global", "TorchScript")):
            return ""
        return (
            f"{file} holds a whole model or other objects beside weights, and to load it would run its code: "
            f"if you trust it, {OWN}"
        )
    if not isinstance(state, dict) or {"version", "encoder"} <= set(state):
        return ""
    return f"{file} is no checkpoint of xclr-train, and its weights do not say of what network they are: {OWN}"
