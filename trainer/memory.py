"""Whether a step fits the memory there is, and what to do where it does not.

A GPU says so itself. A system that runs out of memory kills the process without a word, so on a CPU the step is
weighed before it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch

from shards.errors import UserError, first_line
from shards.machine import free_memory
from trainer.model import Encoder
from trainer.recipe import Recipe
from trainer.world import World

__all__ = ["check_fits", "kept_by_forward", "room_for_weights", "too_large"]

SHARE = 0.8  # of the free memory: a backward pass takes some for itself, as do batches and the loader
TRAINED = 3  # tensors of a weight's size that come with the first step: its gradient, and AdamW's two averages


def too_large(recipe: Recipe, ranks: int, reason: str) -> str:
    """What to do where a GPU's memory is not enough. A run that is gone on with keeps its batch."""
    held = _held(recipe, ranks)
    chunk = next((held // part for part in (2, 3, 5, 7) if held % part == 0), 0)
    return (
        f"{held} samples at a time do not fit a GPU ({reason}): {_remedy(chunk)}more GPUs, or a new run a smaller "
        "--batch-size"
    )


@contextmanager
def room_for_weights() -> Iterator[None]:
    """Raises UserError where the memory that the weights are to lie in is refused."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "allocate" not in str(error):
            raise
        reason = first_line(error).rpartition("Allocator: ")[2]
        raise UserError(
            f"the weights do not fit the memory ({reason}): take a smaller --model, or smaller sizes in the recipe's "
            "[model] and [text]"
        ) from None


def check_fits(encoder: Encoder, recipe: Recipe, world: World) -> None:
    """Raises UserError where the ranks of this machine cannot hold what a step keeps for its gradients.

    What cannot be weighed, a network of the user's own perhaps, is let pass.
    """
    if world.device.type != "cpu":
        return
    held, size, length = _held(recipe, world.size), recipe.augment.image_size, recipe.text.length
    try:
        sample = world.local_size * kept_by_forward(encoder, size, length, bfloat16=recipe.precision == "bfloat16")
    except Exception:  # whatever its code raises: if it matters, training will meet it too
        return
    weights = sum(p.numel() * p.element_size() for p in encoder.parameters() if p.requires_grad)
    free = free_memory()
    room = max(0.0, SHARE * free - TRAINED * world.local_size * weights)
    if held * sample <= room:
        return
    fitting = [part for part in range(1, held) if held % part == 0 and part * sample <= room]
    raise UserError(
        f"a step of {held} samples at {size} pixels keeps some {_gib(held * sample)} for its gradients, and "
        f"{_gib(free)} are free: {_remedy(max(fitting, default=0))}a GPU, a smaller --model or --image-size, or a new "
        "run a smaller --batch-size"
    )


def _held(recipe: Recipe, ranks: int) -> int:
    return recipe.data.chunk or recipe.data.batch_size // ranks


def _gib(size: float) -> str:
    return f"{size / 2**30:.{0 if size >= 10 * 2**30 else 2}f} GiB"


def _remedy(chunk: int) -> str:
    return f"give --chunk {chunk}, which forwards so many of its samples at a time, " if chunk else "give "


def kept_by_forward(encoder: Encoder, size: int, length: int = 0, *, bfloat16: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, for each sample: two views of `size` pixels, and with a
    text tower a caption of `length` tokens; weights left out.

    Measured on a copy of the encoder, on the CPU; PyTorch's random state stays as it is.
    """
    copy = deepcopy(encoder)

    def images(count: int) -> torch.Tensor:
        views = torch.zeros(2 * count, 3, size, size).to(memory_format=torch.channels_last)
        return copy.projector(copy.backbone(views))  # type: ignore[no-any-return]

    def captions(count: int) -> torch.Tensor:
        assert copy.text is not None
        return copy.text(torch.zeros(count, length, dtype=torch.long))  # type: ignore[no-any-return]

    passes = [images] if copy.text is None else [images, captions]
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return sum(max(0, _kept(forward, 2) - _kept(forward, 1)) for forward in passes)


def _kept(forward: Callable[[int], torch.Tensor], count: int) -> int:
    """What does not grow with `count`, such as weights in bfloat16, is in it as well."""
    kept: dict[int, torch.UntypedStorage] = {}  # which keeps addresses apart

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.layout is torch.strided:
            storage = x.untyped_storage()
            kept[storage.data_ptr()] = storage
        return x.detach()  # x itself would hold the graph that holds it, for ever

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        forward(count)
    return sum(storage.nbytes() for storage in kept.values())
