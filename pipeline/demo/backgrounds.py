"""Backgrounds of the embedded data set: ten kinds of ground, each a texture of its own in a range of hues.

The kinds share hues on purpose (grass and leaves, water and tiles, sand and wood), so that telling them apart takes
their texture; brightness, scale and offset are drawn for every picture.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import cast

import cv2
import numpy as np

from pipeline.demo.objects import CANVAS, SIZE, Floats, bits, shrink

__all__ = ["BACKGROUNDS", "draw_background"]

# The object stands in the light and the ground behind it in the shade. Grounds as bright and busy as the object drown
# it: a small network trained on the classes then reads the ground alone (44% right, 5% on the grounds of others; with
# these values, larger objects and less clutter 93% and 89%; 3,600 training pictures, measured 2026-11-24).
DIM = 0.6  # of the object's light
CONTRAST = 0.6  # of the ground's own
RAMP = np.arange(CANVAS, dtype=np.float32)


def draw_background(kind: str, rng: np.random.Generator) -> Floats:
    """A picture [SIZE, SIZE, 3] in 0..255 of one kind of ground, with clutter, light and grain; no object."""
    canvas = np.clip(255 * KINDS[kind](rng), 0, 255).astype(np.uint8)
    bits(canvas, rng)
    ground = shrink(canvas)
    mean = ground.mean((0, 1))
    x, y = rng.uniform(-0.25, 0.25, 2)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = np.float32(rng.uniform(0.7, 1.1)) + np.float32(x) * ramp + np.float32(y) * ramp[:, None]
    grain = rng.standard_normal((SIZE, SIZE, 1), np.float32) * np.float32(rng.uniform(1, 6))
    lit = (mean + CONTRAST * (ground - mean)) * light[..., None]
    return cast(Floats, np.clip(np.float32(DIM) * (lit + grain), 0, 255))


def _hsv(rng: np.random.Generator, hue: tuple[float, float], saturation: float, value: float) -> Floats:
    """[3] a colour of a hue from a range of degrees, saturation and value within 0.1 of what is asked."""
    jitter = rng.uniform(-0.1, 0.1, 2)
    turn = rng.uniform(*hue) / 360 % 1
    saturation, value = np.clip([saturation + jitter[0], value + jitter[1]], 0, 1).tolist()
    return np.array(colorsys.hsv_to_rgb(turn, saturation, value), np.float32)


def _noise(rng: np.random.Generator, across: int, down: int) -> Floats:
    """[CANVAS, CANVAS] smooth noise about 0, spread 1, with `across` by `down` cells in the picture."""
    cells = rng.standard_normal((down, across), np.float32)
    return cast(Floats, cv2.resize(cells, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC))


def _mix(first: Floats, second: Floats, share: Floats) -> Floats:
    """[CANVAS, CANVAS, 3] from one colour to the other by `share` [CANVAS, CANVAS], clipped to 0..1."""
    return first + np.clip(share, 0, 1)[..., None] * (second - first)


def _grass(rng: np.random.Generator) -> Floats:
    blades = 0.5 + 0.3 * _noise(rng, 52, 9) + 0.15 * _noise(rng, 64, 20)
    return _mix(_hsv(rng, (85, 130), 0.7, 0.25), _hsv(rng, (75, 110), 0.6, 0.75), blades)


def _sand(rng: np.random.Generator) -> Floats:
    waves = RAMP[:, None] * np.float32(rng.uniform(0.28, 0.42)) + 1.2 * _noise(rng, 4, 4)
    ripples = 0.5 + 0.25 * np.sin(waves) + 0.12 * _noise(rng, 80, 80)
    return _mix(_hsv(rng, (28, 42), 0.45, 0.6), _hsv(rng, (38, 50), 0.3, 0.95), ripples)


def _water(rng: np.random.Generator) -> Floats:
    crests: Floats = np.abs(_noise(rng, 8, 20)) + np.float32(0.5) * np.abs(_noise(rng, 14, 36))
    return _mix(_hsv(rng, (185, 200), 0.35, 0.9), _hsv(rng, (195, 225), 0.75, 0.5), np.float32(1.3) * crests)


def _bricks(rng: np.random.Generator) -> Floats:
    height, width = int(rng.integers(15, 22)), int(rng.integers(30, 42))
    y = RAMP[:, None] + rng.integers(height)
    row = (y // height).astype(int)
    x = RAMP + rng.integers(width) + width / 2 * (row % 2)  # every other row is half a brick along
    joint = (x % width < 3) | (y % height < 3)
    tone = rng.uniform(-0.35, 0.35, (16, 8)).astype(np.float32)[row, (x // width).astype(int)]
    brick = _hsv(rng, (5, 22), 0.6, 0.55) * (1 + tone + 0.06 * _noise(rng, 64, 64))[..., None]
    return np.where(joint[..., None], _hsv(rng, (20, 40), 0.1, 0.8), brick)


def _planks(rng: np.random.Generator) -> Floats:
    width = int(rng.integers(20, 30))
    x = RAMP + rng.integers(width)
    board = (x // width).astype(int)
    shift = rng.uniform(0, 60, 16)[board].astype(np.float32)
    rings = np.sin((RAMP * 0.5 + shift) + 2.0 * _noise(rng, 6, 3)) * 0.25 + 0.5 + 0.15 * _noise(rng, 60, 6)
    wood = _mix(_hsv(rng, (20, 32), 0.6, 0.4), _hsv(rng, (26, 38), 0.5, 0.75), rings)
    tone = rng.uniform(0.8, 1.15, 16).astype(np.float32)[board]
    return wood * np.where(x % width < 3, np.float32(0.4), tone)[:, None]


def _tiles(rng: np.random.Generator) -> Floats:
    side = int(rng.integers(24, 36))
    x, y = RAMP + rng.integers(side), (RAMP + rng.integers(side))[:, None]
    joint = np.minimum(x % side, y % side) < 4
    tone = rng.uniform(-0.2, 0.2, (8, 8)).astype(np.float32)[(y // side).astype(int), (x // side).astype(int)]
    glaze = _hsv(rng, (160, 220), 0.25, 0.75) * (1 + tone + 0.04 * _noise(rng, 6, 6))[..., None]
    return np.where(joint[..., None], _hsv(rng, (0, 360), 0.05, 0.95), glaze)


def _pebbles(rng: np.random.Generator) -> Floats:
    seeds = np.full((CANVAS, CANVAS), 255, np.uint8)
    points = rng.integers(0, CANVAS, (110, 2))
    seeds[points[:, 0], points[:, 1]] = 0
    distance, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    tone = rng.uniform(0.45, 1.0, len(points) + 1).astype(np.float32)[label]
    grey = _mix(_hsv(rng, (20, 60), 0.15, 0.8), _hsv(rng, (180, 240), 0.15, 0.75), _noise(rng, 9, 9))
    return cast(Floats, grey * (tone * np.clip(1.15 - distance * distance / 90, 0.15, 1))[..., None])


def _plaid(rng: np.random.Generator) -> Floats:
    step = np.float32(2 * math.pi / rng.uniform(22, 34))
    bands = np.sin(step * RAMP + np.float32(rng.uniform(0, 6))) > 0.3
    lines = np.sin(2 * step * RAMP + np.float32(rng.uniform(0, 6))) > 0.85
    cloth = 0.45 * (bands * 1.0 + bands[:, None]) + 0.0 * RAMP
    hue = rng.uniform(0, 360)
    woven = _mix(
        _hsv(rng, (hue, hue + 20), 0.35, 0.85), _hsv(rng, (hue, hue + 20), 0.75, 0.4), cloth.astype(np.float32)
    )
    return np.where((lines | lines[:, None])[..., None], _hsv(rng, (hue + 150, hue + 210), 0.5, 0.85), woven)


def _clouds(rng: np.random.Generator) -> Floats:
    puffs = 0.4 + 0.5 * _noise(rng, 5, 5) + 0.25 * _noise(rng, 11, 11) + 0.1 * _noise(rng, 24, 24)
    return _mix(_hsv(rng, (200, 220), 0.5, 0.8), np.float32(0.95) + np.zeros(3, np.float32), puffs)


def _leaves(rng: np.random.Generator) -> Floats:
    canvas = np.empty((CANVAS, CANVAS, 3), np.float32)
    canvas[:] = _hsv(rng, (20, 40), 0.6, 0.2)
    for _ in range(70):
        x, y = rng.integers(0, CANVAS, 2).tolist()
        axes = (int(rng.integers(9, 15)), int(rng.integers(4, 7)))
        colour = _hsv(rng, (15, 75), 0.75, 0.6).tolist()
        cv2.ellipse(canvas, (x, y), axes, rng.uniform(0, 180), 0, 360, colour, -1)
    return canvas


KINDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "bricks": _bricks,
    "planks": _planks,
    "tiles": _tiles,
    "pebbles": _pebbles,
    "plaid": _plaid,
    "clouds": _clouds,
    "leaves": _leaves,
}
BACKGROUNDS = tuple(KINDS)
