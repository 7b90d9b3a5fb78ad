"""Scorers of the published benchmarks: sets of right classes, restricted choices, classes mapped to broader ones.

All follow one rule of ties: of equal scores the lower class comes first, as argmax has it. A score that is not a number
counts as better than any other, so that a model that diverged scores nothing instead of everything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from eval.benchmarks.bench import LEFT_OUT, Floats, Ints, Scorer, fingerprint

__all__ = ["any_of", "mapped"]

NOTHING = -1  # pads the sets of right classes to one width


def any_of(right: Sequence[Collection[int]], k: int = 1, among: Collection[int] | None = None) -> Scorer:
    """Right if one of an image's classes is among the k best scores; images of an empty set are not counted.

    right: [n] the classes that are right for each image, in any order.
    among: the choice is made among these classes only, the scores of all others are ignored. They must hold every
        class of `right`.
    """
    classes = None if among is None else np.array(sorted(among), np.int64)
    table = _table(right) if classes is None else _positions(_table(right), classes)

    def score(scores: Floats, rows: Ints) -> Floats:
        chosen = scores if classes is None else scores[:, classes]
        wanted = table[rows]  # [m, width]
        counted = (wanted != NOTHING).any(1)
        return np.where(counted, _best_rank(chosen, wanted) < k, np.nan).astype(np.float32)

    return Scorer(judge=score, truth=fingerprint(["any of", k, sorted(among or ()), table.shape, table.tobytes()]))


def mapped(labels: npt.ArrayLike, mapping: npt.ArrayLike) -> Scorer:
    """Right if the best class belongs to the broad class `labels` [n]; LEFT_OUT labels are not counted.

    mapping: [classes] the broad class of each class, LEFT_OUT for none: such a prediction is wrong, not left out.
    """
    truth, broad = np.asarray(labels, np.int64), np.asarray(mapping, np.int64)

    def score(scores: Floats, rows: Ints) -> Floats:
        wanted = truth[rows]
        hits = (broad[scores.argmax(1)] == wanted) & ~np.isnan(scores).any(1)
        return np.where(wanted != LEFT_OUT, hits, np.nan).astype(np.float32)

    return Scorer(judge=score, truth=fingerprint(["mapped", truth.tobytes(), broad.tobytes()]))


def _table(right: Sequence[Collection[int]]) -> Ints:
    """Sets as rows, ascending and padded with NOTHING: [n, size of the largest]."""
    table = np.full((len(right), max((len(classes) for classes in right), default=0) or 1), NOTHING, np.int64)
    for row, classes in enumerate(right):
        table[row, : len(classes)] = sorted(classes)
    return table


def _positions(table: Ints, classes: Ints) -> Ints:
    """The table's classes as positions in the ascending `classes`."""
    if not np.isin(table, np.append(classes, NOTHING)).all():
        raise ValueError("a right class is not among the classes to choose from")
    return np.where(table == NOTHING, NOTHING, np.searchsorted(classes, table))


def _best_rank(scores: Floats, wanted: Ints) -> Ints:
    """Rank (0: best) of the best-scored of each row's classes. scores [m, classes], wanted [m, width] ascending."""
    own = np.take_along_axis(scores, np.maximum(wanted, 0), 1)
    own = np.where(wanted == NOTHING, -np.inf, own)
    place = own.argmax(1)[:, None]  # the first of equals; rows ascend, so the lowest class of equals
    best, column = np.take_along_axis(own, place, 1), np.take_along_axis(wanted, place, 1)
    behind = (scores < best) | ((scores == best) & (np.arange(scores.shape[1]) > column))
    return np.asarray(scores.shape[1] - 1 - behind.sum(1), np.int64)
