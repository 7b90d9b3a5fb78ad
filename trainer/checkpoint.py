"""Checkpoints: atomic, versioned, loaded with weights_only; and how others get at the backbone.

runs/NAME/run.json                        recipe, data, status
runs/NAME/checkpoints/step-00000500.pt    encoder, optimiser, step, recipe
runs/NAME/checkpoints/best.pt             encoder, step, recipe: of the epoch with the best online kNN figure
"""

from __future__ import annotations

import errno
import json
import lzma
import pickle
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from shards.atomic import atomic_file, sha256_file
from shards.errors import UserError
from trainer.model import build_encoder, feature_dim
from trainer.own import is_own, short
from trainer.recipe import Recipe, stored_recipe

__all__ = [
    "BackboneInfo",
    "NotRead",
    "checkpoint_path",
    "checkpoints",
    "find_checkpoint",
    "load_backbone",
    "load_encoder",
    "near_paths",
    "read_checkpoint",
    "run_of",
    "write_best",
    "write_checkpoint",
]

VERSION = 1
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, LookupError, EOFError, ValueError, zipfile.BadZipFile, zlib.error,
    lzma.LZMAError,
)  # fmt: skip
BACKBONE, PROJECTOR = "backbone.", "projector."


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneInfo:
    """What one needs to feed a backbone and to say which it is."""

    model: str
    """timm's name."""
    feature_dim: int
    image_size: int
    """Side of the training views, pixels."""
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    objective: str
    """`untrained` for initial weights."""
    step: int
    sha256: str
    """Of the checkpoint file."""
    recipe: Recipe
    """Of the run."""
    data: str
    """sha256 of the manifest of the shards that it was trained on."""
    graph: str
    """sha256 of the graph that it was trained on (run_folder.contents_id); empty without one."""


def checkpoints(run: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(run.glob("checkpoints/step-*.pt"))


def _written(file: Path) -> float:
    """When; of one that its run has replaced meanwhile, at the beginning of time."""
    with suppress(FileNotFoundError):
        return file.stat().st_mtime
    return 0.0


def checkpoint_path(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.pt"


def run_of(checkpoint: Path) -> Path:
    """The run's folder; of a checkpoint that was moved elsewhere, the folder it lies in."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def find_checkpoint(path: Path | None = None, runs: Path = Path("runs")) -> Path:
    """A checkpoint file: `path` itself, the last step of the run folder `path`, or of the newest run below `runs`.

    The newest run is the one written to last; times within a run say nothing, since a copy may have mixed them.
    """
    if path is None:
        found = list(runs.rglob("checkpoints/step-*.pt"))
        if not found:
            raise UserError(f"no checkpoint below {runs}/: train with `make train`, or give --checkpoint")
        newest = max(found, key=lambda file: (_written(file), str(file)))
        return checkpoints(newest.parent.parent)[-1]
    if path.is_file():
        return path
    if not path.is_dir():
        near = near_paths(path)
        hint = f"did you mean {' or '.join(near)}? Other" if near else "other"
        raise UserError(f"there is no checkpoint or run folder {path}: {hint} models are timm:NAME, torchvision:NAME")
    found = checkpoints(path)
    if not found and (path / "run.json").is_file():
        raise UserError(
            f"{path} has no checkpoint: its run ended before the first. Go on with it by its command and --resume, or "
            "leave it out"
        )
    if not found:
        inside = sorted({str(file.parent.parent) for file in path.rglob("checkpoints/step-*.pt")})
        which = f"one of {', '.join(inside)}" if inside else "a run folder (runs/NAME) or a checkpoint file"
        raise UserError(f"{path} holds no checkpoints/step-*.pt: give {which}")
    return found[-1]


def near_paths(path: Path) -> list[str]:
    """What lies beside a path that is not there and is called nearly so: two at most, the nearest first."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return [str(path.with_name(name)) for name in get_close_matches(path.name, beside, 2)]


def write_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoints/step-STEP.pt, then delete all but the newest `keep`."""
    path = checkpoint_path(run, step)
    _write(path, {"version": VERSION, "step": step, **state})
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return path


def write_best(run: Path, step: int, state: dict[str, Any]) -> Path:
    """Replace checkpoints/best.pt."""
    path = run / "checkpoints" / "best.pt"
    _write(path, {"version": VERSION, "step": step, **state})
    return path


def _write(path: Path, state: dict[str, Any]) -> None:
    """torch.save hides what the system said (no room, quota) in a RuntimeError of its own: raised as it was."""
    with atomic_file(path) as file:
        watched = _Watched(file)
        try:
            torch.save(state, cast(BinaryIO, watched))
        except (OSError, RuntimeError):
            if watched.error:
                raise OSError(watched.error.errno, watched.error.strerror, str(path)) from None
            raise


class _Watched:
    """A file for torch.save that remembers why it could not be written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, cast(OSError | None, None)

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class NotRead(UserError):
    """The system does not let us read a checkpoint, which may be as good as any."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load on the CPU without unpickling code. Raises UserError for anything that is not a checkpoint of ours, NotRead
    where that cannot be told."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno in (None, errno.EINVAL, errno.ENOENT):  # of places within it that are not there
            raise UserError(f"{path} is not a readable checkpoint: it is damaged, or gone") from error
        raise NotRead(f"{path} cannot be read: {error.strerror}") from error
    except UNREADABLE as error:
        if "allocate memory" in str(error):
            raise NotRead(f"{path} does not fit this machine's memory") from error
        raise UserError(f"{path} is not a readable checkpoint: it is damaged, or no checkpoint at all") from error
    if not isinstance(state, dict) or "version" not in state or "encoder" not in state:
        raise UserError(f"{path} is not a checkpoint of xclr-train: it has no encoder")
    if state["version"] != VERSION:
        raise UserError(
            f"{path} is of version {state['version']}, this program reads {VERSION}: use the version that wrote it"
        )
    return state


def _read_with_checksum(path: Path) -> tuple[dict[str, Any], str]:
    """And the file's sha256; both of one file, though a run that goes on may put another in its place (best.pt)."""
    while True:
        before, state, digest = _which(path), read_checkpoint(path), sha256_file(path)
        if before == _which(path):
            return state, digest


def _which(path: Path) -> tuple[int, int]:
    """Which file lies there; of none, which `read_checkpoint` tells, zeros."""
    try:
        return path.stat().st_ino, path.stat().st_mtime_ns
    except OSError:
        return 0, 0


def load_backbone(path: Path, *, untrained: bool = False) -> tuple[nn.Module, BackboneInfo]:
    """The backbone of a checkpoint in eval mode, on the CPU: [n, 3, size, size] -> [n, feature_dim]."""
    backbone, _, info = load_encoder(path, untrained=untrained)
    return backbone, info


def load_encoder(
    path: Path, *, untrained: bool = False, own: str | None = None
) -> tuple[nn.Module, nn.Module | None, BackboneInfo]:
    """Backbone and projector, [n, feature_dim] -> [n, dim], of a checkpoint in eval mode, on the CPU.

    None where somebody took the projector out. untrained: the same architecture at the initial weights of that very
    run. own: FILE.py:FUNCTION of a run that trained such a network. Raises UserError where one is needed: a checkpoint
    has no code run that it names itself.
    """
    try:
        state, digest = _read_with_checksum(path)
    except NotRead:
        raise
    except UserError as error:
        others = [other for other in checkpoints(path.parent.parent) if other != path]
        if path.parent.name != "checkpoints" or not others:
            raise
        raise UserError(f"{error}; {others[-1]} beside it may be whole: give that") from None
    recipe = stored_recipe(json.loads(state["recipe"]), where=str(path))
    model = recipe.model if untrained else replace(recipe.model, start="")  # nothing to fetch
    if own and not is_own(model.backbone):
        raise UserError(f"{path} is of timm's {model.backbone}: leave out {own}@")
    if is_own(model.backbone) and not own:
        raise UserError(
            f"{path} is of a network of your own, which timm cannot build: for xclr-eval --checkpoint name its code "
            f"as well, {model.backbone}@{run_of(path)}"
        )
    model = replace(model, backbone=own or model.backbone)
    encoder = build_encoder(model, recipe.augment.image_size, recipe.seed)
    if not untrained:
        weights = state["encoder"]
        try:
            encoder.backbone.load_state_dict(_part(weights, BACKBONE))
            if projector := _part(weights, PROJECTOR):
                encoder.projector.load_state_dict(projector)
        except RuntimeError as error:
            raise UserError(f"{path} does not fit {model.backbone}: {str(error).splitlines()[-1].strip()}") from None
    info = BackboneInfo(
        model=short(model.backbone),
        feature_dim=feature_dim(encoder.backbone),
        image_size=recipe.augment.image_size,
        crop_pct=recipe.model.eval_crop,
        mean=recipe.model.statistics[0],
        std=recipe.model.statistics[1],
        objective="untrained" if untrained else recipe.objective.name,
        step=0 if untrained else int(state["step"]),
        sha256=digest,
        recipe=recipe,
        data=str(state.get("data", "")),
        graph=str(state.get("graph", "")),
    )
    encoder.eval()
    known = untrained or any(name.startswith(PROJECTOR) for name in state["encoder"])
    return encoder.backbone, encoder.projector if known else None, info


def _part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
