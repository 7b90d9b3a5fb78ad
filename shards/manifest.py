"""manifest.json: what a folder of shards holds. Written last; readers trust nothing that it does not name."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from shards.errors import UserError
from shards.sealed import CHECKSUM, write_sealed

__all__ = ["FORMAT", "FileEntry", "Layout", "Manifest", "ShardEntry", "Split"]

FORMAT = 1
NAME = "manifest.json"
Layout = Literal["in-place", "shuffled", "packed"]
Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    name: str
    """`train-000000`; its index is index/NAME.parquet."""
    samples: int
    tar: str
    """Relative to the folder of shards; absolute where the tar lies elsewhere (layout in-place)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    dataset: str
    split: Split
    source: str
    """Where the samples came from, as the user gave it."""
    layout: Layout
    seed: int
    samples: int
    texts: int
    classes: tuple[str, ...] = ()
    """Class of label 0, 1, ...; empty without labels."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> samples left out for it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else decided the bytes: shard size, image size, caps."""
    shards: tuple[ShardEntry, ...]
    files: dict[str, FileEntry]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UserError(f"manifest: layout {self.layout!r} is none of {', '.join(get_args(Layout))}")
        if self.split not in get_args(Split):
            raise UserError(f"manifest: split {self.split!r} is none of {', '.join(get_args(Split))}")
        if self.samples != sum(shard.samples for shard in self.shards):
            raise UserError(
                f"manifest: {self.samples} samples, but its shards hold {sum(s.samples for s in self.shards)}"
            )

    @classmethod
    def load(cls, root: Path) -> Manifest:
        """Raises UserError for a folder without a manifest, a damaged one, or one of another format."""
        path = root / NAME
        if not root.is_dir():
            built = Path("data") / root.name
            hint = f"did you mean {built}? Or " if (built / NAME).is_file() and root.name else ""
            raise UserError(
                f"{root} is not a folder of shards: {hint}build it with `xclr-shards build DATASET --out {root}`"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict) or "format" not in data:
                raise ValueError("it names no format")
            version = data.pop("format")
        except FileNotFoundError:
            below = sorted(found.parent.name for found in root.glob(f"*/{NAME}"))
            if below:
                raise UserError(f"{root} holds folders of shards ({', '.join(below[:4])}): give one of them") from None
            raise UserError(
                f"{root} has no {NAME}, so its shards are unfinished, or none: run the command that builds them again "
                "(of images with captions or class folders, `xclr-shards build` makes shards)"
            ) from None
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): build the shards again") from None
        if version != FORMAT:
            raise UserError(
                f"{path} is of format {version}; this version reads format {FORMAT}: build the shards again"
            )
        try:
            data.pop(CHECKSUM, None)  # `xclr-shards verify` looks at it
            unknown = set(data) - {f.name for f in fields(cls)}
            if unknown:
                raise TypeError(f"unknown fields {sorted(unknown)}")
            data["classes"] = tuple(data.get("classes", ()))
            data["shards"] = tuple(ShardEntry(**shard) for shard in data["shards"])
            data["files"] = {name: FileEntry(**entry) for name, entry in data["files"].items()}
            return cls(**data)
        except KeyError as error:
            raise UserError(f"{path} is damaged (no {error}): build the shards again") from None
        except (TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): build the shards again") from None

    def save(self, root: Path) -> None:
        write_sealed(root / NAME, asdict(self))
