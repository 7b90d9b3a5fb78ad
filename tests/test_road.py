"""The whole road in miniature, through the command lines: shards, training, evaluation, report."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import eval.cli
import pipeline.cli
import trainer.cli
from pipeline.demo.pictures import samples
from shards.manifest import Manifest
from shards.verify import verify
from tests.pipeline.sources import write_tar

TINY = ["--epochs", "1", "--batch-size", "64", "--workers", "0", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own: data/ and runs/ are relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def checksums(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_the_demo(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make demo` runs, on 192 pictures; and again, when it reuses all of it."""
    monkeypatch.setattr("pipeline.demo.pictures.COUNTS", {"train": 192, "test": 150})

    def demo() -> None:
        run(pipeline.cli.app, "build", "demo")
        run(pipeline.cli.app, "build", "demo-test")
        for objective in ("simclr", "supcon", "xclr"):
            out = f"runs/demo/{objective}"
            run(trainer.cli.app, *TINY, "--recipe", "demo", "--objective", objective, "--out", out, "--resume")
        run(eval.cli.app, "suite", "--config", "demo", "--out", "runs/demo")

    demo()
    results = json.loads(Path("runs/demo/results.json").read_text())
    assert [row["method"] for row in results["rows"]] == ["untrained", "simclr", "supcon", "xclr"]
    for row in results["rows"]:
        for method in ("linear_probe", "knn"):
            assert {"object", "mixed_same", "mixed_rand", "only_fg", "colour", "texture"} <= set(row[method])
            assert all(0 <= value <= 100 for value in row[method].values())
    page = Path("runs/demo/report.html").read_text()
    assert page.count("<svg") >= 2
    assert page.count("data:image/jpeg;base64,") > 20
    assert "http" not in page.replace("http://www.w3.org", "").replace("https://arxiv.org", "")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.suffix in (".pt", ".tar", ".npy")}
    demo()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads(Path("runs/demo/results.json").read_text())["rows"] == results["rows"]


def captioned(root: Path, data_root: Path | None) -> Path:
    """400 captioned images as img2dataset writes them: real ones where there are some."""
    if data_root is not None:
        with tarfile.open(data_root / "flickr8k" / "val" / "00000.tar") as tar:
            names = tar.getnames()[:1200]
            members = [(name, tar.extractfile(name).read()) for name in names]  # type: ignore[union-attr]
    else:
        drawn = [(sample, f"{i:09d}") for i, sample in enumerate(samples("train", count=400))]
        members = [m for s, key in drawn for m in ((f"{key}.jpg", s.jpeg), (f"{key}.txt", s.caption.encode()))]
    write_tar(root / "00000.tar", members)
    return root


@pytest.fixture(scope="module")
def labelled(data_root: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.tar and val.tar of five classes: real ones where there are some."""
    root = tmp_path_factory.mktemp("benchmarks") / "imagefolder"
    for split, most in (("train", 40), ("val", 10)):
        if data_root is not None:
            with tarfile.open(data_root / "tiny-imagenet-100" / f"{split}.tar") as tar:
                taken: dict[str, list[str]] = {}
                for name in tar.getnames():
                    taken.setdefault(name.split("/")[1], []).append(name)
                names = [name for wnid in sorted(taken)[:5] for name in taken[wnid][:most]]
                members = [(name, tar.extractfile(name).read()) for name in names]  # type: ignore[union-attr]
        else:
            drawn = samples("train", seed=0 if split == "train" else 1, count=10 * most)
            members = [(f"{split}/{s.label}/{s.key}.jpg", s.jpeg) for s in drawn if s.label < 5]
        write_tar(root / f"{split}.tar", members)
    return root


@pytest.mark.slow
def test_captions_to_a_probe_on_classes(
    here: Path, data_root: Path | None, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three commands with nothing more, a second backbone and a second graph on the same shards."""
    source = captioned(here / "tars", data_root)
    (here / "captioned.toml").write_text('format = "webdataset"\ncaptions = ["caption"]\n')
    monkeypatch.setenv("XCLR_BENCHMARKS", str(labelled.parent))

    built = run(pipeline.cli.app, "build", "captioned.toml", "--source", str(source))
    assert "data/captioned: shards written, 400 samples" in built
    small = [*TINY, "--model", "resnet10t", "--image-size", "32"]
    trained = run(trainer.cli.app, *small)
    assert "data/captioned" in trained
    probed = run(eval.cli.app, "linear-probe", "--bench", "imagefolder")
    assert "captioned-xclr-resnet10t-" in probed
    before = checksums(here / "data" / "captioned")
    run(trainer.cli.app, *TINY, "--model", "vit_tiny_patch16_224", "--image-size", "32")
    run(eval.cli.app, "knn", "--bench", "imagefolder", "--data", str(labelled))
    options = "image_size32-batch_size64-epochs1"  # what differs from the recipe
    written = Path(f"runs/captioned-xclr-vit_tiny_patch16_224-{options}/eval/knn-imagefolder-imagefolder.json")
    assert written.is_file()
    assert checksums(here / "data" / "captioned") == before


@pytest.mark.slow
def test_classes_with_four_graphs(here: Path, labelled: Path) -> None:
    """Class folders, their captions, and other graphs beside the first, which touch no tar."""
    run(pipeline.cli.app, "build", "tiny-imagenet-100", "--source", str(labelled))
    root = here / "data" / "tiny-imagenet-100"
    assert Manifest.load(root).texts == 5
    before = checksums(root)
    for kind in ("class", "random"):
        run(pipeline.cli.app, "graph", str(root), "--kind", kind)
    assert before.items() <= checksums(root).items()
    assert verify(root) == []
    small = [*TINY, "--model", "resnet10t", "--image-size", "32", "--shards", str(root)]
    for graph in ("minilm-k32", "class", "random"):  # two of them know no code, and need none
        run(trainer.cli.app, *small, "--graph", graph)
        assert list(Path("runs").glob(f"tiny-imagenet-100-xclr-{graph}-resnet10t-*/run.json"))
    run(trainer.cli.app, *small, "--objective", "supcon", "--out", "runs/supcon")
    assert "random" in run(pipeline.cli.app, "info", str(root))
