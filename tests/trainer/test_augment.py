"""Augmentations against torchvision: the arithmetic of each, and the distribution of the parameters."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tv

from shards.errors import UserError
from tests.make import jpeg
from trainer import augment
from trainer.augment import AugmentConfig, BadImage, crop_box, decode, gaussian_blur, sample_rng, two_views

PICTURE = decode(jpeg(np.random.default_rng(0), 40, hue=3))


@pytest.mark.parametrize("factor", [0.2, 0.7, 1.0, 1.6])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_operations_are_torchvisions(name: str, factor: float) -> None:
    ours = getattr(augment, name)(PICTURE, factor)
    theirs = np.asarray(getattr(tv, f"adjust_{name}")(Image.fromarray(PICTURE), factor))
    assert np.abs(ours.astype(int) - theirs).max() <= 2  # rounding of uint8


@pytest.mark.parametrize("shift", [-0.2, -0.05, 0.1, 0.2])
def test_hue_is_torchvisions(shift: float) -> None:
    ours = augment.hue(PICTURE, shift)
    theirs = np.asarray(tv.adjust_hue(Image.fromarray(PICTURE), shift))
    assert np.abs(ours.astype(int) - theirs).mean() < 3  # both quantise the hue to 256 steps, in other ways


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    config = AugmentConfig(image_size=32, crop_scale=(0.2, 1.0))
    rng = sample_rng(0, 0, 0)
    ours = np.array([crop_box(90, 120, config, rng) for _ in range(4000)], float)
    torch.manual_seed(0)
    picture = torch.zeros(3, 90, 120)
    theirs = np.array([RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], float)
    deviation = theirs.std(0)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 0.1 * deviation).all()  # 4 standard errors are 0.09
    assert (np.abs(ours.std(0) - deviation) < 0.1 * deviation).all()


def test_jitter_factors_have_torchvisions_ranges() -> None:
    rng = sample_rng(1, 2, 3)
    factors: dict[str, list[float]] = {"brightness": [], "hue": []}
    first = []
    for _ in range(2000):
        operations = augment.jitter_operations(0.5, rng)
        first.append(operations[0].func.__name__)  # type: ignore[attr-defined]
        for operation in operations:
            for keyword, value in operation.keywords.items():  # type: ignore[attr-defined]
                if operation.func.__name__ in factors:  # type: ignore[attr-defined]
                    factors[operation.func.__name__].append(value)
                assert keyword in ("factor", "shift")
    assert np.mean(factors["brightness"]) == pytest.approx(1.0, abs=0.03)
    assert np.std(factors["brightness"]) == pytest.approx(0.8 / np.sqrt(12), rel=0.05)
    assert np.std(factors["hue"]) == pytest.approx(0.2 / np.sqrt(12), rel=0.05)
    assert {name: first.count(name) / 2000 for name in set(first)} == pytest.approx(
        dict.fromkeys(set(first), 0.25), abs=0.05
    )


def test_probabilities_are_met() -> None:
    only = {
        "crop_scale": (1.0, 1.0),
        "crop_ratio": (1.0, 1.0),
        "jitter_probability": 0.0,
        "blur": 0.0,
        "image_size": 40,
    }
    flips = AugmentConfig(**only, flip=0.5, grayscale=0.0)  # type: ignore[arg-type]
    views = np.concatenate([two_views(PICTURE, flips, sample_rng(0, 0, i)) for i in range(1000)])
    assert (views == PICTURE[:, ::-1]).all((1, 2, 3)).mean() == pytest.approx(0.5, abs=0.05)
    greys = AugmentConfig(**only, flip=0.0, grayscale=0.2)  # type: ignore[arg-type]
    views = np.concatenate([two_views(PICTURE, greys, sample_rng(0, 0, i)) for i in range(1000)])
    assert (views[..., 0] == views[..., 1]).all((1, 2)).mean() == pytest.approx(0.2, abs=0.05)


WHOLE = (1.0, 1.0)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(image_size=32, crop_scale=(0.2, 1.0), jitter=0.0, blur=0.0),
        AugmentConfig(image_size=32, crop_scale=WHOLE, crop_ratio=WHOLE, jitter=1.0, grayscale=0.0, blur=0.0),
        AugmentConfig(image_size=64, crop_scale=WHOLE, crop_ratio=WHOLE, jitter=0.0, grayscale=0.0, blur=0.5),
        AugmentConfig(image_size=32, crop_scale=(0.2, 1.0), jitter=0.5, blur=0.5),
    ],
    ids=["crop", "jitter", "blur", "all"],
)
def test_views_have_torchvisions_moments(config: AugmentConfig) -> None:
    """The whole chain against torchvision's on PIL: mean and spread over many views of what MOMENTS says of one."""
    image = decode(_photograph())
    ours = np.concatenate([two_views(image, config, sample_rng(0, 0, i)) for i in range(400)])
    strength = 0.8 * config.jitter
    jitter = transforms.ColorJitter(strength, strength, strength, 0.2 * config.jitter)
    blur = transforms.GaussianBlur(config.image_size // 10 | 1, (0.1, 2.0))
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(config.image_size, config.crop_scale, config.crop_ratio),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], p=config.jitter_probability),
            transforms.RandomGrayscale(config.grayscale),
            transforms.RandomApply([blur], p=config.blur),
        ]
    )
    torch.manual_seed(0)
    theirs = np.stack([np.asarray(chain(Image.fromarray(image))) for _ in range(800)])
    for name, moment in MOMENTS.items():
        one, other = moment(ours.astype(float)), moment(theirs.astype(float))
        error = np.hypot(one.std(0), other.std(0)) / np.sqrt(800)
        assert (np.abs(one.mean(0) - other.mean(0)) < 4 * error + TOLERANCE[name]).all(), name
        # Four standard errors of a ratio of deviations, where there is a deviation to speak of.
        spread = (one.std(0) + 1) / (other.std(0) + 1)
        assert (np.abs(spread - 1) < 0.17).all(), name


# Each of a view [n, size, size, 3]: colour, spread, saturation, and differences between neighbouring pixels.
MOMENTS = {
    "mean": lambda v: v.mean((1, 2)),
    "deviation": lambda v: v.std((1, 2)),
    "saturation": lambda v: (v.max(3) - v.min(3)).mean((1, 2))[:, None],
    "sharpness": lambda v: np.abs(np.diff(v, axis=1)).mean((1, 2)),
}
TOLERANCE = {"mean": 0.5, "deviation": 0.5, "saturation": 0.5, "sharpness": 0.1}  # grey levels of 256


def _photograph() -> bytes:
    """Blurred noise with edges: 96 x 80, spectrum and contrast much like a photograph's."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).resize((96, 80), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).copy()
    pixels[20:50, 30:70] = [200, 60, 40]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [12, 32, 50, 90])
def test_resizing_is_torchvisions(size: int) -> None:
    """Shrunk, enlarged, and the one way while the other; a crop is a view of its image."""
    crop = decode(_photograph())[3:70, 5:60]
    theirs = tv.resize(Image.fromarray(crop), [size, size])
    assert np.abs(augment.resize(crop, size).astype(int) - np.asarray(theirs)).max() <= 1


@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_shortened_blur_is_the_whole_one(size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    kernel = max(3, size // 10 | 1)
    for sigma in np.linspace(0.1, 2.0, 39):
        whole = cv2.GaussianBlur(noise, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101)
        assert np.array_equal(gaussian_blur(noise, sigma), whole)


def test_randomness_is_of_seed_epoch_and_sample() -> None:
    config = AugmentConfig(image_size=24)
    draw = lambda *key: two_views(PICTURE, config, sample_rng(*key))  # noqa: E731
    assert np.array_equal(draw(1, 2, 3), draw(1, 2, 3))
    for other in [(0, 2, 3), (1, 3, 3), (1, 2, 4)]:
        assert not np.array_equal(draw(1, 2, 3), draw(*other))
    assert not np.array_equal(*draw(1, 2, 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "I;16"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    buffer = BytesIO()
    Image.new(mode, (20, 10)).save(buffer, "JPEG" if mode in ("RGB", "L", "CMYK") else "PNG")
    assert decode(buffer.getvalue()).shape == (10, 20, 3)


def test_a_picture_is_not_turned_by_what_its_camera_says() -> None:
    turned, buffer = Image.Exif(), BytesIO()
    turned[0x0112] = 6  # orientation
    Image.new("RGB", (20, 10)).save(buffer, "JPEG", exif=turned)
    assert decode(buffer.getvalue()).shape == (10, 20, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_of_a_tiff_is_dropped_too(mode: str) -> None:
    """OpenCV would multiply the colours by it."""
    alpha = Image.fromarray(np.arange(PICTURE[:, :, 0].size, dtype=np.uint8).reshape(PICTURE.shape[:2]))
    plain = Image.fromarray(PICTURE).convert(mode.removesuffix("A"))
    clear = plain.copy()
    clear.putalpha(alpha)
    buffer = BytesIO()
    clear.save(buffer, "TIFF")
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.asarray(plain.convert("RGB")))


def test_a_tiff_of_floating_point_numbers_is_a_bad_image() -> None:
    buffer = BytesIO()
    Image.fromarray(np.ones((9, 9), np.float32)).save(buffer, "TIFF")
    with pytest.raises(BadImage, match="floating-point"):
        decode(buffer.getvalue())


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_every_epoch_of_every_seed_has_numbers_of_its_own(seed: int) -> None:
    drawn = {
        (epoch, sample): sample_rng(seed, epoch, sample).integers(2**60) for epoch in (0, 1, 2) for sample in (0, 1)
    }
    assert len(set(drawn.values())) == 6


def test_gif_and_webp_decode() -> None:
    for kind in ("GIF", "WEBP"):
        buffer = BytesIO()
        Image.new("RGB", (20, 10)).save(buffer, kind)
        assert decode(buffer.getvalue()).shape == (10, 20, 3)


def wide() -> bytes:
    """Wider than OpenCV takes, and Pillow's cap on pixels."""
    header = bytearray(cv2.imencode(".bmp", np.zeros((1, 8, 3), np.uint8))[1].tobytes())
    header[18:26] = (1 << 20 | 1).to_bytes(4, "little") + (1000).to_bytes(4, "little")
    return bytes(header)


@pytest.mark.parametrize("data", [b"", b"not an image", jpeg(np.random.default_rng(0))[:300], wide()])
def test_what_does_not_decode_is_a_bad_image(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"augment\.flip is a probability, not 2"):
        AugmentConfig(flip=2)
    with pytest.raises(UserError, match="crop_scale"):
        AugmentConfig(crop_scale=(0.5, 0.1))
