"""Triton's half of the loss: its kernels against the tiled half in float64, and what they compile to.

Without a GPU they run in Triton's interpreter, with the same parts and products but float32's own sums.
"""

from __future__ import annotations

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from tests.trainer.compiled import compiled
from tests.trainer.interpreted import DEVICE, INTERPRETED, TRITON
from tests.trainer.reference import build, random_graph, random_samples, targets, value_and_gradient
from trainer.block import Objective, SimilarityBlock
from trainer.loss import _attract, _quickest, _repel, contrastive_loss
from trainer.table import Tail
from trainer.world import World

pytestmark = pytest.mark.skipif(not TRITON, reason="PyTorch brings Triton on Linux only")
if TRITON:
    from trainer import fused, fused_targets
    from trainer.parts import cut


@settings(max_examples=60 if INTERPRETED else 15, deadline=None, derandomize=True)  # on a GPU each compiles anew
@given(
    seed=st.integers(0, 10**6),
    b=st.integers(1, 40),
    ranks=st.integers(1, 3),
    rank=st.integers(0, 2),
    dim=st.sampled_from([1, 6, 16, 40, 128]),
    tau=st.sampled_from([0.01, 0.1, 0.5]),
    held=st.sampled_from([16, 32]),
    passing=st.sampled_from([16, 32, 64]),
    parts=st.sampled_from([2, 3]),
)
def test_equals_the_tiled_half_in_float64(
    seed: int, b: int, ranks: int, rank: int, dim: int, tau: float, held: int, passing: int, parts: int
) -> None:
    """Uneven tiles, alone and as one of several ranks; gradients are added to, not written over."""
    generator = torch.Generator().manual_seed(seed)
    first = 2 * b * (rank % ranks)
    z = torch.nn.functional.normalize(torch.randn(2 * b * ranks, dim, generator=generator), dim=1)
    found, expected = [], []
    for dtype, device, repel, out in (
        (torch.float64, torch.device("cpu"), _repel, expected),
        (torch.float32, DEVICE, fused.repel, found),
    ):
        columns = z.to(device, dtype)
        rows = columns if ranks == 1 else columns[first : first + 2 * b]
        row_gradient = torch.ones_like(rows)
        column_gradient = row_gradient if ranks == 1 else torch.ones_like(columns)
        tiles = fused.Tiles(held, passing, 4, 2)
        with (
            mock.patch.object(fused, "tiles_for", return_value=tiles),
            mock.patch.object(fused, "number_of_parts", return_value=parts),
        ):
            lse = repel(rows, columns, first, tau, row_gradient, column_gradient)
        assert lse.dtype == torch.float64
        out += [lse.cpu() / len(rows), row_gradient.cpu().double(), column_gradient.cpu().double()]
    # Of two parts what is left out is below 2^-18. A product fewer exceeds either, without a tensor core's rounding.
    relative = (1 if INTERPRETED else 8) * (2.0**-24 if parts == 3 else 2.0**-18) / tau
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=relative, atol=relative)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("how", ["tiled", "fused"])
@pytest.mark.parametrize(
    ("objective", "tail"),
    [("xclr", "code"), ("xclr", "background"), ("xclr", "none"), ("simclr", "none"), ("supcon", "none")],
)
def test_on_a_gpu_equals_the_formula(objective: Objective, tail: Tail, how: str, precision: str) -> None:
    rng = np.random.default_rng(0)
    graph, batch = random_graph(rng, 60), random_samples(rng, 150, 60, dim=100)
    value, gradient = value_and_gradient(batch, targets(batch, graph, objective, tail, 0.1), 0.1)
    world = World(device=DEVICE)
    z = batch.z.float().to(DEVICE).requires_grad_()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        block = build(batch, graph, objective, tail, 0.1, world)
        found = contrastive_loss(z.flatten(0, 1), block, tau=0.1, implementation=how)  # type: ignore[arg-type]
        found.backward()  # type: ignore[no-untyped-call]
    finally:
        torch.set_float32_matmul_precision(before)
    assert z.grad is not None
    error = 2e-6 if precision == "highest" else 5e-3
    assert float(found.detach()) == pytest.approx(value, abs=error)
    scale = float(gradient.abs().max())
    torch.testing.assert_close(z.grad.double().cpu() / scale, gradient / scale, rtol=0, atol=10 * error)


ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("count", [300, pytest.param(1 << 16, marks=ON_A_GPU)])
def test_long_sums_keep_the_precision_of_float32(count: int, alone: bool) -> None:
    """Of tensor cores' own sums the gradient at 65,536 rows was off by 2e-4 of its largest entry."""
    z = torch.nn.functional.normalize(torch.randn(count, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = columns = z.to(DEVICE)
    if not alone:  # another tensor, as of several ranks
        columns = rows.clone()
    row_gradient = torch.zeros_like(rows)
    column_gradient = row_gradient if alone else torch.zeros_like(rows)
    found = fused.repel(rows, columns, 0, 0.1, row_gradient, column_gradient)
    lse, (p, transposed) = 0.0, torch.zeros(2, count, 128, dtype=torch.float64, device=DEVICE)
    for start in range(0, count, 2048):
        part = rows[start : start + 2048].double()
        logits = part @ rows.double().T / 0.1
        logits.diagonal(start).fill_(-torch.inf)
        lse += float(logits.logsumexp(1).sum())
        share = logits.softmax(1)
        p[start : start + 2048] = share @ rows.double()
        transposed += share.T @ part
    assert float(found) == pytest.approx(lse, rel=1e-6)
    for gradient, expected in (
        ((row_gradient, p + transposed),) if alone else ((row_gradient, p), (column_gradient, transposed))
    ):
        assert float((gradient.double() - expected).abs().max() / expected.abs().max()) < 1e-5


COMPILE = """
import json
from tests.trainer.compiled import CARDS, make
from trainer import fused

KINDS = {"rows": "*bf16", "columns": "*bf16", "lse": "*fp32", "gradient": "*fp32", "scale": "fp32"}
kernels = (fused._by_rows, "VALUES"), (fused._by_columns, "ALONE")
print(json.dumps([make(kernel, card, fused.tiles_for, parts, {flag: True}, lambda name: KINDS.get(name, "i32"))
                  for card in CARDS for parts in (3, 2) for kernel, flag in kernels]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes for Linux only")
def test_kernels_compile_for_cards_that_are_not_here_and_fit_their_shared_memory() -> None:
    assert len(compiled(COMPILE)) == 12


@pytest.mark.parametrize(("dtype", "dim"), [(torch.float64, 8), (torch.float32, 129)])
def test_rows_that_the_kernels_do_not_take_are_refused(dtype: torch.dtype, dim: int) -> None:
    with pytest.raises(UserError, match=r"takes up to 128 dimensions of float32.*use tiled"):
        fused.check(torch.ones(4, dim, dtype=dtype))


def test_without_a_gpu_the_error_says_what_to_use() -> None:
    with (
        mock.patch.object(fused, "_has_kernels", return_value=False),
        pytest.raises(UserError, match=r"needs an NVIDIA GPU.*use tiled"),
    ):
        fused.check(torch.ones(4, 8))


@pytest.mark.parametrize(("parts", "allowed"), [(2, 2.0**-16), (3, 0.0)])
def test_parts_of_features_add_up_to_them(parts: int, allowed: float) -> None:
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    found = cut(x, parts)
    assert (found.dtype, found.shape) == (torch.bfloat16, (parts, 7, 64))
    assert not found[:, :, 40:].any()
    error = (found[:, :, :40].double().sum(0) - x).abs() / x.abs()
    assert error.max() <= allowed


class Rows:
    """Of a tensor on a GPU what is asked before the kernels run."""

    is_cuda, device, dtype, shape = True, torch.device("cuda:0"), torch.float32, (8192, 128)

    def __len__(self) -> int:
        return self.shape[0]


def test_kernels_that_cannot_be_built_are_tried_once_and_the_error_says_why() -> None:
    fused._obstacle.cache_clear()
    with (
        mock.patch.object(fused, "_has_kernels", return_value=True),
        mock.patch.object(torch, "eye", return_value=torch.zeros(32, 16)),
        mock.patch.object(fused, "repel", side_effect=RuntimeError("Failed to find C compiler. Set CC")),
    ):
        for _ in range(2):
            with pytest.raises(UserError, match=r"be built here \(Failed to find C compiler. Set CC\): use tiled"):
                fused.check(Rows())  # type: ignore[arg-type]
        assert fused.repel.call_count == 1  # type: ignore[attr-defined]
    fused._obstacle.cache_clear()


@pytest.mark.parametrize(
    ("capability", "rows", "chosen"),
    [((9, 0), {}, True), ((8, 9), {}, False), ((10, 0), {}, False), ((9, 0), {"shape": (8192, 129)}, False),
     ((9, 0), {"shape": (4096, 128)}, False), ((9, 0), {"dtype": torch.float64}, False),
     ((9, 0), {"is_cuda": False}, False)],
)  # fmt: skip
def test_auto_is_fused_where_that_was_measured_to_win(
    capability: tuple[int, int], rows: dict[str, object], chosen: bool
) -> None:
    block = SimilarityBlock.of_samples(2048, DEVICE)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
        mock.patch.object(fused, "_obstacle", return_value=""),
    ):
        given = type("Given", (Rows,), rows)()
        assert _quickest(given, block) == ((fused.repel, fused_targets.attract) if chosen else (_repel, _attract))


def test_auto_says_what_keeps_it_from_the_kernels_and_goes_on() -> None:
    block = SimilarityBlock.of_samples(2048, DEVICE)
    with (
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(fused, "_obstacle", return_value="no C compiler"),
        pytest.warns(RuntimeWarning, match=r"built here \(no C compiler\), so it is computed in tiles"),
    ):
        assert _quickest(Rows(), block) == (_repel, _attract)  # type: ignore[arg-type]


def test_without_triton_the_error_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trainer.fused", None)
    monkeypatch.delattr("trainer.fused")
    rng = np.random.default_rng(0)
    batch, graph = random_samples(rng, 4, 4), random_graph(rng, 4)
    block = build(batch, graph, "simclr", "none", 0.1)
    with pytest.raises(UserError, match=r"needs Triton"):
        contrastive_loss(batch.z.float().flatten(0, 1), block, implementation="fused")
