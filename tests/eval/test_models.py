"""Any model: exports, timm, torchvision and transformers' folders give the features their own libraries give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torchvision.models import get_model
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
)

from eval.models.model import Model
from eval.models.open import open_model
from shards.errors import UserError
from tests.eval.make_folders import make_folders
from tests.eval.runs import run_eval, train_run
from tests.make import make_shards
from trainer.export import export

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def features(model: Model, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model.network(images)
    assert out.shape == (len(images), model.feature_dim)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    return train_run(make_shards(root / "shards", sizes=(24,)), root / "runs" / "one")


def test_an_export_is_its_checkpoint(run: Path, tmp_path: Path) -> None:
    checkpoint = open_model(str(run))
    exported = open_model(str(export(next(run.glob("checkpoints/step-*.pt")), tmp_path / "out")))
    images = IMAGES[..., :16, :16]
    torch.testing.assert_close(features(exported, images), features(checkpoint, images))
    assert exported.transform == checkpoint.transform


def test_timm_models_come_without_their_classifier() -> None:
    model = open_model("timm:test_resnet", untrained=True)
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", num_classes=0).eval()
    torch.testing.assert_close(features(model), expected(IMAGES).detach())
    assert model.about["objective"] == "untrained"


def test_torchvision_models_give_what_their_classifier_reads() -> None:
    model = open_model("torchvision:resnet18", untrained=True)
    torch.manual_seed(0)
    whole = get_model("resnet18").eval()
    seen: list[torch.Tensor] = []
    whole.fc.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    whole(IMAGES)
    torch.testing.assert_close(features(model), seen[0].detach())
    assert (model.transform.image_size, model.transform.crop_pct) == (224, 224 / 256)


def test_dinov2_in_transformers_format(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    network = Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {"crop_size": {"height": 28, "width": 28}, "size": {"shortest_edge": 32}, "image_mean": [0.5, 0.4, 0.3]}
        )
    )
    model = open_model(str(tmp_path))
    images = IMAGES[..., :28, :28]
    torch.testing.assert_close(features(model, images), network(images).last_hidden_state[:, 0].detach())
    assert model.transform.image_size == 28
    assert model.transform.crop_pct == 28 / 32
    assert model.transform.mean == (0.5, 0.4, 0.3)


def test_clip_in_transformers_format_is_its_image_tower(tmp_path: Path) -> None:
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 64}, vision_config={**tower, "image_size": 32, "patch_size": 8}
    )
    network = CLIPModel(config).eval()
    network.save_pretrained(tmp_path)
    model = open_model(str(tmp_path))
    torch.testing.assert_close(features(model), network.vision_model(IMAGES).pooler_output.detach())
    assert model.transform.image_size == 32


def test_a_vit_without_its_pooler_gives_its_first_token(tmp_path: Path) -> None:
    """As classifiers are saved: transformers would draw a pooler at random, another one each time."""
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    network = ViTForImageClassification(config).eval()
    network.save_pretrained(tmp_path / "a")
    first, second = open_model(str(tmp_path / "a")), open_model(str(tmp_path / "a"))
    assert first.sha256 == second.sha256
    torch.testing.assert_close(features(first), network.vit(IMAGES).last_hidden_state[:, 0].detach())
    torch.testing.assert_close(features(first), features(second))
    state = {name: value for name, value in network.state_dict().items() if "attention" not in name}
    network.save_pretrained(tmp_path / "b", state_dict=state)
    with pytest.raises(UserError, match=r"lacks \d+ weights of its model, among them .*attention"):
        open_model(str(tmp_path / "b"))


def test_the_same_weights_with_another_configuration_are_another_model(tmp_path: Path) -> None:
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    before = open_model(str(tmp_path))
    assert open_model(str(tmp_path)).sha256 == before.sha256
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    assert open_model(str(tmp_path)).sha256 != before.sha256


def test_a_rival_goes_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_folders(tmp_path / "data")
    call = ["knn", "--bench", "imagefolder", "--data", str(data), "--k", "3", "--out", str(tmp_path / "out.json")]
    call += ["--checkpoint", "timm:test_vit", "--untrained", "--features", str(tmp_path / "cache")]
    assert run_eval(call) == 0
    assert json.loads((tmp_path / "out.json").read_text())["model"]["model"] == "timm:test_vit"
    assert "timm:test_vit" in capsys.readouterr().out


def test_wrong_models_are_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="of no known format: it names neither architecture nor model_type"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(UserError, match="cannot be loaded by transformers"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architecture": "test_vit", "num_features": 64}')
    with pytest.raises(UserError, match="cannot be loaded by timm"):
        open_model(str(tmp_path))
    with pytest.raises(UserError, match="timm has no model 'resnot'"):
        open_model("timm:resnot")
    with pytest.raises(UserError, match="squeezenet1_0 does not end in a linear layer"):
        open_model("torchvision:squeezenet1_0", untrained=True)
    with pytest.raises(UserError, match="torchvision has no classifier 'resnot'"):
        open_model("torchvision:resnot")
    with pytest.raises(UserError, match="knows no initial weights"):
        open_model(str(tmp_path), untrained=True)
