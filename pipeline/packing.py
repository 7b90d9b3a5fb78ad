"""Layout packed: samples in groups whose texts are one another's neighbours.

What a list of neighbours is uniquely good for is building batches: a random batch holds next to none of a text's
neighbours (0.3 a row among 160,840 captions at batch 1024). A group grows from a random text by what the texts
already in it list most, half its size at a time; so its members list each other, and not only the first one.

The copies of a text go to different groups. All of them in one batch would have G = 1 with each other, take the
target's mass and leave the graded neighbours, which groups are for, next to nothing; a text's own second view says
"this text is like itself" already.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.encode.encoder import EncoderSource
from shards.atomic import write_array
from shards.bars import bar
from shards.errors import UserError
from shards.graph import flat_places
from shards.index import read_texts

__all__ = ["GROWTH", "Packing", "batch_edges", "in_groups", "neighbour_groups", "packed_order"]

Ints = npt.NDArray[Any]
GROWTH = 1.5  # 160,840 captions, groups of 32: 11.2 edges a row; 2 gives 10.4, the whole list at once 7.8
SWAPS = 64  # rounds in which a group of several copies of a text changes one of them for a sample of another group
REPORT = 1 << 14  # samples between two moves of the progress bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What decides the groups, besides texts and seed: the search is that of the encoder graph."""

    encoder: EncoderSource
    group_size: int = 32
    """Samples a group."""
    k: int = 32
    """Nearest texts that a text lists."""
    recall: float = 0.99
    """Recall that the search must reach on a sample, 0..1."""
    memory: int | None = None
    """Bytes that the search may hold beside the embeddings."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise UserError(f"a group has at least 2 samples, not {self.group_size}: raise --group-size")

    def settings(self) -> dict[str, Any]:
        """What the manifest says of it: all that decides bytes."""
        return {
            "group_size": self.group_size,
            **self.encoder.identity(),
            "k": self.k,
            "recall": self.recall,
        }


def packed_order(out: Path, work: Path, text_ids: Ints, packing: Packing, seed: int) -> Ints:
    """[n] all samples, group after group; all groups but the last are of packing.group_size.

    text_ids: [n] of each sample, texts.parquet in `out`. work: keeps the order once it is found. The finished encoding
    and search stay in the work folder of the graph of these settings, which goes on from them.
    """
    path = work / "packed.npy"
    if path.exists():
        kept: Ints = np.load(path)
        return kept
    lists = _lists(out, packing, seed)
    counts = np.bincount(text_ids, minlength=len(lists[0]) - 1)
    order = in_groups(text_ids, neighbour_groups(*lists, counts, packing.group_size, seed), packing.group_size, seed)
    write_array(path, order)
    return order


def neighbour_groups(indptr: Ints, neighbours: Ints, similarities: Ints, counts: Ints, size: int, seed: int) -> Ints:
    """[n samples] text ids such that each `size` in a row list one another as much as may be.

    counts: [texts] samples of each text; each is named so often, within a group once unless nothing else is left.
    Time grows with the number of listed pairs.
    """
    left, inside = counts.astype(np.int64), np.zeros(len(counts), np.bool_)
    rng = _generator(seed, 1)
    starts = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    pieces: list[Ints] = []
    with bar(f"packing groups of {size}", len(starts)) as advance:
        for number, start in enumerate(starts):
            if number % REPORT == 0:
                advance(min(REPORT, len(starts) - number))
            if not left[start]:
                continue
            members = _grow(start, indptr, neighbours, similarities, left, inside, size)
            if len(members) == 1:  # no neighbour has samples left: each of its own stands alone
                pieces += [members] * int(left[start])
                left[start] = 0
            else:
                left[members] -= 1
                pieces.append(members)
    return _parted(_joined(pieces, rng), size, rng)


def in_groups(text_ids: Ints, sequence: Ints, size: int, seed: int) -> Ints:
    """[n] samples in the order of a sequence of texts, the groups of `size` shuffled, the short one last."""
    rng = _generator(seed, 2)
    mixed = rng.permutation(len(text_ids))  # which sample of a text goes to which group
    samples = np.empty(len(sequence), np.int64)
    samples[np.argsort(sequence, kind="stable")] = mixed[np.argsort(text_ids[mixed], kind="stable")]
    whole = len(samples) // size * size
    groups = rng.permutation(whole // size)
    return np.concatenate([samples[:whole].reshape(-1, size)[groups].ravel(), samples[whole:]])


def batch_edges(indptr: Ints, neighbours: Ints, texts: Ints) -> float:
    """Listed neighbours that a row has in a batch, on average. texts: [batch] text ids; copies count each."""
    held = np.bincount(texts, minlength=len(indptr) - 1)
    return float(held[neighbours[flat_places(indptr, texts)]].sum() / len(texts))


def _grow(start: int, indptr: Ints, neighbours: Ints, similarities: Ints, left: Ints, inside: Ints, size: int) -> Ints:
    """[at most size] text ids, `start` first: again and again the best linked of what the group's texts list.

    inside: scratch, all False before and after.
    """
    members = np.array([start])
    inside[start] = True
    while len(members) < size:
        places = flat_places(indptr, members)
        free = (left[neighbours[places]] > 0) & ~inside[neighbours[places]]
        places = places[free]
        if not len(places):
            break
        found, which = np.unique(neighbours[places], return_inverse=True)
        links = np.bincount(which, weights=similarities[places])
        wanted = min(max(1, int((GROWTH - 1) * len(members))), size - len(members))
        best = found[np.argsort(-links, kind="stable")[:wanted]]
        inside[best] = True
        members = np.concatenate([members, best])
    inside[members] = False
    return members


def _joined(pieces: list[Ints], rng: np.random.Generator) -> Ints:
    """Whole groups, then what did not fill one, longest first; equals at random, which parts copies of a text."""
    lengths = np.array([len(piece) for piece in pieces])
    mixed = rng.permutation(len(pieces))
    order = mixed[np.argsort(-lengths[mixed], kind="stable")]
    return np.concatenate([pieces[i] for i in order])


def _parted(sequence: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Swap copies of a text that share a group with random samples of other groups, where there are groups without."""
    whole = sequence[: len(sequence) // size * size].reshape(-1, size)
    for _ in range(SWAPS if len(whole) > 1 else 0):
        order = np.argsort(whole, axis=1, kind="stable")
        row, place = np.nonzero(np.diff(np.take_along_axis(whole, order, axis=1), axis=1) == 0)
        if not len(row):
            break
        # One swap a group and round, so that no two of them meet.
        row, first = np.unique(row, return_index=True)
        column = order[row, place[first] + 1]
        free = rng.permutation(np.setdiff1d(np.arange(len(whole)), row))[: len(row)]
        row, column, other = row[: len(free)], column[: len(free)], rng.integers(0, size, len(free))
        here, there = whole[row, column], whole[free, other]
        fits = ~((whole[free] == here[:, None]).any(axis=1) | (whole[row] == there[:, None]).any(axis=1))
        whole[row[fits], column[fits]], whole[free[fits], other[fits]] = there[fits], here[fits]
    return np.concatenate([whole.ravel(), sequence[whole.size :]])


def _lists(out: Path, packing: Packing, seed: int) -> tuple[Ints, Ints, Ints]:
    """The lists that the graph will hold."""
    # Not above: each process of a build imports this file with the settings, and would load FAISS, of 170 MB.
    from pipeline.graph.build import graph_name
    from pipeline.graph.kinds import GraphSettings, search_texts
    from pipeline.search.neighbours import symmetric_lists
    from pipeline.work import alone

    settings = GraphSettings(k=packing.k, code_dim=1, seed=seed, target=packing.recall, memory=packing.memory)
    folder = out / "graphs" / graph_name("encoder", packing.encoder, None, packing.k)
    with alone(folder, "choose another OUT= (--out)") as work:
        found = search_texts(read_texts(out), packing.encoder, settings, work)
        return symmetric_lists(found.ids, found.similarities)


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, purpose]))  # purpose 0: the shuffled layout
