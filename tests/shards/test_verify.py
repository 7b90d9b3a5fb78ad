"""`xclr-shards verify` against damage: every byte that changes, and every lie under a right checksum."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.verify
from shards.atomic import sha256_file
from shards.errors import UserError
from shards.graph import Graph, read_graph, write_graph
from shards.manifest import FileEntry, Manifest
from shards.sealed import seal_problem, write_sealed
from shards.verify import verify
from tests.make import make_graph, make_shards

TEXTS = 6


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards and a graph whose codes have a basis of their own."""
    root = make_shards(tmp_path_factory.mktemp("sound"), sizes=(3, 2), classes=TEXTS)
    folder = root / "graphs" / "made"
    np.save(folder / "basis.npy", np.eye(16, dtype=np.float32))
    basis = {"file": "basis.npy", "sha256": sha256_file(folder / "basis.npy")}
    write_sealed(folder / "graph.json", read_graph(folder).meta | {"code": {"dim": 16, "basis": basis}})
    assert verify(root) == []
    return root


def problems(root: Path) -> list[str]:
    try:
        return verify(root)
    except UserError as error:
        return [str(error)]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_flipped_byte_is_found(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in sound.rglob("*") if p.is_file())))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(flipped)
    try:
        assert problems(sound), path
    finally:
        path.write_bytes(whole)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_cut_and_every_missing_file_is_found(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in sound.rglob("*") if p.is_file())))
    whole = path.read_bytes()
    left = data.draw(st.none() | st.integers(0, len(whole) - 1))
    path.unlink() if left is None else path.write_bytes(whole[:left])
    try:
        assert problems(sound), path
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["manifest.json", "graphs/made/graph.json"])
def test_no_byte_of_what_names_the_checksums_may_change(sound: Path, tmp_path: Path, name: str) -> None:
    whole = (sound / name).read_bytes()
    path = tmp_path / "copy.json"
    path.write_bytes(whole)
    assert seal_problem(path) is None
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert seal_problem(path)
    path.write_text(json.dumps({"texts": 1}))
    assert "no checksum of its own" in str(seal_problem(path))


@pytest.mark.parametrize(
    "name", ["train-000009.tar", "index/train-000009.parquet", "graphs/made/train-000009.parquet", "graphs/made/b.npy"]
)
def test_foreign_files_are_found(sound: Path, tmp_path: Path, name: str) -> None:
    root = shutil.copytree(sound, tmp_path / "copy")
    (root / name).write_bytes(b"foreign")
    assert [problem for problem in problems(root) if f"{name} is not in" in problem]
    (root / name).rename((root / name).with_name(".partial-x"))  # of a killed writer
    assert problems(root) == []


def reseal(root: Path, **changes: Any) -> None:
    """A manifest that fits the files as they are now: what a faulty writer would leave."""
    manifest = Manifest.load(root)
    files = {
        name: FileEntry(sha256=sha256_file(root / name), bytes=(root / name).stat().st_size) for name in manifest.files
    }
    dataclasses.replace(manifest, files=files, **changes).save(root)


def forge_column(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    table = pq.read_table(path, partitioning=None)
    at = table.schema.get_field_index(name)
    column = pa.array(change(table[name].to_pylist()), table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), column), path, store_schema=False)


INDEX = "index/train-000000.parquet"


@pytest.mark.parametrize(
    ("name", "column", "change", "message"),
    [
        (INDEX, "offset", lambda v: [v[0] + 1, *v[1:]], "1 rows of index/train-000000.parquet point at no member"),
        (INDEX, "size", lambda v: [*v[:-1], v[-1] - 1], "1 rows of index/train-000000.parquet point at no member"),
        (INDEX, "text_id", lambda v: [TEXTS, *v[1:]], "names a text outside 0..5"),
        (INDEX, "text_id", lambda v: [-1, *v[1:]], "names a text outside 0..5"),
        (INDEX, "text_id", lambda v: [(v[0] + 1) % TEXTS, *v[1:]], "2 texts have another number of samples"),
        (INDEX, "label", lambda v: [TEXTS, *v[1:]], "names class 6, the manifest has 6"),
        ("texts.parquet", "count", lambda v: [v[0] + 1, *v[1:]], "1 texts have another number of samples"),
        ("texts.parquet", "text_id", lambda v: v[::-1], "does not number its texts"),
    ],
)
def test_lies_in_a_row_are_found(
    sound: Path, tmp_path: Path, name: str, column: str, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    root = shutil.copytree(sound, tmp_path / "copy")
    forge_column(root / name, column, change)
    reseal(root)
    assert any(message in problem for problem in problems(root)), problems(root)


def test_wrong_counts_are_found(sound: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sound, tmp_path / "copy")
    reseal(root, texts=TEXTS + 1)
    assert any("6 rows, the manifest says 7" in problem for problem in problems(root))
    shards = Manifest.load(sound).shards
    swapped = tuple(dataclasses.replace(shard, samples=5 - shard.samples) for shard in shards)
    reseal(root, texts=TEXTS, shards=swapped)
    assert any("3 rows, the manifest says 2" in problem for problem in problems(root))
    with pytest.raises(UserError, match="6 samples, but its shards hold 5"):
        reseal(root, samples=6, shards=shards)


@pytest.mark.parametrize("name", ["train-000001.tar", "index/train-000001.parquet", "texts.parquet"])
def test_a_file_that_the_manifest_forgot_is_told(sound: Path, tmp_path: Path, name: str) -> None:
    """Or nothing would say what its bytes should be."""
    root = shutil.copytree(sound, tmp_path / "copy")
    manifest = Manifest.load(root)
    dataclasses.replace(manifest, files={n: entry for n, entry in manifest.files.items() if n != name}).save(root)
    assert f"the manifest has no checksum of {name}" in problems(root)


def test_groups_of_a_packed_layout(sound: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sound, tmp_path / "copy")
    reseal(root, layout="packed")
    assert "5 samples of a packed layout are in no group" in problems(root)
    second = "index/train-000001.parquet"
    for name, groups in ((INDEX, [0, 0, 1]), (second, [2, 2])):
        forge_column(root / name, "group", lambda _, groups=groups: groups)  # type: ignore[misc]
    reseal(root)
    assert problems(root) == []
    forge_column(root / second, "group", lambda _: [1, 2])
    reseal(root)
    assert problems(root) == ["1 groups lie in two shards"]


@given(data=st.data(), block=st.sampled_from([4, 1 << 24]))
@settings(max_examples=80, deadline=None)
def test_every_foreign_neighbour_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, block: int
) -> None:
    """One entry of the lists is another id, in range or out of it, or has another similarity."""
    root = make_shards(tmp_path_factory.mktemp("lists"), sizes=(2,), classes=9)
    graph = make_graph(9, k=3)
    at = data.draw(st.integers(0, len(graph.neighbours) - 1))
    if data.draw(st.booleans()):
        old = int(graph.neighbours[at])
        graph.neighbours[at] = data.draw(st.integers(-2, 12).filter(lambda new: new != old))
    else:
        graph.similarities[at] = np.nextafter(graph.similarities[at], data.draw(st.sampled_from([2, -2])), dtype="f2")
    assert not rewritten(root, make_graph(9, k=3), block)
    assert rewritten(root, graph, block)


def rewritten(root: Path, graph: Graph, block: int) -> list[str]:
    write_graph(root, "made", graph, np.zeros(len(graph), np.int32), ["train-000000"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.verify, "PAIRS", block)
        return verify(root)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([(0, 1, 0.5), (1, 0, 0.5), (2, 2, 0.5)], "its own neighbour"),
        ([(0, 1, 0.5), (0, 2, 0.75), (1, 0, 0.5), (2, 0, 0.75)], "not sorted by falling similarity"),
        ([(0, 1, 0.5), (0, 2, 0.5005), (1, 0, 0.5), (2, 0, 0.5005)], "not sorted"),  # by the least step
        ([(0, 1, 0.5), (0, 1, 0.5), (1, 0, 0.5), (1, 0, 0.5)], "twice in one list"),
        ([(0, 1, 0.5)], "does not list alike"),
        ([(0, 1, 0.5), (1, 0, 0.5)], ""),
    ],
)
def test_rules_of_the_lists(tmp_path: Path, entries: list[tuple[int, int, float]], message: str) -> None:
    root = make_shards(tmp_path, sizes=(2,), classes=3)
    rows, others, near = zip(*entries, strict=True)
    graph = dataclasses.replace(
        make_graph(3),
        indptr=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=3))]),
        neighbours=np.array(others, np.int32),
        similarities=np.array(near, np.float16),
    )
    found = rewritten(root, graph, 1 << 24)
    assert any(message in problem for problem in found) if message else found == []
