"""The similarity block of a batch: how similar this rank's samples are to all of the batch's, by the graph.

    G_ij = 1                      i itself (its other view), and samples with the same text
           listed similarity      where the graph lists j's text for i's
           the tail               elsewhere: dot product of codes | a constant of the row | nothing

Both views of a sample have the same similarities, so the block is one of samples, [b, B], a quarter of what the loss
reads, [2b, 2B]. The target of a row is softmax(G / tau_s) over all views but the row itself: every other sample counts
twice, and its own once, as the sibling view. Nothing here holds a gradient, and nothing holds the whole block unless
asked for: `similarities` gives any slice of it. simclr and supcon are the same block with G = 1 on the sample itself,
or on all samples of the same label, and nothing elsewhere. docs/library.md shows its use in a loop of one's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from trainer.collectives import gather
from trainer.pairs import Pairs, listed_pairs, send
from trainer.table import TextTable
from trainer.world import World, this_world

__all__ = ["Objective", "SimilarityBlock", "check_temperature"]

Objective = Literal["xclr", "simclr", "supcon"]


@dataclass(slots=True, kw_only=True, eq=False)
class Codes:
    """Vectors whose dot products are similarities; of a graph's, what they are made of as well."""

    quantised: torch.Tensor | None = None
    """[n, dim] int8."""
    scale: torch.Tensor | None = None
    """[n] float32: quantised times scale is the vector."""
    long: bool = False
    """Whether similarities exceed 1 by more than rounding does."""
    made: torch.Tensor | None = None

    @property
    @torch.no_grad()
    def vectors(self) -> torch.Tensor:
        """[n, dim] float32, made when it is first asked for: the fused loss does not need them."""
        if self.made is None:
            assert self.quantised is not None
            assert self.scale is not None
            self.made = self.quantised.float().mul_(self.scale[:, None])
        return self.made


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """exp((G - its row's largest) / tau_s) of a slice of rows; over `total` it is the target."""

    others: torch.Tensor
    """[rows, B], 0 on the sample itself: the weight of either view of every other sample."""
    sibling: torch.Tensor
    """[rows, 1]: the weight of the other view of the sample itself."""
    total: torch.Tensor
    """[rows, 1]: twice the others' sum and the sibling."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)  # of tensors, whose == is no yes or no
class SimilarityBlock:
    """G between this rank's b samples and the B of all ranks, slice by slice.

    Made by one of six: `of_texts` (X-CLR by a graph), `of_vectors`, `of_classes` and `of_matrix` (X-CLR by what a
    caller has), `of_keys` (SupCon), `of_samples` (SimCLR). Every rank calls the same one, with equally many samples.
    `world` is for all of them this process's place among the ranks; None takes it from torch.distributed. All raise
    ValueError for shapes and values that make no sense, and for what requires a gradient: similarities are targets,
    none would come; TypeError for what is no tensor. NaN is looked for on a CPU alone: a GPU would be waited for.
    """

    world: World
    tau_s: float
    row_key: torch.Tensor
    """[b] int64: samples of equal key have G = 1. Text id (xclr), sample id (simclr), label (supcon)."""
    column_key: torch.Tensor
    """[B] int64."""
    listed: Pairs | None = None
    """Listed pairs, in no pair of equal key."""
    row_code: Codes | None = None
    """Of [b] samples: a graph's codes, or a caller's own vectors."""
    column_code: Codes | None = None
    """Of [B]; the same as row_code on one rank."""
    row_tail: torch.Tensor | None = None
    """[b] float64: the constant of a row (tail `background`)."""
    matrix: torch.Tensor | None = None
    """[b, n] similarities to samples of key 0..n-1; stands for lists and tail."""

    @classmethod
    @torch.no_grad()
    def of_texts(
        cls, text_ids: torch.Tensor, table: TextTable, *, tau_s: float = 0.1, world: World | None = None
    ) -> SimilarityBlock:
        """By the graph of `table`. text_ids: [b] int64 on the CPU, as loaders give them; a GPU's are waited for."""
        if not isinstance(table, TextTable):
            raise TypeError(f"table is a TextTable, not {type(table).__name__}: TextTable.from_graph(graph, device)")
        text_ids = _keys("text ids", text_ids)
        device, texts = table.device, len(table.indptr) - 1
        world = world or this_world(device)
        ids, key = text_ids.cpu(), text_ids.to(device, non_blocking=True)
        if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < texts):
            raise ValueError(f"text ids lie in 0..{texts - 1}, not in {int(ids.min())}..{int(ids.max())}")
        columns = gather(key, world)
        row_code = column_code = row_tail = None
        if table.codes is not None and table.code_scale is not None:
            code, scale = send(table.codes[ids], device), send(table.code_scale[ids], device)
            row_code = column_code = Codes(quantised=code, scale=scale, long=table.long)
            if world.size > 1:  # int8 over the wire: a quarter of the bytes
                column_code = Codes(quantised=gather(code, world), scale=gather(scale, world))
        elif table.tail == "background":
            row_tail = send(background(table.background_mean[ids], table.background_std[ids], float(tau_s)), device)
        return cls(
            world=world,
            tau_s=tau_s,
            row_key=key,
            column_key=columns,
            listed=listed_pairs(ids, columns, table) if table.matrix is None else None,
            row_code=row_code,
            column_code=column_code,
            row_tail=row_tail,
            matrix=None if table.matrix is None else table.matrix[key],
        )

    @classmethod
    @torch.no_grad()
    def of_vectors(cls, vectors: torch.Tensor, *, tau_s: float = 0.1, world: World | None = None) -> SimilarityBlock:
        """G is the cosine of the samples' vectors, such as embeddings of their captions: [b, dim] of any float type.

        In memory of B x dim. A vector of zeros has similarity 0 to all but itself.
        """
        _check_targets("vectors are [samples, dim]", vectors)
        world = world or this_world(vectors.device)
        rows = functional.normalize(vectors.double(), dim=1, eps=1e-300).float()  # float32's squares would overflow
        key, columns = _places(len(rows), world, rows.device)
        row_code, column_code = Codes(made=rows), Codes(made=gather(rows, world))
        return cls(
            world=world, tau_s=tau_s, row_key=key, column_key=columns, row_code=row_code, column_code=column_code
        )

    @classmethod
    @torch.no_grad()
    def of_matrix(
        cls, similarities: torch.Tensor, *, tau_s: float = 0.1, world: World | None = None
    ) -> SimilarityBlock:
        """G as it is: [b, B], this rank's samples against those of rank 0, then of rank 1, ...

        -inf is no target at all; a sample's similarity to itself counts as 1, whatever stands there. The matrix is
        kept, not copied.
        """
        if not isinstance(similarities, torch.Tensor):
            raise TypeError(f"similarities are a tensor, not {type(similarities).__name__}")
        world = world or this_world(similarities.device)
        shape = f"similarities are [samples of this rank, samples of all {world.size} ranks]"
        _check_targets(shape, similarities)
        if similarities.shape[1] != world.size * similarities.shape[0]:
            raise ValueError(f"{shape}, not {list(similarities.shape)}")
        key, columns = _places(len(similarities), world, similarities.device)
        return cls(world=world, tau_s=tau_s, row_key=key, column_key=columns, matrix=similarities)

    @classmethod
    @torch.no_grad()
    def of_classes(
        cls, similarities: torch.Tensor, labels: torch.Tensor, *, tau_s: float = 0.1, world: World | None = None
    ) -> SimilarityBlock:
        """G by the samples' classes, a taxonomy say: similarities [n, n] of classes, labels [b] in 0..n-1.

        In memory of b x n. Samples of one class have G = 1, whatever stands on the diagonal; -inf is no target at all.
        """
        labels = _keys("labels", labels)
        _check_targets("similarities are [classes, classes]", similarities)
        if labels.device != similarities.device:
            raise ValueError(f"labels are on {labels.device}, similarities on {similarities.device}: make both on one")
        if len(similarities) != similarities.shape[1]:
            raise ValueError(f"similarities are [classes, classes], not {list(similarities.shape)}")
        world = world or this_world(labels.device)
        known = ((labels >= 0) & (labels < len(similarities))).all()  # -1, which loaders give, would be the last class
        if labels.device.type != "cpu":
            torch._assert_async(known)  # not waited for
        elif not known:
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"labels lie in 0..{len(similarities) - 1}, not in {low}..{high}")
        columns = gather(labels, world)
        return cls(world=world, tau_s=tau_s, row_key=labels, column_key=columns, matrix=similarities[labels])

    @classmethod
    @torch.no_grad()
    def of_keys(cls, keys: torch.Tensor, *, world: World | None = None) -> SimilarityBlock:
        """G = 1 where two samples' keys [b] are equal, on whatever ranks; no target elsewhere. SupCon's are labels.

        Any whole numbers: -1, which shards have for "no label", is as good a key as others.
        """
        keys = _keys("keys", keys)
        world = world or this_world(keys.device)
        return cls(world=world, tau_s=1.0, row_key=keys, column_key=gather(keys, world))

    @classmethod
    def of_samples(cls, count: int, device: torch.device, *, world: World | None = None) -> SimilarityBlock:
        """SimCLR: of this rank's `count` samples each is like itself alone."""
        if not hasattr(count, "__index__"):
            raise TypeError(f"count is a number of samples, not {type(count).__name__}")
        if count < 0:
            raise ValueError(f"count is a number of samples, not {count}")
        world = world or this_world(device)
        key, columns = _places(count, world, device)
        return cls(world=world, tau_s=1.0, row_key=key, column_key=columns)

    def __post_init__(self) -> None:
        if getattr(self.tau_s, "requires_grad", False):
            raise ValueError("tau_s is of the targets, which no gradient flows to: give a number")
        check_temperature("tau_s", self.tau_s)
        object.__setattr__(self, "tau_s", float(self.tau_s))  # kernels take no tensor for it, and no number of NumPy's
        if not 0 < self.tau_s < math.inf:
            raise ValueError(f"tau_s is a temperature above 0, not {self.tau_s}")

    def __len__(self) -> int:
        return len(self.row_key)

    def __repr__(self) -> str:
        parts = {"matrix": self.matrix, "lists": self.listed, "codes": self.row_code, "background": self.row_tail}
        kind = ", ".join(name for name, part in parts.items() if part is not None) or "keys"
        return f"SimilarityBlock({len(self)} of {len(self.column_key)} samples, {kind}, tau_s={float(self.tau_s):g})"

    @property
    def offset(self) -> int:
        """Column of local sample 0: sample i is column offset + i."""
        return self.world.rank * len(self)

    @torch.no_grad()
    def similarities(self, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """G of local samples start..stop-1: [stop - start, B], 1 on the sample itself, -inf where nothing counts.

        Written into `out` where given, and then of its type; float32 otherwise.
        """
        if out is None:
            out = torch.empty(stop - start, len(self.column_key), device=self.row_key.device)
        if self.matrix is not None:
            out.copy_(self.matrix[start:stop][:, self.column_key])
        elif self.row_code is not None and self.column_code is not None:
            row, column = self.row_code.vectors[start:stop], self.column_code.vectors
            torch.mm(row.to(out.dtype), column.to(out.dtype).T, out=out)
        elif self.row_tail is not None:
            out.copy_(self.row_tail[start:stop, None].expand_as(out))
        else:
            out.fill_(-torch.inf)
        if self.listed is not None:
            row, column, value = self.listed.slice(start, stop)
            out[row, column] = value.to(out.dtype)
        return out.masked_fill_(self.row_key[start:stop, None] == self.column_key, 1.0)

    @torch.no_grad()
    def weights(self, start: int, stop: int, out: torch.Tensor | None = None) -> Weights:
        """The target of local samples start..stop-1 before normalising; `out` as in `similarities`."""
        g = self.similarities(start, stop, out)
        # base 2: on CPU exp2 is three times as fast as exp, and stays so where it underflows (measured, 2026-11)
        g.sub_(g.amax(1, keepdim=True)).mul_(math.log2(math.e) / self.tau_s).exp2_()
        own = torch.arange(stop - start, device=g.device)
        sibling = g[own, own + (self.offset + start)][:, None]
        g[own, own + (self.offset + start)] = 0
        return Weights(others=g, sibling=sibling, total=2 * g.sum(1, keepdim=True) + sibling)

    @torch.no_grad()
    def targets(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """s between all local rows and the global columns, in the order of collectives.py: [2b, 2B], rows sum to 1."""
        b, columns = len(self), len(self.column_key)
        g = self.similarities(0, b, torch.empty(b, columns, dtype=dtype, device=self.row_key.device))
        g = g.view(b, -1, 1, b).expand(-1, -1, 2, -1).reshape(b, 2 * columns).repeat(2, 1)
        row = torch.arange(2 * b, device=g.device)
        g[row, row + 2 * self.offset] = -torch.inf
        return torch.softmax(g.sub_(1).div_(self.tau_s), dim=1)  # G / tau_s would round what tells G from 1

    @torch.no_grad()
    def statistics(self) -> dict[str, float]:
        """Means over this rank's rows; costs a sweep over the block, so call it when logging only.

        target_entropy: in nats. target_mass_listed: share of the target on listed pairs. target_mass_positive: on rows
        of equal key (sibling, same text; or same label). edges_per_row: listed pairs a row.
        """
        if not len(self):
            raise ValueError("a rank needs at least one sample")
        entropy = listed = positive = torch.zeros((), device=self.row_key.device)
        n, step = len(self), max(1, STATISTICS_ENTRIES // len(self.column_key))
        edges = 0 if self.listed is None else 2 * len(self.listed.row)
        for start in range(0, n, step):
            stop = min(start + step, n)
            weights = self.weights(start, stop)
            sibling, others = weights.sibling / weights.total, weights.others.div_(weights.total)
            same = self.row_key[start:stop, None] == self.column_key
            positive = positive + sibling.sum() + 2 * (others * same).sum()
            if self.listed is not None:
                row, column, _ = self.listed.slice(start, stop)
                listed = listed + 2 * others[row, column].sum()
            elif self.matrix is not None:  # which lists all pairs but those of one text
                listed, edges = listed + 2 * (others * ~same).sum(), edges + 2 * int((~same).sum())
            entropy = entropy - torch.xlogy(sibling, sibling).sum() - 2 * torch.xlogy(others, others).sum()
        return {
            "target_entropy": float(entropy) / n,
            "target_mass_listed": float(listed) / n,
            "target_mass_positive": float(positive) / n,
            "edges_per_row": edges / n,
        }


STATISTICS_ENTRIES = 1 << 22  # of a slice: 16 MB a buffer


def background(mean: torch.Tensor, deviation: torch.Tensor, tau_s: float) -> torch.Tensor:
    """The one similarity whose weight is the mean weight of a text's pairs: tau_s log E[exp(G / tau_s)], [n] float64.

    G is taken as normal with this mean and deviation [n], and cut off at 1, where cosines end. Without the cut the mean
    is exp(m / tau_s + s^2 / (2 tau_s^2)); with it, times a ratio of normal integrals that is 1 at the usual tau_s. As
    tau_s falls the uncut mean is ever more that of impossible similarities, and would outweigh the sibling.
    """
    m, s = mean.double(), deviation.double().clamp_min(1e-6)
    cut: torch.Tensor = torch.special.log_ndtr((1 - m) / s - s / tau_s) - torch.special.log_ndtr((1 - m) / s)
    return m + s.square() / (2 * tau_s) + tau_s * cut


def check_temperature(name: str, value: object) -> None:
    """Raises TypeError for what is no number, ValueError for several."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} is a number, not {type(value).__name__}")
    if math.prod(shape := getattr(value, "shape", ())) != 1:
        raise ValueError(f"{name} is one number, not {list(shape)}")


def _keys(what: str, keys: torch.Tensor) -> torch.Tensor:
    if not isinstance(keys, torch.Tensor):
        raise TypeError(f"{what} are a tensor of [samples] whole numbers, not {type(keys).__name__}")
    if keys.ndim != 1 or keys.is_floating_point() or keys.is_complex() or keys.dtype == torch.bool:
        raise ValueError(f"{what} are [samples] whole numbers, not {list(keys.shape)} of {keys.dtype}")
    return keys.long()


def _check_targets(what: str, x: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{what}, a tensor, not {type(x).__name__}")
    if x.ndim != 2 or x.is_complex() or x.layout is not torch.strided:
        kind = x.dtype if x.layout is torch.strided else f"layout {x.layout}"
        raise ValueError(f"{what}, not {list(x.shape)} of {kind}")
    if x.requires_grad:
        raise ValueError(f"{what.partition(' ')[0]} are targets, which no gradient flows to: detach() them")
    # Not on a GPU, which would have to be waited for.
    if x.device.type == "cpu" and x.is_floating_point() and (x.isnan() | x.isposinf()).any():
        raise ValueError(f"{what.partition(' ')[0]} must be numbers, and some are NaN or infinite")


def _places(count: int, world: World, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys of samples that share none: their columns. Of this rank's [b] and of all [B]."""
    columns = torch.arange(world.size * count, device=device)
    return columns[world.rank * count : (world.rank + 1) * count], columns
