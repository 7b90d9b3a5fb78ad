"""The loss, dense, tiled and fused, against the paper's formula as loops in float64; its limits; precision; memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.trainer.interpreted import INTERPRETED
from tests.trainer.reference import (
    Samples,
    build,
    loss,
    random_graph,
    random_samples,
    targets,
    value_and_gradient,
)
from trainer import loss as loss_module
from trainer.block import Objective, SimilarityBlock
from trainer.loss import Implementation, contrastive_loss
from trainer.table import Tail

KINDS: list[tuple[Objective, Tail]] = [
    ("xclr", "code"),
    ("xclr", "background"),
    ("xclr", "none"),
    ("simclr", "none"),
    ("supcon", "none"),
]
ALL: list[Implementation] = ["dense", "tiled", *(["fused"] if INTERPRETED else [])]


def computed(
    batch: Samples, block: SimilarityBlock, tau: float, how: Implementation, dtype: torch.dtype, entries: int = 1 << 20
) -> tuple[float, torch.Tensor]:
    """Loss, and its gradient as [2, B, dim] float64; `entries` of a tile decide how uneven the last one is."""
    z = batch.z.to(dtype).clone().requires_grad_()
    with mock.patch.dict(loss_module.TILE_ENTRIES, cpu=entries):
        value = contrastive_loss(z.flatten(0, 1), block, tau=tau, implementation=how)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.dtype == dtype
    return float(value.detach()), z.grad.double()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 7),
    texts=st.integers(1, 8),
    kind=st.sampled_from(KINDS),
    tau=st.sampled_from([0.01, 0.03, 0.1, 0.5]),
    tau_s=st.sampled_from([1e-4, 7e-4, 3e-3, 0.03, 0.1, 0.5]),
    how=st.sampled_from(ALL),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    height=st.integers(1, 8),
)
def test_equals_the_formula(
    seed: int,
    count: int,
    texts: int,
    kind: tuple[Objective, Tail],
    tau: float,
    tau_s: float,
    how: Implementation,
    dtype: torch.dtype,
    height: int,
) -> None:
    assume(how != "fused" or dtype != torch.float64)
    rng = np.random.default_rng(seed)
    # Near-copies among the listed: else nothing but the sibling would count at the lowest temperatures.
    graph, batch = random_graph(rng, texts, highest=1 - tau_s), random_samples(rng, count, texts)
    batch = Samples(z=batch.z.to(dtype), samples=batch.samples, texts=batch.texts, labels=batch.labels)
    value, gradient = value_and_gradient(batch, targets(batch, graph, *kind, tau_s), tau)
    block = build(batch, graph, *kind, tau_s)
    found, found_gradient = computed(batch, block, tau, how, dtype, entries=height * 2 * count)
    # Rounding of a cosine is magnified by 1 / temperature; 8 roundings is what dot products of this length may have.
    # Listed similarities and 1 are exact in float32.
    magnified = 1 / tau + (1 / tau_s if kind[1] != "none" else 0)
    relative = 1e-9 if dtype == torch.float64 else 8 * 2.0**-24 * magnified
    assert found == pytest.approx(value, rel=relative, abs=max(1e-9, relative))
    largest = max(1.0, float(gradient.abs().max()))
    stored = 2.0**-8 if dtype == torch.bfloat16 else 0.0  # the gradient of a bfloat16 tensor is one itself
    torch.testing.assert_close(found_gradient, gradient, rtol=stored, atol=(relative + 1e-9) * largest)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_agrees_to_a_millionth_at_the_usual_temperatures(
    kind: tuple[Objective, Tail], how: Implementation
) -> None:
    rng = np.random.default_rng(0)
    graph, batch = random_graph(rng, 15), random_samples(rng, 20, 15, dim=16)
    value, gradient = value_and_gradient(batch, targets(batch, graph, *kind, 0.1), 0.1)
    found, found_gradient = computed(batch, build(batch, graph, *kind, 0.1), 0.1, how, torch.float32, entries=3 * 40)
    assert found == pytest.approx(value, abs=1e-6)
    torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-6)


def distinct(rng: np.random.Generator, count: int) -> Samples:
    batch = random_samples(rng, count, count)
    return Samples(z=batch.z, samples=batch.samples, texts=torch.arange(count), labels=batch.labels)


def nt_xent(z: torch.Tensor, tau: float) -> float:
    """Chen et al. 2020, equation 1: cross entropy of each row's sibling, the row itself left out."""
    z = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    logits = (z @ z.T / tau).fill_diagonal_(-torch.inf)
    n = len(z) // 2
    sibling = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    return float(torch.nn.functional.cross_entropy(logits, sibling))


def sup_con(z: torch.Tensor, labels: torch.Tensor, tau: float) -> float:
    """Khosla et al. 2020, equation 2: mean over positives outside the logarithm."""
    z = torch.nn.functional.normalize(z.flatten(0, 1), dim=1)
    labels = torch.cat([labels, labels])
    log_p = (z @ z.T / tau).fill_diagonal_(-torch.inf).log_softmax(1).fill_diagonal_(0.0)
    positive = (labels[:, None] == labels).double().fill_diagonal_(0.0)
    return float(-((positive * log_p).sum(1) / positive.sum(1)).mean())


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("tail", ["code", "background", "none"])
def test_distinct_texts_and_a_falling_temperature_give_nt_xent(tail: Tail, how: Implementation) -> None:
    rng = np.random.default_rng(1)
    batch, graph = distinct(rng, 9), random_graph(rng, 9)
    expected = nt_xent(batch.z, 0.1)
    far = [abs(computed(batch, build(batch, graph, "xclr", tail, t), 0.1, how, torch.float32)[0] - expected)
           for t in (0.5, 1e-4)]  # fmt: skip
    assert far[1] < 1e-5 < far[0]
    simclr = build(batch, graph, "simclr", "none", 0.1)
    assert computed(batch, simclr, 0.1, how, torch.float32)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("tail", ["code", "background", "none"])
def test_class_texts_and_a_falling_temperature_give_supcon(tail: Tail, how: Implementation) -> None:
    rng = np.random.default_rng(2)
    batch, graph = random_samples(rng, 12, 4), random_graph(rng, 4)
    batch = Samples(z=batch.z, samples=batch.samples, texts=batch.texts, labels=batch.texts)
    expected = sup_con(batch.z, batch.labels, 0.1)
    found = computed(batch, build(batch, graph, "xclr", tail, 1e-4), 0.1, how, torch.float32)[0]
    assert found == pytest.approx(expected, abs=1e-5)
    supcon = build(batch, graph, "supcon", "none", 0.1)
    assert computed(batch, supcon, 0.1, how, torch.float32)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("how", ALL)
def test_collapsed_and_opposite_views_stay_finite_at_a_low_temperature(how: Implementation) -> None:
    """exp(100), exp(-200) and the like lie outside float32."""
    rng = np.random.default_rng(3)
    batch, graph = distinct(rng, 4), random_graph(rng, 4)
    one = torch.ones(4, 6)
    for z in (torch.stack([one, one]), torch.stack([one, -one]), torch.eye(8).view(2, 4, 8)):
        same = Samples(z=z, samples=batch.samples, texts=batch.texts, labels=batch.labels)
        value, gradient = value_and_gradient(same, targets(same, graph, "xclr", "code", 1e-4), 0.01)
        found, found_gradient = computed(same, build(same, graph, "xclr", "code", 1e-4), 0.01, how, torch.float32)
        assert found == pytest.approx(value, rel=1e-4)
        torch.testing.assert_close(found_gradient, gradient, rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", ALL)
def test_autocast_changes_nothing(how: Implementation) -> None:
    rng = np.random.default_rng(4)
    batch, graph = random_samples(rng, 8, 6), random_graph(rng, 6)
    found = []
    for enabled in (False, True):
        z = batch.z.float().flatten(0, 1).clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            block = build(batch, graph, "xclr", "code", 0.1)
            value = contrastive_loss(z, block, implementation=how)
        value.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        found.append((value.detach(), z.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_gradient_scales_with_what_comes_from_above() -> None:
    rng = np.random.default_rng(5)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    block = build(batch, graph, "xclr", "code", 0.1)
    found = []
    for factor in (1.0, 3.0):
        z = batch.z.flatten(0, 1).clone().requires_grad_()
        (factor * contrastive_loss(z, block, implementation="tiled")).backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        found.append(z.grad)
    torch.testing.assert_close(found[1], 3 * found[0])


@pytest.mark.parametrize(
    ("how", "other"), [("auto", "_dense"), ("tiled", "_dense"), ("tiled", "_fused"), ("dense", "_attract")]
)
def test_what_is_asked_for_is_what_runs(how: Implementation, other: str) -> None:
    rng = np.random.default_rng(6)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    block = build(batch, graph, "xclr", "code", 0.1)
    with mock.patch.object(loss_module, other) as not_taken:
        contrastive_loss(batch.z.flatten(0, 1), block, implementation=how)
    assert not not_taken.called


def test_the_reference_is_the_cross_entropy_of_targets() -> None:
    """The loops, checked once against a formula without loops."""
    rng = np.random.default_rng(7)
    batch, graph = random_samples(rng, 6, 4), random_graph(rng, 4)
    s = targets(batch, graph, "xclr", "code", 0.1)
    z = torch.nn.functional.normalize(batch.z.flatten(0, 1), dim=1)
    log_p = (z @ z.T / 0.1).fill_diagonal_(-torch.inf).log_softmax(1).fill_diagonal_(0.0)
    expected = -(torch.tensor(s, dtype=torch.float64) * log_p).sum(1).mean()
    assert float(loss(batch.z.flatten(0, 1), s, 0.1)) == pytest.approx(float(expected))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_rows_of_any_length_are_normalised(how: Implementation, scale: float) -> None:
    rng = np.random.default_rng(0)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    block = build(batch, graph, "xclr", "code", 0.1)
    value, gradient = computed(batch, block, 0.1, how, torch.float32)
    longer = replace(batch, z=batch.z * scale)
    found, found_gradient = computed(longer, block, 0.1, how, torch.float32)
    assert found == pytest.approx(value, rel=1e-5)
    torch.testing.assert_close(found_gradient * scale, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ALL)
def test_a_row_of_zeros_does_not_explode(how: Implementation) -> None:
    """As ReLU may leave it; divided by the usual 1e-12 its gradient was 1e11."""
    rng = np.random.default_rng(0)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    batch.z[0, 2] = 0
    value, gradient = computed(batch, build(batch, graph, "xclr", "code", 0.1), 0.1, how, torch.float32)
    assert np.isfinite(value)
    assert 0 < gradient[0, 2].abs().max() < 10


@pytest.mark.parametrize("how", ALL)
def test_projections_may_lie_in_memory_as_they_like(how: Implementation) -> None:
    rng = np.random.default_rng(0)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    block, z = build(batch, graph, "xclr", "code", 0.1), batch.z.float().flatten(0, 1)
    whole = contrastive_loss(z, block, implementation=how)
    assert contrastive_loss(z.T.contiguous().T, block, implementation=how) == pytest.approx(float(whole), rel=1e-6)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("tail", ["code", "background", "none"])
@pytest.mark.parametrize(
    "tau_s", [torch.tensor(0.25), torch.tensor([0.25]), np.float32(0.25), np.array(0.25)], ids=repr
)
def test_the_temperature_of_targets_may_be_any_kind_of_number(tau_s: Any, tail: Tail, how: Implementation) -> None:
    """The kernels took a tensor for a pointer."""
    rng = np.random.default_rng(0)
    batch, graph = random_samples(rng, 5, 4), random_graph(rng, 4)
    found, expected = (
        computed(batch, build(batch, graph, "xclr", tail, t), 0.1, how, torch.float32)[0] for t in (tau_s, 0.25)
    )
    assert found == expected
