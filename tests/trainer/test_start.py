"""What is settled before the first step: device, precision, backbone, ranks, and what a dry run measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from shards.errors import UserError
from shards.reader import Shards
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.small import ALONE, SIZES, recipe
from trainer import dryrun, setup
from trainer.loop import train
from trainer.model import build_encoder, feature_dim
from trainer.recipe import ModelConfig
from trainer.step import Stepper
from trainer.world import World, _device, _start_of


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", sizes=SIZES, classes=6)


def test_a_handful_of_samples_can_be_trained_on(tmp_path: Path) -> None:
    few = make_shards(tmp_path / "few", sizes=(5,), classes=3)
    train(recipe(few, data__batch_size=2), tmp_path / "run", ALONE)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_vit", "test_efficientnet"])
def test_the_width_of_features_is_what_comes_out(name: str) -> None:
    """MobileNetV3 has a layer between its last map and its classifier."""
    encoder = build_encoder(replace(ModelConfig(), backbone=name), 32, seed=0).eval()
    assert encoder.backbone(torch.randn(2, 3, 32, 32)).shape == (2, feature_dim(encoder.backbone))


@pytest.mark.parametrize(
    ("name", "message"),
    [("foo", "no device 'foo'"), ("cuda:99", "too few for cuda:99"), ("meta", "no device to train on")],
)
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _device(name, 0)


def test_cuda_is_the_ranks_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _device("cuda", 3) == torch.device("cuda:3")
    assert _device("cuda:1", 3) == torch.device("cuda:1")


def test_small_views_are_float32_on_a_cpu(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16's gradients of maps of one pixel are not to be trusted there."""
    monkeypatch.setattr(setup, "_fast_bfloat16", lambda device: True)
    here, gpu = Shards.open(shards), World(device=torch.device("cuda", 0))
    sizes = {size: recipe(shards, precision="auto", augment__image_size=size) for size in (16, 31, 32)}
    found = {size: setup.settle(chosen, here, ALONE).precision for size, chosen in sizes.items()}
    assert found == {16: "float32", 31: "float32", 32: "bfloat16"}
    assert setup.settle(sizes[16], here, gpu).precision == "bfloat16"


@pytest.mark.parametrize(("name", "size"), [("vgg11", 16), ("crossvit_9_240", 224), ("halonet26t", 224)])
def test_models_that_do_not_take_a_size_say_so_at_once(name: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"{name} does not take {size} pixels"):
        build_encoder(replace(ModelConfig(), backbone=name), size, seed=0)


def steps_measured(world: World, shards: Path, workers: list[int]) -> int:
    steps: list[int] = []
    step, loader = Stepper.step, dryrun.make_loader
    with (
        mock.patch.object(Stepper, "step", lambda self, *rest: (steps.append(1), step(self, *rest))[1]),
        mock.patch.object(dryrun, "make_loader", lambda *rest, **options: loader(*rest, **options | {"workers": 0})),
    ):
        dryrun.estimate(recipe(shards, epochs=50, run__workers=workers[world.rank]), world)
    return len(steps)


def test_ranks_of_unlike_machines_measure_as_many_steps(shards: Path, ranks: Ranks) -> None:
    assert ranks(2, steps_measured, shards, [0, 2]) == [7, 7]
    assert ranks(2, steps_measured, shards, [2, 0]) == [9, 9]


def name_of_start(world: World, store: Path) -> str:
    return _start_of(torch.distributed.FileStore(str(store), -1), world.rank, world.size)


def test_every_start_of_the_ranks_has_one_name_of_its_own(tmp_path: Path, ranks: Ranks) -> None:
    """On a store that keeps what earlier starts left there, as torchrun's does; some ranks of them never came."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), -1)
    store.set("hello/1", "of a rank that was killed")
    names = set()
    for _ in range(2):
        first, *others = ranks(3, name_of_start, tmp_path / "store")
        assert others == [first, first]
        names.add(first)
    assert len(names) == 2


def test_files_of_another_size_are_found_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    texts = shards / "texts.parquet"
    texts.write_bytes(texts.read_bytes() + b"x")
    with pytest.raises(UserError, match=r"texts\.parquet has [\d,]+ bytes, not [\d,]+: run `xclr-shards verify"):
        train(recipe(shards), tmp_path / "run", ALONE)
    texts.unlink()
    with pytest.raises(UserError, match=r"texts\.parquet is missing: run `xclr-shards verify"):
        train(recipe(shards), tmp_path / "run", ALONE)


def test_a_run_that_cannot_be_made_is_one_line(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "nowhere").symlink_to(tmp_path / "not" / "mounted")
    for place in ("file/run", "nowhere"):
        with pytest.raises(UserError, match=rf"{place} cannot be made \(.*\): choose another --out"):
            train(recipe(shards), tmp_path / place, ALONE)
