"""One rule for every caption (docs/format.md, texts.parquet): what counts as the same text is decided here."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable

__all__ = ["joined", "normalise"]

# White space and control characters, the C1 block and Unicode's line and paragraph separators included.
BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
UNSEEN = ("Cf", "Zs")  # zero-width characters and their kin: a caption of nothing else is none
SURROGATES = re.compile(r"[\ud800-\udfff]")


def normalise(caption: str | bytes, longest: int) -> str:
    """UTF-8 with U+FFFD for what is not; NFC; runs of blanks and control characters to one space; cut to `longest`.

    Only the part that can survive the cut is looked at, so a caption of a gigabyte costs no more than a long one.
    """
    if type(caption) is str and len(caption) <= longest and caption.isascii() and caption.isprintable():
        # Nearly all of them, ten times as fast.
        return caption.strip() if "  " not in caption else " ".join(caption.split())
    caption = caption.lstrip()
    part = caption[: 12 * longest]  # NFC makes one character of up to three, of at most four bytes of UTF-8 each
    if isinstance(part, bytes):  # not final: what the cut tears is left out, not replaced
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        part = decoder.decode(part, final=len(part) == len(caption))
    text = part
    text = SURROGATES.sub("\ufffd", text)
    text = BLANK.sub(" ", unicodedata.normalize("NFC", text)).strip()[:longest].rstrip()
    return text if any(unicodedata.category(character) not in UNSEEN for character in text) else ""


def joined(captions: Iterable[object], longest: int) -> str:
    """The text of a sample: its captions, each once, normalised, joined by newlines; "" when none has any letter.

    What is neither a string nor bytes (a number, None) is no caption.
    """
    texts = [normalise(caption, longest) for caption in captions if isinstance(caption, (str, bytes))]
    return texts[0] if len(texts) == 1 else "\n".join(dict.fromkeys(filter(None, texts)))
