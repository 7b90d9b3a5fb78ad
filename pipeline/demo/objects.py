"""Objects of the embedded data set: outline, texture, colour, light and occluder, a layer to lay over a background.

Everything is drawn at twice the final size and area-averaged down, which antialiases outlines and textures alike. A
layer is finished before it meets a background, so that all variants of a test scene show the very same object.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

__all__ = [
    "CANVAS",
    "COLOURS",
    "SHAPES",
    "SIZE",
    "TEXTURES",
    "Floats",
    "Layer",
    "bits",
    "composite",
    "draw_object",
    "shrink",
]

Floats = npt.NDArray[np.float32]
Polygon = npt.NDArray[np.float64]  # [points, 2]: x to the right, y down
Colour = tuple[float, float, float]  # red, green, blue in 0..255

SIZE = 64
CANVAS = 2 * SIZE  # drawn at this side, then area-averaged to SIZE
SUBPIXEL = 4  # bits of a coordinate's fraction in OpenCV's drawing calls

SHAPES = ("star", "heart", "arrow", "moon", "fish", "house", "mushroom", "umbrella", "butterfly", "bottle")
TEXTURES = ("plain", "striped", "spotted", "checkered")

# Degrees of hue, half-width of its spread, and the range of saturation. Hues of neighbours do not overlap, so that the
# name is decidable by eye; the value (brightness) is drawn freely and the light comes on top.
HUES: dict[str, tuple[float, float, float, float]] = {
    "red": (358, 7, 0.75, 0.95),
    "orange": (27, 6, 0.80, 0.98),
    "yellow": (53, 6, 0.70, 0.95),
    "green": (120, 22, 0.55, 0.90),
    "blue": (217, 15, 0.60, 0.92),
    "purple": (275, 12, 0.50, 0.80),
    "pink": (330, 9, 0.38, 0.60),
}
COLOURS = tuple(HUES)

EXTENT = (0.75, 0.95)  # diameter of the object's enclosing circle over the image's side
TURN = 20.0  # degrees either way, so that up stays up; the mirror image comes besides
CLUTTER = (1, 4)  # pieces, the upper end left out
OCCLUDED = 0.3  # share of the scenes with an occluder
MOST_HIDDEN = 0.3  # share of the object's area; an occluder that would hide more is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An object with its occluder, ready to be laid over a background."""

    colour: Floats
    """[SIZE, SIZE, 3] in 0..255, already multiplied by `alpha`."""
    alpha: Floats
    """[SIZE, SIZE, 1] in 0..1: cover by object and occluder."""
    shadow: Floats
    """[SIZE, SIZE, 1] in 0..1: what the shadow leaves of the background's light."""


def composite(layer: Layer, background: Floats) -> Floats:
    """Lay the layer over a background, [SIZE, SIZE, 3] in 0..255, shadow included."""
    return layer.colour + (1 - layer.alpha) * layer.shadow * background


def draw_object(shape: str, colour: str, texture: str, rng: np.random.Generator) -> Layer:
    """Draw one object in a random pose, size and light, some with an occluder in front of it."""
    radius = rng.uniform(*EXTENT) * CANVAS / 2
    turn = math.radians(rng.uniform(-TURN, TURN))
    room = CANVAS / 2 - 0.8 * radius  # at most a tenth of the diameter leaves the picture
    centre = CANVAS / 2 + rng.uniform(-room, room, 2) * 0.9
    linear = _pose(turn, rng) * radius
    mask = np.zeros((CANVAS, CANVAS), np.uint8)
    for polygon in outline(shape):
        _fill(mask, polygon @ linear.T + centre, 255)
    tone = np.array(_tone(colour, rng), np.float32)
    share, second = _paint(texture, turn, rng)
    shade, tint = _light(mask, radius, rng)
    alpha: Floats = mask.astype(np.float32) / np.float32(255)
    front: Floats = np.zeros_like(alpha)
    hue: Floats = np.zeros(3, np.float32)
    if rng.random() < OCCLUDED:
        stick, muted = _occluder(centre, radius, rng)
        if float((stick * alpha).sum() / alpha.sum()) <= MOST_HIDDEN:
            front, hue = stick, muted
    cover = shrink(alpha + front - alpha * front)[..., None]
    # Averaging is linear, so how much of each paint is seen is averaged down first and coloured then.
    seen = alpha * (1 - front) * shade
    main, other = shrink(seen * (1 - share))[..., None], shrink(seen * share)[..., None]
    picture = tint * (main * tone + other * second) + shrink(front)[..., None] * hue
    grain = rng.standard_normal((SIZE, SIZE, 1), np.float32) * np.float32(rng.uniform(1, 6))
    return Layer(colour=np.clip(picture + grain * cover, 0, 255), alpha=cover, shadow=_shadow(cover, rng))


def bits(image: npt.NDArray[np.uint8], rng: np.random.Generator) -> None:
    """Scatter small clutter over `image` [CANVAS, CANVAS, 3] in place: discs, rings, rods and wedges of any hue.

    None is a class's outline, and their colours are the objects', so that colour alone gives nothing away.
    """
    for _ in range(rng.integers(*CLUTTER)):
        x, y = rng.uniform(0, CANVAS, 2)
        reach, angle = rng.uniform(4, 10), rng.uniform(0, 2 * math.pi)
        colour = _tone(COLOURS[rng.integers(len(COLOURS))], rng)
        along = reach * np.array([math.cos(angle), math.sin(angle)])
        kind = rng.integers(4)
        if kind < 2:
            thickness = -1 if kind == 0 else 3
            cv2.circle(image, _fixed(x, y), int(0.7 * reach * 2**SUBPIXEL), colour, thickness, cv2.LINE_AA, SUBPIXEL)
        elif kind == 2:
            ends = _fixed(x - 1.3 * along[0], y - 1.3 * along[1]), _fixed(x + 1.3 * along[0], y + 1.3 * along[1])
            cv2.line(image, *ends, colour, 4, cv2.LINE_AA, SUBPIXEL)
        else:
            across = np.array([-along[1], along[0]])
            _fill(image, np.array([x, y]) + np.stack([along, -0.7 * along + across, -0.7 * along - across]), colour)


def shrink(picture: Floats | npt.NDArray[np.uint8]) -> Floats:
    """CANVAS to SIZE by area averaging, as float32."""
    return cast(Floats, cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32))


@cache
def outline(shape: str) -> tuple[Polygon, ...]:
    """The polygons whose union is the shape, upright, in a unit circle about the origin."""
    parts = OUTLINES[shape]()
    points = np.concatenate(parts)
    centre = (points.min(0) + points.max(0)) / 2
    radius = np.linalg.norm(points - centre, axis=1).max()
    return tuple((part - centre) / radius for part in parts)


def _pose(turn: float, rng: np.random.Generator) -> Polygon:
    """[2, 2] turned, half of the time mirrored, and stretched a little."""
    stretch = math.exp(rng.uniform(-0.13, 0.13))
    mirror = 1 if rng.random() < 0.5 else -1
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * stretch, 1 / stretch])


def _tone(colour: str, rng: np.random.Generator) -> Colour:
    """A shade that goes by the name `colour`."""
    hue, spread, low, high = HUES[colour]
    red, green, blue = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-spread, spread)) % 360 / 360, rng.uniform(low, high), rng.uniform(0.7, 1.0)
    )
    return 255 * red, 255 * green, 255 * blue


def _paint(texture: str, turn: float, rng: np.random.Generator) -> tuple[Floats, np.float32]:
    """The pattern: share [CANVAS, CANVAS] of a second tone, and its grey level, pale or dark."""
    second = rng.uniform(215, 250) if rng.random() < 0.5 else rng.uniform(15, 60)
    period = rng.uniform(12, 18)  # canvas pixels: 3 to 4.5 where the image is seen at 32
    angle = turn + rng.uniform(-0.6, 0.6)
    phase = rng.uniform(0, 2 * math.pi, 2)
    return _pattern(texture, np.float32(2 * math.pi / period), angle, phase), np.float32(second)


def _pattern(texture: str, frequency: np.float32, angle: float, phase: npt.NDArray[np.float64]) -> Floats:
    """[CANVAS, CANVAS] the second tone's share, 0..1. `frequency` in radians a pixel."""
    if texture == "plain":
        return np.zeros((CANVAS, CANVAS), np.float32)
    steps = np.arange(CANVAS, dtype=np.float32) * frequency
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u = cos * steps + sin * steps[:, None] + np.float32(phase[0])
    if texture == "striped":
        return cast(Floats, np.clip(0.35 + 2.5 * np.sin(u), 0, 1))
    v = cos * steps[:, None] - sin * steps + np.float32(phase[1])
    if texture == "spotted":
        share = 2 * (np.sin(0.8 * u) + np.sin(0.8 * v)) - 1.0  # a square lattice of discs
    else:
        share = 0.5 + 4 * np.sin(0.6 * u) * np.sin(0.6 * v)
    return cast(Floats, np.clip(share, 0, 1))


def _light(mask: npt.NDArray[np.uint8], radius: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Factors of the paint: [CANVAS, CANVAS] a soft bevel, a fall-off across the picture, strength; [3] tint."""
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.65, 1.1)
    x, y = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    # Light is smooth, so half the resolution is plenty and takes a quarter of the time.
    height = cv2.GaussianBlur(shrink(mask), (0, 0), radius / 12)
    slope = x * cv2.Sobel(height, cv2.CV_32F, 1, 0) + y * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    slope *= np.float32(rng.uniform(0.1, 0.35) * radius / 12 / 255)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    shade = 1 + slope - np.float32(rng.uniform(0, 0.2)) * (x * ramp + y * ramp[:, None])
    shade = np.float32(strength) * cv2.resize(shade, (CANVAS, CANVAS), interpolation=cv2.INTER_LINEAR)
    tint = np.array([1 + rng.uniform(-0.08, 0.08), 1, 1 + rng.uniform(-0.08, 0.08)], np.float32)
    return cast(Floats, shade), tint


def _occluder(centre: Polygon, radius: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """A stick across the object or a stone on its rim: cover [CANVAS, CANVAS] in 0..1 and its muted colour [3]."""
    front = np.zeros((CANVAS, CANVAS), np.uint8)
    angle = rng.uniform(0, 2 * math.pi)
    away = np.array([math.cos(angle), math.sin(angle)])
    if rng.random() < 0.5:
        middle = centre + away * radius * rng.uniform(0.1, 0.5)
        across = np.array([-away[1], away[0]]) * radius * rng.uniform(0.9, 1.5)
        ends = _fixed(*(middle - across)), _fixed(*(middle + across))
        cv2.line(front, *ends, 255, int(rng.integers(6, 12)), cv2.LINE_AA, SUBPIXEL)
    else:
        middle = centre + away * radius * rng.uniform(0.5, 0.8)
        reach = radius * rng.uniform(0.25, 0.4)
        angles = np.sort(rng.uniform(0, 2 * math.pi, 9))
        _fill(front, middle + reach * np.stack([np.cos(angles), np.sin(angles)], 1), 255)
    hue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.25, 0.75))
    return front.astype(np.float32) / np.float32(255), 255 * np.array(hue, np.float32)


def _shadow(cover: Floats, rng: np.random.Generator) -> Floats:
    """[SIZE, SIZE, 1] a soft shadow, a little off the object."""
    x, y = rng.integers(-3, 4, 2)
    soft = cv2.GaussianBlur(np.roll(cover[..., 0], (int(y), int(x)), (0, 1)), (0, 0), 2.0)
    return cast(Floats, (1 - np.float32(rng.uniform(0.2, 0.5)) * soft)[..., None])


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * 2**SUBPIXEL), round(y * 2**SUBPIXEL)


def _fill(image: npt.NDArray[np.uint8], polygon: Polygon, colour: Colour | int) -> None:
    points = np.round(polygon * 2**SUBPIXEL).astype(np.int32)
    cv2.fillPoly(image, [points], colour, cv2.LINE_AA, SUBPIXEL)


def _arc(first: float, last: float, x: float = 0, y: float = 0, rx: float = 1, ry: float = 1, n: int = 24) -> Polygon:
    """[n, 2] points of an ellipse from one angle to another, degrees, clockwise as y points down."""
    angles = np.radians(np.linspace(first, last, n))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1)


def _star() -> list[Polygon]:
    angles = np.radians(np.arange(10) * 36 - 90)
    reach = np.where(np.arange(10) % 2, 0.48, 1.0)
    return [np.stack([reach * np.cos(angles), reach * np.sin(angles)], 1)]


def _heart() -> list[Polygon]:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    return [np.stack([x, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1)]


def _arrow() -> list[Polygon]:
    return [np.array([[0, -1], [0.8, -0.15], [0.33, -0.15], [0.33, 1], [-0.33, 1], [-0.33, -0.15], [-0.8, -0.15]])]


def _moon() -> list[Polygon]:
    return [np.concatenate([_arc(50, 310), _arc(295, 65, x=0.37, rx=0.63, ry=0.84)])]


def _fish() -> list[Polygon]:
    fin = np.array([[0.4, 0], [1.05, -0.55], [0.9, 0], [1.05, 0.55]])
    return [_arc(0, 360, x=-0.2, rx=0.8, ry=0.5), fin, np.array([[-0.35, -0.4], [0.2, -0.78], [0.25, -0.35]])]


def _house() -> list[Polygon]:
    walls = np.array([[-0.7, 0.85], [-0.7, -0.1], [0.7, -0.1], [0.7, 0.85]])
    chimney = np.array([[0.35, -0.3], [0.35, -0.9], [0.6, -0.9], [0.6, -0.2]])
    return [walls, np.array([[-0.98, -0.05], [0, -0.95], [0.98, -0.05]]), chimney]


def _mushroom() -> list[Polygon]:
    stem = np.concatenate([[[-0.24, -0.1]], _arc(180, 0, y=0.7, rx=0.34, ry=0.2), [[0.24, -0.1]]])
    return [np.concatenate([_arc(180, 360, rx=0.98, ry=0.92), _arc(0, 180, rx=0.98, ry=0.18)]), stem]


def _umbrella() -> list[Polygon]:
    scallops = [_arc(360, 180, x=x, rx=0.25, ry=0.17, n=9) for x in (0.75, 0.25, -0.25, -0.75)]
    dome = np.concatenate([_arc(180, 360, rx=1.0, ry=0.9), *scallops])
    handle = np.array([[-0.07, -0.2], [0.09, -0.2], [0.09, 0.75], [-0.07, 0.75]])
    hook = np.concatenate(
        [_arc(0, 180, x=-0.18, y=0.72, rx=0.27, ry=0.27), _arc(180, 0, x=-0.18, y=0.72, rx=0.11, ry=0.11)]
    )
    return [dome, handle, hook]


def _butterfly() -> list[Polygon]:
    parts = [_arc(0, 360, rx=0.11, ry=0.62)]
    for side in (-1, 1):
        parts.append(
            np.array([[0, 0.05], [side * 0.45, -0.8], [side * 0.95, -0.85], [side * 1.0, -0.3], [side * 0.6, 0.08]])
        )
        parts.append(_arc(0, 360, x=side * 0.42, y=0.36, rx=0.4, ry=0.42))
    return parts


def _bottle() -> list[Polygon]:
    half = np.array([[0.16, -1], [0.16, -0.45], [0.42, -0.12], [0.42, 0.95], [0.36, 1]])
    return [np.concatenate([half, half[::-1] * [-1, 1]])]


OUTLINES: dict[str, Callable[[], list[Polygon]]] = {
    "star": _star,
    "heart": _heart,
    "arrow": _arrow,
    "moon": _moon,
    "fish": _fish,
    "house": _house,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "butterfly": _butterfly,
    "bottle": _bottle,
}
