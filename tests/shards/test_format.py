"""Manifest, index, graph files, random access and verification."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.atomic import TEMPORARY, atomic_file, json_bytes, write_array, write_json, write_text
from shards.errors import OverBudget, SkipBudget, UserError
from shards.graph import Graph, read_graph, write_graph
from shards.index import ROWS, write_texts
from shards.manifest import Manifest
from shards.page import write_page
from shards.reader import Shards, latest_shards
from shards.tar import samples
from shards.verify import verify
from tests.make import make_graph, make_shards


def test_import_loads_neither_torch_nor_faiss() -> None:
    code = (
        "import sys, shards.reader, shards.verify, shards.graph, shards.tar; "
        "sys.exit(bool({'torch', 'faiss'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_random_access_equals_sequential_reading(tmp_path: Path) -> None:
    shards = Shards.open(make_shards(tmp_path))
    sequential = [s for entry in shards.manifest.shards for s in samples(tmp_path / entry.tar)]
    assert [shards.image(i) for i in range(len(shards))] == [s.parts["jpg"] for s in sequential]
    assert shards.index.key.to_pylist() == [s.key for s in sequential]
    again = pickle.loads(pickle.dumps(shards))
    assert again.image(5) == shards.image(5)


def test_a_tar_that_was_cut_or_went_is_told(tmp_path: Path) -> None:
    """By the image that is not whole, and by the sizes of all files before a run begins."""
    shards = Shards.open(make_shards(tmp_path / "made", (5,)))
    shards.check_sizes()
    path = tmp_path / "made" / "train-000000.tar"
    whole, end = path.read_bytes(), int(shards.index.offset[4] + shards.index.size[4])
    path.write_bytes(whole[: end - 1])
    assert shards.image(3)
    with pytest.raises(UserError, match=rf"train-000000\.tar ends before byte {end}: run `xclr-shards verify"):
        shards.image(4)
    with pytest.raises(UserError, match=rf"train-000000\.tar has {end - 1:,} bytes, not {len(whole):,}: run"):
        shards.check_sizes()
    path.unlink()
    with pytest.raises(UserError, match=r"train-000000\.tar is missing: run"):
        shards.check_sizes()


def test_shards_and_graphs_print_as_what_they_hold(tmp_path: Path) -> None:
    shards = Shards.open(make_shards(tmp_path / "a"))
    assert repr(shards) == f"Shards('{tmp_path}/a': 32 samples, 4 texts, graphs: made)"
    graph = shards.graph()
    listed, dim = len(graph.neighbours), np.shape(graph.codes)[1]
    assert repr(graph) == f"Graph(4 texts, {listed} listed pairs, codes of {dim} dimensions)"


def test_a_folder_below_data_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "data" / "photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"photos is not a folder of shards: did you mean data/photos\? Or build it"):
        Manifest.load(Path("photos"))


def test_manifest_round_trip_and_what_it_refuses(tmp_path: Path) -> None:
    manifest = Manifest.load(make_shards(tmp_path))
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest
    with pytest.raises(UserError, match=r"no manifest\.json.*unfinished"):
        Manifest.load(tmp_path / "index")
    make_shards(tmp_path / "parent" / "photos")
    with pytest.raises(UserError, match=r"parent holds folders of shards \(photos\): give one of them"):
        Manifest.load(tmp_path / "parent")
    with pytest.raises(UserError, match="not a folder of shards"):
        Manifest.load(tmp_path / "nowhere")
    data = json.loads((tmp_path / "manifest.json").read_text())
    for change, message in [({"format": 2}, "format 2"), ({"samples": 3}, "3 samples"), ({"colour": 1}, "damaged")]:
        (tmp_path / "manifest.json").write_text(json.dumps(data | change))
        with pytest.raises(UserError, match=message):
            Manifest.load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Manifest.load(tmp_path)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 6), st.booleans(), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_graph_round_trip_with_texts_in_any_shard(
    tmp_path_factory: pytest.TempPathFactory, texts: int, shards: int, k: int, codes: bool, seed: int
) -> None:
    root = tmp_path_factory.mktemp("graph")
    rng = np.random.default_rng(seed)
    graph = make_graph(texts, k=k, seed=seed) if texts > 1 else make_graph(2, k=1)
    if not codes:
        graph = dataclasses.replace(graph, codes=None, code_scale=None)
    home = rng.integers(0, shards, len(graph)).astype(np.int32)
    folder = write_graph(root, "g", graph, home, [f"train-{i:06d}" for i in range(shards)])
    back = read_graph(folder)
    for field in dataclasses.fields(Graph):
        if field.name != "meta":
            np.testing.assert_array_equal(getattr(back, field.name), getattr(graph, field.name))
    for shard in range(shards):
        held = pq.read_table(folder / f"train-{shard:06d}.parquet")["text_id"].to_pylist()
        assert held == np.flatnonzero(home == shard).tolist()
    again = write_graph(root, "again", back, np.zeros_like(home), ["train-000000"])
    assert list(read_graph(again).meta["files"]) == ["train-000000.parquet"]  # its own


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("text_id", lambda ids: [ids[0], ids[0]], "do not name each of 4 texts once"),
        ("text_id", lambda ids: [0, ids[1]], "do not name each of 4 texts once"),  # of the other shard
        ("text_id", lambda ids: [ids[0], 4], "do not name each of 4 texts once"),
        ("text_id", lambda ids: [-1, ids[1]], "do not name each of 4 texts once"),
        ("neighbours", lambda lists: [lists[0], [*lists[1][:-1], 4]], r"a neighbour id lies outside 0\.\.3"),
        ("neighbours", lambda lists: [lists[0], [*lists[1][:-1], -1]], r"a neighbour id lies outside 0\.\.3"),
        ("similarities", lambda lists: [lists[0], lists[1][:-1]], "neighbours and similarities differ in length"),
        ("code", lambda codes: [codes[0], None], "1 of 2 texts have no code"),
        ("code", lambda codes: [None, None], "2 of 4 texts have no code"),
        ("code", lambda codes: [codes[0], codes[1][:-1]], "codes differ in length"),
        (None, lambda table: table.slice(1), "name 3 of 4 texts"),
    ],
)
def test_rows_that_are_no_graph_are_refused(
    tmp_path: Path, column: str | None, change: Callable[[Any], Any], message: str
) -> None:
    folder = write_graph(tmp_path, "g", make_graph(4), np.array([0, 0, 1, 1], np.int32), ["a", "b"])
    table = pq.read_table(folder / "b.parquet")
    if column is None:
        table = change(table)
    else:
        at = table.schema.get_field_index(column)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(change(table[column].to_pylist()), field.type))
    pq.write_table(table, folder / "b.parquet", store_schema=False)
    with pytest.raises(UserError, match=rf"is damaged \(.*{message}.*run `xclr-shards graph` again"):
        read_graph(folder)


def test_more_texts_than_one_arrow_array_can_hold(tmp_path: Path) -> None:
    """2.4 GB of them, of zero bytes, which take neither memory nor disk."""
    count, width = 300_000, 8_000
    starts, zeros = np.arange(count + 1) * width, np.zeros(count * width, np.uint8)
    texts = pa.Array.from_buffers(pa.large_string(), count, [None, pa.py_buffer(starts), pa.py_buffer(zeros)])
    write_texts(tmp_path / "texts.parquet", texts, np.arange(count))
    with pq.ParquetFile(tmp_path / "texts.parquet") as file:
        assert file.metadata.num_rows == count
        last = file.read_row_group(file.metadata.num_row_groups - 1).slice(count % ROWS - 1)
    assert last["text_id"].to_pylist() == last["count"].to_pylist() == [count - 1]
    assert len(last["text"][0].as_py()) == width


def test_graph_by_name(tmp_path: Path) -> None:
    root = make_shards(tmp_path, graph=False)
    shards = Shards.open(root)
    with pytest.raises(UserError, match="no graph"):
        shards.graph()
    names = [s.name for s in shards.manifest.shards]
    write_graph(root, "b", make_graph(4, seed=1), np.zeros(4, np.int32), names)
    assert len(shards.graph()) == 4
    write_graph(root, "a", make_graph(4), np.zeros(4, np.int32), names)
    with pytest.raises(UserError, match=r"several graphs \(a, b\)"):
        shards.graph()
    with pytest.raises(UserError, match="no graph 'c', only a, b"):
        shards.graph("c")
    write_graph(root, "c", make_graph(3), np.zeros(3, np.int32), names)
    with pytest.raises(UserError, match="3 texts"):
        shards.graph("c")


def test_sound_shards_verify(tmp_path: Path) -> None:
    assert verify(make_shards(tmp_path)) == []


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float16), np.arange(200_000).reshape(-1, 8), np.eye(3)[:, ::-1]])
def test_arrays_are_written_as_numpy_writes_them(tmp_path: Path, array: np.ndarray) -> None:
    write_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_atomic_file_leaves_nothing_behind_on_failure(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "a") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave the name of a whole file on an empty one."""
    done = list[object]()
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        found = os.fstat(descriptor)
        done.append("folder" if stat.S_ISDIR(found.st_mode) else found.st_size)
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append("named")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_file(tmp_path / "a") as file:
        file.write(b"whole")
    assert done == [5, "named", "folder"]


def test_files_are_as_readable_as_the_umask_says_which_nobody_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the whole process's: another thread would write by what it is meanwhile."""
    before = os.umask(0o027)
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask is set"))
    try:
        with atomic_file(tmp_path / "a.txt") as file:
            file.write(b"x")
            (partial,) = tmp_path.iterdir()
            assert (partial.name.startswith(TEMPORARY), partial.suffix) == (True, ".txt")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_equal_values_are_equal_bytes() -> None:
    assert json_bytes({"b": 1, "a": {"d": 2, "c": 3}}) == json_bytes({"a": {"c": 3, "d": 2}, "b": 1})


def test_paths_of_any_bytes_are_kept(tmp_path: Path) -> None:
    path = os.fsdecode(b"/data/caf\xe9 \xc3\xa9")
    write_json(tmp_path / "a.json", {"root": path})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["root"] == path
    write_page(tmp_path / "a.html", path, [path])
    write_text(tmp_path / "a.md", path)
    assert (tmp_path / "a.md").read_bytes() == b"/data/caf? \xc3\xa9"
    assert "/data/caf? \u00e9" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_shards_below_a_path_that_is_no_text_are_refused(tmp_path: Path) -> None:
    made = make_shards(tmp_path / "made")
    with pytest.raises(UserError, match="is not UTF-8: rename its folder"):
        Shards.open(made.rename(tmp_path / os.fsdecode(b"caf\xe9")))


def test_budget_counts_and_stops() -> None:
    budget = SkipBudget("made", 0.1, minimum=2)
    budget.ok(10)
    budget.skip("torn", "a")
    budget.skip("torn", "b")
    assert budget.counts == {"torn": 2}
    with pytest.raises(OverBudget, match=r"3 of the first 13 .*2 torn, 1 empty"):
        budget.skip("empty", "c")


def test_latest_shards_ignores_test_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make shards"):
        latest_shards(tmp_path)
    train = make_shards(tmp_path / "one")
    make_shards(tmp_path / "two", split="test")
    assert latest_shards(tmp_path) == train
    other = make_shards(tmp_path / "three")
    for name, built in (("one", 1), ("two", 3), ("three", 2)):
        os.utime(tmp_path / name / "manifest.json", (built, built))
    assert latest_shards(tmp_path) == other
    os.utime(train / "manifest.json", (4, 4))
    assert latest_shards(tmp_path) == train  # built again
