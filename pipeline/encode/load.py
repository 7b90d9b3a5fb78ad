"""From a folder of weights to a function captions -> embeddings.

torch and sentence-transformers take seconds to import, so they are imported where they are used: `xclr-shards info`
should not wait for them.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError

from pipeline.encode.encoder import Encoder, EncoderSource
from shards.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

__all__ = ["load_encoder"]

ALIKE = ("a cat", "a dog", "a map", "an ox")  # of equal length, which is all that an empty tokenizer sees
_checked: set[EncoderSource] = set()  # in this process


def load_encoder(source: EncoderSource, device: str, precision: str) -> Encoder:
    """Load a CLIP text tower where config.json says so, a sentence-transformers model otherwise.

    precision: the torch dtype of weights and arithmetic, by name. Raises UserError where the folder is neither, and
    where weights or tokenizer are not all there.
    """
    before = None if source in _checked else _load(source, device, precision).embed(ALIKE)
    if before is not None:
        gc.collect()  # models hold themselves in circles, and two may be more than a GPU's memory
    encoder = _load(source, device, precision)
    if before is not None:
        _check(source, before, encoder.embed(ALIKE))
        _checked.add(source)
    return encoder


def _check(source: EncoderSource, first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> None:
    """What a folder lacks the libraries make up, in silence: weights are drawn at random, a tokenizer is empty."""
    if not np.isfinite(first).all():
        return  # the encoding says so
    if not np.allclose(first, second, atol=1e-3):
        raise UserError(
            f"{source.folder} lacks weights of its model, which would be drawn at random, anew each time: take the "
            "model's whole folder"
        )
    if float((first @ first.T).min()) > 1 - 1e-5:
        raise UserError(
            f"{source.folder} gives {ALIKE[0]!r} and {ALIKE[1]!r} one and the same vector: its tokenizer's files are "
            "missing, or damaged"
        )


def _load(source: EncoderSource, device: str, precision: str) -> Encoder:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    dtype: torch.dtype = getattr(torch, precision)
    config = _config(source)
    if config.get("model_type") in ("clip", "clip_text_model") and not (source.folder / "modules.json").exists():
        from pipeline.encode.clip_text import load_clip_text

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
    # AttributeError, TypeError: of JSON files that hold something else, or name files that are lost
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise UserError(f"cannot load the encoder in {source.folder}: {first_line(error)}") from None
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


def _config(source: EncoderSource) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # sentence-transformers keeps it in a folder of the first module as well
    except ValueError as error:
        raise UserError(f"{source.folder / 'config.json'} is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"{source.folder / 'config.json'} holds no settings: take the model's whole folder")
    return config
