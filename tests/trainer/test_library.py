"""docs/library.md: its code runs as it stands, and blocks of a caller's own similarities give the paper's loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.eval.make_folders import make_folders
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.reference import ALONE, Samples, random_graph, random_samples, value_and_gradient
from trainer import loss as loss_module
from trainer.block import SimilarityBlock
from trainer.data import batches_of
from trainer.loss import Implementation, contrastive_loss
from trainer.table import TextTable
from trainer.world import World, this_world

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
Source = Literal["vectors", "matrix"]


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "data" / "mine", (40, 24))
    make_folders(tmp_path / "data" / "pictures")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), names)
    assert torch.isfinite(names["loss"])
    steps = {int(state["step"]) for state in names["optimiser"].state.values()}
    assert steps == {2 * (64 // 16)}
    assert names["result"]["columns"]["top1"]["n"] == 20
    assert names["keys"].tolist() == names["labels"].tolist()  # all of these have one
    shards = names["shards"]
    assert names["text_of"][str(shards.index.key[41])] == shards.index.text_id[41]


def similarities(batch: Samples, source: Source) -> torch.Tensor:
    """[B, B] float64; the matrix is not symmetric, and has a pair that is no target."""
    rng = np.random.default_rng(1)
    n = len(batch.texts)
    if source == "vectors":
        vectors = torch.nn.functional.normalize(vectors_of(n).double(), dim=1)
        return vectors @ vectors.T
    matrix = torch.from_numpy(rng.uniform(-1, 1, (n, n)))
    matrix[0, 1] = -torch.inf
    return matrix


def vectors_of(count: int) -> torch.Tensor:
    """[count, 5] of any length; two are the same text's."""
    vectors = torch.from_numpy(np.random.default_rng(2).normal(size=(count, 5)) * 7).float()
    vectors[3] = vectors[0]
    return vectors


def share(world: World, seed: int, source: Source, how: Implementation) -> tuple[float, Any]:
    """This rank's loss and the gradient of the mean of all; who it is, the block finds out."""
    assert (this_world(world.device).rank, this_world(world.device).size) == (world.rank, world.size)
    batch = random_samples(np.random.default_rng(seed), 12, 8)
    mine = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    if source == "vectors":
        block = SimilarityBlock.of_vectors(vectors_of(12)[mine], tau_s=0.2)
    else:
        block = SimilarityBlock.of_matrix(similarities(batch, source)[mine], tau_s=0.2)
    z = batch.z[:, mine].clone().requires_grad_()
    value = contrastive_loss(z.flatten(0, 1), block, tau=0.1, implementation=how)
    value.backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    return float(value.detach()), (z.grad / world.size).numpy()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("how", ["dense", "tiled"])
@pytest.mark.parametrize("source", ["vectors", "matrix"])
def test_similarities_of_ones_own(ranks: Ranks, source: Source, how: Implementation, size: int) -> None:
    batch = random_samples(np.random.default_rng(5), 12, 8)
    g = similarities(batch, source).fill_diagonal_(1.0).repeat(2, 2).fill_diagonal_(-torch.inf)
    value, gradient = value_and_gradient(batch, torch.softmax(g / 0.2, 1).tolist(), 0.1)
    shares = ranks(size, share, 5, source, how)
    assert np.mean([each for each, _ in shares]) == pytest.approx(value, abs=2e-6)
    found = np.concatenate([each for _, each in shares], axis=1)
    np.testing.assert_allclose(found, gradient.numpy(), atol=2e-6 * float(gradient.abs().max()))


def classed(world: World, matrix: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    mine = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    return SimilarityBlock.of_classes(matrix, labels[mine]).similarities(0, 12 // world.size).tolist()


@pytest.mark.parametrize("size", [1, 2])
def test_similarities_of_classes(ranks: Ranks, size: int) -> None:
    """1 within a class, whatever stands on the diagonal; a taxonomy need not be symmetric."""
    matrix, labels = torch.rand(5, 5), torch.randint(5, (12,))
    matrix[2, 3] = -torch.inf
    expected = matrix[labels][:, labels].masked_fill(labels[:, None] == labels, 1.0)
    found = torch.tensor([row for rows in ranks(size, classed, matrix, labels) for row in rows])
    torch.testing.assert_close(found, expected)


def distinct(world: World) -> list[list[float]]:
    return SimilarityBlock.of_samples(3, world.device).similarities(0, 3).tolist()


def test_samples_are_themselves_alone_on_all_ranks(ranks: Ranks) -> None:
    found = torch.tensor([row for rows in ranks(2, distinct) for row in rows])
    assert torch.equal(found, torch.full((6, 6), -torch.inf).fill_diagonal_(1.0))


def block_of(vectors: list[torch.Tensor]) -> SimilarityBlock:
    return SimilarityBlock.of_vectors(torch.stack(vectors))


def blocks_of_a_worker() -> list[SimilarityBlock]:
    loader = DataLoader(
        list(torch.eye(4)), 4, num_workers=1, collate_fn=block_of, multiprocessing_context="fork", timeout=20
    )
    return list(loader)  # type: ignore[arg-type]


def refused_in_a_worker(world: World) -> bool:
    with pytest.raises(RuntimeError, match="worker cannot exchange with other ranks: make the block in the training"):
        blocks_of_a_worker()
    return True


def test_a_worker_of_several_ranks_makes_no_block(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked, it would wait for those of other ranks; spawned, it hears of them by the environment alone."""
    assert [len(block) for block in blocks_of_a_worker()] == [4]
    assert ranks(2, refused_in_a_worker) == [True, True]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused_in_a_worker(ALONE)
    for said in ("", "auto"):  # to a process that is no rank it says nothing
        monkeypatch.setenv("WORLD_SIZE", said)
        assert len(SimilarityBlock.of_vectors(torch.eye(4))) == 4


def test_large_and_small_vectors_keep_their_direction() -> None:
    vectors = vectors_of(12)
    expected = SimilarityBlock.of_vectors(vectors).similarities(0, 12)
    for factor in (1e30, 1e-30):
        torch.testing.assert_close(SimilarityBlock.of_vectors(factor * vectors).similarities(0, 12), expected)


TABLE = TextTable.from_graph(random_graph(np.random.default_rng(0), 9), torch.device("cpu"))
SAMPLES = SimilarityBlock.of_samples(4, torch.device("cpu"))


def of_classes(similarities: torch.Tensor, labels: list[int]) -> SimilarityBlock:
    return SimilarityBlock.of_classes(similarities, torch.tensor(labels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SimilarityBlock.of_matrix(torch.zeros(4, 5)), r"samples of this rank.*not \[4, 5\]"),
        (lambda: SimilarityBlock.of_matrix(torch.zeros(4)), r"samples of this rank.*not \[4\]"),
        (lambda: SimilarityBlock.of_matrix(torch.zeros(4, 4, requires_grad=True)), "similarities are targets.*detach"),
        (lambda: SimilarityBlock.of_vectors(torch.zeros(4, 3, requires_grad=True)), "vectors are targets.*detach"),
        (lambda: SimilarityBlock.of_vectors(torch.zeros(4)), r"vectors are \[samples, dim\], not \[4\]"),
        (lambda: SimilarityBlock.of_vectors(torch.zeros(4, 3), tau_s=0.0), "tau_s is a temperature above 0, not 0.0"),
        (
            lambda: SimilarityBlock.of_vectors(torch.zeros(4, 3), tau_s=math.inf),
            "tau_s is a temperature above 0, not inf",
        ),
        (
            lambda: SimilarityBlock.of_vectors(torch.ones(4, 3), tau_s=nn.Parameter(torch.tensor(0.1))),  # type: ignore[arg-type]
            "tau_s is of the targets, which no gradient flows to",
        ),
        (lambda: SimilarityBlock.of_vectors(torch.full((4, 3), torch.nan)), "vectors must be numbers"),
        (lambda: SimilarityBlock.of_matrix(torch.full((4, 4), torch.inf)), "similarities must be numbers"),
        (lambda: contrastive_loss(torch.randn(8, 3), SAMPLES, implementation="denser"), "auto, dense, tiled, fused"),  # type: ignore[arg-type]
        (lambda: SimilarityBlock.of_keys(torch.zeros(4)), "keys are .* whole numbers, not .*float32"),
        (lambda: SimilarityBlock.of_keys(torch.zeros(4, 1, dtype=torch.int64)), r"keys are .* not \[4, 1\]"),
        (lambda: SimilarityBlock.of_texts(torch.tensor([0, 9]), TABLE), r"text ids lie in 0\.\.8, not in 0\.\.9"),
        (lambda: SimilarityBlock.of_texts(torch.tensor([0, -2]), TABLE), r"text ids lie in 0\.\.8, not in -2\.\.0"),
        (lambda: contrastive_loss(torch.randn(4, 3), SAMPLES), r"z is \[2 x 4, dim\].*not \[4, 3\]"),
        (
            lambda: contrastive_loss(torch.randn(8, 3), of_classes(torch.eye(2), 4 * [0, 1])),
            "sample once, not each view",
        ),
        (lambda: contrastive_loss(torch.randn(4, 2, 3), SAMPLES), r"not \[4, 2, 3\]: torch\.cat\(z\.unbind\(1\)\)"),
        (lambda: contrastive_loss(torch.randn(8, 0), SAMPLES), r"z is \[2 x 4, dim\].*not \[8, 0\]"),
        (
            lambda: of_classes(torch.eye(3), [0, 3]),
            r"labels lie in 0\.\.2, not in 0\.\.3",
        ),
        (
            lambda: of_classes(torch.eye(3), [0, -1]),
            r"labels lie in 0\.\.2, not in -1\.\.0",
        ),
        (
            lambda: of_classes(torch.ones(3, 2), [0]),
            r"\[classes, classes\], not \[3, 2\]",
        ),
        (
            lambda: SimilarityBlock.of_vectors(torch.ones(4, 3), tau_s=torch.ones(4, 1)),
            r"tau_s is one number, not \[4, 1\]",
        ),  # type: ignore[arg-type]
        (
            lambda: contrastive_loss(torch.randn(8, 3), SAMPLES, tau=torch.ones(8, 1)),
            r"tau is one number, not \[8, 1\]",
        ),
        (lambda: SimilarityBlock.of_samples(0, torch.device("cpu")).statistics(), "at least one sample"),
        (lambda: SimilarityBlock.of_samples(-1, torch.device("cpu")), "count is a number of samples, not -1"),
        (lambda: SimilarityBlock.of_matrix(torch.eye(4).to_sparse()), r"not \[4, 4\] of layout torch.sparse_coo"),
        (lambda: contrastive_loss(torch.randn(8, 3), SAMPLES, tau=-0.1), "tau is a temperature above 0, not -0.1"),
        (lambda: contrastive_loss(torch.randn(8, 3), SAMPLES, tau=float("nan")), "tau is a temperature above 0"),
        (
            lambda: contrastive_loss(torch.randn(0, 3), SimilarityBlock.of_samples(0, torch.device("cpu"))),
            "at least one sample",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_block_or_tensor_is_told() -> None:
    with pytest.raises(TypeError, match=r"block is a SimilarityBlock, not Tensor: of_matrix\(\.\.\.\) makes one"):
        contrastive_loss(torch.randn(8, 3), torch.eye(4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"z is a tensor \[2b, dim\], not tuple: torch\.cat"):
        contrastive_loss((torch.randn(4, 3), torch.randn(4, 3)), SAMPLES)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"keys are a tensor of .* not list"):
        SimilarityBlock.of_keys(["a", "b"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"vectors are .* a tensor, not list"):
        SimilarityBlock.of_vectors([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="similarities are a tensor, not list"):
        SimilarityBlock.of_matrix([[1.0]])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"table is a TextTable, not Graph: TextTable\.from_graph\(graph, device\)"):
        SimilarityBlock.of_texts(torch.arange(2), random_graph(np.random.default_rng(0), 9))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"graph is a Graph, not str: shards\.graph\(\)"):
        TextTable.from_graph("minilm", "cpu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="count is a number of samples, not float"):
        SimilarityBlock.of_samples(8.0, torch.device("cpu"))  # type: ignore[arg-type]
    for count in (np.int64(4), torch.tensor(4)):
        assert len(SimilarityBlock.of_samples(count, torch.device("cpu"))) == 4  # type: ignore[arg-type]
    assert SimilarityBlock.of_vectors(torch.ones(4, 3), tau_s=np.array(0.5)).tau_s == 0.5  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tau_s is a number, not str"):
        SimilarityBlock.of_vectors(torch.ones(4, 3), tau_s="0.1")  # type: ignore[arg-type]
    for kind in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match="z is of a floating-point type, not torch"):
            contrastive_loss(torch.ones(8, 3, dtype=kind), SAMPLES)
    for tau in (None, "0.1"):
        with pytest.raises(TypeError, match="tau is a number, not"):
            contrastive_loss(torch.randn(8, 3), SAMPLES, tau=tau)  # type: ignore[arg-type]


def gradient_of_tau(world: World, seed: int, how: Implementation) -> float:
    batch = random_samples(np.random.default_rng(seed), 12, 8)
    mine = slice(world.rank * 12 // world.size, (world.rank + 1) * 12 // world.size)
    block = SimilarityBlock.of_vectors(vectors_of(12)[mine], tau_s=0.2)
    scale = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    (2 * contrastive_loss(batch.z[:, mine].flatten(0, 1), block, tau=scale.square(), implementation=how)).backward()
    assert scale.grad is not None
    return float(scale.grad)


@pytest.mark.parametrize("size", [1, 2])
def test_tau_can_be_learnt(ranks: Ranks, size: int) -> None:
    expected = gradient_of_tau(ALONE, 5, "dense")
    assert abs(expected) > 0.1
    assert np.mean(ranks(size, gradient_of_tau, 5, "tiled")) == pytest.approx(expected, rel=1e-5)


def test_a_learnable_tau_may_be_used_in_validation() -> None:
    z, tau = torch.randn(8, 3), nn.Parameter(torch.tensor(0.2))
    with torch.no_grad():
        torch.testing.assert_close(contrastive_loss(z, SAMPLES, tau=tau), contrastive_loss(z, SAMPLES, tau=0.2))
        assert contrastive_loss(z, SAMPLES, tau=np.float64(0.2)) == contrastive_loss(z, SAMPLES, tau=0.2)
        contrastive_loss(z, SAMPLES, tau=np.float32(0.2))  # type: ignore[arg-type]


def test_a_block_is_equal_to_itself_alone() -> None:
    other = SimilarityBlock.of_samples(4, torch.device("cpu"))
    assert SAMPLES == SAMPLES
    assert other != SAMPLES
    assert len({SAMPLES, other}) == 2
    assert repr(SAMPLES) == "SimilarityBlock(4 of 4 samples, keys, tau_s=1)"
    assert repr(SimilarityBlock.of_matrix(torch.eye(3))) == "SimilarityBlock(3 of 3 samples, matrix, tau_s=0.1)"


def test_a_device_may_be_given_by_its_name() -> None:
    table = TextTable.from_graph(random_graph(np.random.default_rng(0), 9), "cpu")
    block = SimilarityBlock.of_texts(torch.arange(4), table, world=this_world("cpu"))
    assert float(contrastive_loss(torch.randn(8, 3), block)) > 0
    assert list(batches_of([], "cpu")) == []


def test_a_second_derivative_is_dense_or_none() -> None:
    z = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda z: contrastive_loss(z, SAMPLES, implementation="dense"), z)
    with pytest.raises(RuntimeError, match="implementation='dense'"):
        torch.autograd.grad(contrastive_loss(z, SAMPLES), z, create_graph=True)


def test_dense_goes_through_torch_func() -> None:
    z = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    dense = torch.func.vmap(torch.func.grad(lambda z: contrastive_loss(z, SAMPLES, implementation="dense")))(z)
    contrastive_loss(z[0], SAMPLES).add(contrastive_loss(z[1], SAMPLES)).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    torch.testing.assert_close(dense, z.grad)


def check_compiled(loss: Callable[[torch.Tensor], torch.Tensor], compiled: Any, z: torch.Tensor) -> None:
    """Value and gradient of a loss, as they are without the compiler."""
    first, second = z.clone().requires_grad_(), z.clone().requires_grad_()
    value = loss(first)
    torch.testing.assert_close(compiled(second), value)
    value.backward()  # type: ignore[no-untyped-call]
    compiled(second).backward()
    assert first.grad is not None
    torch.testing.assert_close(second.grad, first.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of PyTorch's compiler about itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the same, torch 2.11
@pytest.mark.parametrize("tiles", [8, 64])
def test_what_is_compiled_does_not_grow_with_the_number_of_tiles(tiles: int) -> None:
    """The loop over tiles is unrolled: of 32 tiles PyTorch took 105 seconds."""
    block, z, sizes = SimilarityBlock.of_samples(32, torch.device("cpu")), torch.randn(64, 5), []

    def loss(z: torch.Tensor) -> torch.Tensor:
        return 2 * contrastive_loss(z.sin(), block)

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        parts = [part for part in graph.modules() if isinstance(part, torch.fx.GraphModule)]
        sizes.append(sum(len(part.graph.nodes) for part in parts))
        return graph.forward

    with mock.patch.dict(loss_module.TILE_ENTRIES, cpu=64 * 64 // tiles):
        check_compiled(loss, torch.compile(loss, backend=backend, fullgraph=tiles <= 8), z)  # type: ignore[call-overload]
    assert 0 < sum(sizes) < 400


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of PyTorch's compiler about itself
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the same, torch 2.11
def test_block_and_loss_can_be_compiled() -> None:
    vectors, z = vectors_of(12), torch.randn(24, 5)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(z, SimilarityBlock.of_vectors(vectors))

    check_compiled(loss, torch.compile(loss, backend="aot_eager"), z)
