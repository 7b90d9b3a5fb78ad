"""ObjectNet: the frame, the overlap, no way to train on it, and the command as the README has it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from timm.data import ImageNetInfo

from eval.benchmarks.bench import Source, Task
from eval.benchmarks.objectnet import border_width, objectnet_classes, open_objectnet, remove_border
from shards.errors import UserError
from tests.eval.trees import (
    ALARM_CLOCK,
    CHAIR,
    COLOURS,
    desk,
    make_imagenet,
    make_train,
    picture,
    png,
    scored,
    xclr_eval,
)
from trainer.augment import decode

Pixels = npt.NDArray[np.uint8]


def names() -> list[str]:
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(number) for number in range(1000)]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def framed(image: Pixels, width: int) -> Pixels:
    out = np.full((image.shape[0] + 2 * width, image.shape[1] + 2 * width, 3), (255, 0, 0), np.uint8)
    out[width : width + image.shape[0], width : width + image.shape[1]] = image
    return out


@pytest.mark.parametrize("width", [0, 1, 2, 5])
def test_the_frame_is_found_whatever_its_width(width: int) -> None:
    image = noise(30, 41)
    assert border_width(framed(image, width)) == width
    np.testing.assert_array_equal(remove_border(framed(image, width)), image)


def test_red_that_is_no_frame_stays() -> None:
    """A red wall at one side, red sky and ground, a frame of another colour, a frame with gaps."""
    wall = noise(30, 40)
    wall[:, :6] = (255, 0, 0)
    banner = noise(30, 40)
    banner[:3] = banner[-3:] = (255, 0, 0)
    blue = framed(noise(30, 40), 2)[..., ::-1]
    gaps = framed(noise(30, 40), 2)
    gaps[:2, 10:14] = 0
    for image in (wall, banner, blue, gaps):
        assert border_width(image) == 0
        np.testing.assert_array_equal(remove_border(image), image)


def test_a_wall_next_to_the_frame_is_not_cut_with_it() -> None:
    image = noise(30, 40)
    image[:, :6] = (255, 0, 0)
    np.testing.assert_array_equal(remove_border(framed(image, 2)), image)


def test_a_jpeg_copys_frame_is_found() -> None:
    smooth = cv2.resize(noise(4, 6), (96, 64), interpolation=cv2.INTER_LINEAR)
    coded = cv2.imencode(".jpg", framed(np.asarray(smooth, np.uint8), 8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    assert border_width(decode(coded.tobytes())) >= 6


@pytest.mark.parametrize("quality", [75, 90])
def test_a_jpeg_copys_frame_is_found_whole_beside_a_busy_scene(quality: int) -> None:
    scene = cv2.resize(noise(16, 24), (96, 64), interpolation=cv2.INTER_LINEAR)
    whole = framed(np.asarray(scene, np.uint8), 2)[..., ::-1]
    coded = cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert border_width(decode(coded.tobytes())) == 2


def test_the_frame_is_looked_for_at_the_edge_alone() -> None:
    image = framed(np.zeros((1000, 1000, 3), np.uint8), 2)
    tracemalloc.start()
    assert border_width(image) == 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < image.nbytes / 50  # of the whole picture it took longer than decoding


def test_a_picture_all_of_red_keeps_its_middle() -> None:
    red = np.full((40, 40, 3), (255, 0, 0), np.uint8)
    assert remove_border(red).shape == (24, 24, 3)
    assert remove_border(red[:3, :5]).shape == (1, 3, 3)
    assert remove_border(red[:1, :1]).shape == (1, 1, 3)


def test_genuine_pictures(data_root: Path | None, tmp_path: Path) -> None:
    """Six genuine PNGs with alpha, in the folders their labels name: label, frame, what is left."""
    if data_root is None:
        pytest.skip("needs genuine ObjectNet pictures (XCLR_TEST_DATA)")
    source = data_root / "benchmarks" / "objectnet" / "images"
    folders = sorted(objectnet_classes())
    for name, number in json.loads((source / "labels.json").read_text()).items():
        folder = tmp_path / "objectnet" / "images" / folders[number]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(source / name)
        whole = decode((source / name).read_bytes())
        assert (whole[:2] == (255, 0, 0)).all()
        assert border_width(whole) == 2
        np.testing.assert_array_equal(remove_border(whole), whole[2:-2, 2:-2])
    make_train(tmp_path / "imagenet", each=1)
    bench = open_objectnet(Source(root=tmp_path / "objectnet", benchmarks=tmp_path, partial=True))
    assert "images: 6 of 50,273" in bench.partial
    overlap = {"pill_bottle/910bcc105c3e4bb.png": "pill bottle", "toaster/9419e565a04b4fd.png": "toaster"}
    images = bench.by_name["objectnet"]
    assert set(images.keys) == set(overlap)  # the other four show nothing that ImageNet has
    for row, key in enumerate(images.keys):
        scores = np.array([[float(name == overlap[key]) for name in names()]], np.float32)
        for column in bench.columns[:2]:
            assert column.score(scores, np.array([row])).tolist() == [1]
            assert column.score(scores, np.array([1 - row])).tolist() == [0]


def make_objectnet(root: Path) -> Path:
    """Three alarm clocks, two chairs (one painted like a clock), two air fresheners outside the overlap."""
    for i in range(3):
        png(root / "images" / "alarm_clock" / f"{i}.png", COLOURS[ALARM_CLOCK], i, border=2 * (i > 0), alpha=255)
    png(root / "images" / "chair" / "a.png", COLOURS[CHAIR])
    png(root / "images" / "chair" / "b.png", COLOURS[ALARM_CLOCK], 7)
    for i in range(2):
        png(root / "images" / "air_freshener" / f"{i}.png", COLOURS[CHAIR], i)
    return root


def test_copies_without_anything_to_score_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = desk(tmp_path, monkeypatch)
    make_imagenet(benchmarks / "imagenet", each=1)
    png(benchmarks / "objectnet" / "images" / "air_freshener" / "0.png", 1)
    monkeypatch.setattr("eval.evaluate.extract", lambda *_: pytest.fail("features are extracted"))
    said = str(xclr_eval("linear-probe", "--bench", "objectnet", "--partial").exception)
    assert "holds no picture of the 18,574 that are scored" in said
    (tmp_path / "o.zip").write_bytes(b"PK")
    said = str(xclr_eval("linear-probe", "--bench", "objectnet", "--partial", "--data", "o.zip").exception)
    assert "o.zip is no folder: unpack it" in said


def test_a_damaged_probe_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = desk(tmp_path, monkeypatch)
    make_imagenet(benchmarks / "imagenet", each=1)
    before = scored("imagenet", "--partial")
    (probe,) = Path("data/features/probes").iterdir()
    whole = probe.read_bytes()
    for content in (b"", whole[:100], b"PK" + b"x" * 500, whole.replace(b"'descr'", b"'desc\n'")):
        probe.write_bytes(content)
        assert scored("imagenet", "--partial")["columns"] == before["columns"]


def test_the_command_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest run, data/benchmarks, the probe that ImageNet's own benchmark trained."""
    benchmarks = desk(tmp_path, monkeypatch)
    make_imagenet(benchmarks / "imagenet", each=1)
    make_objectnet(benchmarks / "objectnet")
    scored("imagenet", "--partial")
    probes = sorted(Path("data/features/probes").iterdir())
    result = scored("objectnet", "--partial")
    assert sorted(Path("data/features/probes").iterdir()) == probes
    assert result["columns"]["objectnet"]["n"] == 5  # not 7: the air fresheners are no part of it
    assert result["columns"]["objectnet"]["expected"] == 18_574
    for name in ("objectnet", "objectnet_1000"):
        assert result["columns"][name]["accuracy"] == 80
    assert "images of the overlap: 5 of 18,574" in result["partial"]
    assert "images: 7 of 50,273" in result["partial"]
    assert "folders with images: 3 of 313" in result["partial"]
    refused = str(xclr_eval("linear-probe", "--bench", "objectnet").exception)
    assert "images: 7 of 50,273" in refused
    assert "--partial" in refused
    nearest = xclr_eval("knn", "--bench", "objectnet", "--partial", "--out", "knn.json")
    assert nearest.exception is None
    assert json.loads(Path("knn.json").read_text())["columns"]["objectnet"]["accuracy"] == 80


def test_the_benchmarks_folder_is_the_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both benchmarks are looked for below $XCLR_BENCHMARKS; all that is missing is said at once."""
    desk(tmp_path, monkeypatch)
    monkeypatch.setenv("XCLR_BENCHMARKS", "elsewhere")
    error = str(xclr_eval("linear-probe", "--bench", "objectnet").exception)
    assert "there is no elsewhere/objectnet (objectnet: objectnet-1.0.zip from objectnet.dev)" in error
    assert "there is no elsewhere/imagenet/train (imagenet: " in error
    assert "\n" not in error


def test_nothing_can_train_on_it(tmp_path: Path) -> None:
    make_train(tmp_path / "imagenet", each=1)
    make_objectnet(tmp_path / "objectnet")
    bench = open_objectnet(Source(root=tmp_path / "objectnet", benchmarks=tmp_path, partial=True))
    images = bench.by_name["objectnet"]
    assert not images.may_train
    head = Task(name="object", images="objectnet", labels=np.zeros(len(images), np.int64), classes=["any"])
    with pytest.raises(AssertionError, match="must never be trained on"):
        replace(bench, tasks=(*bench.tasks, head))


def test_only_the_first_way_chooses_among_the_overlap(tmp_path: Path) -> None:
    """A tench, which ObjectNet has not, likeliest of all, and the right class next."""
    make_train(tmp_path / "imagenet", each=1)
    make_objectnet(tmp_path / "objectnet")
    bench = open_objectnet(Source(root=tmp_path / "objectnet", benchmarks=tmp_path, partial=True))
    row = bench.by_name["objectnet"].keys.index("chair/a.png")
    scores = np.zeros((1, 1000), np.float32)
    scores[0, names().index("tench, Tinca tinca")] = 2
    scores[0, names().index("rocking chair, rocker")] = 1
    hits = {column.name: column.score(scores, np.array([row])).tolist() for column in bench.columns}
    assert hits == {"objectnet": [1], "objectnet_1000": [0], "objectnet_1000_top5": [1]}


def test_layouts_and_wrong_folders(tmp_path: Path) -> None:
    make_train(tmp_path / "imagenet", each=1)
    whole = make_objectnet(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "objectnet-1.0").symlink_to(whole)
    (tmp_path / "c").symlink_to(whole / "images")
    keys = [
        open_objectnet(Source(root=tmp_path / name, benchmarks=tmp_path, partial=True)).by_name["objectnet"].keys
        for name in "abc"
    ]
    assert keys[0] == keys[1] == keys[2]
    picture(whole / "images" / "toaster_oven" / "1.jpg", 1)
    with pytest.raises(UserError, match=r"the folder 'toaster_oven' \(1 such\), which is none of ObjectNet's 313"):
        open_objectnet(Source(root=whole, benchmarks=tmp_path, partial=True))
    picture(tmp_path / "d" / "val" / "1.jpg", 1)
    with pytest.raises(UserError, match="holds none of ObjectNet's 313 folders"):
        open_objectnet(Source(root=tmp_path / "d", benchmarks=tmp_path, partial=True))
