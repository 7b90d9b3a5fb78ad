"""A step that the memory cannot hold is refused before it is made, by what its forward pass keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.test_loop import ALONE, SIZES, recipe
from trainer import memory
from trainer.loop import train
from trainer.memory import check_fits, kept_by_forward
from trainer.model import Encoder, build_encoder
from trainer.recipe import ModelConfig


def test_what_is_kept_is_counted() -> None:
    """Of layers whose tensors can be counted by hand: the image, which the weights' gradient needs, the map that ReLU
    changes in place, and the features; the weights do not count."""
    backbone = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = Encoder(backbone, nn.Linear(5, 4))
    assert kept_by_forward(encoder, 8) == 4 * (8 * 8 * (3 + 5) + 5)


def test_counting_leaves_no_trace() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_resnet", projector_dim=16), 32, seed=0).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    full = kept_by_forward(encoder, 32)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert 0.4 * full < kept_by_forward(encoder, 32, bfloat16=True) < 0.8 * full


def test_a_step_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path / "s", sizes=SIZES, classes=6)
    chosen = recipe(shards)
    image = kept_by_forward(build_encoder(chosen.model, 16, 0), 16)
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 8 * image - 1)
    with pytest.raises(
        UserError, match=r"a step of 8 samples at 16 pixels .*: give --chunk 4, .* smaller --batch-size"
    ):
        train(chosen, tmp_path / "run", ALONE)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    chunked = recipe(shards, data__chunk=4, epochs=1)
    assert train(chunked, tmp_path / "run", ALONE).steps == 10
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 8 * image)
    assert train(recipe(shards, epochs=1), tmp_path / "other", ALONE).steps == 10
    monkeypatch.setattr(memory, "free_memory", lambda: image)  # not even one sample
    with pytest.raises(UserError, match=r"that are free: give a GPU, a smaller --model"):
        train(recipe(shards), tmp_path / "third", ALONE)


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = recipe(tmp_path)
    encoder = build_encoder(chosen.model, 16, 0)
    image = kept_by_forward(encoder, 16)
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 8 * image - 1)
    two = [type(ALONE)(rank=0, size=2, local_size=local, device=ALONE.device) for local in (1, 2)]
    check_fits(encoder, chosen, two[0])  # four samples of its own, and the machine for itself
    with pytest.raises(UserError, match="a step of 4 samples"):
        check_fits(encoder, chosen, two[1])
