"""Wu-Palmer similarity of classes in WordNet's noun taxonomy.

    similarity(a, b) = 2 depth(s) / (2 depth(s) + path(a, s) + path(b, s)),   s: the deepest common hypernym

as NLTK computes it (a root has depth 1). The two files are read here rather than by NLTK: its reader refuses folders
outside nltk_data and wants a `lexnames` file that Debian's wordnet-base lacks, and takes 1 ms a pair where this takes
microseconds; a test holds the two against each other. Z. Wu and M. Palmer, Verb semantics and lexical selection, 1994.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.class_names import WNID
from shards.errors import UserError

__all__ = ["Nouns", "find_wordnet", "read_nouns", "synset_of", "wu_palmer"]

PLACES = ("/usr/share/wordnet", "/usr/share/nltk_data/corpora/wordnet", "/usr/local/share/nltk_data/corpora/wordnet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nouns:
    """WordNet's nouns; a synset is named by its offset in data.noun, as in ImageNet's `n02084071`."""

    hypernyms: Mapping[int, tuple[int, ...]]
    lemmas: Mapping[int, tuple[str, ...]]
    """Lower case, with underscores."""
    instances: frozenset[int]
    """Synsets that are an individual, such as a person or a place: no class of things."""
    senses: Mapping[str, tuple[int, ...]]
    """Lemma -> synsets, the most frequent sense first."""


def find_wordnet(folder: Path | None = None) -> Path:
    """A folder with data.noun and index.noun: the one given, or where Debian and NLTK put it."""
    homes = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), str(Path.home() / "nltk_data")]
    places = [Path(p) for p in PLACES] + [Path(home) / "corpora" / "wordnet" for home in homes if home]
    for place in places if folder is None else [folder, folder / "corpora" / "wordnet"]:
        if (place / "data.noun").is_file() and (place / "index.noun").is_file():
            return place
    where = folder or ", ".join(map(str, places))
    raise UserError(
        f"no WordNet (data.noun, index.noun) in {where}: install it with `apt install wordnet-base`, or name a folder"
        " that has it with --source"
    )


def read_nouns(folder: Path) -> Nouns:
    """Parse data.noun and index.noun (format: wndb(5WN)); lines that begin with a space are the licence."""
    hypernyms, lemmas, instances, senses = {}, {}, set(), {}
    with (folder / "data.noun").open(encoding="utf-8") as file:
        for line in file:
            if line.startswith(" "):
                continue
            fields = line.partition("|")[0].split()
            offset, words = int(fields[0]), int(fields[3], 16)
            pointers = fields[5 + 2 * words : 5 + 2 * words + 4 * int(fields[4 + 2 * words])]
            lemmas[offset] = tuple(word.lower() for word in fields[4 : 4 + 2 * words : 2])
            up = [(pointers[i], int(pointers[i + 1])) for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
            hypernyms[offset] = tuple(target for _, target in up)
            if any(symbol == "@i" for symbol, _ in up):
                instances.add(offset)
    with (folder / "index.noun").open(encoding="utf-8") as file:
        for line in file:
            if not line.startswith(" "):
                fields = line.split()
                senses[fields[0]] = tuple(int(offset) for offset in fields[-int(fields[2]) :])
    return Nouns(hypernyms=hypernyms, lemmas=lemmas, instances=frozenset(instances), senses=senses)


def synset_of(name: str, nouns: Nouns) -> int | None:
    """The synset a class name means: a WordNet id (`n02084071`), or words ("black widow, Latrodectus mactans").

    Of the senses of its comma-separated words that are no individuals, the one that holds the most of them; of equals
    the most frequent sense of the first word.
    """
    if WNID.fullmatch(name.strip()):
        offset = int(name.strip()[1:])
        return offset if offset in nouns.hypernyms else None
    words = ["_".join(word.lower().split()) for word in name.replace("_", " ").split(",") if word.strip()]
    senses = list(dict.fromkeys(s for word in words for s in nouns.senses.get(word, ()) if s not in nouns.instances))
    # max keeps the first of equals
    return max(senses, key=lambda s: len(set(words) & set(nouns.lemmas[s])), default=None)


def wu_palmer(synsets: Sequence[int], nouns: Nouns) -> npt.NDArray[np.float32]:
    """[n, n] similarities, 1 on the diagonal; 0 where two synsets have no common hypernym.

    The deepest common hypernym is the one whose shortest path from the root is longest, then the first by lemma (so
    does NLTK); its depth counts its longest path.
    """
    paths = {synset: _ancestors(synset, nouns) for synset in synsets}

    @cache
    def depths(synset: int) -> tuple[int, int]:
        above = [depths(parent) for parent in nouns.hypernyms[synset]]
        return (1 + min(low for low, _ in above), 1 + max(high for _, high in above)) if above else (1, 1)

    def pair(a: int, b: int) -> float:
        common = paths[a].keys() & paths[b].keys()
        if not common:
            return 0.0
        deepest = min(common, key=lambda s: (-depths(s)[0], s != a, nouns.lemmas[s][0], s))
        above = _ancestors(deepest, nouns)
        legs = [min(path[s] + up for s, up in above.items()) for path in (paths[a], paths[b])]
        depth = depths(deepest)[1]
        return 2 * depth / (2 * depth + sum(legs))

    matrix = np.eye(len(synsets), dtype=np.float32)
    for i, a in enumerate(synsets):
        for j, b in enumerate(synsets[:i]):
            matrix[i, j] = matrix[j, i] = pair(min(a, b), max(a, b)) if a != b else 1.0
    return matrix


def _ancestors(synset: int, nouns: Nouns) -> dict[int, int]:
    """Every hypernym, itself included, with the length of the shortest way up."""
    distance, level, steps = {synset: 0}, [synset], 0
    while level:
        steps += 1
        level = [parent for s in level for parent in nouns.hypernyms[s]]
        level = [parent for parent in dict.fromkeys(level) if parent not in distance]
        distance.update(dict.fromkeys(level, steps))
    return distance
