"""Export to timm, fine-tuning from weights, and the command line that leads there."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from logging import getLogger
from pathlib import Path
from shutil import copy, copytree
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import trainer.export as export_module
from eval.features import centre_crop
from eval.models.model import Transform
from eval.models.open import open_model
from shards.errors import UserError
from tests.make import make_shards
from tests.trainer.small import ALONE, SIZES, recipe
from trainer import data
from trainer.checkpoint import checkpoints, load_backbone, read_checkpoint
from trainer.cli import app, main
from trainer.export import _share, export
from trainer.loop import train
from trainer.model import build_encoder, with_statistics
from trainer.recipe import ModelConfig


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), sizes=SIZES, classes=6)


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(shards, epochs=1, model__backbone=request.param), folder, ALONE)
    return folder


def test_timm_loads_an_export_with_identical_outputs(run: Path, tmp_path: Path) -> None:
    out = export(checkpoints(run)[-1], tmp_path / "out")
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    ours, info = load_backbone(checkpoints(run)[-1])
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), ours(images))
    assert model(images).shape == (2, info.feature_dim)
    assert timm.data.resolve_model_data_config(model, use_test_size=True)["input_size"][-1] == 16
    written = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert not {"license", "origin_url", "test_input_size", "test_crop_pct"} & written.keys()  # of timm's own weights
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    config = timm.data.resolve_model_data_config(model)
    assert (tuple(config["input_size"]), config["crop_pct"]) == ((3, 16, 16), 0.875)
    assert config["mean"] == pytest.approx(info.mean)
    card = (out / "README.md").read_text()
    for fact in (
        "X-CLR, graph made, tau 0.1",
        "made, 84 samples",
        "step 10 of 10",
        info.sha256,
        "| Training knn |",
        '"batch_size"',
    ):
        assert fact in card


def test_an_export_does_not_replace_that_of_another_run(run: Path, tmp_path: Path) -> None:
    out = export(checkpoints(run)[0], tmp_path / "out")
    other = copytree(run, tmp_path / "other")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=rf"out holds the export of the run {run.name}: choose another folder"):
        export(checkpoints(other)[-1], out)
    assert (out / "model.safetensors").read_bytes() == before
    export(checkpoints(run)[-1], out)  # a later one of the same
    assert (out / "model.safetensors").read_bytes() != before


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_an_export_replaces_no_file_of_somebody_s_own(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match="out holds other files: choose an empty or a new folder"):
        export(checkpoints(run)[0], out)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, '{"mine": 1}')]


def test_an_export_that_was_killed_is_made_again(run: Path, tmp_path: Path) -> None:
    out = export(checkpoints(run)[0], tmp_path / "out")
    (out / "README.md").unlink()
    export(checkpoints(run)[0], out)
    assert (out / "README.md").is_file()


@pytest.mark.parametrize(
    ("size", "share"), [(32, 0.875), (48, 0.875), (64, 0.875), (224, 0.875), (224, 0.95), (32, 1.0)]
)
def test_timm_cuts_pictures_as_xclr_eval_does(size: int, share: float) -> None:
    """timm rounds the resized side down: half a pixel of 32 is another picture."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), (400, 300), interpolation=cv2.INTER_CUBIC)
    ours = centre_crop(smooth, Transform(image_size=size, crop_pct=share))
    theirs = timm.data.create_transform(
        (3, size, size), crop_pct=_share(size, share), interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )(Image.fromarray(smooth))
    assert np.abs(theirs.permute(1, 2, 0).numpy() * 255 - ours).mean() < 1.2


def test_timm_enlarges_small_pictures_as_xclr_eval_does(run: Path, tmp_path: Path) -> None:
    """Those of 32 pixels are seen at 32 as the middle of 37."""
    config = json.loads((export(checkpoints(run)[-1], tmp_path / "out") / "config.json").read_text())["pretrained_cfg"]
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    ours = centre_crop(small, Transform(image_size=32, crop_pct=0.875))
    theirs = timm.data.create_transform(
        (3, 32, 32), crop_pct=_share(32, 0.875), interpolation=config["interpolation"], mean=(0, 0, 0), std=(1, 1, 1)
    )(Image.fromarray(small))
    assert np.abs(theirs.permute(1, 2, 0).numpy() * 255 - ours).mean() < 0.5


@pytest.mark.parametrize(
    ("arguments", "how"),
    [(["export"], "again"), (["recipe"], "again"), (["--dry-run"], "again"), (["--epochs", "2"], "with --resume")],
)
def test_what_is_stopped_is_told_how_it_goes_on(
    arguments: list[str], how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["xclr-train", *arguments])
    monkeypatch.setattr("trainer.cli.app", Mock(return_value=130))  # as typer ends on Ctrl-C
    with pytest.raises(SystemExit, match="130"):
        main()
    assert capsys.readouterr().err == f"stopped: run the same command {how} to go on\n"


def test_export_by_command_line(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "local-dir:" in result.output
    again = CliRunner().invoke(app, ["export", str(run / "checkpoints" / "best.pt"), "--out", str(tmp_path / "out")])
    assert again.exit_code == 0
    loose = tmp_path / "loose"
    loose.mkdir()
    copy(run / "checkpoints" / "best.pt", loose)
    assert CliRunner().invoke(app, ["export", str(loose / "best.pt")]).exit_code == 0
    assert (loose / "export" / "config.json").is_file()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        export(checkpoints(run)[-1], tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], r"no checkpoint below runs/: train first, or name"),
        (["export", "nowhere"], "no checkpoint or run folder nowhere: give one that xclr-train wrote"),
        (["export", "notes.txt"], r"notes\.txt is not a readable checkpoint: it is damaged, or no checkpoint at all"),
        (["--recipe", "demo", "--seed", "1", "export"], "--recipe, --seed before export would not be heeded"),
    ],
)
def test_what_export_cannot_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_of_a_damaged_checkpoint_the_one_beside_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (10, 20):
        (folder / f"step-{step:08d}.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"step-00000020.pt is not a readable.*step-00000010.pt beside it may be whole"):
        load_backbone(folder / "step-00000020.pt")
    (folder / "step-00000010.pt").unlink()
    with pytest.raises(UserError, match=r"or no checkpoint at all$"):
        load_backbone(folder / "step-00000020.pt")


def test_export_names_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write /proc/x \(.*\): choose another folder with --out"):
        export(checkpoints(run)[-1], Path("/proc/x"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # the kernel refuses more, as a full disk does
    try:
        with pytest.raises(UserError, match=r"cannot write .*/out \(.*large.*\): choose another folder"):
            export(checkpoints(run)[-1], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_fine_tuning_starts_from_given_weights(run: Path, shards: Path, tmp_path: Path) -> None:
    trained, info = load_backbone(checkpoints(run)[-1])
    files: dict[str, Any] = {"run": run, "checkpoint": checkpoints(run)[-1], "export": tmp_path / "out"}
    export(checkpoints(run)[-1], tmp_path / "out")
    save_file({**trained.state_dict(), "head.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in trained.state_dict().items()}}, tmp_path / "w.pth")
    files |= {"safetensors": tmp_path / "w.safetensors", "torch": tmp_path / "w.pth"}
    for path in files.values():
        model = recipe(shards, model__backbone=info.model, model__start=str(path)).model
        started = build_encoder(model, 16, seed=3)
        for name, value in trained.state_dict().items():
            assert torch.equal(started.backbone.state_dict()[name], value)
    chosen = recipe(shards, epochs=1, model__backbone=info.model, model__start=str(run), optimiser__lr=1e-6)
    train(chosen, tmp_path / "tuned", ALONE)
    tuned, _ = load_backbone(checkpoints(tmp_path / "tuned")[-1])
    before, _ = load_backbone(checkpoints(tmp_path / "tuned")[-1], untrained=True)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(before(images), trained(images))
    # A tiny learning rate: still close to where it started, and not there.
    assert not torch.equal(tuned(images), trained(images))


def without_hub(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """timm's weights are initial ones; whether they were asked for, call by call."""
    asked = []
    real = timm.create_model

    def create(name: str, *, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return real(name, pretrained=False, **options)

    monkeypatch.setattr("trainer.model.timm.create_model", create)
    return asked


@pytest.mark.parametrize(
    ("change", "mean"),
    [
        ({}, [0.485, 0.456, 0.406]),
        ({"model__start": "timm"}, [0.5, 0.5, 0.5]),
        ({"model__start": "timm", "model__mean": [0.1, 0.2, 0.3]}, [0.1, 0.2, 0.3]),
    ],
)
def test_images_are_normalised_as_the_weights_want_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], mean: list[float]
) -> None:
    """test_vit's are of timm's 0.5, those of a network that starts from nothing ImageNet's."""
    without_hub(monkeypatch)
    seen = []
    real = data.to_views

    def views(batch: Any, device: torch.device, statistics: Any) -> torch.Tensor:
        seen.append(statistics)
        return real(batch, device, statistics)

    monkeypatch.setattr("trainer.step.to_views", views)
    monkeypatch.setattr("trainer.monitor.to_views", views)
    chosen = recipe(shards, epochs=1, **change)
    train(chosen, tmp_path / "run", ALONE)
    assert {tuple(each) for each, _ in seen} == {tuple(mean)}
    assert list(load_backbone(checkpoints(tmp_path / "run")[-1])[1].mean) == mean
    out = export(checkpoints(tmp_path / "run")[-1], tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["pretrained_cfg"]["mean"] == mean
    batch = data.Batch(torch.full((1, 2, 1, 1, 3), 255, dtype=torch.uint8), *(torch.zeros(1),) * 3)
    one = real(batch, torch.device("cpu"), ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0)))
    assert one[0].flatten().tolist() == [2.0, 1.0, 0.5]
    assert train(chosen, tmp_path / "run", ALONE, resume=True).already_done
    for start in (
        tmp_path / "run",
        checkpoints(tmp_path / "run")[-1],
        tmp_path / "out",
        tmp_path / "out" / "model.safetensors",
    ):
        assert [*with_statistics(recipe(shards, model__start=str(start)).model).mean] == mean


def test_a_run_that_began_before_there_was_a_choice_goes_on_as_it_began(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_hub(monkeypatch)
    run = tmp_path / "run"
    began = recipe(
        shards, epochs=1, model__start="timm", model__mean=[*data.IMAGENET[0]], model__std=[*data.IMAGENET[1]]
    )
    train(began, run, ALONE)
    path = checkpoints(run)[-1]
    state = read_checkpoint(path)
    for table in (
        kept := json.loads(state["recipe"]),
        described := json.loads((run / "run.json").read_text())["recipe"],
    ):
        del table["model"]["mean"], table["model"]["std"]
    torch.save({**state, "recipe": json.dumps(kept)}, path)
    (run / "run.json").write_text(json.dumps({"recipe": described, "status": "stopped", "step": 0}))
    assert train(recipe(shards, epochs=1, model__start="timm"), run, ALONE, resume=True).already_done


def test_fine_tuning_starts_from_timms_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = without_hub(monkeypatch)
    for start in ("", "timm"):
        build_encoder(ModelConfig(backbone="test_resnet", start=start), 32, 0)
    assert asked == [False, True]
    with pytest.raises(UserError, match=r"there is no file timm:resnet18 to start from; .* are --start timm"):
        build_encoder(ModelConfig(backbone="test_resnet", start="timm:resnet18"), 32, 0)


def test_a_hub_out_of_reach_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = [*getLogger("huggingface_hub").handlers]

    def unreachable(*_: object, **options: object) -> None:
        getLogger("huggingface_hub.utils._http").warning("You are sending unauthenticated requests to the HF Hub.")
        for _ in range(3):  # its lines for each of its tries
            getLogger("huggingface_hub.utils._http").warning("'no %s' thrown while requesting HEAD\nor so", "name")
            getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")
        raise FileNotFoundError("the hub cannot be reached")

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(UserError, match="timm's weights of test_resnet cannot be had: the hub cannot be reached"):
        build_encoder(ModelConfig(backbone="test_resnet", start="timm"), 32, 0)
    with pytest.raises(UserError, match=r"weights of resnet10t cannot be had .the hub cannot be reached.: check"):
        open_model("timm:resnet10t")
    told = [line.partition(" yet; ")[::2] for line in capsys.readouterr().err.splitlines()]
    waiting = "trying for a minute ('no name' thrown while requesting HEAD)"
    assert told == [
        (f"the hub does not give timm's weights of {name}", waiting) for name in ("test_resnet", "resnet10t")
    ]
    assert getLogger("huggingface_hub").handlers == handlers


def test_weights_that_do_not_fit_are_refused(run: Path, shards: Path, tmp_path: Path) -> None:
    _, info = load_backbone(checkpoints(run)[-1])
    other = {"test_resnet": "test_vit", "test_vit": "test_resnet"}[info.model]
    for path, message in [(str(run), "does not fit the backbone"), (str(tmp_path / "no.pt"), "no file"),
                          (str(tmp_path), "holds neither")]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            build_encoder(recipe(shards, model__backbone=other, model__start=path).model, 16, seed=0)
    (tmp_path / "torn.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match="not a readable file of weights"):
        build_encoder(recipe(shards, model__start=str(tmp_path / "torn.pt")).model, 16, seed=0)
    for number, content in enumerate((torch.zeros(3), [torch.zeros(3)], {1: torch.zeros(3)})):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(UserError, match="holds no weights by name"):
            build_encoder(recipe(shards, model__start=str(tmp_path / f"{number}.pt")).model, 16, seed=0)


def test_tensors_that_share_memory_are_exported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers that are used twice, as coat's are."""
    path = checkpoints(run)[-1]
    _, info = load_backbone(path)
    backbone = timm.create_model(info.model, num_classes=0, **({"img_size": 16} if "vit" in info.model else {}))
    backbone.twin = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    monkeypatch.setattr(export_module, "load_backbone", lambda _: (backbone, info))
    out = export_module.export(path, tmp_path / "out")
    names = load_file(out / "model.safetensors")
    assert torch.equal(names["twin.weight"], backbone.twin.weight)
    assert backbone.state_dict().keys() == names.keys()


def test_a_run_from_before_an_option_existed_goes_on(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(recipe(shards, epochs=1), folder, ALONE)
    state = read_checkpoint(checkpoints(folder)[-1])
    old = json.loads(state["recipe"])
    del old["data"]["chunk"], old["data"]["grouped"], old["model"]["start"]
    old["data"]["graph"] = ""  # not written down where there was one only
    del state["graph"]
    torch.save({**state, "recipe": json.dumps(old)}, checkpoints(folder)[-1])
    assert train(recipe(shards, epochs=1), folder, ALONE, resume=True).already_done


def test_help_does_not_wait_for_torch() -> None:
    check = "import sys, trainer.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    assert "export" in CliRunner().invoke(app, ["--help"]).output


def test_help_fits_a_terminal_of_80_columns() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output
    assert "tiny-imagenet-100, or a .toml" in shown
