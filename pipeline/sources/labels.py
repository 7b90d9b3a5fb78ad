"""Labels beside captions: what a cell, a field of KEY.json or a member of a tar says of a sample's class."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.sources.captions import normalise

__all__ = ["NO_LABEL", "OTHER_CLASSES", "Labels", "carried_names", "label_text"]

NO_LABEL, SEVERAL, UNKNOWN = "no label", "several labels", "unknown label"
OTHER_CLASSES = "the parquet files of {where} name different classes: name them in the data set file, classes = [...]"
LONGEST = 200  # characters of a class's name
WHOLE = re.compile(r"(-?\d+)\.0*")  # pandas writes whole numbers so where some are missing


@dataclass(slots=True)
class Labels:
    """Reads labels, given the classes' names where these are known beforehand."""

    names: tuple[str, ...] = ()
    """Of labels 0, 1, ...; empty: any text is a label."""
    numbers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = {name: str(number) for number, name in reversed(list(enumerate(self.names)))}

    def one(self, values: Iterable[object]) -> tuple[str, str]:
        """The one label among values, "" where none holds any; and a reason why a sample cannot be used, or "".

        As text; where the names are known, as the number of one. Negative numbers are then no label, as in the test
        splits of Hugging Face.
        """
        found = dict.fromkeys(filter(None, map(label_text, _flat(values))))
        if self.names:
            found = dict.fromkeys(self._number(text) for text in found if not _negative(text))
        if len(found) > 1:
            return "", SEVERAL
        if "" in found:
            return "", UNKNOWN
        return next(iter(found), ""), ""

    def _number(self, text: str) -> str:
        """As text; "" for what is no class."""
        if text in self.numbers:
            return self.numbers[text]
        return str(int(text)) if text.isdecimal() and len(text) < 10 and int(text) < len(self.names) else ""


def carried_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Names of labels 0, 1, ... that a parquet file of Hugging Face carries (ClassLabel); () where it has none."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])
        names = content["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def label_text(value: object) -> str:
    """A label as text, whole numbers without decimals; "" for what is none: None, NaN, blanks, objects."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        value = "" if value != value else str(value)
    text = normalise(value, LONGEST) if isinstance(value, (str, bytes)) else ""
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def _flat(values: Iterable[object]) -> Iterable[object]:
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _negative(text: str) -> bool:
    return text[:1] == "-" and text[1:].isdecimal()
