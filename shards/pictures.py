"""What counts as an image: by the name of a file, and by what decoders raise."""

from __future__ import annotations

import struct

__all__ = ["EXTENSIONS", "PIL_RAISES", "is_image"]

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
PIL_RAISES = (OSError, ValueError, SyntaxError, struct.error, EOFError, RuntimeError)
"""Of damaged files. MemoryError and ImportError are never bad data."""


def is_image(name: str) -> bool:
    """By the name of a file; hidden ones (macOS writes ._NAME beside NAME) are none."""
    stem, _, extension = name.rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS and not name.startswith(".")
