"""ImageNet-9: folders and file names, both ways of scoring, the gap, and whole runs of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from eval.benchmarks.bench import LEFT_OUT, Source
from eval.benchmarks.imagenet9 import VARIANTS, foreground_class, open_imagenet9
from shards.errors import UserError
from tests.eval.trees import (
    CHAIR,
    CHIHUAHUA,
    COCK,
    COLOURS,
    desk,
    make_train,
    picture,
    scored,
    synsets,
    xclr_eval,
)
from trainer.augment import decode

BEAGLE = "n02088364"  # a dog that the miniature training set lacks


def make_variant(root: Path, variant: str, *, swapped: bool = False) -> None:
    """Two Chihuahuas, a beagle coloured like a Chihuahua, two cocks; `swapped`: the last cock looks like a chair."""
    folder = root / variant / "val"
    tail = "_bg_n04461696_7" if variant.startswith("mixed") else ""
    for i in range(2):
        picture(folder / "00_dog" / f"fg_{CHIHUAHUA}_{i}{tail}.JPEG", COLOURS[CHIHUAHUA], seed=i)
        colour = COLOURS[CHAIR] if swapped and i else COLOURS[COCK]
        picture(folder / "01_bird" / f"fg_{COCK}_{i}{tail}.JPEG", colour, seed=i)
    picture(folder / "00_dog" / f"fg_{BEAGLE}_9{tail}.JPEG", COLOURS[CHIHUAHUA], seed=9)


def source(benchmarks: Path) -> Source:
    return Source(root=benchmarks / "imagenet9", benchmarks=benchmarks, partial=True)


def test_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the official rule a beagle taken for a Chihuahua is right, by the exact one it is not; a chair is neither."""
    benchmarks = desk(tmp_path, monkeypatch)
    make_train(benchmarks / "imagenet")
    for variant in VARIANTS:
        make_variant(benchmarks / "imagenet9" / "bg_challenge", variant, swapped=variant == "mixed_rand")
    result = scored("imagenet9", "--partial")
    assert set(result["columns"]) == {name for variant in VARIANTS for name in (variant, f"{variant}_exact")}
    figures = {name: column["accuracy"] for name, column in result["columns"].items()}
    assert figures["original"] == figures["mixed_same"] == figures["only_bg_t"] == 100
    assert figures["original_exact"] == 80
    assert figures["mixed_rand"] == 80
    assert figures["mixed_rand_exact"] == 60
    assert result["summaries"]["bg_gap"]["value"] == 20
    assert result["summaries"]["bg_gap_exact"]["value"] == 20
    for name, column in result["columns"].items():
        assert column["n"] == 5
        assert column["expected"] == (None if name.endswith("_exact") else 4_050)
    assert "images of mixed_next: 5 of 4,050" in result["partial"]
    refused = str(xclr_eval("linear-probe", "--bench", "imagenet9").exception)
    assert "images of original: 5 of 4,050" in refused


def test_a_missing_variant_is_named_and_takes_the_gap_with_it(tmp_path: Path) -> None:
    make_train(tmp_path / "imagenet", each=1)
    make_variant(tmp_path / "imagenet9", "mixed_same")
    bench = open_imagenet9(source(tmp_path))
    assert "images of mixed_rand: 0 of 4,050" in bench.partial
    assert [column.name for column in bench.columns] == ["mixed_same", "mixed_same_exact"]
    assert bench.summaries == ()
    with pytest.raises(UserError, match="images of original: 0 of 4,050"):
        open_imagenet9(Source(root=tmp_path / "imagenet9", benchmarks=tmp_path))


def test_the_foreground_is_the_first_id_of_the_folders_class() -> None:
    dog, bird = synsets().index(CHIHUAHUA), synsets().index(COCK)
    assert foreground_class(f"00_dog/fg_{CHIHUAHUA}_1_bg_{BEAGLE}_2.JPEG", 0) == dog
    assert foreground_class(f"01_bird/{CHIHUAHUA}_1_{COCK}_2.JPEG", 1) == bird
    assert foreground_class(f"01_bird/fg_{CHIHUAHUA}_1.JPEG", 1) == LEFT_OUT
    assert foreground_class("00_dog/readme_example.png", 0) == LEFT_OUT


def test_folders_must_be_the_nine(tmp_path: Path) -> None:
    make_train(tmp_path / "imagenet", each=1)
    with pytest.raises(UserError, match=r"there is no \S*imagenet9 \(imagenet9: backgrounds_challenge_data"):
        open_imagenet9(source(tmp_path))
    picture(tmp_path / "imagenet9" / "original" / "val" / "02_wheeled vehicle" / "a.jpg", 1)
    picture(tmp_path / "imagenet9" / "original" / "val" / "06_musical_instrument" / "a.jpg", 1)
    bench = open_imagenet9(source(tmp_path))
    assert [column.name for column in bench.columns] == ["original"]  # no WordNet id in the names
    picture(tmp_path / "imagenet9" / "original" / "val" / "02_dog" / "a.jpg", 1)
    with pytest.raises(UserError, match=r"'02_dog', none of ImageNet-9's .*02_wheeled vehicle"):
        open_imagenet9(source(tmp_path))


def test_genuine_pictures_are_insects(data_root: Path | None, tmp_path: Path) -> None:
    if data_root is None:
        pytest.skip("needs the pictures of the challenge's figure (XCLR_TEST_DATA)")
    make_train(tmp_path / "imagenet", each=1)
    (tmp_path / "imagenet9").symlink_to(data_root / "benchmarks" / "imagenet9" / "figure-crops")
    bench = open_imagenet9(source(tmp_path))
    assert [images.name for images in bench.sets[1:]] == list(VARIANTS)
    for images, column in zip(bench.sets[1:], bench.columns, strict=True):
        assert images.keys == ["05_insect/readme_example.png"]
        assert decode(images.read(0)).shape == (224, 224, 3)
        for wnid, hit in (("n02165456", 1), (CHIHUAHUA, 0), (CHAIR, 0)):  # a ladybird, a dog, none of the nine
            scores = [[float(name == wnid) for name in synsets()]]
            assert column.score(_floats(scores), _ints([0])).tolist() == [hit]


def _floats(rows: list[list[float]]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32)


def _ints(rows: list[int]) -> npt.NDArray[np.int64]:
    return np.array(rows, np.int64)
