"""A class: its folder or label, its names, and the caption made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.sources.captions import normalise
from shards.class_names import as_text, called

__all__ = ["ClassName", "class_names"]

LONGEST = 2000  # characters of a caption


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    folder: str
    """Or its label, where a sample has one beside it."""
    name: str
    """All names, separated by commas, as WordNet has them."""
    caption: str
    """The text of every image of the class."""


def class_names(
    folders: Sequence[str], known: Mapping[str, str], template: str, single: Collection[str] = ()
) -> list[ClassName]:
    """Of class folders, or labels, as `called` says: different classes stay different texts."""
    return [
        ClassName(folder=as_text(folder), name=name, caption=normalise(template.replace("{class}", words), LONGEST))
        for folder, (name, words) in zip(folders, called(folders, known, single), strict=True)
    ]
