"""A checkpoint's backbone as a folder that timm loads: model.safetensors, config.json, and a model card.

    timm.create_model("local-dir:FOLDER", pretrained=True)

gives the same features; the projector stays behind, as it does in evaluation.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, save_for_hf
from torch import nn

from shards.atomic import sha256_file, write_text
from shards.errors import UserError
from trainer.checkpoint import BackboneInfo, find_checkpoint, load_backbone, run_of
from trainer.model import TIMM
from trainer.recipe import as_table

__all__ = ["export", "find"]

# What timm's configuration says of its own weights, and of another size for testing.
NOT_OURS = (
    "license", "origin_url", "paper_ids", "paper_name", "notes", "test_input_size", "test_crop_pct", "test_pool_size",
    "label_names", "label_descriptions",
)  # fmt: skip
TAG = "xclr_"
FILES = {"model.safetensors", "config.json", "README.md"}


def find(path: Path | None) -> Path:
    """As `find_checkpoint`, which speaks of what other commands take: of `path` only, and of no other models."""
    if path is None and not any(Path("runs").rglob("checkpoints/step-*.pt")):
        raise UserError("no checkpoint below runs/: train first, or name a run folder or a checkpoint to export")
    if path is not None and not path.exists():
        raise UserError(f"there is no checkpoint or run folder {path}: give one that xclr-train wrote")
    return find_checkpoint(path)


def export(checkpoint: Path, out: Path) -> Path:
    """Write the folder `out`; returns it.

    Raises UserError for a file that is no checkpoint, and for a folder that holds other files or cannot be written.
    """
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or found - FILES or (found and not _is_ours(out)):
        raise UserError(f"{out} holds other files: choose an empty or a new folder with --out")
    if (other := _run_named(out / "README.md")) not in ("", _name(checkpoint)):
        raise UserError(f"{out} holds the export of the run {other}: choose another folder with --out")
    backbone, info = load_backbone(checkpoint)
    try:
        _write(out, backbone, info)
        card = _card(info, checkpoint, sha256_file(out / "model.safetensors"))
        write_text(out / "README.md", card)
    except (OSError, SafetensorError) as error:  # safetensors' own writer wraps what the system said
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"cannot write {out} ({reason}): choose another folder with --out") from None
    return out


def _write(out: Path, backbone: nn.Module, info: BackboneInfo) -> None:
    """model.safetensors and config.json."""
    fixed = getattr(get_pretrained_cfg(info.model), "fixed_input_size", False)
    size = (3, info.image_size, info.image_size)
    # safetensors refuses tensors that share memory, as those of layers that are used twice do.
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.state_dict = lambda *_, **__: weights  # type: ignore[method-assign, assignment]
    save_for_hf(
        backbone,
        str(out),
        model_config={
            "pretrained_cfg": {
                "input_size": size,
                "mean": info.mean,
                "std": info.std,
                "crop_pct": _share(info.image_size, info.crop_pct),
                "interpolation": "bilinear",  # where pictures are enlarged ours too (docs/decisions.md)
                "tag": f"{TAG}{info.objective}",
            }
        },
        model_args={"img_size": info.image_size} if fixed else None,
        safe_serialization=True,
    )
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in NOT_OURS:
        config["pretrained_cfg"].pop(key, None)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    (out / "model.safetensors").chmod(path.stat().st_mode)  # safetensors writes what none but its owner may read


def _share(size: int, share: float) -> float:
    """By which timm, which rounds the side down, resizes pictures to the pixels that xclr-eval does."""
    side = round(size / share)
    return share if int(size / share) == side else round(size / (side + 0.25), 6)


def _name(checkpoint: Path) -> str:
    """Of its run."""
    return run_of(checkpoint.resolve()).name


def _is_ours(out: Path) -> bool:
    """Whether its files are those of an earlier export, though one was killed before it wrote the card."""
    settings = _json(out / "config.json").get("pretrained_cfg", {})
    torn = str(settings.get("tag", "")).startswith(TAG) and not (out / "README.md").exists()
    return bool(_run_named(out / "README.md")) or torn


def _run_named(card: Path) -> str:
    """By a model card; empty where none is there, or says."""
    try:
        found = re.search(r"^\| Run \| (.*) \|$", card.read_text(encoding="utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        return ""
    return found[1] if found else ""


def _card(info: BackboneInfo, checkpoint: Path, weights: str) -> str:
    """The model card, filled from what lies in the run's folder."""
    run, recipe = run_of(checkpoint), info.recipe
    facts = _json(run / "run.json")
    last = _last_metrics(run / "metrics.jsonl", info.step)
    data = f"{facts.get('dataset', 'unknown')}, {facts.get('samples', 'unknown')} samples"
    tau, tau_s = f"tau {recipe.objective.tau:g}", f"tau_s {recipe.objective.tau_s:g}"
    objective = {
        "xclr": f"X-CLR, graph {recipe.data.graph or 'unknown'}, {tau}, {tau_s}, tail {recipe.objective.tail}",
        "simclr": f"SimCLR, {tau}",
        "supcon": f"SupCon, {tau}",
        "clip": "CLIP, learned temperature",
    }[recipe.objective.name]
    rows = {
        "Architecture": f"{info.model} (timm), {info.feature_dim} features, {info.image_size} pixels",
        "Input": f"mean {info.mean}, std {info.std}, centre crop of {info.crop_pct:g} of the shorter side",
        "Objective": objective,
        "Data": data,
        "Training": f"step {info.step} of {facts.get('steps', 'unknown')}, batch {recipe.data.batch_size}, "
        f"{recipe.optimiser.name}, learning rate {recipe.optimiser.peak_lr(recipe.data.batch_size):g}, "
        f"{recipe.precision}, seed {recipe.seed}",
        "Started from": "timm's weights" if recipe.model.start == TIMM else recipe.model.start or "random weights",
        "Run": _name(checkpoint),
        "Checkpoint": f"{checkpoint.name}, sha256 {info.sha256}",
        "Weights": f"model.safetensors, sha256 {weights}",
    }
    rows |= {f"Training {name}": f"{value:.4g}" for name, value in last.items()}
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: timm
tags: [image-feature-extraction, timm, x-clr]
---

# {info.model}, trained with {recipe.objective.name}

| | |
|---|---|
{table}

    import timm  # 1.0.26 or newer
    model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))  # of a PIL image in RGB
    features = model(prepare(image)[None])  # [1, {info.feature_dim}]

An image encoder trained with xclr. The training figures are of training data; scores come from `xclr-eval`.

Full recipe:

```json
{json.dumps(as_table(recipe), indent=1)}
```
"""


def _last_metrics(path: Path, step: int) -> dict[str, float]:
    """The newest values up to `step` of what says how a run went."""
    found: dict[str, float] = {}
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        if values.get("step", 0) <= step:
            found |= {k: values[k] for k in ("loss", "knn", "knn_similarity", "rankme") if k in values}
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
