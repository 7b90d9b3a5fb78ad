"""A graph as the similarity block looks it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from shards.errors import UserError
from shards.graph import Graph

__all__ = ["Tail", "TextTable"]

Tail = Literal["code", "background", "none"]
LONGEST = 1.05  # of codes of unit vectors: rounding makes it 1.02 at most


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A graph: what the block looks up for the texts of a batch.

    Its rows stay in the host's memory (12 M captions: 8 GB, which a GPU has better use for), and those of a batch are
    sent to `device`, some 0.8 KB a sample.
    """

    device: torch.device
    """Where blocks are made."""
    tail: Tail
    indptr: torch.Tensor
    """[n + 1] int64."""
    neighbours: torch.Tensor
    """[listed] int32."""
    similarities: torch.Tensor
    """[listed] float16."""
    background_mean: torch.Tensor
    """[n] float32."""
    background_std: torch.Tensor
    """[n] float32."""
    codes: torch.Tensor | None
    """[n, dim] int8, for tail `code` only."""
    code_scale: torch.Tensor | None
    """[n] float32."""
    long: bool = False
    """Whether codes are longer than unit vectors, so that similarities exceed 1: of a graph that was made elsewhere."""
    matrix: torch.Tensor | None = None
    """[n, n] float16 on `device`, of a complete graph alone: its lists would be a batch's whole block, pair by pair."""

    @classmethod
    def from_graph(cls, graph: Graph, device: torch.device | str, tail: Tail = "code") -> TextTable:
        """Raises UserError where `tail` is unknown, or `code` and the graph has no codes, though it needs some.

        A complete graph lists every pair, so it has no tail, whatever is asked for.
        """
        if not isinstance(graph, Graph):
            raise TypeError(f"graph is a Graph, not {type(graph).__name__}: shards.graph()")
        if tail not in get_args(Tail):
            raise UserError(f"tail is one of {', '.join(get_args(Tail))}, not {tail!r}")
        complete = len(graph.neighbours) == len(graph) * (len(graph) - 1)
        indptr, neighbours, similarities = graph.indptr, graph.neighbours, graph.similarities
        mean, deviation = graph.background_mean, graph.background_std
        if complete:  # the matrix stands for its lists, which a part of them, or of a file they share, would keep whole
            tail, neighbours, similarities = "none", np.empty(0, np.int32), np.empty(0, np.float16)
            indptr, mean, deviation = indptr.copy(), mean.copy(), deviation.copy()
        coded = tail == "code"
        if coded and (graph.codes is None or graph.code_scale is None):
            raise UserError(
                "this graph has no codes for the pairs that it does not list: use --tail background or --tail none"
            )
        return cls(
            device=torch.device(device),
            tail=tail,
            indptr=torch.from_numpy(indptr),
            neighbours=torch.from_numpy(neighbours),
            similarities=torch.from_numpy(similarities),
            background_mean=torch.from_numpy(mean),
            background_std=torch.from_numpy(deviation),
            codes=torch.from_numpy(graph.codes) if coded and graph.codes is not None else None,
            code_scale=torch.from_numpy(graph.code_scale) if coded and graph.code_scale is not None else None,
            long=coded and _longest(graph) > LONGEST,
            matrix=_matrix(graph).to(device) if complete else None,
        )


def _longest(graph: Graph) -> float:
    """The largest similarity of a code to itself, of some thousand texts."""
    assert graph.codes is not None
    assert graph.code_scale is not None
    some = np.arange(0, len(graph), 1 + len(graph) // 4096)
    vectors = graph.codes[some].astype(np.float32) * graph.code_scale[some, None]
    return float(np.square(vectors).sum(axis=1).max(initial=0.0))


def _matrix(graph: Graph) -> torch.Tensor:
    n = len(graph)
    matrix = np.ones((n, n), np.float16)
    for row, start, stop in zip(matrix, graph.indptr[:-1], graph.indptr[1:], strict=True):
        row[graph.neighbours[start:stop]] = graph.similarities[start:stop]
    return torch.from_numpy(matrix)
