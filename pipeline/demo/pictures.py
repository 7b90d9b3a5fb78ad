"""The embedded data set: pictures of objects on grounds, with captions, in the shape of three known benchmarks.

A picture shows one of ten shapes in one of seven colours and four textures, in random pose, size and light, three in
ten partly hidden, on one of ten cluttered grounds. Each shape has a favourite ground; four in ten training pictures
use it and the others draw any ground, so the ground predicts the shape, but not reliably. The test set shows 1,200
scenes in the five variants of ImageNet-9's background challenge (Xiao et al. 2021, arXiv 2006.09994), labelled with
attributes as MIT-States has them:

    original    drawn as the training pictures are
    mixed_same  the same object on another ground, drawn as for its own class
    mixed_rand  the same object on a ground drawn as for another class
    only_fg     the same object on black
    only_bg     the ground of `original` without the object; it keeps the label

Sample i of a split is a pure function of (seed, split, i): any range can be made alone, in any order, in any process,
with the same bytes as long as numpy, OpenCV and PIL stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from typing import get_args

import numpy as np
from PIL import Image

from pipeline.demo.backgrounds import BACKGROUNDS, draw_background
from pipeline.demo.captions import caption
from pipeline.demo.objects import COLOURS, SHAPES, SIZE, TEXTURES, Floats, Layer, composite, draw_object
from shards.errors import UserError
from shards.manifest import Split

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COUNTS",
    "FAVOURITE",
    "SHAPES",
    "TEXTURES",
    "VARIANTS",
    "DemoSample",
    "sample",
    "samples",
]

VARIANTS = ("original", "mixed_same", "mixed_rand", "only_fg", "only_bg")
COUNTS: dict[Split, int] = {"train": 6000, "test": 1200 * len(VARIANTS)}  # images
# Share of the pictures whose ground is the shape's favourite by choice; the others draw any, it included.
FAVOURITE = 0.4
QUALITY = 90  # of the JPEG files, whose colours are not subsampled

# Independent random numbers for each thing that is drawn, so that a variant changes one and keeps the others.
STREAMS = ("scene", "object", "ground", "mixed_same", "mixed_rand")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSample:
    """One picture with its caption and labels."""

    key: str
    """Unique in its split; keys sort in the order of the samples, variants of a scene aside."""
    jpeg: bytes
    """SIZE x SIZE, RGB."""
    caption: str
    """Of the scene: the variants of a test scene share it, even only_bg."""
    label: int
    """Position in SHAPES."""
    attributes: dict[str, object]
    """KEY.json: variant ("train" in training), scene (its number), and for object, colour, texture and background the
    position in its tuple and, as NAME_name, its name. The background of only_fg is -1, "black"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows, before any pixel is drawn."""

    object: int
    colour: int
    texture: int
    lender: int
    """Another class, drawn evenly: mixed_rand takes its ground."""
    caption: str


def samples(split: Split, seed: int = 0, count: int | None = None) -> Iterator[DemoSample]:
    """The first `count` samples (images) of a split; None: as many as COUNTS says. More can be drawn than that."""
    for index in range(COUNTS[split] if count is None else count):
        yield sample(split, index, seed)


def sample(split: Split, index: int, seed: int = 0) -> DemoSample:
    """Sample `index` of a split; a test scene's variants follow each other: index = 5 * scene + variant.

    Raises UserError for a negative seed.
    """
    number, position = (index, 0) if split == "train" else divmod(index, len(VARIANTS))
    variant = "train" if split == "train" else VARIANTS[position]
    rng = partial(_generator, seed, split, number)
    scene = draw_scene(rng("scene"))
    background, picture = _ground(scene, variant, rng)
    if variant != "only_bg":
        picture = composite(_layer(seed, split, number), picture)
    return DemoSample(
        key=f"{number:06d}" if split == "train" else f"{number:06d}-{variant}",
        jpeg=_encode(picture),
        caption=scene.caption,
        label=scene.object,
        attributes=_attributes(scene, variant, number, background),
    )


def draw_scene(rng: np.random.Generator) -> Scene:
    """Object, colour and texture evenly and independently, and a sentence that says so."""
    shape, colour, texture = (int(rng.integers(len(names))) for names in (SHAPES, COLOURS, TEXTURES))
    return Scene(
        object=shape,
        colour=colour,
        texture=texture,
        lender=(shape + int(rng.integers(1, len(SHAPES)))) % len(SHAPES),
        caption=caption(SHAPES[shape], COLOURS[colour], TEXTURES[texture], rng),
    )


def _generator(seed: int, split: Split, number: int, stream: str) -> np.random.Generator:
    """Of one of STREAMS."""
    if seed < 0:
        raise UserError(f"the seed of the demo data set must be 0 or more, not {seed}")
    return np.random.default_rng([seed, get_args(Split).index(split), number, STREAMS.index(stream)])


@lru_cache(maxsize=1)  # a test scene's variants, which follow each other, share it
def _layer(seed: int, split: Split, number: int) -> Layer:
    """The object of a scene."""
    scene = draw_scene(_generator(seed, split, number, "scene"))
    names = SHAPES[scene.object], COLOURS[scene.colour], TEXTURES[scene.texture]
    return draw_object(*names, _generator(seed, split, number, "object"))


def _ground(scene: Scene, variant: str, rng: Callable[[str], np.random.Generator]) -> tuple[int, Floats]:
    """(position in BACKGROUNDS or -1, picture [SIZE, SIZE, 3] in 0..255) under the object of a variant."""
    if variant == "only_fg":
        return -1, np.zeros((SIZE, SIZE, 3), np.float32)
    own = rng(variant if variant in STREAMS else "ground")
    background = _ground_kind(scene, variant, own)
    return background, draw_background(BACKGROUNDS[background], own)


def _ground_kind(scene: Scene, variant: str, rng: np.random.Generator) -> int:
    """Position in BACKGROUNDS. Shape i's favourite is background i: there are ten of each."""
    shape = scene.lender if variant == "mixed_rand" else scene.object
    return shape if rng.random() < FAVOURITE else int(rng.integers(len(BACKGROUNDS)))


def _attributes(scene: Scene, variant: str, number: int, background: int) -> dict[str, object]:
    return {
        "variant": variant,
        "scene": number,
        "object": scene.object,
        "object_name": SHAPES[scene.object],
        "colour": scene.colour,
        "colour_name": COLOURS[scene.colour],
        "texture": scene.texture,
        "texture_name": TEXTURES[scene.texture],
        "background": background,
        "background_name": BACKGROUNDS[background] if background >= 0 else "black",
    }


def _encode(picture: Floats) -> bytes:
    buffer = BytesIO()
    pixels = np.clip(picture + 0.5, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()
