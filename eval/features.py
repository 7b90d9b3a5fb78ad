"""Frozen features: extracted once for each (weights, pictures, transform) and kept on disk under a hash of all three.

FEATURES/HASH/what.json            what was hashed, in words
FEATURES/HASH/part-000000.npy      CHUNK rows of features, float32 or float16
FEATURES/HASH/ok-000000.npy        which of them come from a picture that decoded

Parts land whole, each with its mask first, so a stop loses one part. Features are read through memory maps: a probe
may hold a block of them at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from eval.benchmarks.bench import ImageSet
from eval.models.model import Model, Transform, evaluating, exact, transform_table
from shards.atomic import write_array, write_json
from shards.bars import bar, say
from shards.errors import UserError
from shards.machine import cores, prefetch
from trainer.augment import BadImage, decode

__all__ = [
    "DAMAGED",
    "Features",
    "device",
    "exact",
    "extract",
    "feature_hash",
    "features_root",
    "loader",
    "normalise",
    "placed",
]

# What numpy raises for files that are none, or damaged.
DAMAGED = (
    OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError, RuntimeError, OverflowError, TokenError, BadZipFile
)  # fmt: skip
VERSION = 2  # of the arithmetic below: raise it when features change
CHUNK = 8192  # rows of a part
BATCH = 256
MAX_BAD = 0.01  # share of pictures that may not decode
FEW_BAD = 10  # that may not, however few there are
FEW_SHARE = 0.1  # share that so few may be, at most
HALF_ABOVE = 4 << 30  # bytes of float32 above which features are kept in half precision
LONGEST = 32  # longer sides over shorter ones; of longer pictures only the middle is looked at
IMAGES_PER_WORKER = 1000  # fewer do not repay starting a process


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """[n, dim] features of an ImageSet, in its order."""

    hash: str
    parts: list[npt.NDArray[Any]]
    """Memory maps of CHUNK rows each."""
    ok: npt.NDArray[np.bool_]
    """[n] False where the picture did not decode; its row is zeros."""
    dim: int
    reused: bool
    """All of it was on disk already."""

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Features:
        """Features of an array [n, dim], every row good."""
        parts = [values[start : start + CHUNK] for start in range(0, len(values), CHUNK)]
        return cls(hash="", parts=parts, ok=np.ones(len(values), bool), dim=values.shape[1], reused=True)

    def __len__(self) -> int:
        return len(self.ok)

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """A copy of some rows, in the order given."""
        out = np.empty((len(rows), self.dim), np.float32)
        which, within = np.divmod(rows, CHUNK)
        for part in np.unique(which):
            here = which == part
            out[here] = self.parts[part][within[here]]
        return out

    def blocks(self, size: int = CHUNK) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """(rows, features) of the pictures that decoded, in order."""
        good = np.flatnonzero(self.ok).astype(np.int64)
        for start in range(0, len(good), size):
            yield good[start : start + size], self.rows(good[start : start + size])


def features_root() -> Path:
    """$XCLR_FEATURES, or data/features."""
    return Path(os.environ.get("XCLR_FEATURES") or "data/features")


def feature_hash(model: Model, images: ImageSet) -> str:
    """The name of a set of features: equal for equal weights, pictures and transform."""
    return hashlib.sha256(json.dumps(_what(model, images), sort_keys=True).encode()).hexdigest()[:32]


def extract(model: Model, images: ImageSet, root: Path) -> Features:
    """Features of every picture, from disk as far as they are there.

    Raises UserError where more than a share MAX_BAD of the pictures do not decode, and more than FEW_BAD.
    """
    name = feature_hash(model, images)
    folder = root / name
    starts = range(0, len(images), CHUNK)
    missing = [start for start in starts if not _whole(folder, start, min(CHUNK, len(images) - start))]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{root}: {error.strerror}: choose another place (--features, $XCLR_FEATURES)") from None
        write_json(folder / "what.json", _what(model, images))
        _fill(model, images, folder, missing)
    ok = [np.load(_mask(folder, start)) for start in starts]
    parts = [np.load(_part(folder, start), mmap_mode="r") for start in starts]
    dim = parts[0].shape[1] if parts else model.feature_dim
    mask = np.concatenate(ok) if ok else np.zeros(0, bool)
    if len(mask) - mask.sum() > _most_bad(len(mask)):
        raise UserError(
            f"{images.name}: {len(mask) - mask.sum()} of {len(mask)} pictures do not decode: check the data"
        )
    return Features(hash=name, parts=parts, ok=mask, dim=dim, reused=not missing)


def _most_bad(count: int) -> int:
    return int(max(min(FEW_BAD, FEW_SHARE * count), MAX_BAD * count))


def device() -> torch.device:
    """Where features are extracted, probes are trained and votes are counted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _what(model: Model, images: ImageSet) -> dict[str, object]:
    return {
        "version": VERSION,
        "model": model.name,
        "weights": model.sha256,
        "pictures": images.fingerprint,
        "count": len(images),
        "transform": transform_table(model.transform),
        "prepared": images.prepare is not None,
    }


def placed(model: Model, place: torch.device) -> nn.Module:
    """The network on a device, channels-last: the fast layout of convolutions, on CPUs (oneDNN) and tensor cores."""
    return model.network.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _fill(model: Model, images: ImageSet, folder: Path, missing: list[int]) -> None:
    """Extract the missing parts."""
    place = device()
    network, size = placed(model, place), model.transform.image_size
    limit, bad = _most_bad(len(images)), 0  # of all, wherever the bad ones lie
    rows = [row for start in missing for row in range(start, min(start + CHUNK, len(images)))]
    half = len(images) * model.feature_dim * 4 > HALF_ABOVE
    # CHUNK is a multiple of BATCH, so parts end with a batch.
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    collected: list[npt.NDArray[Any]] = []
    masks: list[npt.NDArray[np.bool_]] = []
    pending = iter(missing)
    # Workers fork here: within the bar, whose thread may hold its lock, one that warns would wait for it for ever.
    crops = iter(loader(_Crops(images, model.transform), batches, images=len(rows), size=BATCH * 3 * size**2))
    with bar(f"features of {images.name}", len(rows)) as advance, torch.inference_mode(), exact(), evaluating(network):
        for pixels, ok, keys in crops:
            bad += len(keys)
            if bad > limit:
                raise UserError(
                    f"{images.name}: more than {limit} of {len(images)} pictures do not decode (the last was "
                    f"{keys[-1]}): check the data"
                )
            values = network(normalise(pixels.to(place), model.transform)).float().cpu().numpy()
            values[~ok] = 0
            if half:
                values = values.astype(np.float16)
            if not np.isfinite(values).all():
                raise UserError(
                    f"{model.name} gives features of {images.name} that are no numbers, or too large to be kept: its "
                    "weights are damaged, or its training diverged"
                )
            collected.append(values)
            masks.append(ok)
            advance(len(ok))
            if sum(map(len, masks)) == CHUNK:
                _land(folder, next(pending), collected, masks)
                collected, masks = [], []
        if masks:
            _land(folder, next(pending), collected, masks)
    if bad:
        say(f"{images.name}: {bad} of {len(rows)} pictures do not decode and are left out")


def normalise(pixels: torch.Tensor, transform: Transform) -> torch.Tensor:
    """[n, size, size, 3] uint8 -> [n, 3, size, size] float32, channels-last in memory."""
    mean = torch.tensor(transform.mean, device=pixels.device) * 255
    std = torch.tensor(transform.std, device=pixels.device) * 255
    return ((pixels.float() - mean) / std).permute(0, 3, 1, 2)


def centre_crop(image: npt.NDArray[np.uint8], transform: Transform) -> npt.NDArray[np.uint8]:
    """Resize the shorter side to image_size / crop_pct, cut the central square: [size, size, 3].

    The longer side and the corner are rounded as torchvision does, so that other loaders show a network these pixels.
    """
    size = transform.image_size
    image = _less_long(image)
    height, width = image.shape[:2]
    side = round(size / transform.crop_pct)
    short = min(height, width)
    scale = side / short
    height, width = side * height // short, side * width // short
    if (height, width) != image.shape[:2]:
        # Area averaging is the antialiased choice when shrinking; it is not defined for enlarging.
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return image[top : top + size, left : left + size]


def _less_long(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The middle of a picture far longer than wide: resized whole, one of 60,000 x 1 pixels would take gigabytes."""
    height, width = image.shape[:2]
    most = LONGEST * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[top : top + most, left : left + most]


class _Crops(Dataset[Any]):
    """A batch of positions -> (pixels [n, size, size, 3] uint8, ok [n], keys of those that did not decode)."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, npt.NDArray[np.bool_], list[str]]:
        size = self.transform.image_size
        pixels = np.zeros((len(rows), size, size, 3), np.uint8)
        ok = np.ones(len(rows), bool)
        for i, row in enumerate(rows):
            try:
                image = decode(self.images.read(row))
                if self.images.prepare is not None:
                    image = self.images.prepare(image)
                pixels[i] = centre_crop(image, self.transform)
            except BadImage:
                ok[i] = False
        return torch.from_numpy(pixels), ok, [self.images.keys[rows[i]] for i in np.flatnonzero(~ok)]


def loader(dataset: Dataset[Any], batches: Iterable[list[Any]], *, images: int, size: int) -> DataLoader[Any]:
    """What the dataset makes of each batch of its keys, by worker processes where there are images enough.

    size: bytes of the largest batch. Raises UserError where those that are under way do not fit the shared memory.
    """
    workers = min(cores(), images // IMAGES_PER_WORKER)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_single_thread,
        prefetch_factor=prefetch(size, workers, "take fewer cores (taskset)") if workers else None,
        multiprocessing_context="fork" if workers else None,
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _single_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # one thread a worker: more would fight the other workers and the model
    torch.set_num_threads(1)


def _land(folder: Path, start: int, collected: list[npt.NDArray[Any]], masks: list[npt.NDArray[np.bool_]]) -> None:
    """The mask before the part: a part on disk has its mask."""
    for path, array in (
        (_mask(folder, start), np.concatenate(masks)),
        (_part(folder, start), np.concatenate(collected)),
    ):
        write_array(path, array)


def _whole(folder: Path, start: int, count: int) -> bool:
    """Whether a part of `count` rows is there; a damaged one is made again."""
    if not _part(folder, start).exists():
        return False
    try:
        part, mask = (np.load(path(folder, start), mmap_mode="r") for path in (_part, _mask))
        whole = bool(len(part) == len(mask) == count and part.ndim == 2 and part.shape[1] > 0 and mask.dtype == bool)
        whole = whole and part.dtype in (np.float16, np.float32) and bool(part.flags.c_contiguous)
    except DAMAGED:
        whole = False
    if not whole:
        say(f"{_part(folder, start)} is damaged: these features are extracted again")
    return whole


def _part(folder: Path, start: int) -> Path:
    return folder / f"part-{start // CHUNK:06d}.npy"


def _mask(folder: Path, start: int) -> Path:
    return folder / f"ok-{start // CHUNK:06d}.npy"
