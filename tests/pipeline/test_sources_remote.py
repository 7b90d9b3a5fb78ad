"""Tars that do not lie here: over HTTP from a real server, in fsspec's memory; broken connections and dead hosts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.scans
from pipeline.build import build_shards
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards import remote
from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from shards.verify import verify
from tests.pipeline.sources import data_set, img2dataset, pictures
from tests.served import Files, serving


@pytest.fixture
def served(tmp_path: Path, handler: type[Files], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of tmp_path/in, two tars with parquet files beside them."""
    monkeypatch.setattr(remote, "WAIT", 0.01)
    img2dataset(tmp_path / "in", samples=6, tars=2, failed=2)
    with serving(tmp_path / "in", handler) as url:
        yield url


def build(dataset: str, source: str, out: Path, **settings: Any) -> dict[str, tuple[bytes, str]]:
    """key -> image and text of what was built, checked."""
    build_shards(open_source(load_dataset(dataset), source), out, BuildSettings(**settings), 1)
    assert verify(out) == []
    assert not (out / ".work").exists()
    shards = Shards.open(out)
    texts, index = shards.texts(), shards.index
    return {key: (shards.image(i), texts[index.text_id[i]]) for i, key in enumerate(index.key.to_pylist())}


class Hub(Files):
    """What the Hugging Face hub answers for one data set, whose files are those of the folder."""

    ranges = True

    def do_GET(self) -> None:
        place, _, rest = self.path.partition("/api/datasets/owner/name")
        if place:
            self.path = self.path.replace("/datasets/owner/name/resolve/main", "")
            super().do_GET()
        elif rest.startswith("/tree/main"):
            files = sorted(Path(self.directory).iterdir())
            self._json([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in files])
        else:
            self._json({"id": "owner/name", "sha": "main", "siblings": []})

    def _json(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_a_repository_on_the_hub(tmp_path: Path) -> None:
    """In a process of its own: the hub's address is read when its package is imported."""
    img2dataset(tmp_path / "in", samples=3, tars=2)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path / "in")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        arguments = ["build", "flickr8k", "--source", "hf://datasets/owner/name", "--graph", "none"]
        subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments, "--out", str(tmp_path / "out"), "--processes", "1"],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"},
            check=True,
        )
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    build("flickr8k", str(tmp_path / "in"), tmp_path / "local")
    assert tars(tmp_path / "out") == tars(tmp_path / "local")


def tars(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.tar")}


@pytest.mark.parametrize("address", ["{url}/{{00000..00001}}.tar", "{url}/list.txt", "{url}/*.tar", "{url}/"])
def test_over_http_equals_local(address: str, tmp_path: Path, served: str, handler: type[Files]) -> None:
    handler.ranges = "{{" in address
    (tmp_path / "in" / "list.txt").write_text(f"# two tars\n00001.tar\n\n{served}/00000.tar\n")
    local = build("flickr8k", str(tmp_path / "in"), tmp_path / "local")
    assert build("flickr8k", address.format(url=served), tmp_path / "out") == local
    assert tars(tmp_path / "out") == tars(tmp_path / "local")
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.skipped == {"not downloaded": 4}  # that is known from the parquet files alone
    assert manifest.settings["files_sha256"] == Manifest.load(tmp_path / "local").settings["files_sha256"]


def test_a_single_tar_keeps_its_secrets(tmp_path: Path, served: str) -> None:
    url = served.replace("//", "//user:pass@") + "/00001.tar?X-Signature=secret"
    assert len(build("flickr8k", url, tmp_path / "out")) == 6
    for path in tmp_path.glob("out/**/*"):
        assert path.is_dir() or not any(word in path.read_bytes() for word in (b"secret", b"pass@"))
    assert Manifest.load(tmp_path / "out").source == f"{served}/00001.tar"
    with pytest.raises(UserError) as error:
        open_source(load_dataset("flickr8k"), url.replace("00001", "00009"))
    assert "there is no http" in str(error.value)
    assert "secret" not in str(error.value)


def test_secrets_stay_out_of_what_libraries_say(tmp_path: Path, handler: type[Files], served: str) -> None:
    assert remote.shown("ftp://user:secret@host/a.tar") == "ftp://host/a.tar"
    assert remote.shown("ftp://me@mail.net:secret@host/a.tar") == "ftp://host/a.tar"
    assert remote.shown("abfs://box@account.net:443/a@b") == "abfs://box@account.net:443/a@b"
    assert remote.shown("abfs://box@account.net/a") == "abfs://box@account.net/a"  # a container
    assert remote.shown("s3://bucket/a@b/c?d.tar") == "s3://bucket/a@b/c?d.tar"
    url = f"{served}/00000.tar?sig=a%2Fb%7Esecret"

    def refused() -> bytes:
        raise OSError(f"403, message='Forbidden', url=URL('{served}/00000.tar?sig=a/b~secret'), for http://u:secret@h/")

    with pytest.raises(UserError, match="403") as error:
        remote.retried(url, refused)
    assert "secret" not in str(error.value)
    assert remote.shown("s3://u:p@secret@bucket/a") == remote.shown("s3://u:p?#secret@bucket/a") == "s3://bucket/a"
    for query in ("name=a,b&sig=secret", "name='a'&sig=secret", "name=a b&sig=secret", "n=UTF-8''a (1).tar&sig=secret"):
        for asked in (f"{served}/a.tar?{query}", "https://h/b.tar"):

            def failed(said: str = f"no answer from {served}/a.tar?{query} within 5 s") -> bytes:
                raise OSError(said)

            with pytest.raises(UserError, match="no answer from") as error:
                remote.retried(asked, failed)
            assert "secret" not in str(error.value)


def test_captions_beside_are_read_by_the_signature_of_the_tar(
    tmp_path: Path, handler: type[Files], served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = build("flickr8k", str(tmp_path / "in" / "00001.tar"), tmp_path / "local")
    monkeypatch.setattr(handler, "signature", "sig=secret")
    assert build("flickr8k", f"{served}/00001.tar?sig=secret", tmp_path / "out") == local
    skipped = Manifest.load(tmp_path / "out").skipped
    assert skipped == Manifest.load(tmp_path / "local").skipped == {"not downloaded": 2}


@pytest.mark.parametrize(("place", "what"), [("", "folder"), ("/", "folder"), ("/*.tar", "glob")])
def test_signed_folders_are_not_taken_for_tars(served: str, place: str, what: str) -> None:
    with pytest.raises(UserError, match=rf"{what}, which a URL with a query .* braces") as error:
        open_source(load_dataset("flickr8k"), f"{served}{place}?sig=secret")
    assert "secret" not in str(error.value)
    assert len(open_source(load_dataset("flickr8k"), f"{served}/0000{{0..1}}.tar?sig=secret").partitions) == 2


def test_fresh_signatures_fetch_nothing_again(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    fetch = remote.fetch
    monkeypatch.setattr("pipeline.scan.tars.fetch", lambda url, *rest: (fetched.append(url), fetch(url, *rest)))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.build.number_samples", stop)
        with pytest.raises(KeyboardInterrupt):
            build("flickr8k", f"{served}/00000.tar?signature=old", tmp_path / "out")
    assert fetched
    fetched.clear()
    assert len(build("flickr8k", f"{served}/00000.tar?signature=new", tmp_path / "out")) == 6
    assert fetched == []


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_other_encodings_and_names_twice(encoding: str, tmp_path: Path) -> None:
    img2dataset(tmp_path / "in", samples=3, tars=1)
    (tmp_path / "list.txt").write_text("in/00000.tar\n./in/00000.tar\n././in/00000.tar\n", encoding=encoding)
    if encoding == "utf-16":
        with pytest.raises(UserError, match=r"list\.txt is no UTF-8"):
            open_source(load_dataset("flickr8k"), str(tmp_path / "list.txt"))
    else:
        assert len(build("flickr8k", str(tmp_path / "list.txt"), tmp_path / "out")) == 3


def test_local_lists_braces_and_globs(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in", samples=3, tars=3)
    whole = build("flickr8k", str(tmp_path / "in"), tmp_path / "whole")
    (tmp_path / "list.txt").write_text(f"in/00000.tar\n{tmp_path}/in/00001.tar\nfile://{tmp_path}/in/00002.tar\n")
    for i, source in enumerate(("in/*.tar", "in/0000{0..2}.tar", "list.txt")):
        found = build("flickr8k", str(tmp_path / source), tmp_path / f"out{i}", layout="in-place")
        assert found == {key.partition("_")[2]: sample for key, sample in whole.items()}, source


def test_memory(tmp_path: Path) -> None:
    img2dataset(tmp_path / "in", samples=4, tars=2, parquet=False)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "in"), "/bucket/tars", recursive=True)
    try:
        local = build("flickr8k", str(tmp_path / "in"), tmp_path / "local")
        for i, source in enumerate(("memory://bucket/tars", "memory://bucket/*/*.tar")):
            assert build("flickr8k", source, tmp_path / f"out{i}") == local
        with pytest.raises(UserError, match=r"in-place needs tars on a local disk, not memory://"):
            build("flickr8k", "memory://bucket/tars", tmp_path / "no", layout="in-place")
        before = open_source(load_dataset("flickr8k"), "memory://bucket/tars").fingerprint()
        memory.pipe("/bucket/tars/00001.tar", memory.cat("/bucket/tars/00001.tar") + bytes(512))
        assert open_source(load_dataset("flickr8k"), "memory://bucket/tars").fingerprint() != before
        with pytest.raises(UserError, match=r"holds no file like \*\.tar"):
            open_source(load_dataset("flickr8k"), "memory://bucket/empty")
        with pytest.raises(UserError, match="is read from a local disk, not from memory://"):
            open_source(load_dataset("imagenet"), "memory://bucket/tars")
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up(
    ranges: bool, tmp_path: Path, served: str, handler: type[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "CHUNK", 4096)
    handler.ranges = ranges
    (whole,) = tars(tmp_path / "in").keys() & {"00000.tar"}
    content = (tmp_path / "in" / whole).read_bytes()
    handler.drops = [1000, 4096, 100, 4096] if ranges else [6000, 100, 9000]
    remote.fetch(f"{served}/{whole}", len(content), tmp_path / "got.tar")
    assert (tmp_path / "got.tar").read_bytes() == content
    assert handler.drops == []
    starts = [int(asked[6:].partition("-")[0]) for _, asked in handler.asked if asked]
    assert not ranges or starts == [0, 0, 4096, *range(4096, len(content), 4096)]
    with pytest.raises(UserError, match=rf"{len(content)} bytes came of {len(content) + 1}"):
        remote.fetch(f"{served}/{whole}", len(content) + 1, tmp_path / "more.tar")
    assert not (tmp_path / "more.tar").exists()


def test_captions_of_a_busy_server_are_not_taken_for_missing(tmp_path: Path, handler: type[Files], served: str) -> None:
    handler.statuses["00000.parquet"] = [503, 503]
    (found,) = open_source(load_dataset("flickr8k"), f"{served}/00000.tar").partitions
    assert found.beside == f"{served}/00000.parquet"


def test_a_connection_that_stays_broken_is_given_up(tmp_path: Path, served: str, handler: type[Files]) -> None:
    handler.drops = [10_000] * 50
    source = open_source(load_dataset("flickr8k"), f"{served}/00000.tar")
    with pytest.raises(UserError, match=r"00000\.tar: it cannot be read .*SOURCE="):
        build_shards(source, tmp_path / "out", BuildSettings(), 1)
    assert 0 < 50 - len(handler.drops) < 2 * remote.ATTEMPTS + 5
    assert not list((tmp_path / "out").rglob("*.tar"))
    handler.drops.clear()
    assert len(build("flickr8k", f"{served}/00000.tar", tmp_path / "out")) == 6


@pytest.mark.parametrize(
    ("moment", "left"), [("build.number_samples", set()), ("scan.tars._beside", {"/00001.tar", "/00001.parquet"})]
)
def test_a_stopped_build_fetches_no_tar_twice(
    moment: str, left: set[str], tmp_path: Path, served: str, handler: type[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    source = open_source(load_dataset("flickr8k"), f"{served}/{{00000..00001}}.tar")
    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.{moment}", stop)
        with pytest.raises(KeyboardInterrupt):
            build_shards(source, tmp_path / "out", BuildSettings(), 1)
    handler.asked.clear()
    build_shards(source, tmp_path / "out", BuildSettings(), 1)
    assert {path for path, _ in handler.asked} == left
    assert tars(tmp_path / "out") != {}


@pytest.mark.parametrize("samples", [6, 9])
def test_a_fetched_file_never_stands_for_another(
    samples: int, tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a list that changes after a stop, which came between fetching and scanning."""
    img2dataset(tmp_path / "other", samples=samples, tars=4, failed=2)
    for suffix in (".tar", ".parquet"):
        shutil.copyfile(tmp_path / "other" / f"00003{suffix}", tmp_path / "in" / f"00003{suffix}")
    listed = tmp_path / "in" / "list.txt"
    listed.write_text("00000.tar\n00001.tar\n")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.scan.tars.mapped", stop)
        source = open_source(load_dataset("flickr8k"), f"{served}/list.txt")
        for partition in source.partitions:
            with pytest.raises(KeyboardInterrupt):
                pipeline.scans._scan_one(source, BuildSettings(), tmp_path / "out" / ".work", partition)
    assert len(list((tmp_path / "out" / ".work" / "scan").glob("*.tar"))) == 2
    listed.write_text("00000.tar\n00003.tar\n")
    found = build("flickr8k", f"{served}/list.txt", tmp_path / "out")
    assert {text.partition("\n")[0] for _, text in found.values()} == {
        *(f"picture {i} of tar 0" for i in range(6)),
        *(f"picture {i} of tar 3" for i in range(samples)),
    }


def test_a_torn_remote_tar_is_named_by_its_address(tmp_path: Path, served: str) -> None:
    torn = tmp_path / "in" / "00001.tar"
    torn.write_bytes(torn.read_bytes()[:3000])
    with pytest.raises(UserError, match=rf"{served}/00001\.tar: .* is torn"):
        build("flickr8k", f"{served}/00001.tar", tmp_path / "out")


def test_no_room(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(UserError, match=r"takes 0 GB more, fetched and as shards; .* make room"):
        build("flickr8k", f"{served}/00001.tar", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://127.0.0.1:9/a.tar", r"http://127\.0\.0\.1:9/a\.tar: it cannot be read .*SOURCE="),
        ("hf://datasets/nobody/nothing", "the Hugging Face hub cannot be reached"),
        ("carrier-pigeon://a/b.tar", "Protocol not known"),
        ("memory://a/{1..", "braces|holds no file"),
    ],
)
def test_what_cannot_be_reached(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAIT", 0.01)
    with pytest.raises(UserError, match=message) as error:
        open_source(load_dataset("cc12m"), source)
    assert "\n" not in str(error.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def without(*_: Any, **__: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", without)
    for url, package in (("s3://b/a.tar", "s3fs"), ("https://b/a.tar", "aiohttp"), ("gs://b/a.tar", "gcsfs")):
        with pytest.raises(UserError, match=f"not installed: pip install {package}"):
            open_source(load_dataset("cc12m"), url)


def test_remote_parquet_with_images(tmp_path: Path, served: str) -> None:
    made = pictures(tmp_path / "p", ["a.jpg", "b.jpg"])
    cells = [{"bytes": content, "path": name} for name, content in made.items()]
    pq.write_table(pa.table({"image": cells, "text": ["one", "two"]}), tmp_path / "in" / "train-0.parquet")
    mine = data_set(tmp_path / "mine.toml", format="table")
    found = build(mine, f"{served}/train-0.parquet", tmp_path / "out")
    assert sorted(found.values()) == sorted((made[name], text) for name, text in (("a.jpg", "one"), ("b.jpg", "two")))
    (tmp_path / "in" / "t.csv").write_text("image,caption\na.jpg,x\n")
    with pytest.raises(UserError, match=r"t\.csv .*only parquet with images inside"):
        open_source(load_dataset(mine), f"{served}/t.csv")
