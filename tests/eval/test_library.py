"""`evaluate` from Python, in a loop that trains the network meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from eval.benchmarks.registry import open_bench
from eval.evaluate import Settings, evaluate
from eval.heads.knn import KNNConfig
from eval.heads.probe import ProbeConfig
from eval.models.model import Transform, model_of
from shards.errors import UserError
from tests.eval.make_folders import make_folders

SIZE = Transform(image_size=16, crop_pct=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders"), classes=3, train=6, val=4)


def features_of(found: dict[str, Any]) -> str:
    return str(found["pictures"]["val"]["features"])


def test_the_weights_are_those_of_the_moment(folders: Path, tmp_path: Path) -> None:
    """One model_of before the loop is enough."""
    network = timm.create_model("test_resnet", num_classes=0)
    model, bench = model_of(network, "mine", SIZE), open_bench("imagefolder", folders)
    settings = Settings(features=tmp_path / "features", knn=KNNConfig(k=1))
    before = evaluate(model, bench, "knn", settings)
    assert features_of(evaluate(model, bench, "knn", settings)) == features_of(before)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    after = evaluate(model, bench, "knn", settings)
    assert features_of(after) != features_of(before)
    # And what was kept is of the weights that it is called by.
    fresh = model_of(network, "mine", SIZE)
    other = evaluate(fresh, bench, "knn", replace(settings, features=tmp_path / "others"))
    assert other["columns"] == after["columns"]
    assert evaluate(fresh, bench, "knn", settings)["columns"] == after["columns"]


@pytest.mark.parametrize("where", ["a list", "a closure", "a buffer", "an attribute"])
def test_what_no_state_dict_holds_counts_too(folders: Path, tmp_path: Path, where: str) -> None:
    """Features that were kept are of what the network does, not of what it says of itself."""
    inner = torch.nn.Conv2d(3, 8, 3)

    class Own(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 1.0
            self.hidden = [inner] if where == "a list" else []
            self.register_buffer("weights", torch.rand(3, 8), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if where == "a buffer":
                return x.mean((2, 3)) @ self.weights
            if where == "an attribute":
                return torch.tanh(self.scale * x.mean((2, 3)))
            return (self.hidden[0] if self.hidden else inner)(x).mean((2, 3))  # type: ignore[no-any-return]

    network = Own()
    model, bench = model_of(network, "mine", SIZE), open_bench("imagefolder", folders)
    settings = Settings(features=tmp_path, knn=KNNConfig(k=1))
    before = features_of(evaluate(model, bench, "knn", settings))
    assert features_of(evaluate(model, bench, "knn", settings)) == before
    with torch.no_grad():
        inner.weight.mul_(-0.5)
        network.get_buffer("weights").add_(1)
        network.scale = 3.0
    assert features_of(evaluate(model, bench, "knn", settings)) != before


def test_a_network_in_training_is_evaluated_in_eval_mode_and_left_as_it_was(folders: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0).train()
    frozen = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    assert isinstance(frozen, torch.nn.BatchNorm2d)
    modes = [module.training for module in network.modules()]
    buffers = [buffer.clone() for buffer in network.buffers()]
    model, bench = model_of(network, "mine", SIZE), open_bench("imagefolder", folders)
    assert [module.training for module in network.modules()] == modes
    found = evaluate(model, bench, "knn", Settings(features=tmp_path / "a", knn=KNNConfig(k=1)))
    evaluate(model, bench, "linear_probe", Settings(features=tmp_path / "a", probe=ProbeConfig(epochs=2), views=True))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(network.buffers(), buffers, strict=True))
    network.eval()
    same = evaluate(model, bench, "knn", Settings(features=tmp_path / "b", knn=KNNConfig(k=1)))
    assert same["columns"] == found["columns"]


def test_features_are_kept_wherever_the_network_lies_in_memory(folders: Path, tmp_path: Path) -> None:
    """Extraction lays weights out channels-last, which gives other bits; the network is the same."""
    network = timm.create_model("test_resnet", num_classes=0)
    model, bench = model_of(network, "mine", SIZE), open_bench("imagefolder", folders)
    settings = Settings(features=tmp_path, knn=KNNConfig(k=1))
    before = features_of(evaluate(model, bench, "knn", settings))
    with torch.no_grad():
        for parameter in network.to(memory_format=torch.contiguous_format).parameters():  # type: ignore[call-overload]
            parameter.mul_(1.1)
    after = features_of(evaluate(model, bench, "knn", settings))
    assert after != before
    for layout in (torch.contiguous_format, torch.channels_last):
        network.to(memory_format=layout)  # type: ignore[call-overload]
        assert features_of(evaluate(model, bench, "knn", settings)) == after


def test_the_network_may_have_become_another(folders: Path, tmp_path: Path) -> None:
    """Of other features, or of none; and what surrounds the call decides nothing."""
    network = timm.create_model("test_resnet", num_classes=4)
    model, bench = model_of(network, "mine", SIZE), open_bench("imagefolder", folders)
    settings = Settings(features=tmp_path, knn=KNNConfig(k=1))
    first = evaluate(model, bench, "knn", settings)
    with torch.autocast("cpu", torch.bfloat16):
        assert features_of(evaluate(model, bench, "knn", settings)) == features_of(first)
    network.reset_classifier(16)
    assert (first["feature_dim"], evaluate(model, bench, "knn", settings)["feature_dim"]) == (4, 16)
    with pytest.raises(UserError, match=r"it has weights of torch\.float64, and images are float32"):
        evaluate(replace(model, network=network.double()), bench, "knn", settings)
    assert model == replace(model)


def test_a_function_is_no_network() -> None:
    with pytest.raises(TypeError, match=r"network is a torch\.nn\.Module, not function"):
        model_of(lambda x: x.mean((2, 3)), "mine", SIZE)  # type: ignore[arg-type]


def test_a_size_is_no_transform() -> None:
    with pytest.raises(TypeError, match=r"transform is Transform\(image_size=\.\.\.\), not int"):
        model_of(torch.nn.Flatten(), "mine", 32)  # type: ignore[arg-type]


def test_a_network_is_no_model(folders: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(TypeError, match=r"a Model, not ResNet: model_of\(network, name, transform\) makes one"):
        evaluate(network, open_bench("imagefolder", folders), "knn", Settings(features=tmp_path))  # type: ignore[arg-type]


def test_methods_are_called_by_their_names(folders: Path, tmp_path: Path) -> None:
    model = model_of(timm.create_model("test_resnet", num_classes=0), "mine", SIZE)
    with pytest.raises(UserError, match="method is one of linear_probe, knn, not 'kNN'"):
        evaluate(model, open_bench("imagefolder", folders), "kNN", Settings(features=tmp_path))  # type: ignore[arg-type]


def test_paths_may_be_texts(folders: Path, tmp_path: Path) -> None:
    model = model_of(timm.create_model("test_resnet", num_classes=0), "mine", SIZE)
    bench = open_bench("imagefolder", str(folders))  # type: ignore[arg-type]
    settings = Settings(features=str(tmp_path / "f"), knn=KNNConfig(k=1))  # type: ignore[arg-type]
    assert evaluate(model, bench, "knn", settings)["columns"]["top1"]["n"] == 12


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 16, "crop_pct": 2.0}, "a share of the shorter side, above 0 and up to 1, not 16 and 2.0"),
        ({"image_size": 0}, "image_size is in pixels"),
    ],
)
def test_transforms_that_cannot_be_meant(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Transform(**values)


def test_statistics_of_pixels_up_to_255_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """And not refused: a run may have been trained with them."""
    network = timm.create_model("test_resnet", num_classes=0)
    model_of(network, "mine", SIZE)
    assert "not of 0..255?" not in capsys.readouterr().err
    model_of(network, "mine", replace(SIZE, mean=(123.0, 117.0, 104.0)))
    said = " ".join(capsys.readouterr().err.split())
    assert "note: mean (123.0, 117.0, 104.0) and std" in said
    assert "not of 0..255?" in said


def test_what_a_network_raises_is_told_and_kept() -> None:
    class Own(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("my own defect")

    with pytest.raises(UserError, match=r"16 pixels \(ValueError: my own defect\)$") as raised:
        model_of(Own(), "mine", SIZE)
    assert isinstance(raised.value.__cause__, ValueError)
    half = timm.create_model("test_resnet", num_classes=0).double()
    with pytest.raises(UserError, match=r"it has weights of torch.float64, and images are float32: network.float\(\)"):
        model_of(half, "mine", SIZE)
