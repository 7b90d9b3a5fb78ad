"""Whether a step fits the memory there is, and what to do where it does not.

A GPU says so itself. A system that runs out of memory kills the process without a word, so on a CPU the step is
weighed before it is made.
"""

from __future__ import annotations

import torch

from shards.errors import UserError
from shards.machine import free_memory
from trainer.model import Encoder
from trainer.recipe import Recipe
from trainer.world import World

__all__ = ["check_fits", "kept_by_forward", "too_large"]

SHARE = 0.8  # of the free memory: besides what the gradients need, there are weights, batches and the loader


def too_large(recipe: Recipe, ranks: int, reason: str) -> str:
    """What to do where a GPU's memory is not enough. A run that is gone on with keeps its batch."""
    held = _held(recipe, ranks)
    chunk = next((held // part for part in (2, 3, 5, 7) if held % part == 0), 0)
    return (
        f"{held} samples at a time do not fit a GPU ({reason}): {_remedy(chunk)}more GPUs, or a new run a smaller "
        "--batch-size"
    )


def check_fits(encoder: Encoder, recipe: Recipe, world: World) -> None:
    """Raises UserError where the ranks of this machine cannot hold what a step keeps for its gradients."""
    if world.device.type != "cpu":
        return
    held = _held(recipe, world.size)
    image = kept_by_forward(encoder, recipe.augment.image_size, bfloat16=recipe.precision == "bfloat16")
    sample, free = 2 * image * world.local_size, free_memory()  # of a sample, two views
    if held * sample <= free:
        return
    fitting = [part for part in range(1, held) if held % part == 0 and part * sample <= SHARE * free]
    raise UserError(
        f"a step of {held} samples at {recipe.augment.image_size} pixels keeps some {held * sample / 2**30:.0f} GiB "
        f"for its gradients, of {free / 2**30:.0f} GiB that are free: {_remedy(max(fitting, default=0))}"
        "a GPU, a smaller --model or --image-size, or a new run a smaller --batch-size"
    )


def _held(recipe: Recipe, ranks: int) -> int:
    return recipe.data.chunk or recipe.data.batch_size // ranks


def _remedy(chunk: int) -> str:
    return f"give --chunk {chunk}, which forwards so many of its samples at a time, " if chunk else "give "


def kept_by_forward(encoder: Encoder, size: int, *, bfloat16: bool = False) -> int:
    """Bytes that a forward pass keeps for the backward pass, for each image of `size` pixels; weights left out.

    Measured on a few images, on the CPU that the encoder lies on; neither its statistics nor the random state moves.
    """
    few, more = (_kept(encoder, count, size, bfloat16=bfloat16) for count in (2, 4))
    return max(0, more - few) // 2  # what does not grow with the images, such as weights in bfloat16, falls out


def _kept(encoder: Encoder, count: int, size: int, *, bfloat16: bool) -> int:
    before = [buffer.clone() for buffer in encoder.buffers()]
    kept: dict[int, int] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        images = torch.zeros(count, 3, size, size).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            z = encoder.projector(encoder.backbone(images))
    total = sum(kept.values())
    del z  # until here it held what was counted, so that no two of them had one address
    with torch.no_grad():
        for buffer, value in zip(encoder.buffers(), before, strict=True):
            if not torch.equal(buffer, value):  # what lies over itself (expand) could not be written
                buffer.copy_(value)
    return total
