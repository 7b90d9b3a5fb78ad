"""`backgrounds`: what is composed, of which pictures, and what looking at objects, or at grounds, alone scores."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from eval.benchmarks.backgrounds import VARIANTS, partners
from eval.benchmarks.bench import Bench
from eval.benchmarks.composites import ground, on_black, on_ground
from eval.benchmarks.registry import open_bench
from eval.evaluate import Settings, evaluate
from eval.heads.knn import KNNConfig
from eval.report.show import show_result
from shards.errors import UserError
from tests.eval.make_folders import as_tars, make_model
from trainer.augment import decode

SIZE, CLASSES, EACH = 24, 4, 5
BOX = (6, 8, 17, 19)  # first and last column and row
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]], np.uint8)
GREY = np.array([128, 128, 128], np.uint8)


def picture(label: int, i: int, *, objects: bool) -> npt.NDArray[np.uint8]:
    """The class is the colour of the object, or that of the ground."""
    rng = np.random.default_rng([label, i])
    image = np.tile(GREY if objects else COLOURS[label], (SIZE, SIZE, 1))
    image[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = COLOURS[label] if objects else GREY
    return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)


def folders(root: Path, *, objects: bool = True) -> Path:
    lines = ["path,x0,y0,x1,y1"]
    for split in ("train", "val"):
        for label in range(CLASSES):
            (root / split / f"c{label}").mkdir(parents=True)
            for i in range(EACH):
                path = root / split / f"c{label}" / f"{i}.png"
                cv2.imwrite(str(path), picture(label, i + 100 * (split == "val"), objects=objects)[:, :, ::-1])
                lines.append(f"{path.relative_to(root)},{','.join(map(str, BOX))}")
    (root / "boxes.csv").write_text("\n".join(lines))
    return root


def opened(root: Path) -> Bench:
    return open_bench("backgrounds", root)


def figures(root: Path, cache: Path) -> dict[str, float]:
    settings = Settings(features=cache, knn=KNNConfig(k=3))
    value = evaluate(make_model(SIZE), opened(root), "knn", settings)
    return {name: column["accuracy"] for name, column in value["columns"].items()}


@pytest.mark.parametrize("objects", [True, False])
def test_who_looks_at_grounds_is_wrong_on_other_ones(tmp_path: Path, objects: bool) -> None:
    """`Colours` takes the mean of each quarter: colour is all it sees."""
    found = figures(folders(tmp_path / "data", objects=objects), tmp_path / "cache")
    assert set(found) == set(VARIANTS)
    assert found["original"] == found["mixed_same"] == 100
    assert found["mixed_rand"] == 100 if objects else found["mixed_rand"] < 60  # a quarter have a ground of their class
    right, wrong = ("only_fg", "only_bg_t") if objects else ("only_bg_t", "only_fg")
    assert found[right] > 60  # darker than any that it was trained on; of four classes
    assert found[wrong] < 40  # grey


def test_the_ground_is_the_largest_strip_tiled() -> None:
    image = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    out = ground(image, (1, 2, 4, 5))  # beside it stand strips of 1 and 4 columns, of 2 and 1 rows
    np.testing.assert_array_equal(out[2:5, 1:4], image[0:3, 4:7])
    out[2:5, 1:4] = image[2:5, 1:4]
    np.testing.assert_array_equal(out, image)
    out = ground(image, (0, 1, 8, 5))  # rows above and below, of which one is tiled four times
    np.testing.assert_array_equal(out[1:5], np.broadcast_to(image[0], (4, 8, 3)))


def test_the_object_stays_where_it_is() -> None:
    image, other = np.full((10, 14, 3), 200, np.uint8), np.full((30, 20, 3), 50, np.uint8)
    box = (3, 2, 7, 9)
    inside = np.zeros((10, 14), bool)
    inside[2:9, 3:7] = True
    for out, around in ((on_black(image, box), 0), (on_ground(image, box, other, (0, 0, 5, 5)), 50)):
        assert out.shape == image.shape
        np.testing.assert_array_equal(out[inside], 200)
        np.testing.assert_array_equal(out[~inside], around)


def test_each_ground_is_of_another_picture_of_the_class_or_of_a_random_class(tmp_path: Path) -> None:
    sets = opened(folders(tmp_path, objects=False)).by_name
    keys = list(sets["original"].keys)
    assert len(keys) == CLASSES * EACH
    grounds = [decode(sets["only_bg_t"].read(i)) for i in range(len(keys))]
    outside = np.ones((SIZE, SIZE), bool)
    outside[BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = False

    def whose(variant: str) -> list[int]:
        found = [decode(sets[variant].read(i)) for i in range(len(keys))]
        return [next(j for j, g in enumerate(grounds) if (g[outside] == f[outside]).all()) for f in found]

    labels = np.array([int(key[1]) for key in keys])
    same, other = np.array(whose("mixed_same")), np.array(whose("mixed_rand"))
    np.testing.assert_array_equal(labels[same], labels)
    assert (same != np.arange(len(keys))).all()
    assert sorted(same.tolist()) == list(range(len(keys)))
    assert (other != np.arange(len(keys))).all()
    assert len(set(other.tolist())) > CLASSES  # not one of each class


def test_a_random_ground_says_nothing_of_the_class() -> None:
    labels = np.repeat([0, 1, 2], [1500, 30, 2])
    _, other = partners(labels)
    for own in (0, 1):
        shares = np.bincount(labels[other[labels == own]], minlength=3) / (labels == own).sum()
        assert abs(shares - 1 / 3).max() < (0.05 if own == 0 else 0.3)


@pytest.mark.parametrize("size", [(4, 40_000), (40_000, 4), (3, 3), (5, 900)])
def test_a_ground_is_cut_before_it_is_resized(size: tuple[int, int]) -> None:
    long = np.tile(np.arange(size[1], dtype=np.uint8)[None, :, None], (size[0], 1, 3))
    box = (0, 0, 1, 1)
    image = np.zeros((600, 500, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert on_ground(image, box, long, box).shape == image.shape
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KB; whole it took 10 GB


def test_tars_give_the_same_pictures_and_other_boxes_others(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    tars = tmp_path / "tars"
    for path in root.rglob("*.png"):
        path.rename(path.with_suffix(".JPEG"))  # by its first bytes it is still a PNG
    text = (root / "boxes.csv").read_text().replace(".png", ".JPEG")
    (root / "boxes.csv").write_text(text)
    as_tars(root, tars)
    (tars / "boxes.csv").write_text(text)
    one, two = opened(root).by_name, opened(tars).by_name
    assert [one[name].fingerprint for name in VARIANTS] == [two[name].fingerprint for name in VARIANTS]
    assert all(one[name].read(3) == two[name].read(3) for name in VARIANTS)
    (root / "boxes.csv").write_text(text.replace("6,8,17,19", "6,8,17,18", 25))  # of the last, in val, some
    changed = opened(root).by_name
    different = [name for name in VARIANTS if changed[name].fingerprint != one[name].fingerprint]
    assert different == list(VARIANTS[1:])


def test_pictures_without_a_usable_box_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path)
    lines = (root / "boxes.csv").read_text().splitlines()
    box = ",".join(map(str, BOX))
    place = {line.split(",")[0]: i for i, line in enumerate(lines)}
    lines[place["val/c0/0.png"]] = "val/c0/0.png,0,0,2,2"
    lines[place["val/c3/0.png"]] = "val/c3/0.png,0.1,0.1,0.6,1"
    lines[place["val/c0/1.png"]] = "val/c0/1.png,-5,-5,40,18.2"
    lines[place["val/c0/2.png"]] = f"elsewhere.png,{box}"
    (root / "val/c0/3.png").write_bytes(b"no picture")
    lines.append("val/c1/0.png,0,0,23,5")  # with the first one nearly all
    (root / "boxes.csv").write_text("\n".join(lines))
    bench = opened(root)
    assert bench.notes["left_out"] == {
        "without a box": 1, "with too small a box": 1, "with too large a box": 1, "with a box beyond their edges": 1,
        "with a box in shares, not pixels": 1, "unreadable": 1, "alone in their class": 1,
    }  # fmt: skip
    assert len(bench.by_name["mixed_rand"]) == CLASSES * EACH - 7
    settings = Settings(features=tmp_path / "cache", knn=KNNConfig(k=3))
    show_result(evaluate(make_model(SIZE), bench, "knn", settings), tmp_path)
    words = "7 of 20 test pictures (1 alone in their class, 1 unreadable, 1 with a box beyond their edges, 1 with a"
    assert words in " ".join(capsys.readouterr().out.split())


def test_lines_of_other_pictures_are_not_looked_at(tmp_path: Path) -> None:
    root = folders(tmp_path)
    fingerprints = {name: images.fingerprint for name, images in opened(root).by_name.items()}
    text = (root / "boxes.csv").read_text().replace("path,x0,", "path, x0,", 1).replace(",17,", ", 17,")
    text = text.replace("\nval/c1", "\n./val/c1")
    more = "train/c0/0.png,9,9,1,x\nval/gone.png,,,,\nval/gone.png,5,5,9,9\nval/c0/0.png,,,,\n,1,2,3,4\n"
    (root / "boxes.csv").write_text(f"{text}\n{more}")
    assert {name: images.fingerprint for name, images in opened(root).by_name.items()} == fingerprints


def test_a_damaged_picture_is_left_out_and_said(tmp_path: Path) -> None:
    root = folders(tmp_path / "data")
    path = root / "val/c0/4.png"
    path.write_bytes(path.read_bytes()[:60])  # its size can be read
    cache = Settings(features=tmp_path / "cache", knn=KNNConfig(k=3))
    value = evaluate(make_model(SIZE), opened(root), "knn", cache)
    counts = {name: column["n"] for name, column in value["columns"].items()}
    assert counts.pop("mixed_rand") < 20  # its object, and whoever was given its ground
    assert counts == {"original": 19, "mixed_same": 18, "only_fg": 19, "only_bg_t": 19}


def without(root: Path) -> None:
    (root / "boxes.csv").unlink()


def written(text: str | bytes) -> Callable[[Path], Any]:
    return lambda root: (root / "boxes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            without,
            r"there is no .*boxes.csv: a line path,x0,y0,x1,y1, then one for each picture, such as val/",
        ),
        (written("path,x0,y0,x1\n"), r"no column y1 \(path, x0, y0, x1\): its first line must be path,x0,y0,x1,y1"),
        (written(""), r"boxes.csv has no column path \(nothing\): "),
        (written("path,x0,y0,x1,y1\nval/c0/0.png,1,2,x,4\n"), "boxes.csv, line 2: x0, y0, x1, y1 must be numbers"),
        (written("path,x0,y0,x1,y1\nval/c0/0.png,1,2\n"), "boxes.csv, line 2: x0, y0, x1, y1 must be numbers"),
        (written("path,x0,y0,x1,y1\nval/c0/0.png,9,2,3,4\n"), "line 2: a box ends before it begins"),
        (written("path,x0,y0,x1,y1\nval/c0/0.png,nan,2,3,4\n"), "line 2: a box ends before it begins"),
        (
            written("path,x0,y0,x1,y1\nc0/0.png,1,2,3,4\n"),
            r"names no picture of val: its paths must be val/CLASS/\.\.\., .* is 'c0/0.png'",
        ),
        (
            written("path,x0,y0,x1,y1\nval/c0/0.png,6,8,17,19\nval/c0/1.png,6,8,17,19\n"),
            r"too few pictures .*\(2 of 20; 18 without a box\): two classes of two such are the least$",
        ),
        (
            written("path,x0,y0,x1,y1\nval/c0/0.png,0.1,0.2,0.5,0.6\n"),
            r"\(0 of 20; 19 without a box, 1 with a box in shares, not pixels\)",
        ),
        (written(b"path,x0,y0,x1,y1\n\xff\xfe"), "boxes.csv cannot be read"),
    ],
)
def test_what_is_wrong_with_the_boxes_is_said(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(folders(tmp_path))
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_the_result_says_what_was_shown(tmp_path: Path) -> None:
    value = evaluate(
        make_model(SIZE),
        opened(folders(tmp_path / "data")),
        "knn",
        Settings(features=tmp_path / "c", knn=KNNConfig(k=3)),
    )
    assert value["summaries"]["bg_gap"]["value"] == value["columns"]["mixed_same"]["accuracy"] - 100
    assert not value["columns"]["only_bg_t"]["marked"]
    assert json.dumps(value)
