"""A full disk is one clear line, and the same command finishes once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

import pipeline.build
import shards.atomic
from pipeline.build import build_shards
from pipeline.encode.embed import _text_means, unique_captions
from pipeline.graph.build import build_graph
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.atomic import TEMPORARY, write_array
from shards.errors import UserError
from shards.verify import verify
from tests.pipeline.building import contents
from tests.pipeline.sources import class_folders, pictures

FULL = r"the disk of .* is full: make room and run the same command again, it goes on where it was"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 120 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here, so no small file system to fill")
    if done.returncode:
        pytest.skip(f"mounting a small file system needs root: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def build(source: Path, out: Path, processes: int = 1) -> Path:
    found = open_source(load_dataset("tiny-imagenet-100"), str(source))
    build_shards(found, out, BuildSettings(shard_size=10), processes)
    return out


def test_an_array_on_a_full_disk(disk: Path) -> None:
    """NumPy's own way of writing it raises an error without a number, which nobody can tell from others."""
    write_array(disk / "small.npy", np.arange(10))
    np.testing.assert_array_equal(np.load(disk / "small.npy"), np.arange(10))
    with pytest.raises(OSError, match="No space left") as raised:
        write_array(disk / "large.npy", np.zeros(1 << 20))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(disk / "large.npy"))
    assert [path.name for path in disk.iterdir()] == ["small.npy"]


def test_a_build_on_a_full_disk(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = class_folders(tmp_path / "in", [f"class {i}" for i in range(5)], images=8)
    out = disk / "out"
    with pytest.raises(UserError, match=r"needs some .* MB more, its disk has .* MB free: make room.*--image-size$"):
        build(source, out)
    # Someone else fills the disk after it was looked at; the writers, in processes of their own, find it full.
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.build, "room_to_write", lambda *args: None)
        with pytest.raises(UserError, match=FULL):
            build(source, out, processes=2)
    assert not (out / "manifest.json").exists()
    assert list(out.glob("train-*.tar"))
    resize(disk, "1m")
    build(source, out)
    (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 16384))
    with pytest.raises(UserError, match=FULL):
        build_graph(out, kind="class")
    (disk / "filler").unlink()
    build_graph(out, kind="class")
    assert verify(out) == []
    whole = build(source, tmp_path / "whole")
    build_graph(whole, kind="class")
    assert contents(out) == contents(whole)


def test_embeddings_on_a_full_disk(disk: Path, tmp_path: Path) -> None:
    """They are written through a mapping, where a full disk would be a signal and no error."""
    captions = unique_captions([f"caption {i}" for i in range(200)])
    np.save(tmp_path / "chunk.npy", np.ones((200, 384), np.float32))
    with pytest.raises(OSError, match="No space left"):
        _text_means(captions, [tmp_path / "chunk.npy"], disk / "embeddings.npy")
    resize(disk, "1m")
    vectors = _text_means(captions, [tmp_path / "chunk.npy"], disk / "embeddings.npy")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    del vectors


def test_shrunk_images_need_less_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "in" / "train" / "cat", [f"{i}.jpg" for i in range(6)], size=300)
    found, size = open_source(load_dataset("tiny-imagenet-100"), str(tmp_path / "in")), 6 * 40_000
    assert sum(path.stat().st_size for path in (tmp_path / "in").rglob("*.jpg")) > size
    monkeypatch.setattr(pipeline.build.shutil, "disk_usage", lambda path: Mock(free=size))
    with pytest.raises(UserError, match=r"shrink images with --image-size"):
        build_shards(found, tmp_path / "out", BuildSettings(), 1)
    assert build_shards(found, tmp_path / "out2", BuildSettings(image_size=32), 1)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_says_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """Where nothing can be mounted: the sixth file that is to be made safe meets a full disk."""
    source = class_folders(tmp_path / "in", images=20)
    calls: list[int] = []
    fsync = os.fsync

    def full(descriptor: int) -> Any:
        calls.append(descriptor)
        if len(calls) >= 12:
            raise OSError(error, os.strerror(error))
        return fsync(descriptor)

    monkeypatch.setattr(shards.atomic.os, "fsync", full)
    with pytest.raises(UserError, match=FULL):
        build(source, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(f"{TEMPORARY}*"))
    monkeypatch.undo()
    build(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(build(source, tmp_path / "whole"))
