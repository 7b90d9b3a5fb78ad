"""Any model: exports, timm, torchvision and transformers' folders give the features their own libraries give."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn
from torchvision.models import get_model
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    IJepaConfig,
    IJepaModel,
    PvtV2Config,
    PvtV2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEModel,
)

from eval.models.model import Model, Transform, model_of
from eval.models.open import open_model
from eval.models.rivals import _of_timm, _preprocessor
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
    assert exported.sha256 == checkpoint.sha256  # so they share what was extracted


@pytest.mark.parametrize(("share", "side"), [(0.875, 36), (0.95, 33), (1.0, 32)])
def test_timm_models_see_pictures_of_timm_s_size(share: float, side: int) -> None:
    """32 / 0.875 is 36.57."""
    network = timm.create_model("test_vit", num_classes=0, pretrained_cfg_overlay={"crop_pct": share})
    network.pretrained_cfg["input_size"] = (3, 32, 32)
    transform = _of_timm(network, "test_vit", {}).transform
    assert round(32 / transform.crop_pct) == side
    assert timm.data.create_transform((3, 32, 32), crop_pct=share).transforms[0].size == side


def test_timm_models_come_without_their_classifier() -> None:
    model = open_model("timm:test_resnet", untrained=True)
    torch.manual_seed(0)
    expected = timm.create_model("test_resnet", num_classes=0).eval()
    torch.testing.assert_close(features(model), expected(IMAGES).detach())
    assert model.about["objective"] == "untrained"


def test_another_way_of_cutting_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for mode, said in (("center", False), ("squash", True)):
        network = timm.create_model("test_vit", num_classes=0, pretrained_cfg_overlay={"crop_mode": mode})
        _of_timm(network, "test_vit", {})
        assert ("crop_mode squash): here their central square is cut" in capsys.readouterr().err) == said


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
    with pytest.raises(UserError, match=r"timm has no model 'resnet5'; close names: .*resnet50"):
        open_model("timm:resnet5")
    with pytest.raises(UserError, match="has no name: leave it out, or name one"):
        open_model("")
    with pytest.raises(UserError, match=r"resnet10t has no weights 'foo': give one of resnet10t.c3_in1k$"):
        open_model("timm:resnet10t.foo", untrained=True)
    with pytest.raises(UserError, match=r"timm does not give coatnet_0_224 .*No pretrained weights exist"):
        open_model("timm:coatnet_0_224")
    with pytest.raises(UserError, match="squeezenet1_0 does not end in a linear layer"):
        open_model("torchvision:squeezenet1_0", untrained=True)
    with pytest.raises(UserError, match="torchvision has no classifier 'resnot'; close names: resnet"):
        open_model("torchvision:resnot")
    with pytest.raises(UserError, match="knows no initial weights"):
        open_model(str(tmp_path), untrained=True)


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_masked_autoencoder_sees_the_whole_picture(tmp_path: Path) -> None:
    config = ViTMAEConfig(**SMALL, image_size=32, patch_size=8, decoder_hidden_size=16, decoder_num_attention_heads=2)
    ViTMAEModel(config).save_pretrained(tmp_path)
    model = open_model(str(tmp_path))
    torch.testing.assert_close(features(model), features(model), rtol=1e-4, atol=1e-5)
    changed = IMAGES.clone()
    for row in range(0, 32, 8):  # each patch has its say
        changed[..., row : row + 8, :8] += 1
        assert not torch.allclose(features(model, changed), features(model), atol=1e-4)
        changed = IMAGES.clone()


def test_a_model_that_draws_is_refused() -> None:
    class Draws(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.rand(len(images), 4)

    transform = Transform(image_size=32, crop_pct=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(UserError, match="draws gives one picture other features each time"):
        model_of(Draws(), "draws", transform, {})


def test_a_size_may_be_a_pair_and_maps_are_averaged(tmp_path: Path) -> None:
    one = [1, 1, 1, 1]
    config = PvtV2Config(image_size=32, depths=one, num_attention_heads=one, hidden_sizes=[4] * 4, mlp_ratios=one)
    network = PvtV2Model(config).eval()
    network.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == [32, 32]
    model = open_model(str(tmp_path))
    assert model.transform.image_size == 32
    torch.testing.assert_close(features(model), network(IMAGES).last_hidden_state.mean((2, 3)).detach())


def test_half_precision_is_widened_and_tokens_without_a_class_are_averaged(tmp_path: Path) -> None:
    network = IJepaModel(IJepaConfig(**SMALL, image_size=32, patch_size=8), add_pooling_layer=False).eval().half()
    network.save_pretrained(tmp_path)
    expected = network.float()(IMAGES).last_hidden_state.mean(1).detach()
    model = open_model(str(tmp_path))
    torch.testing.assert_close(features(model), expected)
    assert features(model).dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "settings", "size", "crop_pct"),
    [
        ("processor_config.json", {"size": {"shortest_edge": 64}, "crop_size": {"height": 32, "width": 32}}, 32, 0.5),
        ("preprocessor_config.json", {"size": {"shortest_edge": 28}, "crop_pct": 0.875}, 28, 0.875),  # ConvNeXt
        ("preprocessor_config.json", {"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, 1.0),
        ("preprocessor_config.json", {"size": 32, "do_resize": True}, 32, 1.0),  # of years ago
        ("preprocessor_config.json", {"size": 40, "crop_size": 32, "do_center_crop": True}, 32, 0.8),
        ("preprocessor_config.json", {"size": 224, "crop_size": 224, "crop_pct": 0.9}, 224, 224 / 249),  # PoolFormer
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 224}, "crop_size": 224, "image_processor_type": "LevitImageProcessor"},
            224,
            0.875,
        ),
        ("preprocessor_config.json", {"size": [40, 40], "crop_size": [32, 32]}, 32, 0.8),
        ("preprocessor_config.json", {"size": 32, "rescale_factor": None}, 32, 1.0),
        ("preprocessor_config.json", {"size": {"height": 28, "width": 28}, "do_normalize": False}, 28, 1.0),
    ],
)
def test_settings_of_preprocessors(
    tmp_path: Path, file: str, settings: dict[str, object], size: int, crop_pct: float
) -> None:
    content = settings | {"image_mean": [0.5, 0.4, 0.3], "image_std": None}
    (tmp_path / file).write_text(json.dumps({"image_processor": content} if file[:4] == "proc" else content))
    transform = _preprocessor(tmp_path, 224)
    assert transform is not None
    assert (transform.image_size, transform.crop_pct) == (size, pytest.approx(crop_pct, abs=1e-9))
    if settings.get("do_normalize") is False:
        assert (transform.mean, transform.std) == ((0, 0, 0), (1, 1, 1))
    else:
        assert (transform.mean, transform.std) == ((0.5, 0.4, 0.3), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"do_flip_channel_order": true}', "colours in reverse order"),
        ('{"rescale_factor": 1.0}', "not scaled to 0..1"),
        ('{"do_rescale": false}', "not scaled to 0..1"),
        ('{"size": "large"}', "cannot be understood"),
        ('{"rescale_factor": "x"}', "cannot be understood"),
        ('{"image_processor_type": "EfficientNetImageProcessor", "include_top": true}', "deviation twice"),
        ("{", r"preprocessor_config\.json is damaged"),
    ],
)
def test_preprocessors_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        _preprocessor(tmp_path, 224)


def test_equal_weights_pooled_otherwise_are_another_model(run: Path, tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    hashes = set()
    for pool in ("token", "avg"):
        other = timm.create_model("test_vit", num_classes=0, global_pool=pool, fc_norm=False)
        other.load_state_dict(network.state_dict())
        save_for_hf(other, str(tmp_path / pool), model_args={"global_pool": pool, "fc_norm": False})
        hashes.add(open_model(str(tmp_path / pool)).sha256)
    assert len(hashes) == 2


def test_files_that_say_nothing_of_their_network_lead_to_code(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    state = network.state_dict()
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state, tmp_path / "plain.pt")
    torch.save(state, tmp_path / "old.pt", **old)
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "ddp.pt")
    torch.save(network, tmp_path / "whole.pt")
    torch.save(network, tmp_path / "oldwhole.pt", **old)
    torch.save({"model": state, "args": Namespace(lr=1)}, tmp_path / "namespace.pt")
    save_file(state, tmp_path / "model.safetensors")
    what = dict.fromkeys(("plain", "old", "ddp"), "do not say of what network they are")
    what |= dict.fromkeys(("whole", "oldwhole", "namespace"), "holds a whole model or other objects")
    for name, words in what.items():
        with pytest.raises(UserError, match=rf"{name}\.pt .*{words}.*give --checkpoint FILE\.py:FUNCTION"):
            open_model(str(tmp_path / f"{name}.pt"))
    with pytest.raises(UserError, match=r"does not say of what network .* folder if it has config.json, or .*FILE\.py"):
        open_model(str(tmp_path / "model.safetensors"))
    with pytest.raises(UserError, match=r"has weights \(model.safetensors\) but no config.json.*FILE\.py:FUNCTION"):
        open_model(str(tmp_path))
    whole, values = (tmp_path / "plain.pt").read_bytes(), state["0.weight"].numpy().tobytes()
    for name, data in {
        "cut": whole[:-40],
        "flipped": whole.replace(values, bytes(len(values))),
        "none": b"x",
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.pt").write_bytes(data)
        with pytest.raises(UserError, match="is not a readable checkpoint: it is damaged"):
            open_model(str(tmp_path / f"{name}.pt"))


def test_an_export_that_does_not_fit_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    folder = export(next(run.glob("checkpoints/step-*.pt")), tmp_path / "out")
    save_file({"other": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be loaded by timm: .*Missing key.*cls_token") as caught:
        open_model(str(folder))
    assert len(str(caught.value)) < 500


def test_damaged_and_foreign_models_are_one_line(tmp_path: Path) -> None:
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be loaded by transformers"):
        open_model(str(tmp_path / "a"))
    BertModel(BertConfig(**SMALL, vocab_size=50)).save_pretrained(tmp_path / "b")
    with pytest.raises(UserError, match="transformers:bert is no encoder of images of 224 pixels"):
        open_model(str(tmp_path / "b"))
