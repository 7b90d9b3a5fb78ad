"""The training step on a stand-in for a GPU: every tensor where it belongs, the CPU's results, and no needless wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.reader import Shards
from tests.make import make_shards
from tests.standin import GPU, StandIn, Stream, WrongDevice, stand_in_gpu
from trainer import setup
from trainer.block import SimilarityBlock
from trainer.checkpoint import checkpoints, read_checkpoint
from trainer.data import batches_of, make_loader
from trainer.loop import train
from trainer.monitor import Monitor
from trainer.recipe import Recipe, load_recipe
from trainer.table import TextTable
from trainer.world import World

CPU = World(device=torch.device("cpu"))
STEPS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("standin") / "shards", (30, 34), classes=12)


def recipe_of(root: Path, objective: str, optimiser: str, chunk: int = 0, **options: Any) -> Recipe:
    demo = load_recipe("demo")
    return replace(
        demo,
        precision="float32",
        objective=replace(demo.objective, name=objective, **options),
        optimiser=replace(demo.optimiser, name=optimiser),
        data=replace(demo.data, shards=str(root), batch_size=16, chunk=chunk),
        augment=replace(demo.augment, image_size=32),
    )


def trained(recipe: Recipe, device: torch.device, waits: list[str]) -> dict[str, Any]:
    """STEPS steps, and what is measured between them; `waits` then holds those of the last step alone."""
    shards = Shards.open(Path(recipe.data.shards))
    recipe, plan = setup.settle(recipe, shards, CPU), setup.make_plan(recipe, shards)
    graph = setup.graph_of(recipe, shards, CPU)
    stepper = setup.build_stepper(recipe, shards, graph, World(device=device), steps_per_epoch=plan.steps_per_epoch)
    loader = make_loader(shards, plan, recipe.augment, CPU, start=0, stop=STEPS, workers=0)
    batches = batches_of(loader, None if recipe.data.chunk else device)
    losses = []
    for step, batch in enumerate(batches):
        waits.clear()
        outcome = stepper.step(batch, step, 10)
        last = list(waits)
        losses.append(float(outcome.loss))
    values = {
        "losses": losses,
        **outcome.statistics(),
        **Monitor(shards, graph, 32, 0).measure(stepper.encoder, device),
    }
    waits[:] = last
    return values


LOOK_UP = {
    "size trainer/pairs.py:listed_pairs",
    "size trainer/pairs.py:_spread",
    "copy trainer/pairs.py:listed_pairs",
}


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"objective": "xclr", "optimiser": "lars"}, LOOK_UP),
        ({"objective": "xclr", "optimiser": "lars", "tail": "background", "implementation": "dense"}, LOOK_UP),
        ({"objective": "xclr", "optimiser": "lars", "tail": "none", "chunk": 4}, LOOK_UP),
        ({"objective": "simclr", "optimiser": "sgd"}, set()),
        ({"objective": "supcon", "optimiser": "adamw"}, set()),
        ({"objective": "clip", "optimiser": "lars"}, set()),
    ],
)
def test_a_step_on_the_gpu_is_a_step_on_the_cpu(made: Path, options: dict[str, Any], allowed: set[str]) -> None:
    recipe = recipe_of(made, **options)
    expected = trained(recipe, CPU.device, [])
    with stand_in_gpu() as waits:
        found = trained(recipe, GPU, waits)
        assert set(waits) == allowed
    assert found.pop("losses") == expected.pop("losses")
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_graph_of_lists_leaves_the_gpus_memory_alone(made: Path) -> None:
    graph = Shards.open(made).graph()
    with stand_in_gpu():
        table = TextTable.from_graph(graph, GPU)
        block = SimilarityBlock.of_texts(torch.arange(6), table, world=World(device=GPU))
    assert not any(isinstance(getattr(table, field.name), StandIn) for field in fields(table))
    assert isinstance(block.row_code.quantised, StandIn)
    assert block.listed is not None
    assert isinstance(block.listed.value, StandIn)


def test_a_batch_is_copied_beside_the_step_before(made: Path) -> None:
    """On a stream of its own, for which the step waits, and which keeps the memory for as long as the step needs it."""
    shards, recipe = Shards.open(made), recipe_of(made, "xclr", "lars")
    plan = setup.make_plan(recipe, shards)

    def loader() -> Any:
        return make_loader(shards, plan, recipe.augment, CPU, start=0, stop=3, workers=0)

    expected = list(batches_of(loader()))
    with stand_in_gpu() as waits:
        steps = Stream.now
        found = []
        for batch in batches_of(loader(), GPU):
            assert isinstance(batch.views, StandIn)
            assert steps.used[-1] is batch.views
            assert len(steps.waited_for) == len(steps.used) == len(found) + 1
            found.append(batch.views.cpu())
        assert Stream.now is steps
        assert steps not in steps.waited_for
        assert set(waits) == {"copy"}  # the test's own
    assert all(torch.equal(a, b.views) for a, b in zip(found, expected, strict=True))


@pytest.fixture
def kernels() -> Iterator[None]:
    """PyTorch's choice of kernels is the process's: put back as it was."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_that_give_the_same_bits_are_asked_for(made: Path, kernels: None, deterministic: bool) -> None:
    recipe = replace(recipe_of(made, "xclr", "lars"), deterministic=deterministic)
    with stand_in_gpu() as waits:
        found = trained(recipe, GPU, waits)
    assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.backends.cudnn.benchmark is not deterministic
    assert found["losses"] == trained(recipe, CPU.device, [])["losses"]


@pytest.mark.filterwarnings("ignore:.*pin_memory")  # which needs a driver
def test_a_run_on_the_gpu_stops_and_goes_on(made: Path, tmp_path: Path) -> None:
    """Logging, the monitor, checkpoints and --resume with it."""
    recipe = recipe_of(made, "xclr", "lars")
    run = replace(recipe.run, workers=0, log_every=1, checkpoint_every=3, knn_every=1)
    recipe = replace(recipe, epochs=2, run=run)
    train(recipe, tmp_path / "cpu", CPU)
    expected = read_checkpoint(checkpoints(tmp_path / "cpu")[-1])
    with stand_in_gpu():
        train(recipe, tmp_path / "gpu", World(device=GPU))
        first, *later = checkpoints(tmp_path / "gpu")
        for path in later:
            path.unlink()
        assert first.name < later[-1].name
        train(recipe, tmp_path / "gpu", World(device=GPU), resume=True)
    found = read_checkpoint(checkpoints(tmp_path / "gpu")[-1])
    assert found["step"] == expected["step"] == 8
    for name, value in expected["encoder"].items():
        assert type(found["encoder"][name]) is torch.Tensor
        torch.testing.assert_close(found["encoder"][name], value, rtol=0, atol=0)


def test_the_stand_in_refuses_what_a_gpu_refuses() -> None:
    with stand_in_gpu() as waits:
        there = torch.ones(3).to(GPU)
        assert isinstance(there, StandIn)
        assert there.device == GPU
        assert waits == ["copy"]
        with pytest.raises(WrongDevice, match="add"):
            there + torch.ones(3)
        with pytest.raises(WrongDevice, match="numpy"):
            there.numpy()
        assert (there + torch.arange(3, device="cuda")).cpu().tolist() == [1, 2, 3]
