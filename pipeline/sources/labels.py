"""Labels beside captions: what a cell, a field of KEY.json or a member of a tar says of a sample's class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.sources.captions import normalise, several
from shards.errors import UserError

__all__ = ["NO_LABEL", "Labels", "carried_names", "is_number", "label_text"]

NO_LABEL, SEVERAL, UNKNOWN, LONG = "no label", "several labels", "unknown label", "label of too many characters"
LONGEST = 2000  # characters, as of captions; a longer one is none, for two that are cut might be one
NUMBER = re.compile(r"-?[0-9]+")
WHOLE = re.compile(r"(-?[0-9]+)\.0*")  # pandas writes whole numbers so where some are missing


@dataclass(slots=True)
class Labels:
    """Reads labels, given the classes' names where these are known beforehand."""

    given: tuple[str, ...] = ()
    """Names of labels 0, 1, ... by the data set file."""
    carried: tuple[str, ...] = ()
    """And by the file that is read, which may number the same classes otherwise. Without both any text is a label."""
    by_name: dict[str, str] = field(init=False, default_factory=dict)
    by_number: list[str] = field(init=False, default_factory=list)
    taken: tuple[str, ...] = field(init=False)
    """The file's own names, where its numbers are taken as they stand, so that other files must number alike."""

    def __post_init__(self) -> None:
        """Raises UserError where the file's names are those of the data set file in part."""
        names, own = ([label_text(name) for name in part] for part in (self.given or self.carried, self.carried))
        counts = Counter(names)  # two cranes are told apart by their numbers alone
        self.by_name = {name: str(number) for number, name in enumerate(names) if counts[name] == 1}
        self.by_number = [str(number) for number in range(len(names))]
        self.taken = self.carried
        if self.given and own and own != names:
            found = [self.by_name.get(name, "") for name in own]
            if all(found):
                self.by_number, self.taken = found, ()
            elif any(found):
                raise UserError(
                    f"a file calls a class {own[found.index('')]!r}, which classes = [...] of the data set file lacks: "
                    "give all the names that the files use, or other words for every one, in the files' order"
                )

    def one(self, values: Iterable[object]) -> tuple[str, str]:
        """(the one label among values, "") or (what is there instead, the reason why that cannot be used).

        The label is a text, or where names are known the number of one, as text; "" where no value holds any. A
        negative number is then no label, as in the test splits of Hugging Face.
        """
        found = list(dict.fromkeys(filter(None, map(label_text, _flat(values)))))
        if any(len(text) >= LONGEST for text in found):
            return found[0][:60], LONG
        if self.by_number:
            given, found = found, [text for text in found if not (text[0] == "-" and NUMBER.fullmatch(text))]
            found = list(dict.fromkeys(map(self._number, found)))
            if "" in found:
                return ", ".join(map(repr, given))[:200], UNKNOWN
        if len(found) > 1:
            return ", ".join(map(repr, found))[:200], SEVERAL
        return (found[0] if found else ""), ""

    def _number(self, text: str) -> str:
        """ "" for what is no class."""
        if not NUMBER.fullmatch(text):
            return self.by_name.get(text, "")
        return self.by_number[int(text)] if len(text) < 10 and int(text) < len(self.by_number) else ""


def carried_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Names of labels 0, 1, ... that a parquet file of Hugging Face carries (ClassLabel); () where it has none."""
    with suppress(LookupError, TypeError, ValueError, AttributeError, RecursionError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        while isinstance(found, list) or "names" not in found:  # a list of labels
            found = found[0] if isinstance(found, list) else found["feature"]
        names = found["names"]
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return ()


def label_text(value: object) -> str:
    """A label as text, whole numbers without decimals; "" for what is none: None, NaN, blanks, objects."""
    if isinstance(value, (int, float)):
        value = "" if value != value else str(value)
    text = normalise(value, LONGEST) if isinstance(value, (str, bytes)) else ""
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole else text


def is_number(label: str) -> bool:
    return bool(NUMBER.fullmatch(label))


def _flat(values: Iterable[object]) -> Iterator[object]:
    """Members of lists, of printed ones too, each alone."""
    for value in values:
        yield from value if isinstance(value, (list, tuple)) else _printed(value)


def _printed(value: object) -> Sequence[object]:
    """The members of a list that was written as text, numbers too."""
    if not isinstance(value, (str, bytes)) or value.lstrip()[:1] not in ("[", b"["):
        return [value]
    with suppress(ValueError, RecursionError):
        found = json.loads(value)
        if isinstance(found, list):
            return found
    return several(value)
