"""Features are extracted once, land in whole parts, survive a kill, and leave out what does not decode."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import eval.features as module
from eval.benchmarks.bench import Task
from eval.features import centre_crop, extract, feature_hash, normalise
from eval.heads.probe import ProbeConfig
from eval.heads.probe_file import kept_probes
from eval.models.model import Transform
from shards.errors import UserError
from tests.eval.make_folders import NORMAL, make_model, make_set
from trainer.augment import decode


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "BATCH", 4)


def test_features_are_those_of_the_network(tmp_path: Path) -> None:
    images, model = make_set(21), make_model()
    features = extract(model, images, tmp_path)
    assert len(features.parts) == 3
    assert not features.reused
    assert features.ok.all()
    for i in (0, 7, 8, 20):
        pixels = torch.from_numpy(decode(images.read(i)).copy()).permute(2, 0, 1)[None] / 255
        expected = model.network((pixels - 0.5) / 0.5)[0].detach().numpy()
        np.testing.assert_allclose(features.rows(np.array([i]))[0], expected, atol=1e-5)
    order = np.array([20, 3, 1, 11, 3])
    np.testing.assert_array_equal(features.rows(order), features.rows(np.arange(21))[order])
    blocks = list(features.blocks(5))
    assert np.concatenate([rows for rows, _ in blocks]).tolist() == list(range(21))
    np.testing.assert_array_equal(np.concatenate([x for _, x in blocks]), features.rows(np.arange(21)))


def test_a_second_call_reads_what_the_first_left(tmp_path: Path) -> None:
    images, model = make_set(21), make_model()
    first = extract(model, images, tmp_path)

    def must_not(i: int) -> bytes:
        raise AssertionError("read again")

    again = extract(model, dataclasses.replace(images, read=must_not), tmp_path)
    assert again.reused
    np.testing.assert_array_equal(again.rows(np.arange(21)), first.rows(np.arange(21)))


def test_other_weights_pictures_or_transforms_are_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = make_set(5), make_model()
    others = [
        feature_hash(make_model(sha="1" * 64), images),
        feature_hash(make_model(size=8), images),
        *(
            feature_hash(dataclasses.replace(model, transform=dataclasses.replace(model.transform, **change)), images)
            for change in ({"crop_pct": 0.5}, {"mean": (0.5, 0.5, 0.4)}, {"std": (0.5, 0.5, 0.4)})
        ),
        feature_hash(model, make_set(5, seed=1)),
        feature_hash(model, dataclasses.replace(images, prepare=lambda image: image)),
        feature_hash(dataclasses.replace(model, name="another"), images),
    ]
    assert len({feature_hash(model, images), *others}) == 9
    assert feature_hash(make_model(), make_set(5)) == feature_hash(model, images)
    before = feature_hash(model, images)
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert feature_hash(model, images) != before


def test_many_features_are_kept_in_half_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, model, rows = make_set(21), make_model(), np.arange(21)
    whole = extract(model, images, tmp_path / "whole")
    monkeypatch.setattr(module, "HALF_ABOVE", 21 * 12 * 4 - 1)
    half = extract(model, images, tmp_path / "half")
    assert [part.dtype for part in (whole.parts[0], half.parts[0])] == [np.float32, np.float16]
    np.testing.assert_allclose(half.rows(rows), whole.rows(rows), atol=1e-3)


def test_a_missing_part_alone_is_made_again(tmp_path: Path) -> None:
    images, model = make_set(21), make_model()
    whole = extract(model, images, tmp_path)
    (tmp_path / whole.hash / "part-000001.npy").unlink()
    read: list[int] = []

    def watched(i: int) -> bytes:
        read.append(i)
        return images.read(i)

    again = extract(model, dataclasses.replace(images, read=watched), tmp_path)
    assert read == list(range(8, 16))
    np.testing.assert_array_equal(again.rows(np.arange(21)), whole.rows(np.arange(21)))


def test_a_kept_probe_is_of_the_same_labels_and_images(tmp_path: Path) -> None:
    images, model = make_set(20), make_model()
    features, rows = extract(model, images, tmp_path), np.arange(20, dtype=np.int64)
    config = ProbeConfig(learning_rates=(1.0,), weight_decays=(1e-3,), min_steps=20, epochs=1)

    def weights(labels: Any, rows: Any) -> torch.Tensor:
        task = Task(name="half", images="train", labels=labels, classes=["a", "b"])
        return kept_probes(model, images, features, [(task, rows)], config, tmp_path, views=False)["half"].weight

    first, labels = weights(rows % 2, rows), np.where(rows < 10, rows % 2, 1)
    assert torch.equal(weights(rows % 2, rows), first)
    assert not torch.equal(weights(labels, rows), first)
    assert not torch.equal(weights(rows % 2, rows[2:]), weights(rows % 2, rows[:-2]))  # of equal labels
    assert len(list(tmp_path.glob("*.npz"))) == 4


@pytest.mark.parametrize("name", ["part-000001.npy", "ok-000001.npy"])
@pytest.mark.parametrize("cut", [0, 10, -3])
def test_a_damaged_part_alone_is_made_again(
    tmp_path: Path, name: str, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images, model = make_set(21), make_model()
    whole = extract(model, images, tmp_path)
    kept, path = whole.rows(np.arange(21)), tmp_path / whole.hash / name
    path.write_bytes(path.read_bytes()[:cut])  # a new file could keep the map of the old one
    again = extract(model, images, tmp_path)
    assert "part-000001.npy is damaged: these features are extracted again" in capsys.readouterr().err
    assert not again.reused
    np.testing.assert_array_equal(again.rows(np.arange(21)), kept)


@pytest.mark.parametrize("part", [np.ones((7, 12), np.float32), np.ones((8, 12)), np.ones((12, 8), np.float32).T])
def test_a_part_of_another_kind_is_made_again(tmp_path: Path, part: np.ndarray) -> None:
    """Of too few rows, or of numbers that are kept otherwise."""
    images, model = make_set(21), make_model()
    whole = extract(model, images, tmp_path)
    kept, folder = whole.rows(np.arange(21)), tmp_path / whole.hash
    del whole
    for name, array in (("part", part), ("ok", np.ones(len(part), bool))):
        (folder / f"{name}-000001.npy").unlink()
        np.save(folder / f"{name}-000001.npy", array)
    again = extract(model, images, tmp_path)
    assert not again.reused
    np.testing.assert_array_equal(again.rows(np.arange(21)), kept)


SLOW = """
import time, dataclasses
from pathlib import Path
from typing import Any
import eval.features as module
from tests.eval.make_folders import make_model, make_set
module.CHUNK, module.BATCH = 8, 4
images = make_set(40)
def slow(i):
    time.sleep(0.03)
    return images.read(i)
module.extract(make_model(), dataclasses.replace(images, read=slow), Path({root!r}))
"""


def test_a_kill_loses_one_part(tmp_path: Path) -> None:
    root = tmp_path / "features"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW.format(root=str(root))], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while not list(root.glob("*/part-000001.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in root.glob("*/part-*.npy")}
    assert 2 <= len(kept) < 5
    images, model = make_set(40), make_model()
    features = extract(model, images, root)
    assert not features.reused
    for name, stamp in kept.items():
        assert (root / features.hash / name).stat().st_mtime_ns == stamp  # not written again
    np.testing.assert_array_equal(
        features.rows(np.arange(40)), extract(model, images, tmp_path / "other").rows(np.arange(40))
    )


def test_what_does_not_decode_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = extract(make_model(), make_set(30, bad=(3, 9)), tmp_path)
    assert "train: 2 of 30 pictures do not decode and are left out" in " ".join(capsys.readouterr().err.split())
    assert np.flatnonzero(~features.ok).tolist() == [3, 9]
    assert not features.rows(np.array([3, 9])).any()
    assert 3 not in np.concatenate([rows for rows, _ in features.blocks()])
    for count, bad, most in ((300, 11, 10), (30, 4, 3), (12, 2, 1)):
        message = rf"more than {most} of {count} pictures do not decode \(the last was {bad - 1}\.jpg\): check the data"
        with pytest.raises(UserError, match=message):
            extract(make_model(), make_set(count, bad=tuple(range(bad))), tmp_path)
        extract(make_model(), make_set(count, bad=tuple(range(most))), tmp_path)


def test_bad_pictures_of_an_earlier_call_count_too(tmp_path: Path) -> None:
    some, more = make_set(24, bad=(0, 9)), make_set(24, bad=(0, 9, 16))
    features = extract(make_model(), some, tmp_path)
    (tmp_path / features.hash / "part-000002.npy").unlink()
    with pytest.raises(UserError, match="3 of 24 pictures do not decode: check the data"):
        extract(make_model(), dataclasses.replace(more, fingerprint=some.fingerprint), tmp_path)


def test_bad_pictures_may_all_lie_at_the_front(tmp_path: Path) -> None:
    features = extract(make_model(), make_set(1200, bad=tuple(range(11))), tmp_path)
    assert int((~features.ok).sum()) == 11


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_a_picture_that_is_all_length_takes_no_memory(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = cv2.resize

    def noted(image: Any, size: tuple[int, int], **options: Any) -> Any:
        sizes.append(size)
        return real(image, size, **options)

    monkeypatch.setattr(cv2, "resize", noted)
    out = centre_crop(
        np.full((*shape, 3), 7, np.uint8), Transform(image_size=224, crop_pct=0.875, mean=NORMAL, std=NORMAL)
    )
    assert out.shape == (224, 224, 3)
    assert (out == 7).all()
    assert max(sizes[0]) < 10_000


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.network.scale.fill_(float("nan"))
    with pytest.raises(UserError, match="colours gives features of train that are no numbers"):
        extract(model, make_set(30), tmp_path)
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_features_too_large_for_half_precision_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HALF_ABOVE", 0)
    model = make_model()
    with torch.no_grad():
        model.network.scale.fill_(1e7)
    with pytest.raises(UserError, match="no numbers, or too large to be kept"):
        extract(model, make_set(30), tmp_path)


def test_pixels_are_normalised_by_mean_and_deviation_of_each_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    pixels = torch.arange(24, dtype=torch.uint8).reshape(1, 4, 2, 3) * 10
    found = normalise(pixels, Transform(image_size=4, crop_pct=1.0, mean=mean, std=std))
    assert found.shape == (1, 3, 4, 2)
    expected = (pixels[0, 3, 1] / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(found[0, :, 3, 1], expected)


def test_prepare_sees_the_decoded_picture(tmp_path: Path) -> None:
    images = make_set(4)
    black = dataclasses.replace(images, prepare=np.zeros_like, fingerprint="black")
    features = extract(make_model(), black, tmp_path)
    np.testing.assert_allclose(features.rows(np.arange(4)), -1)


@pytest.mark.parametrize(("height", "width", "crop"), [(64, 64, 1.0), (60, 90, 0.875), (500, 31, 0.9), (20, 20, 0.875)])
def test_the_crop_is_central_and_of_the_right_share(height: int, width: int, crop: float) -> None:
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    out = centre_crop(ramp, Transform(image_size=32, crop_pct=crop, mean=NORMAL, std=NORMAL))
    assert out.shape == (32, 32, 3)
    assert abs(out[..., 0].mean() - 127.5) < 6
    assert abs(out[..., 1].mean() - 127.5) < 6
    covered = crop * min(height, width)  # pixels of the original across the crop
    reach = 255 * covered / width * (31 / 32)
    assert abs((int(out[16, -1, 0]) - int(out[16, 0, 0])) - reach) < 12


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = cv2.randu(np.zeros((32, 32, 3), np.uint8), 0, 255)
    same = centre_crop(np.asarray(image, np.uint8), Transform(image_size=32, crop_pct=1.0, mean=NORMAL, std=NORMAL))
    np.testing.assert_array_equal(same, image)
