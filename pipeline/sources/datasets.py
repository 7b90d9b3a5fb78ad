"""Data set files: pipeline/datasets/NAME.toml, or any TOML file of the user's with the same keys."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pipeline.sources.labels import is_number, label_text
from shards.config import from_table, read_toml
from shards.errors import UserError
from shards.manifest import Split
from shards.pictures import EXTENSIONS

__all__ = ["CAPTIONS", "Dataset", "builtin_datasets", "load_dataset"]

CAPTIONS = ("caption",)
PATTERNS: dict[str, tuple[str, ...]] = {
    "webdataset": ("*.tar", "train/*.tar"),
    "table": ("data/train-*.parquet", "train-*.parquet", "*.csv", "*.tsv", "*.jsonl", "*.json", "*.parquet"),
    "coco": ("annotations/captions_train*.json", "captions_train*.json"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    name: str
    format: Literal["webdataset", "imagefolder", "table", "coco", "demo"]
    """webdataset: tars, as img2dataset writes them. imagefolder: class folders, or a tar of them. table: rows of an
    image's path, or its bytes in parquet, and a caption. coco: its captions file. demo: generated."""
    about: str = ""
    """One line for listings."""
    split: Split = "train"
    held_out: float = 0
    """Share of the samples that a build leaves out, for a test split that is built of the same file with --held-out."""
    source: str = ""
    """Where the data lies when no --source is given; empty: it has to be given."""
    files: tuple[str, ...] = ()
    """Patterns of tars or tables below the source; the first that matches anything counts. Empty: the usual ones."""
    images: tuple[str, ...] = ()
    """table, coco: folders below the source that paths are relative to. Empty: the table's own, the source, images."""
    image: str = ""
    """table: the column of images. Empty: image, path, file_name, ..."""
    captions: tuple[str, ...] = CAPTIONS
    """webdataset: columns of the parquet files beside the tars, or fields of KEY.json; table: columns. Of each sample,
    or row, the first that is not empty; it may hold several captions. Without any, KEY.txt is the caption, and a
    table's text, title, ..."""
    label: str = ""
    """webdataset, table: where the class of a sample stands: a column, a field of KEY.json, or a member's extension
    (cls). Empty: nowhere."""
    classes: tuple[str, ...] = ()
    """Names of labels 0, 1, ... Empty: those that parquet files carry (Hugging Face's ClassLabel), else the labels."""
    caption: str = "a photo of a {class}"
    """imagefolder, and wherever `label` is given and `captions` is []: the text of a class."""
    graph: Literal["encoder", "class", "random", "none"] = "encoder"
    """The graph that a build makes."""
    max_skipped: float = 0.05
    """Share of unusable samples at which a build stops, unless it is told another."""

    def __post_init__(self) -> None:
        if self.name != Path(self.name).name or self.name[:1] in ("", "."):
            raise UserError(f"a data set's name is one plain folder name, not {self.name!r}")
        if not 0 <= self.max_skipped <= 1:
            raise UserError(f"data set {self.name}: max_skipped is a share, 0..1, not {self.max_skipped}")
        if not 0 <= self.held_out < 1:
            raise UserError(f"data set {self.name}: held_out is a share of the samples below 1, not {self.held_out}")
        if self.held_out and (self.split == "test" or self.format == "demo"):
            what = 'split = "test" says that all of these are' if self.split == "test" else "demo has"
            raise UserError(f"data set {self.name}: held_out makes a test split, and {what} one: leave one out")
        if any(not pattern or pattern.startswith("/") for pattern in self.files):
            raise UserError(f"data set {self.name}: files are patterns below SOURCE, such as *.csv, not {self.files}")
        if "{class}" not in self.caption:
            raise UserError(f"data set {self.name}: caption must hold {{class}}, not {self.caption!r}")
        if self.label and self.format not in ("webdataset", "table"):
            own = "categories of coco are not read as labels" if self.format == "coco" else f"{self.format} has its own"
            raise UserError(f"data set {self.name}: label is of webdataset and table; {own}")
        if self.classes and not self.label:
            raise UserError(
                f"data set {self.name}: classes are the names of labels: say where these stand, label = ..."
            )
        if len(self.classes) == 1 or not all(map(label_text, self.classes)):
            raise UserError(f"data set {self.name}: classes name labels 0, 1, ..., two at least")
        numbers = [name for i, name in enumerate(map(label_text, self.classes)) if is_number(name) and name != str(i)]
        if numbers:
            raise UserError(
                f"data set {self.name}: a class called {numbers[0]!r} would be taken for number {numbers[0]}: leave "
                "classes out where labels are such numbers, or call them otherwise"
            )
        if self.label.removeprefix(".").lower() in EXTENSIONS and self.format == "webdataset":
            raise UserError(f"data set {self.name}: label = {self.label!r} is the image")
        if self.format == "table" and not self.captions and not self.label:
            raise UserError(
                f"data set {self.name}: captions = [] makes captions of labels: say where these stand, label = ..."
            )

    @property
    def by_class(self) -> bool:
        """Whether texts are made of the labels that samples have."""
        return bool(self.label) and not self.captions

    @property
    def patterns(self) -> tuple[str, ...]:
        usual = PATTERNS.get(self.format, ())
        if self.split == "test":
            of_test = (
                p.replace("train", part).replace("**", "*") for part in ("test", "val*") for p in usual if "train" in p
            )
            usual = (*of_test, *(p for p in usual if "train" not in p))
        return self.files or usual


def builtin_datasets() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files("pipeline").joinpath("datasets").iterdir())


def load_dataset(name: str) -> Dataset:
    """A built-in data set by name, or a TOML file by path. Raises UserError for unknown names, keys and values."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in builtin_datasets():
            raise UserError(
                f"unknown data set {name!r}: known are {', '.join(builtin_datasets())}; for data of your own write a"
                ' file NAME.toml (format = "webdataset", "imagefolder", "table" or "coco") and give its path'
            )
        path = Path(str(files("pipeline").joinpath(f"datasets/{name}.toml")))
    return from_table(Dataset, {"name": path.stem, **read_toml(path)}, where=f"data set {name}")
