"""Every search against brute force, on clustered vectors with copies; plans, memory and resuming."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest
import torch

import pipeline.search.descent
import pipeline.search.plan
import pipeline.search.tiles
from pipeline.search.descent import descend
from pipeline.search.gpu import faiss_gpu, gpu_search, torch_tiles
from pipeline.search.neighbours import Ids, rank
from pipeline.search.plan import SMALL, nearest, plan_search, sample_recall
from pipeline.search.tiles import quantise, search_rows
from shards.errors import UserError

Vectors = npt.NDArray[np.float32]

pytestmark = pytest.mark.usefixtures("two_threads")


def clustered(n: int, dim: int = 48, seed: int = 0) -> Vectors:
    """Unit vectors around a few dozen centres, a tenth of them copies of others."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(40, dim))[rng.integers(40, size=n)] + 0.7 * rng.normal(size=(n, dim))
    rows[rng.integers(n, size=n // 10)] = rows[rng.integers(n, size=n // 10)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def true_recall(vectors: Vectors, ids: Ids, k: int) -> float:
    """Tie-aware, over all rows, by sorting whole rows."""
    exact = vectors.astype(np.float64) @ vectors.T
    np.fill_diagonal(exact, -np.inf)
    kth = -np.sort(-exact, axis=1)[:, k - 1]
    hits = 0
    for row, listed in enumerate(ids):
        assert len(set(listed.tolist())) == len(listed)
        hits += int((exact[row, listed] >= kth[row] - 1e-6).sum())
    return hits / ids.size


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.search.tiles, "ROWS", 100)
    monkeypatch.setattr(pipeline.search.tiles, "COLUMNS", 512)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("n", [3, 40, 512, 1500])
def test_tiles_find_what_brute_force_finds(n: int) -> None:
    vectors, k = clustered(n), min(10, n - 1)
    ids, similarities = search_rows(vectors, quantise(vectors), np.arange(n), k, 8)
    assert ids.shape == (n, k)
    assert true_recall(vectors, ids, k) >= 0.999
    exact = np.take_along_axis(vectors @ vectors.T, ids.astype(np.int64), axis=1)
    np.testing.assert_allclose(similarities, exact, atol=1e-6)
    assert (np.diff(similarities, axis=1) <= 0).all()
    # One row's result does not depend on which others are searched with it.
    alone, _ = search_rows(vectors, quantise(vectors), np.array([n // 2]), k, 8)
    np.testing.assert_array_equal(alone[0], ids[n // 2])


def test_quantised_outliers_do_not_coarsen_the_rest() -> None:
    vectors = clustered(3000)
    vectors[7] = 0
    vectors[7, 3] = 1  # a coordinate of 1 where others are 0.15
    codes = quantise(vectors)
    step = np.abs(vectors).max() / 127
    assert np.abs(codes).mean() > 1.2 * np.abs(vectors / step).mean()
    assert codes[7, 3] == 127


def test_descent_reaches_the_target_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.search.descent, "LEAF", 200)
    monkeypatch.setattr(pipeline.search.descent, "TREES", 2)
    monkeypatch.setattr(pipeline.search.descent, "GROUP", 50)
    monkeypatch.setattr(pipeline.search.descent, "FAN", 2)
    vectors, k = clustered(4000), 10
    codes, (sample, recall) = quantise(vectors), sample_recall(vectors, k, 0)

    def run(work: Path, passes: int = 8) -> tuple[Ids, Vectors, list[float]]:
        work.mkdir(exist_ok=True)
        monkeypatch.setattr(pipeline.search.descent, "PASSES", passes)
        return descend(vectors, codes, k, work, sample, recall, 0.995, seed=0)

    ids, similarities, reached = run(tmp_path / "whole")
    assert reached[-1] >= 0.995 > reached[-2]
    assert reached[0] > 0.93  # what the first lists, of trees, are worth
    assert reached == sorted(reached)
    assert reached[-1] == pytest.approx(true_recall(vectors, ids, k), abs=0.01)
    run(tmp_path / "stopped", passes=1)
    again, near, rest = run(tmp_path / "stopped")
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(near, similarities)
    assert rest == reached


def test_sample_recall_is_the_recall() -> None:
    vectors = clustered(400)
    ids, _ = rank(vectors, np.arange(400), np.argsort(-(vectors @ vectors.T), axis=1)[:, :20], 10)
    sample, recall = sample_recall(vectors, 10, 0)
    assert recall(ids[sample]) == 1
    worse = ids[sample]
    worse[:, 7:] = -1
    assert recall(worse) == pytest.approx(0.7)


def test_torch_tiles_propose_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.search.gpu.COLUMNS", 300)
    vectors, rows = clustered(1000), np.arange(1000)
    ids, _ = rank(vectors, rows, torch_tiles(vectors, "cpu")(rows, 19), 10)
    assert true_recall(vectors, ids, 10) == 1


def test_several_gpus_are_given_all_vectors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS's index of several devices takes one call of add(); here its devices are the CPU."""

    def to_all_gpus(index: Any, co: Any) -> Any:
        shards = faiss.IndexShards(index.d, True, True)
        for _ in range(2):
            shards.add_shard(faiss.IndexFlatIP(index.d))
        return shards

    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_all_gpus, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2, raising=False)
    monkeypatch.setattr("pipeline.search.gpu.COLUMNS", 300)
    vectors, rows = clustered(3000), np.arange(500)
    search = gpu_search(vectors, "cpu")
    for keep in (19, 2100):  # the second more than FAISS selects on a GPU
        found = search(rows, keep)
        assert found.shape == (500, keep)
        ids, _ = rank(vectors, rows, found, 10)
        exact = -np.sort(-(vectors[rows].astype(np.float64) @ vectors.T), axis=1)[:, 10]
        assert (np.take_along_axis(vectors[rows] @ vectors.T, ids, 1)[:, -1] >= exact - 1e-6).all()


def test_where_faiss_cannot_use_the_gpu_pytorch_searches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_kernel(*_: Any, **__: Any) -> None:
        raise RuntimeError("Error in run: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", no_kernel, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    vectors, rows = clustered(300), np.arange(300)
    ids, _ = rank(vectors, rows, gpu_search(vectors, "cpu")(rows, 19), 10)
    assert true_recall(vectors, ids, 10) == 1
    assert "FAISS cannot search on this GPU (Error in run: no kernel image is available" in capsys.readouterr().err


@pytest.mark.parametrize(("devices", "gigabytes", "method"), [(1, 10, "tiles"), (1, 11, "gpu"), (4, 5, "gpu")])
def test_vectors_that_do_not_fit_a_gpu_are_searched_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, devices: int, gigabytes: int, method: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gigabytes << 30, 80 << 30))
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: devices, raising=False)
    ways = pipeline.search.plan._ways(12_000_000, 384)  # CC12M's: 8.6 GiB in half precision
    assert {way for way, _ in ways} == {method}
    assert pipeline.search.plan._ways(SMALL, 384) == [("exact", None)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_searches_agree() -> None:
    vectors, rows = clustered(20_000), np.arange(20_000)
    by_torch, _ = rank(vectors, rows, torch_tiles(vectors, "cuda")(rows, 41), 32)
    by_faiss, _ = rank(vectors, rows, faiss_gpu(vectors)(rows, 41), 32)
    assert (by_torch == by_faiss).mean() > 0.999


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.search.plan, "SMALL", 100)
    monkeypatch.setattr(pipeline.search.plan, "PROBE", 64)
    monkeypatch.setattr(pipeline.search.plan, "PART", 300)


@pytest.mark.usefixtures("everything_is_large")
def test_nearest_resumes_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(1000)
    tiles = pipeline.search.plan.Plan(method="tiles", margin=8, seconds=1, bytes=1)
    monkeypatch.setattr(pipeline.search.plan, "plan_search", lambda *args, **kwargs: tiles)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    ids, similarities, record = nearest(vectors, 10, tmp_path / "whole")
    assert record == {"method": "tiles", "margin": 8, "target": 0.99, "dim": 48}
    searched: list[int] = []

    def stop_after(limit: int) -> None:
        def search(vectors: Vectors, codes: object, rows: npt.NDArray[np.int64], k: int, margin: int) -> object:
            if len(searched) == limit:
                raise KeyboardInterrupt
            searched.append(int(rows[0]))
            return search_rows(vectors, codes, rows, k, margin)  # type: ignore[arg-type]

        monkeypatch.setattr(pipeline.search.plan, "search_rows", search)

    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        nearest(vectors, 10, tmp_path / "stopped")
    stop_after(99)
    again, near, _ = nearest(vectors, 10, tmp_path / "stopped")
    assert searched == [0, 300, 600, 900]
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(near, similarities)
    assert true_recall(vectors, ids, 10) >= 0.999


@pytest.mark.usefixtures("everything_is_large")
def test_a_search_that_began_on_a_gpu_goes_on_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, plan = clustered(1000), pipeline.search.plan
    plans = [plan.Plan(method=method, margin=8, seconds=1, bytes=1) for method in ("gpu", "tiles")]
    monkeypatch.setattr(plan, "plan_search", lambda *args, **kwargs: plans.pop(0))
    here = [True]
    monkeypatch.setattr(plan, "has_room", lambda *args: here[0])

    def taken_away(vectors: Vectors, device: str) -> Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.int64]]:
        find = torch_tiles(vectors, "cpu")

        def once(rows: npt.NDArray[np.int64], keep: int) -> npt.NDArray[np.int64]:
            if rows[0]:
                raise KeyboardInterrupt
            return find(rows, keep)

        return once

    monkeypatch.setattr(plan, "gpu_search", taken_away)
    with pytest.raises(KeyboardInterrupt):
        nearest(vectors, 10, tmp_path)
    first = (tmp_path / "neighbours-000000.npy").stat().st_mtime_ns
    here[0] = False
    ids, _, record = nearest(vectors, 10, tmp_path)
    assert record["method"] == "tiles"
    assert "began on a GPU, which now is not here or is full" in capsys.readouterr().err
    assert (tmp_path / "neighbours-000000.npy").stat().st_mtime_ns == first  # what was found is kept
    assert true_recall(vectors, ids, 10) >= 0.999


@pytest.mark.usefixtures("everything_is_large")
def test_the_plan_is_measured_and_fits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    vectors = clustered(1000)
    plan = plan_search(vectors, 10, target=0.99, memory=None, seed=0)
    assert plan.method in ("exact", "tiles")
    assert plan.seconds > 0
    # Exact search needs a float32 copy of the vectors, but no tiles: the one that fits is taken.
    exact = plan_search(vectors, 10, target=0.99, memory=10_000_000, seed=0)
    assert exact.method == "exact"
    with pytest.raises(UserError, match=r"searching 1000 texts needs 0 MB .* --memory allows 0: raise it"):
        plan_search(vectors, 10, target=0.99, memory=1000, seed=0)
    measured = []
    real = pipeline.search.plan._measured

    def noted(method: str, *args: Any, **options: Any) -> Any:
        measured.append(method)
        return real(method, *args, **options)

    monkeypatch.setattr(pipeline.search.plan, "_measured", noted)
    plan_search(vectors, 10, target=0.99, memory=10_000_000, seed=0)
    assert set(measured) == {"exact"}  # trying what does not fit would take the memory
    measured.clear()
    monkeypatch.setattr(pipeline.search.plan, "LARGE", 500)
    plans = {plan_search(vectors, 10, target=0.99, memory=None, seed=0).method}
    assert plans <= {"exact", "tiles", "descent"}


@pytest.mark.usefixtures("everything_is_large")
def test_the_margin_grows_until_recall_reaches_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse code: 4 levels instead of 127."""
    monkeypatch.setattr(
        pipeline.search.plan, "quantise", lambda v, dim: np.clip(np.rint(v * 12), -127, 127).astype(np.int8)
    )
    vectors = clustered(1000)
    plan = pipeline.search.plan._measured("tiles", vectors, 10, 0.999, *sample_recall(vectors, 10, 0))
    assert plan is not None
    assert plan.margin > 8
    search = pipeline.search.plan._row_search("tiles", vectors, 10)
    ids, _ = search(np.arange(1000), plan.margin)
    assert true_recall(vectors, ids, 10) > 0.99
    narrow, _ = search(np.arange(1000), 8)
    assert true_recall(vectors, narrow, 10) < true_recall(vectors, ids, 10)


@pytest.mark.usefixtures("everything_is_large")
def test_fewer_dimensions_are_taken_only_where_recall_is_reached() -> None:
    """Vectors of 256 dimensions: most of what they are lies in 32 directions, or in none more than in others."""
    rng, k = np.random.default_rng(0), 10
    flat = rng.normal(size=(2000, 256)).astype(np.float32)
    falling = ((flat * (np.arange(256) < 32) + 0.02 * flat) @ np.linalg.qr(rng.normal(size=(256, 256)))[0]).astype(
        np.float32
    )
    for rows, reached in ((flat, False), (falling, True)):
        vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        plan = pipeline.search.plan._measured("tiles", vectors, k, 0.99, *sample_recall(vectors, k, 0), dim=64)
        assert (plan is not None) == reached
        if plan is not None:
            ids, near = pipeline.search.plan._row_search("tiles", vectors, k, plan.dim)(np.arange(2000), plan.margin)
            assert true_recall(vectors, ids, k) >= 0.99
            exact = np.take_along_axis(vectors @ vectors.T, ids.astype(np.int64), axis=1)
            np.testing.assert_allclose(near, exact, atol=1e-6)  # ranked by all dimensions
