"""A step that the memory cannot hold is refused before it is made, by what its forward pass keeps."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.small import ALONE, SIZES, recipe
from trainer import memory
from trainer.loop import train
from trainer.memory import check_fits, kept_by_forward
from trainer.model import Encoder, build_encoder
from trainer.recipe import ModelConfig, TextConfig
from trainer.text import TextTower


def test_what_is_kept_is_counted() -> None:
    """Of layers whose tensors can be counted by hand: the image, which the weights' gradient needs, the map that ReLU
    changes in place, and the features; the weights do not count."""
    backbone = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder = Encoder(backbone, nn.Linear(5, 4))
    assert kept_by_forward(encoder, 8) == 2 * 4 * (8 * 8 * (3 + 5) + 5)  # two views


class Own(nn.Module):
    """A network that draws, counts, averages its weights and keeps buffers as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
        self.average = nn.Parameter(self.layer.weight.detach().clone(), requires_grad=False)
        self.register_buffer("last", torch.zeros(1))
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        with torch.no_grad():
            self.average.mul_(0.9).add_(self.layer.weight, alpha=0.2)
        self.last = x.detach().mean((1, 2, 3))  # as long as the batch
        return nn.functional.dropout(self.layer(x), 0.5).mean((2, 3))


def own_encoder() -> Encoder:
    return Encoder(Own(), nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))


@pytest.mark.parametrize("make", [own_encoder, lambda: build_encoder(ModelConfig(backbone="test_resnet"), 32, 0)])
def test_counting_leaves_no_trace(make: Callable[[], Encoder]) -> None:
    encoder = make().train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    full = kept_by_forward(encoder, 32)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert getattr(encoder.backbone, "passes", 0) == 0
    assert 0.4 * full < kept_by_forward(encoder, 32, bfloat16=True) < 0.9 * full


def test_counting_holds_nothing() -> None:
    """What was weighed is let go: of twenty times 14 MB, nothing stays."""
    encoder = build_encoder(ModelConfig(backbone="resnet18"), 96, 0)
    held = [resident() for _ in range(20) if kept_by_forward(encoder, 96) > 7 << 20]
    assert held[-1] - held[4] < 60 << 20


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_text_tower_is_weighed_as_well() -> None:
    encoder = build_encoder(ModelConfig(backbone="test_vit"), 32, 0)
    views = kept_by_forward(encoder, 32)
    encoder.text = TextTower(TextConfig(), 1000, 128, 0.1)
    short, long = (kept_by_forward(encoder, 32, length) - views for length in (16, 64))
    assert 3.5 < long / short < 5  # attention is of its square
    assert long > 4 << 20


def test_what_cannot_be_weighed_is_let_pass(tmp_path: Path) -> None:
    class Odd(Own):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) < 8:
                raise RuntimeError("of eight images and more")
            return super().forward(x)

    check_fits(Encoder(Odd(), nn.Linear(8, 4)), recipe(tmp_path), ALONE)


def room_for(monkeypatch: pytest.MonkeyPatch, encoder: Encoder, size: float, ranks: int = 1) -> None:
    """As if so many bytes were there for what a step of these ranks keeps."""
    weights = ranks * sum(4 * parameter.numel() for parameter in encoder.parameters())
    monkeypatch.setattr(memory, "free_memory", lambda: (size + memory.TRAINED * weights) / memory.SHARE)


def test_a_step_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = make_shards(tmp_path / "s", sizes=SIZES, classes=6)
    chosen = recipe(shards)
    encoder = build_encoder(chosen.model, 16, 0)
    sample = kept_by_forward(encoder, 16)
    room_for(monkeypatch, encoder, 7.9 * sample)
    with pytest.raises(UserError, match=r"step of 8 samples at 16 pixels .*: give --chunk 4, .* smaller --batch-size"):
        train(chosen, tmp_path / "run", ALONE)
    assert not (tmp_path / "run").exists()
    chunked = recipe(shards, data__chunk=4, epochs=1)
    assert train(chunked, tmp_path / "run", ALONE).steps == 10
    room_for(monkeypatch, encoder, 8.1 * sample)
    assert train(recipe(shards, epochs=1), tmp_path / "other", ALONE).steps == 10
    room_for(monkeypatch, encoder, 0.5 * sample)
    with pytest.raises(UserError, match=r"are free: give a GPU, a smaller --model"):
        train(recipe(shards), tmp_path / "third", ALONE)


@pytest.mark.parametrize(
    ("name", "sizes"), [("xclr", {"model__projector_dim": 10**12}), ("clip", {"text__width": 10**9})]
)
def test_weights_without_end_are_refused(tmp_path: Path, name: str, sizes: dict[str, int]) -> None:
    shards = make_shards(tmp_path / "shards", sizes=SIZES)
    with pytest.raises(UserError, match=r"the weights do not fit the memory \(can't allocate .* smaller --model"):
        train(recipe(shards, objective__name=name, **sizes), tmp_path / "run", ALONE)
    with pytest.raises(RuntimeError, match="another"), memory.room_for_weights():
        raise RuntimeError("another")


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chosen = recipe(tmp_path)
    encoder = build_encoder(chosen.model, 16, 0)
    sample = kept_by_forward(encoder, 16)
    room_for(monkeypatch, encoder, 7.9 * sample, ranks=2)
    two = [type(ALONE)(rank=0, size=2, local_size=local, device=ALONE.device) for local in (1, 2)]
    check_fits(encoder, chosen, two[0])  # four samples of its own, and the machine for itself
    with pytest.raises(UserError, match="a step of 4 samples"):
        check_fits(encoder, chosen, two[1])
