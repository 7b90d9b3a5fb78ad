"""Data set files: pipeline/datasets/NAME.toml, or any TOML file of the user's with the same keys."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from shards.config import from_table, read_toml
from shards.errors import UserError
from shards.manifest import Split

__all__ = ["Dataset", "builtin_datasets", "load_dataset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    name: str
    format: Literal["webdataset", "imagefolder", "demo"]
    """webdataset: tars, as img2dataset writes them. imagefolder: class folders, or a tar of them. demo: generated."""
    about: str = ""
    """One line for listings."""
    split: Split = "train"
    source: str = ""
    """Where the data lies when no --source is given; empty: it has to be given."""
    files: tuple[str, ...] = ("*.tar", "train/*.tar")
    """webdataset: patterns below the source; the first that matches anything counts."""
    captions: tuple[str, ...] = ("caption",)
    """webdataset: columns of the parquet files beside the tars, or fields of KEY.json; the first that a sample has.
    A field may hold several captions. Without any, KEY.txt is the caption."""
    caption: str = "a photo of a {class}"
    """imagefolder: the text of a class."""
    graph: Literal["encoder", "class", "random", "none"] = "encoder"
    """The graph that a build makes."""

    def __post_init__(self) -> None:
        if "{class}" not in self.caption:
            raise UserError(f"data set {self.name}: caption must hold {{class}}, not {self.caption!r}")


def builtin_datasets() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files("pipeline").joinpath("datasets").iterdir())


def load_dataset(name: str) -> Dataset:
    """A built-in data set by name, or a TOML file by path. Raises UserError for unknown names, keys and values."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in builtin_datasets():
            raise UserError(
                f"unknown data set {name!r}: known are {', '.join(builtin_datasets())}; for data of your own write a"
                ' file NAME.toml (format = "webdataset" or "imagefolder") and give its path'
            )
        path = Path(str(files("pipeline").joinpath(f"datasets/{name}.toml")))
    return from_table(Dataset, {"name": path.stem, **read_toml(path)}, where=f"data set {name}")
