"""Sizes from headers against PIL, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.images import image_size, problem, resized
from trainer.augment import decode

SOUND = 10**8


def encoded(kind: str, size: tuple[int, int] = (37, 21), mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"exif": b"Exif\x00\x00" + bytes(3000), "icc_profile": bytes(70000)}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("WEBP", "RGB", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
    ],
)
def test_size_of_every_format(kind: str, mode: str, options: dict[str, object]) -> None:
    data = encoded(kind, mode=mode, **options)
    assert image_size(data) == image_size(memoryview(data)) == (37, 21)
    assert problem(memoryview(data), SOUND) is None


def test_what_is_no_image() -> None:
    for data in (b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"<html>404</html>", bytes(1000)):
        assert problem(data, SOUND) == "undecodable image"


def test_a_cut_jpeg_and_one_with_a_tail() -> None:
    data = encoded("JPEG", (200, 200), quality=95)
    assert problem(data[: len(data) // 2], SOUND) == "cut image"
    assert problem(data + bytes(100), SOUND) is None
    # No end marker, but all pixels are there: what some encoders leave off is not worth an image.
    assert problem(data[:-2] + bytes(TAIL), SOUND) is None


TAIL = 5000


def test_a_decompression_bomb_is_not_decoded() -> None:
    header = bytearray(encoded("PNG", (8, 8)))
    header[16:24] = (60000).to_bytes(4, "big") * 2
    assert problem(bytes(header), SOUND) in ("image of too many pixels", "undecodable image")
    assert problem(encoded("JPEG", (40, 30)), 40 * 30 - 1) == "image of too many pixels"


def test_more_pixels_a_side_than_opencv_takes() -> None:
    wide = encoded("BMP", (1 << 20 | 1, 1))
    assert problem(wide, SOUND) is None
    with pytest.raises(ValueError, match="decode"):
        resized(wide, 64)


def test_a_damaged_avif_is_no_image() -> None:
    """Its plugin raises RuntimeError."""
    whole = encoded("AVIF")
    for at in range(0, len(whole), 3):
        problem(whole[:at] + b"\xff" + whole[at + 1 :], SOUND)


def test_resizing_keeps_the_ratio_and_small_images() -> None:
    assert image_size(resized(encoded("PNG", (400, 200)), 50)) == (100, 50)
    assert image_size(resized(encoded("JPEG", (90, 301)), 45)) == (45, 150)
    small = encoded("PNG", (30, 40))
    assert resized(small, 64) is small
    with pytest.raises(ValueError, match="decode"):
        resized(b"no image", 64)
    with pytest.raises(ValueError, match="too long for a JPEG"):
        resized(encoded("PNG", (24, 70_000)), 23)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "LAB", "RGB"])
def test_resizing_a_tiff_keeps_the_colours_that_training_sees(mode: str) -> None:
    """OpenCV would multiply them by alpha, and take L*a*b* for RGB."""
    buffer = BytesIO()
    bands = [Image.new("L", (80, 60), value) for value in (130, 120, 90, 64)]
    Image.merge(mode, bands[4 - len(mode) :] if mode[-1] == "A" else bands[:3]).save(buffer, "TIFF")
    before, after = decode(buffer.getvalue()), decode(resized(buffer.getvalue(), 30))
    assert after.shape == (30, 40, 3)
    np.testing.assert_allclose(after.mean((0, 1)), before.mean((0, 1)), atol=2)


def test_a_tiff_of_more_pixels_than_pillow_takes_is_not_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="decode"):
        resized(encoded("TIFF", (80, 60)), 30)


def test_a_tiff_of_floating_point_numbers_is_not_resized() -> None:
    buffer = BytesIO()
    Image.fromarray(np.ones((9, 9), np.float32)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="decode"):
        resized(buffer.getvalue(), 4)
