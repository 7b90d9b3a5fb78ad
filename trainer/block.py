"""The similarity block of a batch: how similar local rows are to global columns, by the graph.

    G_ij = 1                      the other view of the same sample, and samples with the same text
           listed similarity      where the graph lists j's text for i's
           the tail               elsewhere: dot product of codes | a constant of the row | nothing
    and the diagonal (a row with itself) is out.

The target is softmax(G / tau_s) over a row. Nothing here holds a gradient, and nothing holds the whole block unless
asked for: `rows` gives any slice of it. simclr and supcon are the same block with G = 1 on the sibling, or on all rows
of the same label, and nothing elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from shards.errors import UserError
from shards.graph import Graph
from trainer.collectives import gather
from trainer.world import World

__all__ = ["Objective", "SimilarityBlock", "Tail", "TextTable"]

Objective = Literal["xclr", "simclr", "supcon"]
Tail = Literal["code", "background", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A graph on a device: what the block looks up for the texts of a batch."""

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

    @classmethod
    def from_graph(cls, graph: Graph, device: torch.device, tail: Tail = "code") -> TextTable:
        """Raises UserError where `tail` is unknown, or `code` and the graph has no codes."""
        if tail not in get_args(Tail):
            raise UserError(f"tail is one of {', '.join(get_args(Tail))}, not {tail!r}")
        coded = tail == "code"
        if coded and (graph.codes is None or graph.code_scale is None):
            raise UserError("this graph has no codes: use --tail background or --tail none, or build it with codes")
        return cls(
            tail=tail,
            indptr=torch.from_numpy(graph.indptr).to(device),
            neighbours=torch.from_numpy(graph.neighbours).to(device),
            similarities=torch.from_numpy(graph.similarities).to(device),
            background_mean=torch.from_numpy(graph.background_mean).to(device),
            background_std=torch.from_numpy(graph.background_std).to(device),
            codes=torch.from_numpy(graph.codes).to(device) if coded and graph.codes is not None else None,
            code_scale=torch.from_numpy(graph.code_scale).to(device)
            if coded and graph.code_scale is not None
            else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Sparse entries of the block, sorted by row: values that replace the tail's."""

    row: torch.Tensor
    """[pairs] int64, local row."""
    column: torch.Tensor
    """[pairs] int64, global column."""
    value: torch.Tensor
    """[pairs] float32."""
    start: torch.Tensor
    """[rows + 1] int64, on the CPU: first pair of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityBlock:
    """G between this rank's 2b rows and the global 2B columns, slice by slice."""

    tau_s: float
    offset: int
    """Column of local row 0: row i is column offset + i."""
    row_key: torch.Tensor
    """[2b] int64: rows and columns of equal key have G = 1. Text id (xclr), sample id (simclr), label (supcon)."""
    column_key: torch.Tensor
    """[2B] int64."""
    listed: Pairs | None
    """Listed pairs, those of equal key left out."""
    row_code: torch.Tensor | None
    """[2b, dim] float32, dequantised."""
    column_code: torch.Tensor | None
    """[2B, dim] float32."""
    row_tail: torch.Tensor | None
    """[2b] float32: the constant of a row (tail `background`)."""

    @classmethod
    def build(
        cls,
        objective: Objective,
        sample_ids: torch.Tensor,
        text_ids: torch.Tensor,
        labels: torch.Tensor | None,
        table: TextTable | None,
        tau_s: float,
        world: World,
    ) -> SimilarityBlock:
        """The block of this rank's samples [b] against those of all ranks; every rank calls it.

        sample_ids, text_ids, labels: [b] int64 on the device. table: needed for xclr. labels: needed for supcon.
        """
        keys = {"xclr": text_ids, "simclr": sample_ids, "supcon": labels}[objective]
        assert keys is not None
        key = torch.cat([keys, keys])
        columns = gather(key, world)
        listed = row_code = column_code = row_tail = None
        if objective == "xclr":
            assert table is not None
            listed = _listed(key, columns, table)
            if table.codes is not None and table.code_scale is not None:
                # int8 over the wire and in the gather; each row is dequantised once.
                code, scale = table.codes[keys], table.code_scale[keys]
                row_code = (code.float() * scale[:, None]).repeat(2, 1)
                if world.size == 1:
                    column_code = row_code
                else:
                    pair, scales = gather(torch.cat([code, code]), world), gather(scale.repeat(2), world)
                    column_code = pair.float() * scales[:, None]
            elif table.tail == "background":
                # exp(G / tau_s) of a normal G has mean exp(m / tau_s + s^2 / (2 tau_s^2)).
                mean, deviation = table.background_mean[key], table.background_std[key]
                row_tail = mean + deviation.square() / (2 * tau_s)
        return cls(
            tau_s=tau_s,
            offset=world.rank * len(key),
            row_key=key,
            column_key=columns,
            listed=listed,
            row_code=row_code,
            column_code=column_code,
            row_tail=row_tail,
        )

    def __len__(self) -> int:
        return len(self.row_key)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """G of local rows start..stop-1: [stop - start, 2B] float32, -inf on the diagonal and where nothing counts."""
        keys = self.row_key[start:stop, None]
        if self.row_code is not None and self.column_code is not None:
            g = self.row_code[start:stop] @ self.column_code.T
        elif self.row_tail is not None:
            g = self.row_tail[start:stop, None].expand(-1, len(self.column_key)).clone()
        else:
            g = torch.full((stop - start, len(self.column_key)), -torch.inf, device=keys.device)
        if self.listed is not None:
            first, last = int(self.listed.start[start]), int(self.listed.start[stop])
            g[self.listed.row[first:last] - start, self.listed.column[first:last]] = self.listed.value[first:last]
        g.masked_fill_(keys == self.column_key, 1.0)
        row = torch.arange(stop - start, device=g.device)
        g[row, row + (self.offset + start)] = -torch.inf
        return g

    def targets(self, start: int, stop: int) -> torch.Tensor:
        """s of local rows start..stop-1: [stop - start, 2B] float32, rows sum to 1."""
        return torch.softmax(self.rows(start, stop).div_(self.tau_s), dim=1)

    def statistics(self) -> dict[str, float]:
        """Means over this rank's rows; costs a sweep over the block, so call it when logging only.

        target_entropy: in nats. target_mass_listed: share of the target on listed pairs. target_mass_positive: on rows
        of equal key (sibling, same text; or same label). edges_per_row: listed pairs a row.
        """
        entropy = listed = positive = torch.zeros((), device=self.row_key.device)
        step = 1024
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            s = self.targets(start, stop)
            entropy = entropy - torch.xlogy(s, s).sum()
            positive = positive + s[self.row_key[start:stop, None] == self.column_key].sum()
            if self.listed is not None:
                first, last = int(self.listed.start[start]), int(self.listed.start[stop])
                listed = listed + s[self.listed.row[first:last] - start, self.listed.column[first:last]].sum()
        edges = 0 if self.listed is None else len(self.listed.row)
        n = len(self)
        return {
            "target_entropy": float(entropy) / n,
            "target_mass_listed": float(listed) / n,
            "target_mass_positive": float(positive) / n,
            "edges_per_row": edges / n,
        }


def _listed(rows: torch.Tensor, columns: torch.Tensor, table: TextTable) -> Pairs:
    """The pairs (row, column) whose texts the graph lists, by a sorted look-up.

    rows [2b], columns [2B]: text ids. Every listed neighbour of every row's text is searched for among the batch's
    sorted texts; the few that are there are spread over all columns of that text.
    """
    texts, which = torch.unique(rows, return_inverse=True)  # a text's list is looked up once
    present, order = torch.sort(columns)
    first, counts = table.indptr[texts], table.indptr[texts + 1] - table.indptr[texts]
    owner = torch.repeat_interleave(torch.arange(len(texts), device=rows.device), counts)
    flat = torch.arange(len(owner), device=rows.device) + (first - counts.cumsum(0) + counts)[owner]
    neighbour = table.neighbours[flat].long()
    low, high = torch.searchsorted(present, neighbour), torch.searchsorted(present, neighbour, right=True)
    found = torch.nonzero(high > low).squeeze(1)  # [hits] listed neighbours that are in the batch
    owner, flat, low, many = owner[found], flat[found], low[found], (high - low)[found]
    # One entry a (text, column): a neighbour's columns are order[low : high].
    entry, within = _spread(many)
    text, column = owner[entry], order[low[entry] + within]
    value = table.similarities[flat[entry]].float()
    # One entry a (row, column): entries are sorted by text, so a row copies its text's run.
    run = torch.searchsorted(text, torch.arange(len(texts) + 1, device=rows.device))
    length = (run[1:] - run[:-1])[which]
    row, within = _spread(length)
    source = run[which][row] + within
    start = torch.zeros(len(rows) + 1, dtype=torch.int64)
    start[1:] = length.cumsum(0).cpu()
    return Pairs(row=row, column=column[source], value=value[source], start=start)


def _spread(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """counts [n] -> for each of sum(counts) entries its owner 0..n-1 and its number within the owner."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    return owner, within
