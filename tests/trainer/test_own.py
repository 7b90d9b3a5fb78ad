"""Training a network of the user's own: on several ranks, and gone on with after its file was edited."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from tests.trainer.reference import ALONE
from tests.trainer.small import SIZES, recipe, weights
from trainer.loop import STOP, Stopped, _Loop, train
from trainer.step import Stepper
from trainer.world import World

FILE = """
import os
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, seed, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.one, self.two, self.unused = (
            nn.Parameter(torch.randn(3 * 16 * 16, width, generator=generator) / 28) for _ in range(3)
        )

        self.register_buffer("ones", torch.ones(1, dtype=torch.int16).expand(3), persistent=False)  # not sent as it is

    def forward(self, images):
        pixels = images.flatten(1) * self.ones[0]
        if self.training and float(torch.rand(())) < 0.5:
            return pixels @ self.two
        return pixels @ self.one

def other_weights():
    return Network(os.getpid())

def other_shapes():
    return Network(0, width=4 + torch.distributed.get_rank())
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    return make_shards(tmp_path / "shards", sizes=SIZES, classes=6)


def trained(world: World, shards: Path, run: Path, function: str) -> dict[str, torch.Tensor] | str:
    """On a rank: its encoder after an epoch, or what is wrong."""
    seen: list[Stepper] = []
    step = Stepper.step
    chosen = recipe(shards, model__backbone=f"{shards.parent}/mine.py:{function}", epochs=1, run__knn_every=0)
    with mock.patch.object(Stepper, "step", lambda self, *rest: (seen.append(self), step(self, *rest))[1]):
        try:
            train(chosen, run, world)
        except UserError as error:
            return str(error)
    return seen[0].encoder.state_dict()


def test_ranks_train_one_network_whatever_their_samples_reach(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    """Drawn anew by each process, and with one of two layers in each pass, by chance on each rank."""
    one, two = ranks(2, trained, shards, tmp_path / "run", "other_weights")
    assert all(torch.equal(value, two[name]) for name, value in one.items() if "running" not in name)
    first = trained(ALONE, shards, tmp_path / "alone", "other_weights")
    assert isinstance(first, dict)
    assert first.keys() == one.keys()


def test_a_file_that_is_not_there_is_one_line(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothere\.py with a network in it"):
        train(recipe(shards, model__backbone=f"{tmp_path}/nothere.py:net"), tmp_path / "run", ALONE)


def test_networks_of_other_shapes_on_other_ranks_are_told(shards: Path, tmp_path: Path, ranks: Ranks) -> None:
    for said in ranks(2, trained, shards, tmp_path / "run", "other_shapes"):
        assert "builds networks of other shapes on other ranks" in said


def test_a_network_that_was_edited_is_another_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = mock.patch.object(_Loop, "_told", return_value=STOP)
    with told, pytest.raises(Stopped):
        train(recipe(shards, model__backbone="./mine.py:other_weights"), Path("run"), ALONE)
    Path("mine.py").write_text(FILE + "\n# edited")
    chosen = recipe(shards, model__backbone="mine.py:other_weights")
    with pytest.raises(UserError, match=r"run was trained with another mine\.py: put that one back"):
        train(chosen, Path("run"), ALONE, resume=True)
    Path("mine.py").write_text(FILE)
    with told, pytest.raises(Stopped):  # the same file by another path
        train(chosen, Path("run"), ALONE, resume=True)
    assert weights(Path("run"))


def test_weights_of_another_network_are_one_line(shards: Path, tmp_path: Path) -> None:
    """Of code that the file imports, say."""
    own = f"{tmp_path}/mine.py:other_weights"
    with mock.patch.object(_Loop, "_told", return_value=STOP), pytest.raises(Stopped):
        train(recipe(shards, model__backbone=own), tmp_path / "run", ALONE)
    (tmp_path / "mine.py").write_text(FILE.replace("width=4", "width=5"))
    with (
        mock.patch("trainer.run_folder.code_id", return_value=""),
        mock.patch("trainer.run_folder.check_same"),
        pytest.raises(UserError, match=r"holds the weights of another network .*: put that one back"),
    ):
        train(recipe(shards, model__backbone=own), tmp_path / "run", ALONE, resume=True)


def test_gradients_that_never_come_are_named(shards: Path, tmp_path: Path) -> None:
    """Where DDP would wait for them."""
    with (
        mock.patch.object(Stepper, "_parallel", lambda self: self.encoder),
        pytest.raises(UserError, match=r"parameters of .*mine.py:other_weights have no gradient \(.*unused.*\)"),
    ):
        train(recipe(shards, model__backbone=f"{tmp_path}/mine.py:other_weights"), tmp_path / "run", ALONE)
