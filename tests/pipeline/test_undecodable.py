"""`xclr-shards verify --decode`: images that a build takes for sound, and that training cannot show."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.images import problem, resized, shows
from pipeline.scan.samples import Limits
from tests.make import make_shards
from tests.pipeline.building import build
from tests.pipeline.sources import data_set, pictures, write_tar
from trainer.augment import BadImage, decode


def encoded(picture: Image.Image, kind: str) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def cut_png() -> bytes:
    """Its header is whole, and so is its end."""
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)), "PNG")
    return whole[:2000] + whole[-12:]


def decodes(data: bytes) -> bool:
    try:
        decode(data)
    except BadImage:
        return False
    return True


@pytest.mark.parametrize("processes", [1, 2])
def test_each_is_named_with_the_file_it_came_from(tmp_path: Path, processes: int) -> None:
    made = pictures(tmp_path / "in", [f"{i}.png" for i in range(12)])
    for name in ("3.png", "8.png"):
        (tmp_path / "in" / name).write_bytes(cut_png())
    rows = "".join(f"{name},text {i}\n" for i, name in enumerate(made))
    (tmp_path / "in" / "t.csv").write_text(f"image,caption\n{rows}")
    mine = data_set(tmp_path / "mine.toml", format="table")
    out = build(mine, tmp_path / "in", tmp_path / "out", shard_size=5)
    assert CliRunner().invoke(app, ["verify", str(out)]).exit_code == 0
    told = CliRunner().invoke(app, ["verify", str(out), "--decode", "--processes", str(processes)])
    assert told.exit_code == 1
    assert sorted(line.rpartition(": ")[2] for line in told.stdout.splitlines()) == ["3.png", "8.png"]
    assert all(" of train-00000" in line for line in told.stdout.splitlines())
    assert "2 of 12 images do not decode" in " ".join(told.stderr.split())


def test_of_a_torn_tar_in_its_place_what_is_whole_is_looked_at(tmp_path: Path) -> None:
    members = [(f"k{i}.{kind}", data) for i in range(4) for kind, data in (
        ("png", cut_png() if i == 1 else encoded(Image.new("RGB", (9, 9)), "PNG")), ("txt", b"text %d" % i)
    )]  # fmt: skip
    tar = write_tar(tmp_path / "in" / "a.tar", members)
    os.truncate(tar, tar.stat().st_size - 10500)
    mine = data_set(tmp_path / "mine.toml", format="webdataset")
    out = build(
        mine, tmp_path / "in", tmp_path / "out", layout="in-place", limits=Limits(use_torn=True), max_skipped=1.0
    )
    told = CliRunner().invoke(app, ["verify", str(out), "--decode"])
    assert told.stdout.splitlines() == ["k1 of a.tar"]


def test_sound_shards_are_sound(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["verify", str(make_shards(tmp_path / "a")), "--decode"])
    assert (told.exit_code, "is sound: 32 samples" in told.stdout) == (0, True)
    told = CliRunner().invoke(app, ["verify", str(make_shards(tmp_path / "b", bad=(4,))), "--decode"])
    assert told.exit_code == 1
    assert told.stdout.splitlines() == ["000004 of train-000000.tar"]


def test_what_shows_is_what_training_decodes() -> None:
    grey = Image.fromarray(np.full((20, 30), 90, np.uint8))
    numbers = encoded(Image.fromarray(np.ones((20, 30), np.float32)), "TIFF")  # of which nobody says what is white
    for data in (b"", b"no", cut_png(), numbers, *(encoded(grey, kind) for kind in ("PNG", "TIFF", "GIF", "WEBP"))):
        assert shows(data) == decodes(data)
    for pillows in (encoded(grey, "PNG")[:-1], encoded(grey, "DDS")):  # OpenCV makes nothing of them
        assert shows(pillows)
        assert decodes(pillows)
        assert resized(pillows, 10) != pillows
    assert problem(numbers, 10**6) == "undecodable image"
