"""What class folders and labels are called: by classes.tsv, as ImageNet calls WordNet ids, or by their own names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from shards.bars import say

__all__ = ["WNID", "as_text", "called", "names_file"]

WNID = re.compile(r"n\d{8}")
NAMES_FILE = "classes.tsv"


def called(folders: Sequence[str], known: Mapping[str, str], single: Collection[str] = ()) -> list[tuple[str, str]]:
    """(all names of a class, separated by commas; the words that tell it from the others) of class folders, or labels:
    names that are known, for WordNet ids ImageNet's, else their own.

    The words are the first name. Classes that share it (ImageNet has two cranes) have all their names, then the
    definition or the folder's name too. single: folders whose name is one, though it may hold commas.
    """
    folders = [as_text(folder) for folder in folders]
    imagenet = _from_imagenet([folder for folder in folders if WNID.fullmatch(folder)])
    names = [
        known.get(folder) or imagenet.get(folder, ("",))[0] or folder.replace("_", " ").strip() for folder in folders
    ]
    words = [
        name if folder in single else name.split(",")[0].strip() for folder, name in zip(folders, names, strict=True)
    ]
    details = [f"{name}, {imagenet[f][1] if f in imagenet else f}" for f, name in zip(folders, names, strict=True)]
    for longer in (names, details):
        shared = {word for word, count in Counter(words).items() if count > 1}
        words = [more if word in shared else word for word, more in zip(words, longer, strict=True)]
    return list(zip(names, words, strict=True))


def as_text(name: str) -> str:
    """A file's name with U+FFFD for what is not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def names_file(place: Path) -> dict[str, str]:
    """Folder (or label) -> names, from PLACE/classes.tsv; empty where there is none."""
    path = place / NAMES_FILE
    if not path.is_file():
        return {}
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    found = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1 and row[1].strip()}
    if rows and not found:
        say(f"note: {path} names nothing: a line is a class's folder or label, a tab and its names")
    return found


def _from_imagenet(wnids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(names, definition) of those that are ImageNet synsets; timm carries them."""
    if not wnids:
        return {}
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names()).intersection(wnids)
    names = {wnid: str(info.label_name_to_description(wnid)) for wnid in known}
    both = {wnid: str(info.label_name_to_description(wnid, detailed=True)) for wnid in known}
    return {wnid: (name, both[wnid].removeprefix(name).lstrip(": ")) for wnid, name in names.items()}
