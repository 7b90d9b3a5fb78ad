"""The similarity block: look-up against a dictionary, statistics against numpy, and what it refuses."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import UserError
from shards.graph import Graph
from tests.trainer.reference import (
    Samples,
    build,
    mean_weight,
    random_graph,
    random_samples,
    similarity,
    targets,
)
from trainer import block as block_module
from trainer.block import SimilarityBlock, background
from trainer.loss import contrastive_loss
from trainer.table import Tail, TextTable


def by_lists(graph: Graph) -> TextTable:
    """Even if they are complete."""
    lists = {"neighbours": torch.from_numpy(graph.neighbours), "similarities": torch.from_numpy(graph.similarities)}
    return replace(TextTable.from_graph(graph, torch.device("cpu"), "none"), matrix=None, **lists)


def block_of(batch: Samples, table: TextTable) -> SimilarityBlock:
    return SimilarityBlock.of_texts(batch.texts, table)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), texts=st.integers(1, 40), longest=st.integers(0, 12))
def test_look_up_equals_a_dictionary(seed: int, count: int, texts: int, longest: int) -> None:
    """Duplicate texts, empty lists, texts that list nothing of the batch, asymmetric lists."""
    rng = np.random.default_rng(seed)
    graph, batch = random_graph(rng, texts, longest=longest), random_samples(rng, count, texts)
    listed = {
        (i, int(j)): float(g)
        for i in range(texts)
        for j, g in zip(
            graph.neighbours[graph.indptr[i] : graph.indptr[i + 1]],
            graph.similarities[graph.indptr[i] : graph.indptr[i + 1]],
            strict=True,
        )
    }
    ids = batch.texts.tolist()
    expected = {
        (i, j): listed[ids[i], ids[j]] for i in range(count) for j in range(count) if (ids[i], ids[j]) in listed
    }
    pairs = block_of(batch, by_lists(graph)).listed
    assert pairs is not None
    found = list(zip(pairs.row.tolist(), pairs.column.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert dict(zip(found, pairs.value.tolist(), strict=True)) == expected
    assert pairs.row.tolist() == sorted(pairs.row.tolist())
    assert pairs.start.tolist() == [sum(row < i for row, _ in found) for i in range(count + 1)]


@pytest.mark.parametrize("texts", [1, 6])
def test_a_complete_graph_is_read_from_a_matrix(texts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lists would hold the whole block, pair by pair; they say the same."""
    rng = np.random.default_rng(4)
    values = np.triu(rng.random((texts, texts)).astype(np.float16), 1)
    values += values.T
    neighbours = np.array([[j for j in range(texts) if j != i] for i in range(texts)], np.int32).reshape(texts, -1)
    graph = Graph(
        meta={},
        indptr=np.arange(texts + 1) * (texts - 1),
        neighbours=neighbours.ravel(),
        similarities=np.take_along_axis(values, neighbours.astype(np.int64), 1).ravel(),
        background_mean=np.zeros(texts, np.float32),
        background_std=np.zeros(texts, np.float32),
        codes=None,
        code_scale=None,
    )
    batch = random_samples(rng, 11, texts)
    table = TextTable.from_graph(graph, torch.device("cpu"))
    assert len(table.neighbours) == 0
    block, lists = block_of(batch, table), block_of(batch, by_lists(graph))
    assert block.listed is None
    assert lists.matrix is None
    for start, stop in ((0, 11), (4, 5), (9, 11)):
        assert torch.equal(block.similarities(start, stop), lists.similarities(start, stop))
    monkeypatch.setattr(block_module, "STATISTICS_ENTRIES", 30)
    assert block.statistics() == pytest.approx(lists.statistics(), abs=1e-6)


@pytest.mark.parametrize("tail", ["code", "background", "none"])
def test_similarities_of_any_slice(tail: Tail) -> None:
    rng = np.random.default_rng(0)
    graph, batch = random_graph(rng, 7), random_samples(rng, 11, 7)
    block = build(batch, graph, "xclr", tail, 0.1)
    ids = batch.texts.tolist()
    expected = np.array([[similarity(graph, tail, 0.1, one, other) for other in ids] for one in ids])
    assert len(block) == 11
    for start, stop in ((0, 11), (0, 4), (4, 5), (9, 11)):
        np.testing.assert_allclose(block.similarities(start, stop), expected[start:stop], atol=2e-7)


@pytest.mark.parametrize("objective", ["xclr", "simclr", "supcon"])
def test_targets_and_statistics_against_numpy(
    objective: block_module.Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    graph, batch = random_graph(rng, 9), random_samples(rng, 10, 9)
    block = build(batch, graph, objective, "code", 0.1)
    s = np.array(targets(batch, graph, objective, "code", 0.1))
    np.testing.assert_allclose(block.targets(), s, atol=1e-6)
    np.testing.assert_allclose(block.targets(torch.float64), s, atol=1e-12)
    key = {"xclr": batch.texts, "simclr": batch.samples, "supcon": batch.labels}[objective].tile(2).numpy()
    ids = batch.texts.tile(2).tolist()
    lists = [set(graph.neighbours[graph.indptr[i] : graph.indptr[i + 1]].tolist()) for i in ids]
    listed = np.array([[objective == "xclr" and other in own for other in ids] for own in lists])
    expected = {
        "target_entropy": -np.sum(s * np.log(s, out=np.zeros_like(s), where=s > 0)) / 20,
        "target_mass_listed": np.sum(s * listed) / 20,
        "target_mass_positive": np.sum(s * (key[:, None] == key)) / 20,
        "edges_per_row": listed.sum() / 20,
    }
    for entries in (1 << 22, 30):  # whole, and in slices of three rows
        monkeypatch.setattr(block_module, "STATISTICS_ENTRIES", entries)
        assert block.statistics() == pytest.approx(expected, abs=1e-6)
    assert expected["target_mass_positive"] > 0.1


def test_several_samples_of_one_text_are_as_near_as_the_sibling() -> None:
    rng = np.random.default_rng(2)
    graph, batch = random_graph(rng, 2), random_samples(rng, 4, 2)
    batch = replace(batch, texts=torch.tensor([0, 1, 0, 0]))
    s = build(batch, graph, "xclr", "code", 0.1).targets()
    assert s[0, 0] == 0  # the row itself
    torch.testing.assert_close(s[0, [2, 3, 4, 6, 7]], s[0, 4].expand(5))  # its copies' views and its sibling
    assert s[0, 1] == s[0, 5] < s[0, 4]


@pytest.mark.parametrize("tau_s", [1e-4, 0.01, 0.1, 1.0])
def test_background_is_the_mean_weight_of_a_normal_below_one(tau_s: float) -> None:
    mean, std = torch.tensor([0.05, 0.3, -0.1, 0.2]), torch.tensor([0.08, 0.2, 0.01, 0.0])
    found = background(mean, std, tau_s).tolist()
    for m, s, value in zip(mean.tolist()[:3], std.tolist()[:3], found[:3], strict=True):
        assert value == pytest.approx(mean_weight(m, s, tau_s), abs=1e-6 * max(tau_s, 1e-2))
        assert value < 1
    assert found[3] == pytest.approx(0.2, abs=1e-6)  # no deviation: the mean itself
    if tau_s == 0.1:  # where it matters the cut changes nothing: the mean of a lognormal
        assert found[0] == pytest.approx(0.05 + 0.08**2 / 0.2, abs=1e-7)


@pytest.mark.parametrize("how", ["dense", "tiled"])
def test_text_similarities_never_receive_gradient(how: block_module.Objective) -> None:
    rng = np.random.default_rng(3)
    graph, batch = random_graph(rng, 5), random_samples(rng, 6, 5)
    table = TextTable.from_graph(graph, torch.device("cpu"))
    learnt = {
        field.name: value.float().requires_grad_()
        for field in fields(table)
        if isinstance(value := getattr(table, field.name), torch.Tensor) and value.is_floating_point()
    }
    block = block_of(batch, replace(table, **learnt))
    z = batch.z.flatten(0, 1).requires_grad_()
    contrastive_loss(z, block, implementation=how).backward()  # type: ignore[no-untyped-call,arg-type]
    assert z.grad is not None
    assert len(learnt) == 4
    assert block.row_code is not None
    assert not block.row_code.vectors.requires_grad
    assert all(value.grad is None for value in learnt.values())


def test_wrong_tails_are_refused_in_words() -> None:
    graph = random_graph(np.random.default_rng(4), 12)
    with pytest.raises(UserError, match="tail is one of code, background, none, not 'codes'"):
        TextTable.from_graph(graph, torch.device("cpu"), "codes")  # type: ignore[arg-type]
    bare = Graph(**{name: getattr(graph, name) for name in Graph.__slots__} | {"codes": None, "code_scale": None})
    with pytest.raises(UserError, match=r"no codes for the pairs .*: use --tail background or --tail none"):
        TextTable.from_graph(bare, torch.device("cpu"), "code")
    assert TextTable.from_graph(bare, torch.device("cpu"), "none").codes is None


def test_a_complete_graph_needs_no_tail() -> None:
    graph = random_graph(np.random.default_rng(5), 12)
    everyone = np.array([np.delete(np.arange(12), i) for i in range(12)], np.int32)
    complete = {
        "indptr": np.arange(13, dtype=np.int64) * 11,
        "neighbours": everyone.ravel(),
        "similarities": np.full(12 * 11, 0.5, np.float16),
        "codes": None,
        "code_scale": None,
    }
    whole = Graph(**{name: getattr(graph, name) for name in Graph.__slots__} | complete)
    table = TextTable.from_graph(whole, torch.device("cpu"), "code")
    assert (table.tail, table.codes) == ("none", None)
    ids = torch.arange(12)
    block = SimilarityBlock.of_texts(ids, table)
    torch.testing.assert_close(block.similarities(0, 12), torch.full((12, 12), 0.5).fill_diagonal_(1.0))
