"""Objects without their grounds and on other ones, after the backgrounds challenge (Xiao et al. 2020).

The object is its box. The challenge cuts out its shape by GrabCut, which often loses it (docs/decisions.md).
Images are [height, width, 3] uint8; a box is (left, top, right, bottom) in pixels, the last two behind the object.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["VERSION", "Box", "ground", "on_black", "on_ground"]

VERSION = 1  # raise it when pixels change: it is part of the names of cached features

Image = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


def on_black(image: Image, box: Box) -> Image:
    """The object alone, at its place."""
    return _pasted(np.zeros_like(image), image, box)


def ground(image: Image, box: Box) -> Image:
    """The box filled by tiles of the largest strip above, below, left or right of it (the challenge's `only_bg_t`).

    A box that is all of the picture leaves no ground to fill it with: nothing for this function.
    """
    left, top, right, bottom = box
    out = image.copy()
    strip = max((image[:top], image[bottom:], image[:, :left], image[:, right:]), key=lambda part: part.size)
    down, across = -(-(bottom - top) // strip.shape[0]), -(-(right - left) // strip.shape[1])
    out[top:bottom, left:right] = np.tile(strip, (down, across, 1))[: bottom - top, : right - left]
    return out


def on_ground(image: Image, box: Box, other: Image, other_box: Box) -> Image:
    """The object, at its place, on the ground of another picture, which is cut to the size of its own."""
    return _pasted(_covering(ground(other, other_box), *image.shape[:2]), image, box)


def _pasted(under: Image, image: Image, box: Box) -> Image:
    left, top, right, bottom = box
    out = under.copy()
    out[top:bottom, left:right] = image[top:bottom, left:right]
    return out


def _covering(image: Image, height: int, width: int) -> Image:
    """Its middle part of that shape, resized. Cut first: resized whole, one of 4 x 40,000 would take gigabytes."""
    scale = max(height / image.shape[0], width / image.shape[1])
    rows, columns = (
        min(have, max(1, round(want / scale))) for have, want in zip(image.shape, (height, width), strict=False)
    )
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    middle = image[top : top + rows, left : left + columns]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(middle, (width, height), interpolation=method), np.uint8)
