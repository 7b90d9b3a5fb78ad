"""Shards read by URL: the same samples and graph as on the disk, each file once, and nothing that is not theirs."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shards import remote
from shards.errors import UserError
from shards.graph import write_graph
from shards.mirror import RemoteShards, cache_folder, open_shards
from shards.reader import Shards
from tests.make import make_graph, make_shards
from tests.served import Files


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "in" / "made")


def asked(handler: type[Files], end: str) -> int:
    return sum(path.endswith(end) for path, _ in handler.asked)


def test_samples_and_graph_are_those_of_the_disk(made: Path, url: str) -> None:
    here, there = Shards.open(made), open_shards(url)
    assert isinstance(there, RemoteShards)
    assert there.here() == []  # no tar before one is needed
    assert [there.image(i) for i in range(len(here))] == [here.image(i) for i in range(len(here))]
    assert there.texts() == here.texts()
    assert [sample.key for sample in there.samples()] == here.index.key.to_pylist()
    assert there.graph_names() == here.graph_names()
    for graph in (there.graph(), there.graph("made")):
        assert graph.meta == here.graph().meta
        np.testing.assert_array_equal(graph.neighbours, here.graph().neighbours)
    again: RemoteShards = pickle.loads(pickle.dumps(there))
    assert again.image(5) == here.image(5)


def test_what_was_fetched_is_not_fetched_again_unless_dropped(url: str, handler: type[Files]) -> None:
    shards = RemoteShards.mirror(url)
    shards.image(0)
    again = RemoteShards.mirror(url)
    again.image(0)
    assert asked(handler, "train-000000.tar") == 1
    assert asked(handler, "texts.parquet") == 1
    again.drop(0)
    assert shards.here() == []
    shards.image(0)  # another instance, which had read it
    assert asked(handler, "train-000000.tar") == 2


def _first_image(url: str, _: int) -> bytes:
    return open_shards(url).image(0)


def test_processes_that_need_a_tar_at_once_fetch_it_once(made: Path, url: str, handler: type[Files]) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(_first_image, [(url, i) for i in range(4)])
    assert set(found) == {Shards.open(made).image(0)}
    assert asked(handler, "train-000000.tar") == 1
    assert asked(handler, "index/train-000000.parquet") == 1


def test_threads_that_need_a_tar_at_once_fetch_it_once(url: str, handler: type[Files]) -> None:
    shards = RemoteShards.mirror(url)
    threads = [threading.Thread(target=shards.local_tar, args=(1,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(handler, "train-000001.tar") == 1


def test_what_a_killed_fetch_left_is_swept_away(url: str) -> None:
    shards = RemoteShards.mirror(url)
    left = shards.root / ".fetching" / "train-000000.tar" / ".partial-abc.tar"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    shards.local_tar(0)
    assert not left.exists()


def test_shards_built_again_are_other_shards(made: Path, url: str) -> None:
    before = open_shards(url)
    before.image(0)
    make_shards(made, seed=1)
    after = open_shards(url)
    assert after.root != before.root
    assert after.image(0) == Shards.open(made).image(0)


def test_a_graph_made_again_under_its_name_is_fetched_again(made: Path, url: str, handler: type[Files]) -> None:
    before = open_shards(url).graph("made")
    assert asked(handler, "graphs/made/train-000000.parquet") == 1
    open_shards(url).graph("made")
    assert asked(handler, "graphs/made/train-000000.parquet") == 1
    shards = Shards.open(made).manifest.shards
    write_graph(made, "made", make_graph(4, seed=7), np.zeros(4, np.int32), [shard.name for shard in shards])
    after = open_shards(url).graph("made")
    assert after.meta == Shards.open(made).graph("made").meta != before.meta
    np.testing.assert_array_equal(after.similarities, Shards.open(made).graph("made").similarities)


def test_a_tar_that_is_not_the_manifests_is_refused(made: Path, url: str) -> None:
    shards = RemoteShards.mirror(url)
    tar = made / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    with pytest.raises(UserError, match=r"made/train-000000\.tar is not the file that its manifest names"):
        shards.image(0)
    assert shards.here() == []


@pytest.mark.parametrize("name", ["../evil.parquet", "/etc/evil", "index/../../evil", ".fetching/evil"])
def test_files_outside_the_folder_are_refused(made: Path, url: str, name: str) -> None:
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="outside its folder"):
        open_shards(url)
    assert not list(cache_folder().parent.rglob("evil*"))


@pytest.mark.parametrize("place", ["{tmp}/mine", "../mine"])
def test_shards_without_tars_of_their_own_are_refused(made: Path, url: str, tmp_path: Path, place: str) -> None:
    """As layout in-place names them: what lies there would count as fetched, and be deleted to make room."""
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["layout"] = "in-place"
    for shard in manifest["shards"]:
        tar = f"{place.format(tmp=tmp_path)}/{shard['tar']}"
        manifest["files"][tar] = manifest["files"].pop(shard["tar"])
        shard["tar"] = tar
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"mine/train-00000\d\.tar; layout in-place.*--layout shuffled"):
        open_shards(url)


def test_a_tar_without_a_checksum_is_refused(made: Path, url: str) -> None:
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"]["train-000001.tar"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"names tars elsewhere \(train-000001\.tar"):
        open_shards(url)


def test_wrong_addresses_and_graphs_are_told_in_words(url: str) -> None:
    with pytest.raises(UserError, match=r"there is no .*elsewhere/manifest\.json.*check the address"):
        open_shards(f"{url}/elsewhere")
    with pytest.raises(UserError, match="no graph 'other', only made"):
        open_shards(url).graph("other")
    with pytest.raises(UserError, match=r"cannot be read.*or copy the shards to this machine"):
        open_shards("http://127.0.0.1:1/shards")
    with pytest.raises(UserError, match=r"needs a package|cannot open"):
        open_shards("nonsense://bucket/shards")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("end", ["train-000000.tar", "index/train-000001.parquet", "graphs/made/graph.json"])
def test_a_busy_server_is_asked_again(made: Path, url: str, handler: type[Files], end: str, status: int) -> None:
    """Of fsspec, whatever a server answers is a missing file."""
    handler.statuses[end] = [status] * 2
    shards = open_shards(url)
    assert shards.image(0) == Shards.open(made).image(0)
    assert shards.graph("made").meta == Shards.open(made).graph("made").meta
    assert handler.statuses[end] == []


def test_ctrl_c_does_not_wait_for_a_busy_server(
    url: str, handler: type[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = handler.statuses["index/train-000001.parquet"] = [503] * 2
    monkeypatch.setattr(remote, "WAIT", 10.0)

    def interrupt() -> None:
        while busy:
            time.sleep(0.01)
        time.sleep(0.3)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's workers ignore it
    threading.Thread(target=interrupt).start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            open_shards(url)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert time.monotonic() - began < 8
    assert open_shards(url).texts()  # and another try waits as it should
    assert not remote.GIVEN_UP.is_set()


def test_a_signature_goes_behind_each_files_name_and_may_be_fresh(
    made: Path, url: str, handler: type[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "signature", "sig=a-secret")
    shards = open_shards(f"{url}/?sig=a-secret")
    assert shards.image(0) == Shards.open(made).image(0)
    assert shards.graph("made").meta == Shards.open(made).graph("made").meta
    monkeypatch.setattr(handler, "signature", "sig=b-secret")
    again = open_shards(f"{url}?sig=b-secret")
    assert again.root == shards.root
    assert "secret" not in str(again.root)
    with pytest.raises(UserError, match=r"made/manifest\.json: access is refused") as error:
        open_shards(f"{url}?sig=a-secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("status", [400, 403, 404, 405])
def test_servers_that_list_nothing_give_what_is_named(url: str, handler: type[Files], status: int) -> None:
    handler.statuses["/graphs/"] = [status] * 50
    with pytest.raises(UserError, match=r"http://.*/made has no graphs, or the server lists none: .* --graph"):
        open_shards(url).graph_name()
    with pytest.raises(UserError, match=r"http://.*/made has no graph 'other': .* --graph"):
        open_shards(url).graph_name("other")
    assert open_shards(url).graph("made").meta
    assert 40 < len(handler.statuses["/graphs/"]) < 50


@pytest.mark.parametrize("larger", [True, False])
def test_shards_that_were_built_anew_meanwhile_are_told(made: Path, url: str, larger: bool) -> None:
    shards = open_shards(url)
    make_shards(made, seed=1)
    if larger:
        with (made / "train-000000.tar").open("ab") as tar:
            tar.write(bytes(10240))
    with pytest.raises(UserError, match=r"http://.*/made holds other shards than when they were opened"):
        shards.image(0)


def test_a_page_is_no_manifest(made: Path, url: str) -> None:
    (made / "manifest.json").write_text("<html>log in</html>")
    with pytest.raises(UserError, match=r"http://.*/made/manifest\.json is no manifest of shards"):
        open_shards(url)
    assert not cache_folder().exists()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("end", ["manifest.json", "index/train-000001.parquet"])
def test_who_is_refused_is_told_to_look_at_the_password(url: str, handler: type[Files], end: str, status: int) -> None:
    handler.statuses[end] = [status] * 50
    with pytest.raises(UserError, match=rf"{end}: access is refused \(status {status}\): check its password, keys"):
        open_shards(url)
    assert len(handler.statuses[end]) >= 48  # asked once, by a HEAD and a GET


def test_a_graph_that_left_the_server_is_gone(made: Path, url: str) -> None:
    names = [shard.name for shard in Shards.open(made).manifest.shards]
    write_graph(made, "second", make_graph(4, seed=7), np.zeros(4, np.int32), names)
    RemoteShards.mirror(url).graph("second")
    for path in (made / "graphs" / "second").iterdir():
        path.unlink()
    again = RemoteShards.mirror(url)
    assert again.graph_names() == ["made"]
    with pytest.raises(UserError, match="no graph 'second'"):
        again.graph("second")


def test_printing_asks_no_server(url: str, handler: type[Files]) -> None:
    shards = open_shards(url)
    before = len(handler.asked)
    assert repr(shards) == f"RemoteShards('{url}': 32 samples, 4 texts)"
    assert len(handler.asked) == before


def test_a_graph_without_a_name_is_one_listing(url: str, handler: type[Files]) -> None:
    shards = open_shards(url)
    assert shards.graph_names() == ["made"]
    before = asked(handler, "/graphs/")
    assert shards.graph_name() == "made"
    assert asked(handler, "/graphs/") == 2 * before


@pytest.mark.parametrize("status", [401, 403])
def test_a_graph_that_is_listed_and_refused_is_not_gone(url: str, handler: type[Files], status: int) -> None:
    handler.statuses["/made/graph.json"] = [status] * 50
    with pytest.raises(UserError, match=rf"made/graph\.json: access is refused \(status {status}\)"):
        open_shards(url).graph("made")


def test_servers_that_refuse_what_they_have_not_name_what_is_there(url: str, handler: type[Files]) -> None:
    """S3 says so to who may not list."""
    handler.statuses["/other/graph.json"] = [403] * 50
    with pytest.raises(UserError, match="/made has no graph 'other', only made"):
        open_shards(url).graph_name("other")
