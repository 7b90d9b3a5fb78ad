"""What decides the bytes of a build, how a folder records it, and what of it may change."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from pipeline.encode.encoder import CONFIG
from pipeline.layout import group_shards
from pipeline.packing import Packing
from pipeline.scan.samples import Limits
from pipeline.sources.source import Source
from shards.errors import UserError
from shards.manifest import Layout, Split

__all__ = [
    "CAPTIONS",
    "CLASSES",
    "FILES",
    "BuildSettings",
    "deciding",
    "forgiven",
    "most_skipped",
    "recorded",
    "share_of",
    "split_of",
]

FILES, CAPTIONS, CLASSES = "files_sha256", "captions_sha256", "classes_sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """What decides the bytes of a build, besides the source."""

    layout: Layout = "shuffled"
    seed: int = 0
    """Of the order of samples, and of generated data."""
    shard_size: int = 4096
    """Samples a shard at most; in-place keeps the tars as they are."""
    image_size: int | None = None
    """Shrink images to this shorter side; None copies their bytes as they are."""
    max_skipped: float | None = None
    """Share of unusable samples at which a build stops; None: the data set's."""
    limits: Limits = field(default_factory=Limits)
    held_out: bool = False
    """Build the samples that the data set's `held_out` leaves out of the others' build, as split test."""
    packing: Packing | None = None
    """Of layout packed alone."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise UserError(f"layout is one of {', '.join(get_args(Layout))}, not {self.layout!r}")
        assert (self.packing is not None) == (self.layout == "packed")
        if self.shard_size < 1:
            raise UserError(f"a shard holds at least 1 sample, not {self.shard_size}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"the seed must lie in 0..2**63 - 1, not {self.seed}")
        if self.max_skipped is not None and not 0 <= self.max_skipped <= 1:
            raise UserError(f"--max-skipped is a share of the samples, 0..1, not {self.max_skipped}")
        if self.image_size is not None and self.image_size < 8:
            raise UserError(f"images of at least 8 pixels, not {self.image_size}")
        if self.layout == "in-place" and self.image_size is not None:
            raise UserError("layout in-place leaves the tars as they are: leave --image-size out, or use shuffled")
        if self.packing is not None:
            group_shards(1, self.packing.group_size, self.shard_size)


def split_of(source: Source, settings: BuildSettings) -> Split:
    """What a build is used for."""
    return "test" if settings.held_out else source.dataset.split


def share_of(source: Source, settings: BuildSettings) -> float:
    """About how much of the source's samples a build holds."""
    return source.dataset.held_out if settings.held_out else 1 - source.dataset.held_out


def most_skipped(source: Source, settings: BuildSettings) -> float:
    """Share of unusable samples at which a build stops."""
    return source.dataset.max_skipped if settings.max_skipped is None else settings.max_skipped


def recorded(source: Source, settings: BuildSettings) -> dict[str, Any]:
    """What a manifest, or a begun folder, says that it was made of. Raises UserError where nothing is held out."""
    if settings.held_out and not source.dataset.held_out:
        raise UserError(
            f"data set {source.dataset.name} holds no samples out: write `held_out = 0.1` (a share) into its file, "
            "build it anew without --held-out, and then with it"
        )
    captions, classes = source.captions_fingerprint(), source.classes_fingerprint()
    table = asdict(settings) | {"packing": settings.packing.settings() if settings.packing else {}}
    return {
        "dataset": deciding(asdict(source.dataset)),
        FILES: source.fingerprint(),
        **({CAPTIONS: captions} if captions else {}),
        **({CLASSES: classes} if classes else {}),
        **table.pop("limits"),
        **table.pop("packing"),
        **({"held_out": True} if table.pop("held_out") else {}),  # unknown to older builds
        **table,
        "max_skipped": most_skipped(source, settings),
        "wnids": [name.folder for name in source.classes] if source.dataset.format == "imagefolder" else [],
    }


def deciding(dataset: dict[str, Any]) -> dict[str, Any]:
    """What of a data set's file decides the bytes: another description, graph or budget is no other build."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in dataset.items()
        if key not in ("about", "graph", "max_skipped")
        and not (key in ("label", "classes", "held_out") and not value)  # unknown to older builds
    }


def forgiven(found: dict[str, Any], wanted: dict[str, Any]) -> set[str]:
    """What may change without another result: the budget, and taking torn tars, which a stop for them advises. And what
    was not kept yet when the folder was made, or is known when labels are."""
    torn = {"use_torn"} if wanted["use_torn"] and not found.get("use_torn") else set()
    later = {"wnids"} if wanted["dataset"].get("label") else set()
    return {"max_skipped"} | torn | later | ({CONFIG, CLASSES} - found.keys())
