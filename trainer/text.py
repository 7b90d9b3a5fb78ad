"""Captions for the objective `clip`: words to numbers, and the text tower. Nothing is downloaded.

The vocabulary is the words of the shards' own texts, the most frequent first; any other word is spelled in bytes. A
caption is then about as many tokens as words, a fifth of its bytes, and the tower's cost goes with its length.
Token numbers: 0..255 bytes, 256 begin, 257 end, 258 padding, 259 and up words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from shards.errors import UserError
from trainer.recipe import TextConfig

__all__ = ["Captions", "TextTower", "vocabulary"]

BEGIN, END, PAD, FIRST_WORD = 256, 257, 258, 259
MOST_SCALE = 100.0  # Radford et al. 2021, section 2.5
WORD = re.compile(r"\w+|[^\w\s]")


def vocabulary(texts: Iterable[str], size: int) -> list[str]:
    """The `size` most frequent words that come at least twice; ties in alphabetical order."""
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    frequent = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
    return frequent[:size]


class Captions:
    """Texts of the shards as rows of token numbers."""

    def __init__(self, texts: Sequence[str], words: Sequence[str], length: int) -> None:
        self.texts, self.length = texts, length
        self.numbers = {word: FIRST_WORD + i for i, word in enumerate(words)}

    def tokens(self, texts: torch.Tensor, samples: torch.Tensor, epoch: int) -> torch.Tensor:
        """[b] text ids and sample numbers -> [b, longest] int64, padded.

        Of several captions of a text each gets its turn, one an epoch: which is a function of (epoch, sample).
        """
        rows = [self.encode(self.caption(t, s + epoch)) for t, s in zip(texts.tolist(), samples.tolist(), strict=True)]
        out = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
        for row, numbers in zip(out, rows, strict=True):
            row[: len(numbers)] = numbers
        return torch.from_numpy(out)

    def caption(self, text: int, turn: int) -> str:
        captions = self.texts[text].split("\n")
        return captions[turn % len(captions)]

    def encode(self, caption: str) -> list[int]:
        """Begin, at most length - 2 tokens, end."""
        numbers = [BEGIN]
        for word in WORD.findall(caption.lower()):
            known = self.numbers.get(word)
            numbers.extend([known] if known is not None else word.encode())
        return [*numbers[: self.length - 1], END]


class TextTower(nn.Module):
    """CLIP's text transformer from a configuration of transformers, with CLIP's learned temperature beside it."""

    def __init__(self, config: TextConfig, words: int, out: int, tau: float) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        if config.width % config.heads:
            raise UserError(f"text.width {config.width} does not divide over {config.heads} heads")
        self.transformer = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=FIRST_WORD + words,
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.length,
                projection_dim=out,
                bos_token_id=BEGIN,
                eos_token_id=END,
                pad_token_id=PAD,
            )
        )
        self.log_scale = nn.Parameter(torch.tensor(min(1 / tau, MOST_SCALE)).log())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[b, length] -> [b, out], of length 1 / tau each. Attention looks back only, so padding needs no mask."""
        output: Any = self.transformer(input_ids=tokens)
        return self.log_scale.exp() * functional.normalize(cast(torch.Tensor, output.text_embeds).float(), dim=1)

    @torch.no_grad()
    def bound(self) -> None:
        """After each step. Cut off in forward, a scale past the bound would have no gradient to come back by."""
        self.log_scale.clamp_(max=math.log(MOST_SCALE))
