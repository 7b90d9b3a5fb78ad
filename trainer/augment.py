"""SimCLR's augmentations on uint8 arrays, two views from one decode.

The distributions are torchvision's (RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale,
GaussianBlur); the arithmetic is OpenCV's and PyTorch's on uint8, several times faster than PIL's. Randomness comes from
a generator that the caller seeds with (seed, epoch, sample), never from worker or rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.errors import UserError
from shards.pictures import PIL_RAISES, as_rgb, opencv_misreads

__all__ = [
    "DECODERS_RAISE",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugmentConfig",
    "BadImage",
    "Image8",
    "decode",
    "sample_rng",
    "two_views",
]

Image8 = npt.NDArray[np.uint8]  # [height, width, 3], RGB

# timm's and torchvision's ImageNet constants, of pixels in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ITU-R 601, as PIL's "L" and torchvision's rgb_to_grayscale have it.
LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)
# cv2.error: of a header that claims more pixels than OpenCV takes.
DECODERS_RAISE = (*PIL_RAISES, cv2.error, Image.DecompressionBombError)
CROP_TRIES = 10  # torchvision's RandomResizedCrop gives up after as many and takes the centre


class BadImage(Exception):
    """The bytes do not decode to an image. Counted by the caller, never shown to the user as such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """SimCLR (Chen et al. 2020, appendix A); the defaults are its ImageNet setting."""

    image_size: int = 224
    """Side of the views, pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of a crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 1.0
    """Strength s: brightness, contrast, saturation 0.8 s and hue 0.2 s, in random order."""
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    """Probability of dropping the colour."""
    blur: float = 0.5
    """Probability of a Gaussian blur of sigma 0.1 to 2 pixels; SimCLR leaves it out for small images."""

    def __post_init__(self) -> None:
        for name in ("flip", "jitter_probability", "grayscale", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is a probability, not {getattr(self, name)}")
        if not 8 <= self.image_size <= 4096:
            raise UserError(f"augment.image_size must lie in 8..4096 pixels, not {self.image_size}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"augment.crop_scale must be two shares of the area, 0 < low <= high <= 1, not {self.crop_scale}"
            )
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1] < math.inf:
            raise UserError(f"augment.crop_ratio must be two finite numbers, 0 < low <= high, not {self.crop_ratio}")
        if not 0 <= self.jitter <= 1.25:  # beyond, brightness factors would turn negative
            raise UserError(f"augment.jitter must lie in 0..1.25, not {self.jitter}")


def sample_rng(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The generator of one sample in one epoch (the same on any number of ranks, and after a stop)."""
    # Not as a list, of which NumPy makes floating-point numbers from 2**63 on, and loses the epoch.
    return np.random.Generator(np.random.Philox(key=np.array([(seed << 32) + epoch, sample], np.uint64)))


def decode(data: bytes) -> Image8:
    """Decode to RGB. Alpha is dropped, grey becomes three channels, EXIF orientation is ignored as torchvision does.

    Raises BadImage.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data and not opencv_misreads(data) else None
        if image is not None:
            return cast(Image8, image)
        with Image.open(BytesIO(data)) as picture:  # formats that OpenCV lacks, such as GIF
            return np.asarray(as_rgb(picture))
    except DECODERS_RAISE as error:
        raise BadImage(str(error)) from None


def two_views(image: Image8, config: AugmentConfig, rng: np.random.Generator) -> Image8:
    """Two independent augmentations: [2, image_size, image_size, 3]."""
    views = np.empty((2, config.image_size, config.image_size, 3), np.uint8)
    views[0], views[1] = _view(image, config, rng), _view(image, config, rng)
    return views


def _view(image: Image8, config: AugmentConfig, rng: np.random.Generator) -> Image8:
    top, left, height, width = crop_box(image.shape[0], image.shape[1], config, rng)
    view = resize(image[top : top + height, left : left + width], config.image_size)
    if rng.random() < config.flip:
        view = cv2.flip(view, 1)
    if rng.random() < config.jitter_probability:
        for operation in jitter_operations(config.jitter, rng):
            view = operation(view)
    if rng.random() < config.grayscale:
        view = cv2.cvtColor(cv2.transform(view, LUMA), cv2.COLOR_GRAY2RGB)
    if rng.random() < config.blur:
        view = gaussian_blur(view, rng.uniform(0.1, 2.0))
    return view


def resize(image: Image8, size: int) -> Image8:
    """To [size, size, 3] by torchvision's filter: bilinear, antialiased where it shrinks."""
    if max(image.shape[:2]) <= size:
        return cast(Image8, cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR))
    import torch  # takes seconds to load, and recipes import this file
    from torch.nn import functional

    # A quarter of the time of OpenCV's area averaging from 500 x 375 to 224 pixels (2026-11).
    pixels = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)  # so that PyTorch sees, and keeps, channels-last
    resized = functional.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def gaussian_blur(image: Image8, sigma: float) -> Image8:
    """SimCLR's: a kernel of a tenth of the side, odd, in pixels."""
    # Weights beyond 4 sigma are 0 in OpenCV's fixed point; leaving them out is 2.4 times as fast at 224 pixels.
    kernel = min(max(3, len(image) // 10 | 1), 2 * math.ceil(4 * sigma) + 1)
    return cast(Image8, cv2.GaussianBlur(image, (kernel, kernel), sigma, borderType=cv2.BORDER_REFLECT_101))


def crop_box(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) as torchvision's RandomResizedCrop draws it."""
    area = height * width
    log_ratio = np.log(config.crop_ratio)
    for _ in range(CROP_TRIES):
        target = area * rng.uniform(*config.crop_scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, config.crop_ratio[0]), config.crop_ratio[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_operations(strength: float, rng: np.random.Generator) -> list[Callable[[Image8], Image8]]:
    """Brightness, contrast, saturation and hue in random order, factors as in torchvision's ColorJitter."""
    low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
    operations = [
        partial(brightness, factor=rng.uniform(low, high)),
        partial(contrast, factor=rng.uniform(low, high)),
        partial(saturation, factor=rng.uniform(low, high)),
        partial(hue, shift=rng.uniform(-0.2 * strength, 0.2 * strength)),
    ]
    return [operations[i] for i in rng.permutation(4)]


RAMP = np.arange(256, dtype=np.float32)


def brightness(image: Image8, factor: float) -> Image8:
    """factor * image, clipped."""
    return cast(Image8, cv2.LUT(image, np.clip(RAMP * factor, 0, 255).astype(np.uint8)))


def contrast(image: Image8, factor: float) -> Image8:
    """Blend with the mean of the grey image."""
    mean = float(LUMA[0] @ np.asarray(cv2.mean(image)[:3]))
    return cast(Image8, cv2.LUT(image, np.clip(mean + factor * (RAMP - mean), 0, 255).astype(np.uint8)))


def saturation(image: Image8, factor: float) -> Image8:
    """Blend with the grey image: one linear map of the three channels."""
    matrix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * LUMA
    return cast(Image8, cv2.transform(image, matrix))


def hue(image: Image8, shift: float) -> Image8:
    """Turn the hue by `shift` of a full turn, in HSV."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 256 steps
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # wraps around, as a hue does
    return cast(Image8, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))
