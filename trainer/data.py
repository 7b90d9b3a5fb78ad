"""Shards -> batches of two augmented views, through PyTorch's own DataLoader.

The index gives random access (offset, size) into the tars, the plan says which samples form a batch, and a worker
returns a whole batch as one uint8 tensor: no per-sample collation, a quarter of the bytes of float32 through the
worker's queue, and channels-last for free.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from shards.errors import UserError
from shards.machine import free_shared_memory, prefetch
from shards.reader import Shards
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, BadImage, decode, sample_rng, two_views
from trainer.collectives import reduced
from trainer.plan import BatchPlan, StepSampler, Ticket
from trainer.recipe import Statistics
from trainer.world import World

__all__ = ["IMAGENET", "Batch", "ViewDataset", "batches_of", "make_loader", "to_views"]

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
BLANK = 128  # grey level of the picture that stands in for an image that does not decode


@dataclass(slots=True)
class Batch:
    """This rank's b samples of one step. Not frozen: Lightning, which sends batches to its device, refuses such."""

    views: torch.Tensor
    """[b, 2, height, width, 3] uint8."""
    samples: torch.Tensor
    """[b] int64, position in the index."""
    texts: torch.Tensor
    """[b] int64 text ids."""
    labels: torch.Tensor
    """[b] int64, -1 without."""
    bad: tuple[int, ...] = ()
    """Samples whose image did not decode; grey pictures stand in, so that every rank keeps its batch size."""

    def pin_memory(self) -> Batch:
        views, samples, texts, labels = (x.pin_memory() for x in (self.views, self.samples, self.texts, self.labels))
        return Batch(views, samples, texts, labels, self.bad)


class ViewDataset(Dataset["Batch | UserError"]):
    """Batches by tickets; a ticket names the epoch too, since augmentation depends on it.

    What the user can mend is handed on as it is: raised here, DataLoader would wrap it in the worker's traceback.
    """

    def __init__(self, shards: Shards, augment: AugmentConfig, seed: int) -> None:
        self.shards, self.augment, self.seed = shards, augment, seed
        index = shards.index  # read before workers fork, so that they share its memory
        self.texts = index.text_id
        self.labels = index.label

    def __getitems__(self, tickets: list[Ticket]) -> Batch | UserError:
        try:
            return self.batch(tickets)
        except UserError as error:
            return error

    def batch(self, tickets: list[Ticket]) -> Batch:
        """Raises UserError for a tar that is missing or torn, or cannot be fetched."""
        size = self.augment.image_size
        samples = np.array([sample for _, sample in tickets], np.int64)
        views = np.empty((len(tickets), 2, size, size, 3), np.uint8)
        bad = []
        for row in np.argsort(samples, kind="stable"):  # in file order: near-sequential reads
            epoch, sample = tickets[row]
            try:
                image = decode(self.shards.image(sample))
                views[row] = two_views(image, self.augment, sample_rng(self.seed, epoch, sample))
            except BadImage:
                views[row] = BLANK
                bad.append(int(sample))
        return Batch(
            torch.from_numpy(views),
            torch.from_numpy(samples),
            torch.from_numpy(self.texts[samples]),
            torch.from_numpy(self.labels[samples].astype(np.int64)),
            tuple(bad),
        )


def batches_of(loader: Iterable[Batch | UserError], device: torch.device | str | None = None) -> Iterator[Batch]:
    """Workers start with this call. Raises what they met.

    device: a GPU's batches come with their views on it, copied while the step before is still at work. None, as for
    batches that are forwarded in pieces: a step copies what it needs.
    """
    batches = map(_checked, _handed_over(iter(loader)))
    place = None if device is None else torch.device(device)
    return _sent_ahead(batches, place) if place is not None and place.type == "cuda" else batches


def _sent_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """On the step's own stream a copy would queue behind the backward pass: 300 MB, 1,024 samples of 224 pixels."""
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(beside):
            views = batch.views.to(device, non_blocking=True)
        steps = torch.cuda.current_stream(device)
        steps.wait_stream(beside)
        views.record_stream(steps)  # freed by us, its memory is not used again before the step is done
        yield replace(batch, views=views)


def _handed_over(batches: Iterator[Batch | UserError]) -> Iterator[Batch | UserError]:
    """A worker that is killed while it hands a batch over leaves a broken connection, of which PyTorch makes its own
    error only where it finds the worker gone by then."""
    while True:
        try:
            yield next(batches)  # held by nobody here while a step is at work
        except StopIteration:
            return
        except (ConnectionError, EOFError) as error:
            if "in DataLoader worker process" in str(error):  # met by a worker in its work
                raise
            raise RuntimeError("a DataLoader worker ended while it handed a batch over") from error


def _checked(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch


def make_loader(
    shards: Shards,
    plan: BatchPlan,
    augment: AugmentConfig,
    world: World,
    *,
    start: int,
    stop: int,
    workers: int,
    most_ahead: int = 4,
) -> DataLoader[Batch | UserError]:
    """Batches start, start + 1, ..., stop - 1 of the plan, this rank's share of each.

    most_ahead: batches that each worker may have ready.
    Raises UserError where the workers' batches do not fit the shared memory through which they come; ValueError for a
    plan of other shards.
    """
    if list(plan.shard_sizes) != [shard.samples for shard in shards.manifest.shards]:
        raise ValueError(
            "the plan is of other shards: its shard_sizes are [shard.samples for shard in shards.manifest.shards]"
        )
    if workers < 0:
        raise ValueError(f"workers is a number of processes, 0 for none, not {workers}")
    size = plan.batch_size // world.size * 2 * 3 * augment.image_size**2
    free = _free(world)  # asked on every rank, whether it has workers or not: they answer together
    ahead = prefetch(size, workers, "lower --workers", free=free, ranks=world.local_size) if workers else 0
    return DataLoader(
        ViewDataset(shards, augment, plan.seed),
        batch_sampler=StepSampler(plan, rank=world.rank, size=world.size, start=start, stop=stop),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_prepare_worker,
        pin_memory=world.device.type == "cuda",
        prefetch_factor=min(most_ahead, ahead) or None,
        multiprocessing_context="fork" if workers else None,
    )


def _free(world: World) -> int:
    """Shared memory before any rank's workers have taken theirs: none goes on before all have looked."""
    free = free_shared_memory()
    return reduced(free, world, dist.ReduceOp.MIN) if dist.is_initialized() else free


def to_views(batch: Batch, device: torch.device, statistics: Statistics = IMAGENET) -> torch.Tensor:
    """[2b, 3, height, width] float32 normalised, channels-last in memory; the first b rows are the first views.

    statistics: mean and deviation of each channel, of pixels in 0..1.
    """
    views = batch.views.to(device, non_blocking=True).transpose(0, 1).flatten(0, 1)  # [2b, H, W, 3]
    mean, std = _constants(device, statistics)
    return ((views.float() - mean) / std).permute(0, 3, 1, 2)


@cache
def _constants(device: torch.device, statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation in grey levels. Kept: copied anew, they would have each step wait for the last."""
    with torch.inference_mode(False):
        mean, std = (255 * torch.tensor(values) for values in statistics)
        return mean.to(device), std.to(device)


def _as_it_is(batch: Any) -> Any:
    return batch


def _prepare_worker(worker: int) -> None:
    # A signal to the whole group (Ctrl-C, `timeout`, a scheduler) is the main process's business, which needs its
    # workers until the step is done; workers end with their parent.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_on_parents_word, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)  # one thread a worker: more would fight the other workers and the model
    torch.set_num_threads(1)


def _end_on_parents_word(parent: int) -> None:
    """SIGTERM from the parent, which then waits for this process, ends it; anyone else's is not for a worker."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
