"""ImageNet and ReaL: labels from every source, counts, odd pictures, and whole runs of the command line."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from eval.benchmarks.bench import Source
from eval.benchmarks.imagenet import open_imagenet, open_imagenet_real
from eval.benchmarks.imagenet_labels import real_labels
from eval.benchmarks.imagenet_tree import train_set, val_set
from shards.errors import UserError
from tests.eval.trees import (
    CHAIR,
    CHIHUAHUA,
    COCK,
    COLOURS,
    QUICK,
    VAL,
    desk,
    make_imagenet,
    make_train,
    numbers_of,
    picture,
    real,
    scored,
    synsets,
    xclr_eval,
)
from trainer.augment import decode

TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def flat(root: Path, each: int = 2) -> dict[int, str]:
    """imagenet/val without class folders; image number -> WordNet id."""
    table = {number: wnid for wnid in COLOURS for number in numbers_of(wnid, each)}
    for number, wnid in table.items():
        picture(root / "val" / VAL.format(number), COLOURS[wnid], seed=number)
    return table


def devkit_numbers() -> dict[str, int]:
    """A numbering of classes unlike the sorted one, as the devkit's is."""
    order = np.random.default_rng(0).permutation(1000) + 1
    return dict(zip(synsets(), order.tolist(), strict=True))


def truth(table: dict[int, str]) -> str:
    numbers = devkit_numbers()
    return "".join(f"{numbers[table.get(number, synsets()[0])]}\n" for number in range(1, 50_001))


def meta_mat() -> bytes:
    """meta.mat as the devkit has it: a column of records, the inner nodes of the hierarchy after the classes."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O"), ("children", "O")]
    rows = [(number, wnid, "words", 0, np.zeros(0)) for wnid, number in devkit_numbers().items()]
    rows += [(1001 + i, f"n0000000{i}", "inner", 2, np.array([1, 2])) for i in range(3)]
    buffer = BytesIO()
    savemat(buffer, {"synsets": np.array(rows, dtype=fields)[:, None]})
    return buffer.getvalue()


def add_devkit(folder: Path, table: dict[int, str], mapping: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRUTH).write_text(truth(table))
    if mapping == "meta.mat":
        (folder / mapping).write_bytes(meta_mat())
    else:
        lines = [f"{wnid} {number} some_words" for wnid, number in devkit_numbers().items()]
        (folder / mapping).write_text("\n".join(lines))


def add_archive(root: Path, table: dict[int, str]) -> None:
    add_devkit(root / "elsewhere", table, "meta.mat")
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name in (TRUTH, "meta.mat"):
            tar.add(root / "elsewhere" / name, f"ILSVRC2012_devkit_t12/data/{name}")


def add_kaggle(root: Path, table: dict[int, str]) -> None:
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for number, wnid in table.items():
            writer.writerow([VAL.format(number).removesuffix(".JPEG"), f"{wnid} 1 2 30 40 {wnid} 0 0 5 5 "])


def add_list(root: Path, table: dict[int, str], *, numbers: bool) -> None:
    rows = [f"{VAL.format(n)} {synsets().index(w) if numbers else w}" for n, w in table.items()]
    (root / "val.txt").write_text("\n".join(rows))


@pytest.mark.parametrize(
    "source", ["meta.mat", "in devkit folder", "tar.gz", "map_clsloc.txt", "kaggle", "val.txt", "val.txt with numbers"]
)
def test_flat_val_has_the_labels_of_every_source(tmp_path: Path, source: str) -> None:
    table = flat(tmp_path)
    match source:
        case "in devkit folder":
            add_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data", table, "meta.mat")
        case "tar.gz":
            add_archive(tmp_path, table)
        case "kaggle":
            add_kaggle(tmp_path, table)
        case "val.txt" | "val.txt with numbers":
            add_list(tmp_path, table, numbers=source != "val.txt")
        case _:
            add_devkit(tmp_path, table, source)
    val = val_set(tmp_path)
    assert val.numbers.tolist() == sorted(table)
    assert [synsets()[label] for label in val.labels] == [table[number] for number in sorted(table)]
    assert val.images.read(0) == (tmp_path / "val" / VAL.format(min(table))).read_bytes()


def test_another_order_of_classes_is_found_out(tmp_path: Path) -> None:
    """The devkit's numbers taken for the sorted ones: well formed, and at odds with ReaL."""
    own = {number: labels[0] for number, labels in enumerate(real()[:200], 1) if labels}
    for number in own:
        picture(tmp_path / "val" / VAL.format(number), 0, size=8)
    (tmp_path / TRUTH).write_text("".join(f"{own.get(number, 0) + 1}\n" for number in range(1, 50_001)))
    right = "\n".join(f"{i + 1} {wnid}" for i, wnid in enumerate(synsets()))
    (tmp_path / "synsets.tsv").write_text(right)
    assert val_set(tmp_path).labels.tolist() == [own[number] for number in sorted(own)]
    wrong = "\n".join(f"{number} {wnid}" for wnid, number in devkit_numbers().items())
    (tmp_path / "synsets.tsv").write_text(wrong)
    with pytest.raises(UserError, match=r"agree with ReaL's on 0\.\d% of"):
        val_set(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no labels lie beside them"),
        ({TRUTH: "1\n" * 50_000}, "has no meta.mat beside it"),
        ({TRUTH: "1\n" * 50_000, "synsets.txt": "n01440764 1"}, "it does for 1"),
        ({TRUTH: "1\n" * 50_000, "meta.mat": "torn"}, "meta.mat is not the devkit's"),
        ({"val.txt": "a.JPEG 0"}, "has no label for ILSVRC2012_val_"),
        ({"val.txt": "\udce9.JPEG 0"}, "has no label for ILSVRC2012_val_"),
        ({"val.txt": "a.JPEG 1000"}, "a number from 0 to 999"),
        ({"LOC_val_solution.csv": "a,b\n1,2\n"}, "is not Kaggle's"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    flat(tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(UserError, match=message):
        val_set(tmp_path)


def test_a_short_ground_truth_is_refused(tmp_path: Path) -> None:
    add_devkit(tmp_path, flat(tmp_path), "meta.mat")
    (tmp_path / TRUTH).write_text("1\n" * 49_999)
    with pytest.raises(UserError, match="has 49,999 lines, one for each of the 50,000"):
        val_set(tmp_path)


def test_genuine_images_have_their_known_labels(data_root: Path | None, tmp_path: Path) -> None:
    if data_root is None:
        pytest.skip("needs genuine validation images (XCLR_TEST_DATA)")
    sample = data_root / "benchmarks" / "imagenet-val-sample"
    (tmp_path / "val").symlink_to(sample)
    val = val_set(tmp_path)
    with (sample / "labels.tsv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert len(rows) == len(val.labels) == 100
    known = [rows[key] for key in val.images.keys]
    assert val.labels.tolist() == [int(row["imagenet_class"]) for row in known]
    assert [synsets()[label] for label in val.labels] == [row["wnid"] for row in known]
    ours = [set(real_labels()[number - 1]) for number in val.numbers.tolist()]
    assert ours == [set(json.loads(row["real_labels"])) for row in known]
    assert not all(ours)
    for position in range(100):
        assert decode(val.images.read(position)).shape[2] == 3


def test_a_tar_of_class_folders_is_the_same_training_set(tmp_path: Path) -> None:
    make_train(tmp_path / "a", each=3)
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "train.tar", "w") as tar:
        tar.add(tmp_path / "a" / "train", "train")
    (tmp_path / "a" / "train" / CHAIR / f"._{CHAIR}_0.JPEG").write_bytes(b"macOS writes these")
    folders, tar_set = train_set(tmp_path / "a"), train_set(tmp_path / "b")
    assert folders.task.labels.tolist() == tar_set.task.labels.tolist() == sorted(folders.task.labels.tolist())
    assert [folders.images.read(i) for i in range(12)] == [tar_set.images.read(i) for i in range(12)]
    assert folders.images.fingerprint == tar_set.images.fingerprint
    picture(tmp_path / "a" / "train" / "cats" / "1.jpg", 1)
    with pytest.raises(UserError, match=r"the folder 'cats' \(1 such\), which is none of ImageNet's 1,000"):
        train_set(tmp_path / "a")


def odd_pictures(val: Path) -> None:
    """One each of grey, CMYK and PNG with alpha (as *.JPEG, which ImageNet has too), and one that does not decode."""
    cock = sorted((val / COCK).iterdir())
    chair = sorted((val / CHAIR).iterdir())
    with Image.open(cock[0]) as image:
        image.convert("CMYK").save(cock[0], "JPEG", quality=95)
    with Image.open(cock[1]) as image:
        image.convert("RGBA").save(cock[1], "PNG")
    with Image.open(chair[0]) as image:
        image.convert("L").save(chair[0], "JPEG")
    chair[1].write_bytes(chair[1].read_bytes()[:100])


def test_imagenet_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_imagenet(desk(tmp_path, monkeypatch) / "imagenet", each=3)
    odd_pictures(root / "val")
    grey = sorted((root / "val" / CHAIR).iterdir())[0]
    grey.unlink()  # its colour is gone, so which class it falls into is left to chance
    result = scored("imagenet", "--partial")
    top1, top5 = result["columns"]["top1"], result["columns"]["top5"]
    assert (top1["n"], top1["unreadable"], top1["expected"]) == (10, 1, 50_000)
    assert top1["accuracy"] == top5["accuracy"] == 100
    assert "val images: 11 of 50,000" in result["partial"]
    assert "train images: 64 of 1,281,167" in result["partial"]
    assert "val classes: 4 of 1,000" in result["partial"]
    refused = xclr_eval("linear-probe", "--bench", "imagenet")
    assert "val images: 11 of 50,000" in str(refused.exception)
    assert "--partial" in str(refused.exception)


def test_grey_and_cmyk_pictures_decode_as_pil_has_them(tmp_path: Path) -> None:
    original = Image.open(picture(tmp_path / "a.jpg", 4))
    for mode, suffix in (("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("P", "gif")):
        path = tmp_path / f"{mode}.{suffix}"
        original.convert("L" if mode == "LA" else mode).convert(mode).save(path)
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(decode(path.read_bytes()).astype(int) - expected).mean() < 3, mode


def test_real_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty sets are not counted; ReaL's word counts, not the folder's; the probe and features are ImageNet's."""
    root = make_imagenet(desk(tmp_path, monkeypatch) / "imagenet", each=2)
    empty = next(number for number, labels in enumerate(real(), 1) if not labels)
    dog = numbers_of(CHIHUAHUA, 9)[-1]
    picture(root / "val" / CHAIR / VAL.format(empty), COLOURS[CHAIR])
    picture(root / "val" / CHAIR / VAL.format(dog), COLOURS[CHIHUAHUA])
    by_folder = scored("imagenet", "--partial")
    assert by_folder["columns"]["top1"]["n"] == 10
    assert by_folder["columns"]["top1"]["accuracy"] == 90
    again = xclr_eval("linear-probe", "--bench", "imagenet-real", *QUICK, "--partial")
    assert again.exception is None
    assert "the probe trained before is used again" in " ".join(again.output.split())
    assert "PARTIAL, not comparable: " in again.output
    column = json.loads(Path("runs/tiny/eval/linear-probe-imagenet-real.json").read_text())["columns"]["real"]
    assert (column["n"], column["accuracy"], column["expected"]) == (9, 100, 46_837)


def test_halves_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    """They would score 0 for every model, and be marked partial only."""
    root = make_imagenet(tmp_path / "imagenet", each=1)
    kept, *rest = sorted((root / "val").iterdir())
    for folder in (*rest, root / "train" / kept.name):
        shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"no class of .*val is among those of .*train"):
        open_imagenet(Source(root=root, benchmarks=tmp_path, partial=True))


def test_real_needs_the_original_names(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path / "imagenet", each=1)
    first = sorted((root / "val" / CHAIR).iterdir())[0]
    first.rename(first.with_name("chair.jpg"))
    with pytest.raises(UserError, match=r"go by file name.*chair\.jpg \(1 such\)"):
        open_imagenet_real(Source(root=tmp_path / "imagenet-real", benchmarks=tmp_path, partial=True))


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(tmp_path, monkeypatch)
    error = str(xclr_eval("linear-probe", "--bench", "imagenet").exception)
    assert (
        "no data/benchmarks/imagenet/train and no data/benchmarks/imagenet/val (imagenet: ILSVRC2012_img_train" in error
    )
    assert "\n" not in error
    make_imagenet(tmp_path / "data" / "benchmarks" / "imagenet", each=1)
    typed = xclr_eval("linear-probe", "--bench", "imagenet-real", "--partial", "--data", "typo").exception
    assert "no typo/train" in str(typed)
    shutil.rmtree(tmp_path / "data" / "benchmarks" / "imagenet")
    make_train(tmp_path / "data" / "benchmarks" / "imagenet", each=1)
    with pytest.raises(UserError, match=r"there is no \S*imagenet/val \(imagenet: "):
        open_imagenet(Source(root=tmp_path / "data/benchmarks/imagenet", benchmarks=tmp_path))
