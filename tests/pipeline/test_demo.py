"""The embedded data set: determinism, variants that share an object, the documented correlation, captions."""

from __future__ import annotations

import re
from io import BytesIO
from itertools import product

import numpy as np
import pytest
from PIL import Image

from pipeline.demo.captions import PATTERNS, TEMPLATES, caption
from pipeline.demo.objects import draw_object
from pipeline.demo.pictures import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    FAVOURITE,
    SHAPES,
    TEXTURES,
    VARIANTS,
    DemoSample,
    _generator,
    _ground_kind,
    draw_scene,
    sample,
    samples,
)
from shards.errors import UserError

SCENES = range(12)


def pixels(drawn: DemoSample) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(drawn.jpeg)).convert("RGB")).astype(int)


def variants(scene: int, seed: int = 0) -> dict[str, DemoSample]:
    return {name: sample("test", 5 * scene + i, seed) for i, name in enumerate(VARIANTS)}


def test_same_seed_same_bytes_in_any_order() -> None:
    for split in ("train", "test"):
        forward = list(samples(split, seed=3, count=15))  # type: ignore[arg-type]
        backward = [sample(split, i, 3) for i in reversed(range(15))]  # type: ignore[arg-type]
        assert forward == backward[::-1]
        assert [s.jpeg for s in samples(split, seed=4, count=15)] != [s.jpeg for s in forward]  # type: ignore[arg-type]
    assert sample("train", 0).jpeg != sample("test", 0).jpeg


def test_pictures_are_of_the_documented_size_and_counts() -> None:
    assert pixels(sample("train", 7)).shape == (64, 64, 3)
    assert COUNTS == {"train": 6000, "test": 1200 * 5}
    assert (len(SHAPES), len(COLOURS), len(TEXTURES), len(BACKGROUNDS)) == (10, 7, 4, 10)
    keys = [s.key for split in ("train", "test") for s in samples(split, count=200)]  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    assert keys[:200] == sorted(keys[:200])


def test_variants_share_object_labels_and_caption() -> None:
    for scene in SCENES:
        drawn = variants(scene)
        shared = ("scene", "object", "object_name", "colour", "colour_name", "texture", "texture_name")
        assert len({tuple(s.attributes[name] for name in shared) for s in drawn.values()}) == 1
        assert len({(s.label, s.caption) for s in drawn.values()}) == 1
        assert [s.attributes["variant"] for s in drawn.values()] == list(VARIANTS)
        rng = _generator(0, "test", scene, "object")
        attributes = drawn["original"].attributes
        names = [str(attributes[f"{name}_name"]) for name in ("object", "colour", "texture")]
        solid = (draw_object(names[0], names[1], names[2], rng).alpha[..., 0] > 0.99)[..., None]
        assert solid.mean() > 0.03
        alone = pixels(drawn["only_fg"])
        for name in ("original", "mixed_same", "mixed_rand"):
            # JPEG spreads a ground's edge a few pixels into the object; the object itself is the same.
            assert np.median(np.abs(pixels(drawn[name]) - alone)[solid[..., 0]]) <= 6
            assert np.abs(pixels(drawn[name]) - alone)[~solid[..., 0]].mean() > 20
        bare = np.abs(pixels(drawn["only_bg"]) - pixels(drawn["original"])).max(-1)
        assert bare[solid[..., 0]].mean() > 2 * bare[~solid[..., 0]].mean()


def test_only_fg_is_black_around_the_object() -> None:
    drawn = variants(0)["only_fg"]
    assert (drawn.attributes["background"], drawn.attributes["background_name"]) == (-1, "black")
    assert np.median(pixels(drawn)) <= 2


def test_labels_are_drawn_evenly_and_independently() -> None:
    scenes = [draw_scene(_generator(0, "train", i, "scene")) for i in range(6000)]
    drawn = np.array([(s.object, s.colour, s.texture) for s in scenes])
    counts = np.zeros((len(SHAPES), len(COLOURS), len(TEXTURES)))
    np.add.at(counts, tuple(drawn.T), 1)
    expected = 6000 / counts.size
    assert ((counts - expected) ** 2 / expected).sum() < 380  # chi-square of 279 degrees: 0.999 quantile is 356
    assert all(s.lender != s.object for s in scenes)


@pytest.mark.parametrize(
    ("split", "variant", "own", "lent"),
    [
        ("train", "train", FAVOURITE + (1 - FAVOURITE) / 10, None),
        ("test", "original", FAVOURITE + (1 - FAVOURITE) / 10, None),
        ("test", "mixed_same", FAVOURITE + (1 - FAVOURITE) / 10, None),
        ("test", "mixed_rand", (1 - FAVOURITE) / 10, FAVOURITE + (1 - FAVOURITE) / 10),
    ],
)
def test_ground_follows_the_object_as_documented(split: str, variant: str, own: float, lent: float | None) -> None:
    """Share of the pictures on the favourite of their own class and, for mixed_rand, of the lender's."""
    scenes = [draw_scene(_generator(0, split, i, "scene")) for i in range(3000)]  # type: ignore[arg-type]
    kinds = [_ground_kind(s, variant, _generator(0, split, i, _stream(variant))) for i, s in enumerate(scenes)]  # type: ignore[arg-type]
    found = np.mean([kind == s.object for kind, s in zip(kinds, scenes, strict=True)])
    assert found == pytest.approx(own, abs=0.04)  # more than 4 standard errors
    if lent is not None:
        assert np.mean([kind == s.lender for kind, s in zip(kinds, scenes, strict=True)]) == pytest.approx(
            lent, abs=0.04
        )
    assert sample(split, VARIANTS.index(variant) if split == "test" else 0).attributes["background"] == kinds[0]  # type: ignore[arg-type]


def test_captions_name_object_colour_and_texture_and_no_ground() -> None:
    grounds = re.compile("|".join(name.rstrip("s") for name in BACKGROUNDS) + "|ground|background|brick|wood")
    for i, combination in enumerate(product(SHAPES, COLOURS, TEXTURES)):
        shape, colour, texture = combination
        for draw in range(3):
            words = caption(shape, colour, texture, np.random.default_rng([i, draw]))
            assert re.search(rf"\b{shape}\b", words)
            assert re.search(rf"\b{colour}\b", words)
            assert texture in words or PATTERNS[texture] in words
            assert not re.search(rf"\ba [aeiou]|\ban [^aeiou]|{{|}}|  |\b(?:{grounds.pattern})", words), words


def test_captions_are_varied() -> None:
    assert all("{object}" in template and "{colour}" in template for template in TEMPLATES)
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 30
    texts = {draw_scene(_generator(0, "train", i, "scene")).caption for i in range(6000)}
    assert 4000 < len(texts) < 5200


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="seed of the demo data set must be 0 or more, not -1"):
        sample("train", 0, seed=-1)


def _stream(variant: str) -> str:
    return variant if variant.startswith("mixed") else "ground"
