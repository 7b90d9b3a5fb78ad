"""Cached gradients against the whole batch, compiled against plain, and a step of what the recipe says."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from shards.errors import UserError
from shards.manifest import Manifest
from shards.reader import Shards
from tests.make import make_shards
from tests.trainer.small import ALONE, recipe
from trainer import setup
from trainer.block import SimilarityBlock
from trainer.cli import _bench, _objective_line
from trainer.data import Batch, batches_of, make_loader, to_views
from trainer.loss import contrastive_loss
from trainer.model import build_encoder
from trainer.recipe import ModelConfig, Recipe
from trainer.step import Outcome, Stepper, synchronised
from trainer.table import TextTable


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=(30, 25, 29), classes=6)


def steps(chosen: Recipe, count: int = 3) -> Stepper:
    """A stepper after `count` steps on the recipe's own batches."""
    shards = Shards.open(Path(chosen.data.shards))
    chosen = setup.settle(chosen, shards, ALONE)
    plan = setup.make_plan(chosen, shards)
    stepper = setup.build_stepper(
        chosen, shards, setup.graph_of(chosen, shards, ALONE), ALONE, steps_per_epoch=plan.steps_per_epoch
    )
    loader = make_loader(shards, plan, chosen.augment, ALONE, start=0, stop=count, workers=0)
    for step, batch in enumerate(loader):
        stepper.step(batch, step, 20)
    return stepper


def first_batch(chosen: Recipe) -> Batch:
    shards = Shards.open(Path(chosen.data.shards))
    loader = make_loader(shards, setup.make_plan(chosen, shards), chosen.augment, ALONE, start=0, stop=1, workers=0)
    return next(batches_of(loader))


def test_a_step_is_of_the_recipes_temperatures_rate_and_precision(shards: Path) -> None:
    """Half of the ten steps of an epoch are warm-up."""
    rate = {"optimiser__lr": 0.32, "optimiser__lr_scaling": "linear", "optimiser__name": "sgd"}
    chosen = recipe(shards, objective__tau=0.3, objective__tau_s=0.2, **rate)
    stepper, batch = steps(chosen, count=0), first_batch(chosen)
    outcome = stepper.step(batch, 0, 20)
    table = TextTable.from_graph(Shards.open(shards).graph(), ALONE.device)
    block = SimilarityBlock.of_texts(batch.texts, table, tau_s=0.2, world=ALONE)
    expected = contrastive_loss(outcome.z, block, tau=0.3, implementation="dense")
    assert float(outcome.loss) == pytest.approx(float(expected), rel=1e-6)
    assert [group["lr"] for group in stepper.optimiser.param_groups] == pytest.approx([0.32 * 8 / 256 / 5] * 2)
    assert outcome.z.dtype == torch.float32
    narrow = recipe(shards, precision="bfloat16", augment__image_size=32)
    assert steps(narrow, count=0).step(first_batch(narrow), 0, 20).z.dtype == torch.bfloat16


def test_siblings_are_no_sign_of_a_collapse() -> None:
    one = torch.eye(3)
    alike = Outcome(torch.zeros(()), torch.cat([one, one]), None).statistics()
    assert alike == {"mean_cosine": pytest.approx(0, abs=1e-6)}
    z = torch.randn(8, 5)
    unit = torch.nn.functional.normalize(z, dim=1)
    others = [float(unit[i] @ unit[j]) for i in range(8) for j in range(8) if i % 4 != j % 4]
    found = Outcome(torch.zeros(()), z, None).statistics()["mean_cosine"]
    assert found == pytest.approx(sum(others) / len(others), abs=1e-6)
    assert Outcome(torch.zeros(()), z[:2], None).statistics() == {}


@pytest.mark.parametrize(
    ("labels", "form", "bench"),
    [
        (True, "table", "shards"),
        (True, "imagefolder", "imagefolder --data DIR"),
        (False, "table", "imagefolder --data DIR"),
    ],
)
def test_what_to_run_next_is_the_benchmark_of_the_data(tmp_path: Path, labels: bool, form: str, bench: str) -> None:
    """Of labelled shards without test shards it says how these are built."""
    root = make_shards(tmp_path / "made", labels=labels)
    manifest = Manifest.load(root)
    replace(manifest, settings={**manifest.settings, "dataset": {"format": form}}).save(root)
    assert _bench(str(root)) == bench


def test_of_supcon_a_sample_without_a_label_is_like_itself_alone(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(shards, objective__name="supcon", optimiser__lr=0.0)
    stepper = steps(chosen, count=0)
    views = torch.randint(256, (6, 2, 32, 32, 3), dtype=torch.uint8)
    samples = torch.tensor([7, 3, 9, 0, 5, 1])
    batch = Batch(views, samples, texts=torch.zeros(6, dtype=torch.int64), labels=torch.tensor([2, -1, 4, -1, 2, -1]))
    outcome = stepper.step(batch, 0, 20)
    z = functional.normalize(outcome.z.double(), dim=1)
    expected = 0.0
    for i in range(12):
        mass = sum(float(torch.exp(z[i] @ z[k] / 0.1)) for k in range(12) if k != i)
        alike = [k for k in range(12) if k != i and (k % 6 == i % 6 or {i % 6, k % 6} == {0, 4})]
        assert len(alike) == (3 if i % 6 in (0, 4) else 1)
        expected -= sum(float(z[i] @ z[k]) / 0.1 - math.log(mass) for k in alike) / len(alike) / 12
    assert float(outcome.loss) == pytest.approx(expected, rel=1e-5)
    folder = Shards.open(shards)
    assert _objective_line(chosen, folder, shards) == "supcon, tau 0.1"
    label = np.where(np.arange(84) < 3, -1, folder.index.label)
    monkeypatch.setattr(folder, "index", replace(folder.index, label=label))
    said = "supcon, tau 0.1; 3 of 84 samples have no label, and are like themselves alone"
    assert _objective_line(chosen, folder, shards) == said


@pytest.mark.parametrize("objective", ["xclr", "clip"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_cached_gradients_are_those_of_the_whole_batch(shards: Path, objective: str, chunk: int) -> None:
    changes: dict[str, Any] = {"objective__name": objective, "optimiser__name": "sgd", "optimiser__lr": 0.05}
    whole = steps(recipe(shards, **changes)).encoder.state_dict()
    pieces = steps(recipe(shards, **changes, data__chunk=chunk)).encoder.state_dict()
    moved = steps(recipe(shards, **changes), count=2).encoder.state_dict()
    assert not torch.allclose(whole["projector.0.weight"], moved["projector.0.weight"], atol=1e-4)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_each_piece_moves_running_statistics_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch, momentum: float | None
) -> None:
    """At a rate of 0: as if each piece of the three batches were forwarded once. Without momentum statistics are means
    over all batches, by their count."""
    monkeypatch.setattr(torch.nn.BatchNorm1d.__init__, "__defaults__", (1e-5, momentum, True, True, None, None))
    chosen = recipe(
        shards,
        model__backbone="test_resnet",
        model__projector_norm="batch",
        data__chunk=2,
        optimiser__name="sgd",
        optimiser__lr=0.0,
    )
    cached = steps(chosen).encoder
    once = steps(chosen, count=0).encoder
    folder = Shards.open(shards)
    plan = setup.make_plan(chosen, folder)
    for batch in make_loader(folder, plan, chosen.augment, ALONE, start=0, stop=3, workers=0):
        first, second = to_views(batch, ALONE.device).chunk(2)
        for i in range(0, 8, 2):
            once(torch.cat([first[i : i + 2], second[i : i + 2]]))
    norm, other = cached.projector[1], once.projector[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    torch.testing.assert_close(norm.running_var, other.running_var)
    torch.testing.assert_close(norm.num_batches_tracked, other.num_batches_tracked)
    assert norm.momentum == momentum


def test_dropout_is_another_in_each_step_piece_rank_and_run() -> None:
    """A CPU's generator heeds the lowest 32 bits of its seed."""
    masks = set[tuple[float, ...]]()
    places = [(0, 0, 0, 0), (1, 0, 0, 0), (2**20, 0, 0, 0), (0, 1, 0, 0), (0, 2**20, 0, 0), (0, 0, 1, 0)]
    places += [(0, 0, 128, 0), (0, 0, 0, 1), (8192, 0, 0, 0), (1, 1, 1, 1)]
    for seed, step, piece, rank in places:
        here: Any = SimpleNamespace(recipe=SimpleNamespace(seed=seed), world=SimpleNamespace(rank=rank))
        for _ in range(2):  # the same when the step is done again
            Stepper._seed(here, step, piece)
            masks.add(tuple(torch.rand(4).tolist()))
    assert len(masks) == len(places)


class Drawing(torch.nn.Module):
    """Notes a random number at each pass, as dropout draws some."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.drawn.append(float(torch.rand(())))
        return x


def test_what_a_step_draws_is_its_own_and_the_same_when_gone_on_with(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both passes of a piece drop the same units."""
    append(monkeypatch, Drawing)
    whole = steps(recipe(shards)).encoder.projector[-1].drawn  # type: ignore[index, union-attr]
    assert len(set(whole)) == len(whole) == 3
    later = steps(recipe(shards), count=0)
    torch.manual_seed(99)
    later.step(first_batch(recipe(shards)), 2, 20)
    assert later.encoder.projector[-1].drawn == whole[2:]  # type: ignore[index, union-attr]
    pieces = np.reshape(steps(recipe(shards, data__chunk=4)).encoder.projector[-1].drawn, (3, 2, 2))  # type: ignore[index, union-attr]
    assert (pieces[:, 0] == pieces[:, 1]).all()
    assert len(np.unique(pieces)) == 6


def test_a_piece_must_divide_the_share_of_a_rank(shards: Path) -> None:
    with pytest.raises(UserError, match=r"data\.chunk 3 does not divide the 8 samples"):
        steps(recipe(shards, data__chunk=3))


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet", "regnetx_002", "mobilenetv3_small_050"])
def test_synchronised_normalisation_keeps_the_network(name: str) -> None:
    """PyTorch's own conversion takes the activations of many timm models with it."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = build_encoder(ModelConfig(backbone=name), 32, 0).eval()
    with torch.inference_mode():
        expected = encoder(images)[0]
        other = synchronised(encoder)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in other.modules())
        torch.testing.assert_close(other.eval()(images)[0], expected, rtol=0, atol=0)


class Rectified(torch.nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).relu()


def test_normalisation_that_would_lose_its_own_forward_is_refused() -> None:
    encoder = build_encoder(ModelConfig(backbone="resnet10t"), 32, 0)
    encoder.backbone.bn1 = Rectified(64)  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"^backbone\.bn1 is a Rectified, whose forward pass SyncBatchNorm would leave"):
        synchronised(encoder)


class Moving(torch.nn.Module):
    """Keeps what it has seen under a name of its own, as EvoNorm does, or spectral normalisation."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x


def append(monkeypatch: pytest.MonkeyPatch, layer: type[torch.nn.Module]) -> None:
    """To the projectors that are built."""
    build = setup.build_encoder

    def appended(*arguments: Any) -> Any:
        encoder = build(*arguments)
        encoder.projector.append(layer())
        return encoder

    monkeypatch.setattr(setup, "build_encoder", appended)


def test_each_piece_moves_any_buffer_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(monkeypatch, Moving)
    seen = [steps(recipe(shards, data__chunk=chunk)).encoder.projector[-1].seen for chunk in (0, 2)]  # type: ignore[index]
    assert [int(x) for x in seen] == [3 * 16] * 2


class Odd(torch.nn.Module):
    """Buffers that lie over themselves, that another takes the place of, and that come late."""

    mean: torch.Tensor
    last: torch.Tensor
    late: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0).expand(3, 1))
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = torch.cat([self.last, self.last.new_ones(1)])
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(4))
        return x + self.mean.sum()


def test_buffers_of_any_kind_go_with_pieces(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(monkeypatch, Odd)
    odd = steps(recipe(shards, data__chunk=2)).encoder.projector[-1]  # type: ignore[index]
    assert odd.last.tolist() == [0, 0, *[1] * (3 * 4)]  # one for each piece of three batches, in the second pass


def test_a_step_of_clip_ends_within_its_bound_and_gives_captions_their_turn(shards: Path) -> None:
    """One an epoch, which has ten steps."""
    chosen = recipe(shards, objective__name="clip")
    stepper, asked = steps(chosen, count=0), []
    assert stepper.captions is not None
    assert stepper.encoder.text is not None
    tokens = stepper.captions.tokens

    def noted(texts: torch.Tensor, samples: torch.Tensor, epoch: int) -> torch.Tensor:
        asked.append(epoch)
        return tokens(texts, samples, epoch)

    stepper.captions = SimpleNamespace(tokens=noted)  # type: ignore[assignment]
    with torch.no_grad():
        stepper.encoder.text.log_scale.fill_(9.0)
    for step in (0, 9, 10, 19):
        stepper.step(first_batch(chosen), step, 20)
        assert float(stepper.encoder.text.log_scale.detach().exp()) <= 100.001
    assert asked == [0, 0, 1, 1]


def test_compiled_steps_are_plain_steps(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps through torch.compile (traced, but without its minutes of C++): the same weights, the same names."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    changes: dict[str, Any] = {"optimiser__name": "sgd", "optimiser__lr": 0.05, "model__backbone": "test_resnet"}
    plain = steps(recipe(shards, **changes)).encoder.state_dict()
    compiled = steps(recipe(shards, **changes, compile=True)).encoder.state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_encoders_are_channels_last(shards: Path) -> None:
    encoder = steps(recipe(shards, model__backbone="test_resnet"), count=1).encoder
    kernels = [p for p in encoder.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
