"""Optimisers move what they should, by what the recipe says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trainer.optim import make_optimiser
from trainer.recipe import OptimiserConfig


def test_lars_adapts_weights_without_decay() -> None:
    moved = []
    for decay in (0.0, 1e-9):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 8)
        before = model.weight.detach().clone()
        optimiser = make_optimiser(model, OptimiserConfig(name="lars", weight_decay=decay))
        optimiser.param_groups[0]["lr"] = 2.4
        (100 * model(torch.ones(1, 8)).sum()).backward()
        optimiser.step()
        moved.append(float((model.weight.detach() - before).norm() / before.norm()))
    assert moved[0] == pytest.approx(moved[1], rel=1e-3)
    assert moved[0] < 0.01


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_weights_decay_but_no_biases_nor_normalisation(name: Any) -> None:
    """Where the gradient is 0, decay is all that moves them."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimiser = make_optimiser(model, OptimiserConfig(name=name, weight_decay=0.1))
    for group in optimiser.param_groups:
        group["lr"] = 0.5
    (0 * model(torch.ones(2, 4))).sum().backward()
    optimiser.step()
    for key, value in model.named_parameters():
        torch.testing.assert_close(value.detach(), before[key] * (0.95 if key == "0.weight" else 1))


@pytest.mark.parametrize("name", ["lars", "sgd"])
def test_momentum_is_the_recipes(name: Any) -> None:
    """Of a constant gradient the second step is 1 + momentum times the first."""
    model = torch.nn.Linear(1, 1)
    optimiser, places = make_optimiser(model, OptimiserConfig(name=name, momentum=0.25)), [model.bias.item()]
    for _ in range(2):
        optimiser.zero_grad()
        model(torch.zeros(1, 1)).sum().backward()
        optimiser.step()
        places.append(model.bias.item())
    assert np.diff(places) == pytest.approx([-1, -1.25], abs=1e-5)
