"""`imagefolder` from the command line: folders and tars, nested, damaged, and every way to give it wrongly."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.benchmarks.bench import top
from eval.benchmarks.imagefolder import list_folder, list_tar
from eval.benchmarks.registry import open_bench
from eval.benchmarks.scoring import any_of, mapped
from eval.evaluate import Settings, evaluation_hash
from eval.features import extract
from eval.models.open import open_model
from eval.report.show import show_result
from shards.errors import UserError
from tests.eval.make_folders import as_tars, make_folders
from tests.eval.runs import read, run_eval, small_run
from tests.make import make_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("imagefolder"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folders(tmp_path_factory.mktemp("folders"), nested=True)


@pytest.mark.parametrize("method", ["linear-probe", "knn"])
def test_folders_and_tars_give_the_same_figures(
    run: Path,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    tars = as_tars(folders, tmp_path / "tars")
    monkeypatch.chdir(run.parent.parent)  # the newest run below runs/ is the default
    options = ["--k", "3"] if method == "knn" else []
    cache = ["--features", str(tmp_path / "cache")]
    results = []
    for data in (folders, tars):
        out = tmp_path / f"{data.name}.json"
        assert (
            run_eval([method, "--bench", "imagefolder", "--data", str(data), "--out", str(out), *cache, *options]) == 0
        )
        results.append(read(out))
        assert str(out) in capsys.readouterr().out
    first, second = results
    assert first["columns"] == second["columns"]
    assert first["columns"]["top1"]["n"] == 20
    assert first["columns"]["top1"]["accuracy"] > 60  # colours are easy, even with the weights of a miniature run
    assert first["pictures"]["train"]["features"] == second["pictures"]["train"]["features"]  # equal names and sizes
    assert first["protocol"]["k" if method == "knn" else "epochs"] == (3 if method == "knn" else 40)
    assert len(first["model"]["checkpoint_sha256"]) == 64
    assert {"torch", "timm", "xclr"} <= set(first["versions"])


def test_equal_names_and_sizes_are_not_equal_pictures(tmp_path: Path) -> None:
    """Formats without compression give equal sizes to all pictures."""
    found = []
    for name, value in (("clean", 10), ("noise", 200)):
        for split in ("train", "val"):
            for label in ("a", "b"):
                path = tmp_path / name / split / label / "x.bmp"
                path.parent.mkdir(parents=True)
                cv2.imwrite(str(path), np.full((8, 8, 3), value, np.uint8))
        bench = open_bench("imagefolder", tmp_path / name)
        found.append({images.name: images.fingerprint for images in bench.sets})
    assert found[0].keys() == found[1].keys()
    assert not set(found[0].values()) & set(found[1].values())


def test_no_two_pictures_can_change_places_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a set that is too large to be read whole, some are looked at."""
    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(200):
        (folder / f"{i:03d}.png").write_bytes(b"%03d" % i)
    pictures = list_folder(tmp_path)
    before = pictures.fingerprint(pictures.keys)
    (folder / "001.png").write_bytes(b"002")
    (folder / "002.png").write_bytes(b"001")
    assert pictures.fingerprint(pictures.keys) != before
    monkeypatch.setattr("eval.benchmarks.imagefolder.HASHED_WHOLE", 600)
    read: list[int] = []

    def watched(i: int) -> bytes:
        read.append(i)
        return b""

    replace(pictures, read=watched).fingerprint(pictures.keys)
    assert read == list(range(0, 200, 4))


def test_hashing_that_may_take_a_while_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path)
    open_bench("imagefolder", tmp_path)
    assert "hashing" not in capsys.readouterr().err
    monkeypatch.setattr("eval.benchmarks.imagefolder.WORTH_A_BAR", (0, 10))
    monkeypatch.setenv("COLUMNS", "300")
    open_bench("imagefolder", tmp_path)
    assert f"hashing {tmp_path / 'train'}" in capsys.readouterr().err


def test_other_labels_of_the_test_images_are_another_evaluation(run: Path, folders: Path, tmp_path: Path) -> None:
    model, bench = open_model(str(run)), open_bench("imagefolder", folders)
    settings = Settings(features=tmp_path)
    before = evaluation_hash(model, bench, "knn", settings)
    truth = np.zeros(len(bench.by_name["val"]), np.int64)
    column = bench.columns[0]
    for score in (top(truth), top(truth, 2), any_of([{0}] * len(truth)), mapped(truth, [0, 1, 1, 1])):
        other = replace(bench, columns=(replace(column, score=score), *bench.columns[1:]))
        found = evaluation_hash(model, other, "knn", settings)
        assert found != before
        before = found
    assert evaluation_hash(model, other, "knn", settings) == before


@pytest.mark.parametrize(
    ("lr", "decay", "said"),
    [
        (1.0, 0.01, "lr 1, weight decay 0.01, unit"),
        (3.0, 0.01, "lr 3 (the largest tried), weight decay 0.01, unit"),
        (1.0, 0.001, "lr 1, weight decay 0.001 (the smallest tried), unit"),
    ],
)
def test_a_choice_at_the_end_of_the_grid_is_said(
    capsys: pytest.CaptureFixture[str], lr: float, decay: float, said: str
) -> None:
    grid = [{"lr": a, "weight_decay": b} for a in (0.3, 1.0, 3.0) for b in (0.001, 0.01, 0.1)]
    chosen = {"lr": lr, "weight_decay": decay, "features": "unit", "held_out": 1, "trained_on": 9, "candidates": grid}
    model = {"model": "resnet18", "objective": "xclr"}
    table = {"method": "linear_probe", "bench": "b", "model": model, "columns": {}, "summaries": {}}
    table |= {"partial": [], "pictures": {}, "protocol": {}, "notes": {"classes": 3}, "feature_dim": 512}
    show_result({**table, "chosen": {"class": chosen}}, Path("r.json"))
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown
    assert "9 training images of 3 classes, 512 features each" in shown


def test_unreadable_pictures_are_counted_and_left_out(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    (data / "val" / "class1" / "images" / "0.JPEG").write_bytes(b"torn")
    (data / "train" / "class0" / "images" / "3.JPEG").write_bytes(b"")
    out = tmp_path / "out.json"
    call = ["knn", "--bench", "imagefolder", "--data", str(data), "--checkpoint", str(run), "--out", str(out)]
    for _ in range(2):  # the second with features from before
        assert run_eval([*call, "--k", "1", "--features", str(tmp_path / "cache")]) == 0
        shown = capsys.readouterr().out
        assert "LEFT OUT, train: 1 of 48 pictures did not decode" in shown
        assert "LEFT OUT, val: 1 of 20 pictures did not decode" in shown
    result = read(out)
    assert result["columns"]["top1"]["n"] == 19
    assert result["columns"]["top1"]["unreadable"] == 1
    assert result["pictures"]["train"]["unreadable"] == 1
    assert result["chosen"]["class"]["trained_on"] == 47


def test_a_link_to_itself_is_one_line(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    (data / "train" / "class0" / "round").symlink_to("round")
    call = ["knn", "--bench", "imagefolder", "--data", str(data), "--checkpoint", "timm:test_vit", "--untrained"]
    assert run_eval(call) == 2
    assert "round: Too many levels of symbolic links; a link leads back to itself" in capsys.readouterr().err


def test_a_picture_deleted_after_it_was_listed_does_not_decode(folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    bench = open_bench("imagefolder", data)
    (data / "train" / bench.by_name["train"].keys[5]).unlink()
    features = extract(open_model("timm:test_vit", untrained=True), bench.by_name["train"], tmp_path / "cache")
    assert np.flatnonzero(~features.ok).tolist() == [5]


def test_a_place_where_features_cannot_be_kept_is_one_line(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["knn", "--bench", "imagefolder", "--data", str(folders), "--checkpoint", "timm:test_vit", "--untrained"]
    assert run_eval([*call, "--features", "/proc/x"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: /proc/x: ")
    assert said.endswith(": choose another place (--features, $XCLR_FEATURES)")


def test_a_class_without_a_readable_training_picture_is_one_line(
    run: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    for path in sorted((data / "train" / "class2").rglob("*.JPEG"))[2:]:
        path.unlink()
    for path in (data / "train" / "class2").rglob("*.JPEG"):
        path.write_bytes(b"torn")
    call = ["knn", "--bench", "imagefolder", "--data", str(data), "--checkpoint", str(run)]
    assert run_eval([*call, "--k", "1", "--features", str(tmp_path / "cache")]) == 2
    assert "none of the 2 training pictures of class 'class2' decodes" in capsys.readouterr().err


def test_a_class_without_test_pictures_is_said(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    assert open_bench("imagefolder", data).notes["not_in_val"] == 0
    assert capsys.readouterr().err == ""
    shutil.rmtree(data / "val" / "class2")
    assert open_bench("imagefolder", data).notes["not_in_val"] == 1
    assert f"{data / 'val'} has no picture of 1 of 4 classes, 'class2' among them\n" in capsys.readouterr().err


def test_a_tar_is_no_folder_of_tars(tmp_path: Path) -> None:
    (tmp_path / "all.tar").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"all\.tar is a file: give --data DIR that holds .*, or train\.tar and val\.tar"
    ):
        open_bench("imagefolder", tmp_path / "all.tar")


def test_classes_are_matched_by_name(folders: Path) -> None:
    bench = open_bench("imagefolder", folders)
    assert bench.tasks[0].classes == ["class0", "class1", "class2", "class3"]
    assert bench.tasks[0].labels.tolist() == [i // 12 for i in range(48)]
    assert bench.by_name["val"].keys[7] == "class1/images/2.JPEG"
    assert bench.by_name["val"].read(7) == (folders / "val/class1/images/2.JPEG").read_bytes()


def test_classes_are_called_as_captions_call_them(folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    for split in ("train", "val"):
        (data / split / "class0").rename(data / split / "n01443537")
        (data / split / "class3").rename(data / split / "my_bird")
    (data / "classes.tsv").write_text("class1\tcar, auto\n")
    bench = open_bench("imagefolder", data)
    assert bench.tasks[0].classes == ["car", "class2", "my bird", "goldfish"]


def test_real_tars_open(data_root: Path | None, folders: Path, tmp_path: Path) -> None:
    root = data_root / "tiny-imagenet-100" if data_root else as_tars(folders, tmp_path / "tars")
    bench = open_bench("imagefolder", root)
    images, classes = bench.by_name["train"], bench.tasks[0].classes
    assert (len(images), len(bench.by_name["val"]), len(classes)) == ((30000, 5000, 100) if data_root else (48, 20, 4))
    assert images.read(len(images) - 1)[:2] == b"\xff\xd8"
    assert (images.keys[0].split("/")[0], classes[0]) == (
        ("n01644900", "tailed frog") if data_root else ("class0", "class0")
    )
    assert len(list_tar(root / "val.tar").keys) == len(bench.by_name["val"])


def broken(folders: Path, data: Path, what: str) -> None:
    shutil.copytree(folders, data)
    if what == "no val":
        shutil.rmtree(data / "val")
    elif what == "empty train":
        shutil.rmtree(data / "train")
        (data / "train").mkdir()
    elif what == "no classes":
        for path in (data / "train").rglob("*.JPEG"):
            path.rename(data / "train" / f"{path.parent.parent.name}-{path.name}")
    elif what == "foreign class":
        (data / "val" / "class1").rename(data / "val" / "zebra")
    elif what == "one class":
        for split in ("train", "val"):
            for label in (1, 2, 3):
                shutil.rmtree(data / split / f"class{label}")
    elif what == "torn tar":
        shutil.rmtree(data / "train")
        (data / "train.tar").write_bytes(b"x" * 700)
    elif what == "gzip":
        shutil.rmtree(data / "train")
        (data / "train.tar").write_bytes(gzip.compress(bytes(10_240)))
    elif what == "dangling link":
        (data / "val" / "class1" / "gone.jpg").symlink_to("nowhere.jpg")
    elif what == "link upwards":
        (data / "val" / "class1" / "up").symlink_to("..")


@pytest.mark.parametrize("shared", [0, 3])
def test_training_pictures_among_the_test_pictures_are_told_of(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shared: int
) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    for path in sorted((data / "train" / "class1").rglob("*.JPEG"))[:shared]:
        shutil.copy(path, data / "val" / "class1" / f"again-{path.name}")
    assert open_bench("imagefolder", data).notes["of_training"]["found"] == shared
    said = " ".join(capsys.readouterr().err.split())
    assert (f"warning: {shared} of " in said and "byte for byte" in said) == (shared > 0)


def test_shards_are_no_class_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds shards: --bench shards scores such"):
        open_bench("imagefolder", make_shards(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no val", r"has no val/, val\.tar or test/, test\.tar: give --data DIR"),
        ("empty train", r"train holds no pictures in class folders: it must look like .*/CLASS/\*\.jpg"),
        ("no classes", r"train holds no pictures in class folders"),
        ("foreign class", r"has the class 'zebra' \(5 pictures\), which .*train lacks \(1 such of 4\)"),
        ("one class", r"has one class, 'class0': a probe needs two"),
        ("gzip", r"train\.tar is compressed \(gzip\): unpack it"),
        ("torn tar", r"train\.tar is torn or no tar"),
        ("link upwards", r"val/class1/up is a link to a folder that it lies in: delete it"),
        ("dangling link", r"gone\.jpg cannot be looked at \(No such file or directory\): mend or delete it"),
    ],
)
def test_wrong_folders_are_one_line(folders: Path, tmp_path: Path, what: str, message: str) -> None:
    broken(folders, tmp_path / "data", what)
    with pytest.raises(UserError, match=message):
        open_bench("imagefolder", tmp_path / "data")
