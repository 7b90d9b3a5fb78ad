"""Is it an image, how large, and a smaller copy of it: on encoded bytes.

Stage one does not decode what it copies: 12 M images would cost days of CPU. It reads the size from the header and
looks for the end marker, which finds what downloads go wrong by (error pages, cut files, decompression bombs). Damage
inside the pixel data is met by training, which counts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from shards.pictures import PIL_RAISES, as_rgb, opencv_misreads

__all__ = ["QUALITY", "image_size", "kind", "problem", "resized", "shows"]

QUALITY = 95  # JPEG quality of resized copies: img2dataset's default, beyond which files grow and nothing is seen
JPEG, END = b"\xff\xd8", b"\xff\xd9"
TAIL = 4096  # bytes in which a JPEG's end marker is looked for; cameras append a little after it
# Start-of-frame markers carry the size; C4, C8 and CC of that range mean something else (ITU-T T.81, table B.1).
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
MAGIC = {
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"RIFF": "webp",
    b"\0\0\0\x0cjP  ": "jp2",
}


def problem(data: bytes | memoryview, max_pixels: int) -> str | None:
    """Why these bytes are unusable as an image, in a few words; None when they look sound."""
    size = image_size(data)
    if size is None:
        return "undecodable image"
    if size[0] * size[1] > max_pixels:
        return "image of too many pixels"
    if bytes(data[:2]) == JPEG and not _ended(data) and not _decodes(data):
        return "cut image"
    return None


def image_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(width, height) from the header; None when it is no image, or one of numbers that are no brightness."""
    found = _jpeg_size(data) if bytes(data[:2]) == JPEG else None
    if found:
        return found
    try:
        with _opened(data) as image:
            return None if image.mode == "F" else image.size
    except PIL_RAISES:
        return None


def shows(data: bytes) -> bool:
    """Whether all of it decodes, to what training takes it for."""
    try:
        return _bgr(data).size > 0
    except ValueError:
        return False


def kind(data: bytes | memoryview) -> str:
    """The extension that encoded bytes should have, by their first ones; jpg for those not known."""
    if bytes(data[4:12]) == b"ftypavif":
        return "avif"
    return next((name for magic, name in MAGIC.items() if bytes(data[: len(magic)]) == magic), "jpg")


def resized(data: bytes, side: int) -> bytes:
    """A JPEG copy whose shorter side has `side` pixels; the bytes as they are where the image is no larger.

    Raises ValueError for what does not decode, or is too long for a JPEG.
    """
    image = _bgr(data)
    height, width = image.shape[:2]
    if min(height, width) <= side:
        return data
    scale = side / min(height, width)
    shape = max(side, round(width * scale)), max(side, round(height * scale))
    small = cv2.resize(image, shape, interpolation=cv2.INTER_AREA)
    made, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not made:
        raise ValueError("is too long for a JPEG")  # above 65,500 pixels a side
    return encoded.tobytes()


def _bgr(data: bytes) -> npt.NDArray[np.uint8]:
    """[height, width, 3], the colours that training takes it for. Raises ValueError."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = None if opencv_misreads(data) else cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        if image is None:
            with _opened(data) as picture:
                return np.asarray(as_rgb(picture))[:, :, ::-1]
    except (*PIL_RAISES, cv2.error, Image.DecompressionBombError):  # of a header that claims more pixels than they take
        raise ValueError("does not decode") from None
    return cast("npt.NDArray[np.uint8]", image)


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Walk the segments up to the frame header; 50 times quicker than building an image object."""
    position, end = 2, len(data) - 9
    while position <= end:
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in FRAMES:
            height = data[position + 5] << 8 | data[position + 6]
            width = data[position + 7] << 8 | data[position + 8]
            return (width, height) if width and height else None
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return None


def _ended(data: bytes | memoryview) -> bool:
    return bytes(data[-2:]) == END or END in bytes(data[-TAIL:])


def _decodes(data: bytes | memoryview) -> bool:
    try:
        with _opened(data) as image:
            image.load()
        return True
    except PIL_RAISES:
        return False


@contextmanager
def _opened(data: bytes | memoryview) -> Iterator[Image.Image]:
    """Without PIL's cap on pixels, and its warning half-way there: ours is an option, and looked at before decoding."""
    cap, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(BytesIO(data)) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = cap
