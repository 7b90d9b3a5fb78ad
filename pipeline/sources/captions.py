"""One rule for every caption (docs/format.md, texts.parquet): what counts as the same text is decided here."""

from __future__ import annotations

import ast
import codecs
import json
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

__all__ = ["MISSING", "first_said", "joined", "normalise", "notes", "several"]

# What some write where there is no caption, or no label.
MISSING = ("-1", "nan", "na", "n/a", "#n/a", "#nv", "none", "null", "<na>", "-", "--", "?", "unknown")

ALL, LINES, REPLACED = "captions", "of several lines", "not UTF-8"  # what is counted of them

# White space and control characters, the C1 block and Unicode's line and paragraph separators included.
BLANK = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
UNSEEN = ("Cf", "Zs")  # zero-width characters and their kin: a caption of nothing else is none
SURROGATES = re.compile(r"[\ud800-\udfff]")
STRING = r"""(?:'(?:[^'\\\n]|\\.)*+'|"(?:[^"\\\n]|\\.)*+")"""
# A list as Python prints it, or NumPy, without commas (which Python itself would read as one string).
# Possessive throughout, so that no text takes longer than its length says.
PYTHON_LIST = re.compile(rf"\[\s*+{STRING}(?:\s*+(?:,\s*+)?{STRING})*+\s*+(?:,\s*+)?\]\s*+", re.DOTALL)


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


def joined(captions: Iterable[object], longest: int, counts: Counter[str]) -> str:
    """The text of a sample: its captions, each once, normalised, joined by newlines; "" when none has any letter.

    What is neither a string nor bytes (a number, None) is no caption; a printed list of strings is several. Adds to
    `counts` the captions, and those that lost something: of several lines, or not UTF-8.
    """
    given = [one for caption in captions if isinstance(caption, (str, bytes)) for one in several(caption)]
    texts = [normalise(caption, longest) for caption in given]
    counts[ALL] += len(given)
    if lines := sum(map(_has_lines, given)):
        counts[LINES] += lines
    if replaced := sum(map(_is_replaced, given, texts)):
        counts[REPLACED] += replaced
    return texts[0] if len(texts) == 1 else "\n".join(dict.fromkeys(filter(None, texts)))


def first_said(cells: Sequence[object]) -> object:
    """Of cells, each a caption or a list of such, the first that says something: not blank, none of MISSING. Else the
    first of all."""
    if len(cells) == 1:  # nearly all
        return cells[0]
    said = (cell for cell in cells if any(map(_says, cell if isinstance(cell, list) else [cell])))
    return next(said, cells[0] if cells else [])


def _says(caption: object) -> bool:
    if not isinstance(caption, (str, bytes)):
        return False
    texts = (normalise(one, 64) for one in several(caption))  # more than the longest of MISSING
    return any(text and text.lower() not in MISSING for text in texts)


def notes(counts: Counter[str]) -> list[str]:
    """What a user should know of all captions that were joined."""
    lines = {
        LINES: "held several lines, which were joined: where each line is a caption of its own, give a JSON list or a "
        "row for each (docs/sources.md)",
        REPLACED: "held bytes that are no UTF-8, which became U+FFFD: save them as UTF-8 (iconv -f LATIN1 -t UTF-8, "
        "say), and build anew",
    }
    return [f"note: {counts[key]:,} of {counts[ALL]:,} captions {line}" for key, line in lines.items() if counts[key]]


def several(caption: str | bytes) -> Sequence[str | bytes]:
    """The strings of a list that was written as text (JSON's `["a", "b"]`, Python's `['a', 'b']`), else the caption."""
    start = caption.lstrip()
    if start[:1] not in ("[", b"["):  # nearly all
        return [caption]
    text = start.decode("utf-8", "surrogateescape") if isinstance(start, bytes) else start
    found: object = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    if found is None and PYTHON_LIST.fullmatch(text):
        with suppress(ValueError, SyntaxError), warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of unknown escapes
            warnings.simplefilter("ignore", DeprecationWarning)  # the same, up to Python 3.11
            found = [ast.literal_eval(string) for string in re.findall(STRING, text, re.DOTALL)]
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else [caption]


def _has_lines(caption: str | bytes) -> bool:
    if isinstance(caption, bytes):
        return b"\n" in caption and b"\n" in caption.strip()
    return "\n" in caption and "\n" in caption.strip()


def _is_replaced(caption: str | bytes, text: str) -> bool:
    """Whether `text`, the caption normalised, holds an U+FFFD that the caption did not."""
    if "\ufffd" not in text:  # nearly all
        return False
    return "\ufffd" not in (caption.decode("utf-8", "ignore") if isinstance(caption, bytes) else caption)
