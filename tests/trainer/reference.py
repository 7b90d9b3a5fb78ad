"""The method of the paper as loops in float64, and small random graphs to try it on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from shards.graph import Graph
from trainer.block import Objective, SimilarityBlock
from trainer.table import Tail, TextTable
from trainer.world import World

ALONE = World(device=torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What one global batch is made of."""

    z: torch.Tensor
    """[2, B, dim]: view, sample."""
    samples: torch.Tensor
    texts: torch.Tensor
    labels: torch.Tensor


def random_graph(
    rng: np.random.Generator, texts: int, *, dim: int = 5, longest: int = 4, highest: float = 0.98
) -> Graph:
    """Lists of 0 to `longest` random neighbours (symmetric or not: nothing relies on it), codes near unit length."""
    lists = [rng.permutation(np.delete(np.arange(texts), i))[: rng.integers(0, longest + 1)] for i in range(texts)]
    counts = [len(listed) for listed in lists]
    vectors = rng.normal(size=(texts, dim)) + 0.5
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = np.abs(vectors).max(1) / 127
    return Graph(
        meta={},
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        neighbours=np.concatenate([*lists, []]).astype(np.int32),
        similarities=np.maximum(-0.2, highest - rng.exponential(5 * (1 - highest), sum(counts))).astype(np.float16),
        background_mean=rng.uniform(-0.1, 0.3, texts).astype(np.float32),
        background_std=rng.uniform(0.01, 0.2, texts).astype(np.float32),
        codes=np.round(vectors / scale[:, None]).astype(np.int8),
        code_scale=scale.astype(np.float32),
    )


def random_samples(rng: np.random.Generator, count: int, texts: int, *, dim: int = 6) -> Samples:
    """Texts with repetition; labels of three kinds; views of a sample that are alike."""
    centre = rng.normal(size=(1, count, dim))
    return Samples(
        z=torch.from_numpy(centre + 0.5 * rng.normal(size=(2, count, dim))),
        samples=torch.from_numpy(rng.permutation(1000)[:count]),
        texts=torch.from_numpy(rng.integers(0, texts, count)),
        labels=torch.from_numpy(rng.integers(0, 3, count)),
    )


def build(
    batch: Samples, graph: Graph, objective: Objective, tail: Tail, tau_s: float, world: World = ALONE
) -> SimilarityBlock:
    """This rank's share of the batch: samples rank * b ... of it."""
    b = len(batch.texts) // world.size
    mine = slice(world.rank * b, (world.rank + 1) * b)
    if objective == "xclr":
        table = TextTable.from_graph(graph, world.device, tail)
        return SimilarityBlock.of_texts(batch.texts[mine], table, tau_s=tau_s, world=world)
    keys = batch.labels if objective == "supcon" else batch.samples
    return SimilarityBlock.of_keys(keys[mine].to(world.device), world=world)


def similarity(graph: Graph, tail: Tail, tau_s: float, one: int, other: int) -> float:
    """G of two texts; -inf: no target."""
    if one == other:
        return 1.0
    begin, end = graph.indptr[one : one + 2]
    listed = dict(zip(graph.neighbours[begin:end].tolist(), graph.similarities[begin:end].tolist(), strict=True))
    if other in listed:
        return float(listed[other])
    if tail == "code":
        assert graph.codes is not None
        assert graph.code_scale is not None
        row, column = (graph.codes[i].astype(np.float32) * graph.code_scale[i] for i in (one, other))
        return float(row.astype(np.float64) @ column.astype(np.float64))
    if tail == "background":
        return mean_weight(float(graph.background_mean[one]), float(graph.background_std[one]), tau_s)
    return -np.inf


def mean_weight(mean: float, std: float, tau_s: float) -> float:
    """tau_s log E[exp(G / tau_s)] for a normal G below 1, by the trapezoidal rule around the integrand's peak."""
    peak = min(1.0, mean + std**2 / tau_s)
    slope = 1 / tau_s - (peak - mean) / std**2  # of the exponent at the peak; above 0 only at 1
    width = min(12 * std, 40 / slope if slope > 0 else np.inf)
    g = np.linspace(peak - width, min(1.0, peak + width), 20_001)
    exponent = g / tau_s - ((g - mean) / std) ** 2 / 2
    integral = np.trapezoid(np.exp(exponent - exponent.max()), g)
    below_one = math.erfc(-(1 - mean) / std / math.sqrt(2)) / 2
    return float(tau_s * (exponent.max() + np.log(integral / (std * math.sqrt(2 * math.pi) * below_one))))


def targets(batch: Samples, graph: Graph, objective: Objective, tail: Tail, tau_s: float) -> list[list[float]]:
    """s of all 2B views (first views, then second views), 0 on the diagonal."""
    n = len(batch.texts)
    texts, kinds = batch.texts.tolist(), batch.labels.tolist()
    rows = []
    for i in range(2 * n):
        g = np.full(2 * n, -np.inf)
        for j in range(2 * n):
            if i == j:
                continue
            if objective == "xclr":
                g[j] = similarity(graph, tail, tau_s, texts[i % n], texts[j % n])
            elif objective == "simclr":
                g[j] = 1.0 if i % n == j % n else -np.inf
            else:
                g[j] = 1.0 if kinds[i % n] == kinds[j % n] else -np.inf
        weight = np.exp((g - g.max()) / tau_s)
        rows.append((weight / weight.sum()).tolist())
    return rows


def loss(z: torch.Tensor, s: list[list[float]], tau: float) -> torch.Tensor:
    """L of z [2B, dim] float64 with gradient: design.md's formula, loop by loop."""
    z = torch.stack([row / row.norm() for row in z])
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(z)):
        logits = {j: (z[i] * z[j]).sum() / tau for j in range(len(z)) if j != i}
        log_sum = torch.logsumexp(torch.stack(list(logits.values())), 0)
        for j, logit in logits.items():
            if s[i][j]:
                total = total - s[i][j] * (logit - log_sum)
    return total / len(z)


def value_and_gradient(batch: Samples, s: list[list[float]], tau: float) -> tuple[float, torch.Tensor]:
    """Loss, and its gradient with respect to z as [2, B, dim]."""
    z = batch.z.double().clone().requires_grad_()
    value = loss(z.flatten(0, 1), s, tau)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return float(value.detach()), z.grad
