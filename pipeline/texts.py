"""Nodes of the graph: every different text once, numbered in the order of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["number_texts"]


def number_texts(scans: Sequence[Path]) -> tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.int64]]:
    """text id of every scanned sample [n], the texts by id, and how many samples have each.

    Holds the texts in memory (a gigabyte for 12 M captions), as their encoder will.
    """
    # large_string: offsets of 32 bits end at 2 GB of text
    columns = [
        pq.read_table(path, columns=["text"], partitioning=None)["text"].cast(pa.large_string()) for path in scans
    ]
    texts = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())
    encoded = pc.dictionary_encode(texts.combine_chunks())  # else every scan's chunk carries all texts
    ids = encoded.indices.to_numpy().astype(np.int64)
    return ids, encoded.dictionary, np.bincount(ids, minlength=len(encoded.dictionary)).astype(np.int64)
