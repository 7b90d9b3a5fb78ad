"""A class: its folder or label, its names, and the caption made of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from pipeline.sources.captions import normalise
from shards.bars import say
from shards.class_names import as_text, called

__all__ = ["ClassName", "class_names", "tell_numbers", "tell_twins"]

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


def tell_numbers(classes: Sequence[ClassName], where: str) -> None:
    """Of captions made of names that are all numbers. where: they may be named."""
    if all(one.name.isdecimal() for one in classes):
        say(
            f"note: captions are numbers, such as {classes[-1].caption!r}, which say nothing of what is to be seen: "
            f"name the classes {where}"
        )


def tell_twins(what: str, names: Sequence[str]) -> None:
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.lower(), []).append(name)
    if twins := [group for group in alike.values() if len(group) > 1]:
        words = ", ".join(map(repr, twins[0]))
        say(f"note: {what} that differ in case alone ({words}) are classes of their own: write alike what is one class")
