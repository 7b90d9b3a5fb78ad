"""What counts as an image: by the name of a file, and by what decoders raise; and which decoder gets its colours right.

Pillow is loaded by those who have an image of it in hand.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EXTENSIONS", "PIL_RAISES", "as_rgb", "is_image", "opencv_misreads", "passed_over", "usual"]

EXTENSIONS = (
    "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "jpe", "avif", "jp2",
)  # fmt: skip
PIL_RAISES = (OSError, ValueError, SyntaxError, struct.error, EOFError, RuntimeError)
"""Of damaged files. MemoryError and ImportError are never bad data."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_image(name: str) -> bool:
    """By the name of a file; hidden ones (macOS writes ._NAME beside NAME) are none."""
    stem, _, extension = name.rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS and not name.startswith(".")


def usual(extension: str) -> str:
    """The one that other readers know a picture by."""
    return "jpg" if extension in ("jfif", "jpe") else extension


def passed_over(names: Iterable[str]) -> str:
    """Of files in class folders that are no pictures, a line that counts them by extension; empty for none.

    Hidden ones, and those without an extension, are not counted here.
    """
    counts = Counter(name.rpartition(".")[2].lower() for name in names if name.rpartition(".")[0])
    lines = ", ".join(f"{count:,} .{extension}" for extension, count in counts.most_common(5))
    return f"files in class folders that are no pictures by their names, passed over: {lines}" if counts else ""


def opencv_misreads(data: bytes) -> bool:
    """Of TIFFs OpenCV multiplies colours by alpha, takes L*a*b* for RGB, and makes floating-point pixels black: such
    are for Pillow. Raises one of PIL_RAISES for a damaged one."""
    if not data.startswith(TIFF):
        return False
    from PIL import Image

    with Image.open(BytesIO(data)) as picture:
        return picture.mode in ("RGBA", "LA", "LAB", "F")


def as_rgb(picture: Image.Image) -> Image.Image:
    """Without alpha. Raises ValueError, and any of PIL_RAISES for a damaged file."""
    if picture.mode == "F":
        raise ValueError("pixels are floating-point numbers, of which nobody says what is white")
    return picture.convert("RGB")
