"""Which pairs of a batch the graph lists, by a sorted look-up on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.table import TextTable

__all__ = ["Pairs", "listed_pairs", "send"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Sparse entries of the block, sorted by row: values that replace the tail's."""

    row: torch.Tensor
    """[pairs] int64, local sample."""
    column: torch.Tensor
    """[pairs] int64, sample of the global batch."""
    value: torch.Tensor
    """[pairs] float32."""
    start: torch.Tensor
    """[b + 1] int64, on the CPU: first pair of each row."""

    def slice(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(row - start, column, value) of the pairs of rows start..stop-1."""
        part = slice(int(self.start[start]), int(self.start[stop]))
        return self.row[part] - start, self.column[part], self.value[part]


def listed_pairs(rows: torch.Tensor, columns: torch.Tensor, table: TextTable) -> Pairs:
    """The pairs (row, column) whose texts the graph lists, by a sorted look-up.

    rows [b] on the CPU, columns [B] on the device: text ids. Every listed neighbour of every row's text is searched for
    among the batch's sorted texts; the few that are there are spread over all columns of that text.
    """
    device = columns.device
    texts, which = torch.unique(rows, return_inverse=True)  # a text's list is looked up once
    begin = table.indptr[texts]
    owner, within = _spread(table.indptr[texts + 1] - begin)
    flat = begin[owner] + within
    neighbour, value = send(table.neighbours[flat], device).long(), send(table.similarities[flat], device)
    owner, which = send(owner.int(), device).long(), send(which, device)
    order = torch.argsort(columns, stable=True)
    present, many = torch.unique_consecutive(columns[order], return_counts=True)
    first = many.cumsum(0) - many  # text present[p] fills the columns order[first[p] : first[p] + many[p]]
    place = torch.searchsorted(present, neighbour).clamp_(max=len(present) - 1)
    found = torch.nonzero(present[place] == neighbour).squeeze(1)  # [hits] listed neighbours that are in the batch
    owner, value, place = owner[found], value[found], place[found]
    # One entry a (text, column).
    entry, within = _spread(many[place])
    text, column = owner[entry], order[first[place[entry]] + within]
    value = value[entry].float()
    # One entry a (row, column): entries are sorted by text, so a row copies its text's run.
    run = torch.searchsorted(text, torch.arange(len(texts) + 1, device=device))
    length = (run[1:] - run[:-1])[which]
    row, within = _spread(length)
    source = run[which][row] + within
    start = torch.zeros(len(rows) + 1, dtype=torch.int64)
    start[1:] = length.cumsum(0).cpu()
    return Pairs(row=row, column=column[source], value=value[source], start=start)


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """To a GPU from memory that it may read by itself, else the step would wait for all that it has been told to do."""
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)


def _spread(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """counts [n] -> for each of sum(counts) entries its owner 0..n-1 and its number within the owner."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(owner), device=counts.device) - (counts.cumsum(0) - counts)[owner]
    return owner, within
