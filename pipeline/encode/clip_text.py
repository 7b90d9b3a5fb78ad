"""The text tower of a CLIP model (transformers format) as an encoder: the paper's graph on captions used CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPTextModelWithProjection

from pipeline.encode.encoder import Encoder
from shards.errors import UserError, first_line

__all__ = ["load_clip_text"]


def load_clip_text(folder: Path, device: str, dtype: torch.dtype) -> Encoder:
    """Embeddings are the projected features of the end-of-text token, as CLIP compares them with images."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        loaded: Any = CLIPTextModelWithProjection.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    # AttributeError, TypeError: of JSON files that hold something else, or name files that are lost
    except (OSError, ValueError, KeyError, AttributeError, TypeError, SafetensorError) as error:
        raise UserError(f"cannot load the CLIP text tower in {folder}: {first_line(error)}") from None
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise UserError(
            f"{folder} lacks {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}, which would be drawn at "
            "random: take the folder of the whole CLIP model (text towers of image generators have no projection)"
        )
    model = model.to(device).eval()
    max_tokens = int(model.config.max_position_embeddings)

    def tokenise(captions: Sequence[str]) -> Any:
        return tokenizer(list(captions), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")

    def tokens(captions: Sequence[str]) -> list[int]:
        counts: list[int] = tokenise(captions)["attention_mask"].sum(1).tolist()
        return counts

    def embed(captions: Sequence[str]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            vectors = model(**tokenise(captions).to(device)).text_embeds.float()
            unit: npt.NDArray[np.float32] = torch.nn.functional.normalize(vectors, dim=1).cpu().numpy()
            return unit

    dim = int(model.config.projection_dim)
    return Encoder(embed=embed, tokens=tokens, dim=dim, max_tokens=max_tokens, device=device)
