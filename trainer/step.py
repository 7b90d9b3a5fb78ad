"""One optimisation step: batch -> projections -> loss -> gradients -> weights.

With `data.chunk` a rank forwards its share of the batch in pieces (GradCache, Gao et al. 2021): first without a graph,
to have all projections; then the loss and its gradient with respect to them; then piece by piece again, with a graph,
handing that gradient on. Memory is that of a piece, the loss that of the whole batch, the price one more forward pass.
Without batch statistics the gradients are those of the whole batch to rounding; BatchNorm sees the statistics of one
piece at a time, so a piece should not be small (64 samples, 128 views, or more).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct, convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shards.errors import UserError
from trainer.block import SimilarityBlock
from trainer.clip import clip_loss
from trainer.collectives import gather
from trainer.data import Batch, to_views
from trainer.loss import contrastive_loss
from trainer.model import Encoder
from trainer.optim import learning_rate, make_optimiser
from trainer.recipe import Recipe
from trainer.table import TextTable
from trainer.text import Captions, TextTower
from trainer.world import World

__all__ = ["Outcome", "Stepper", "synchronised"]

CONVERTED = tuple(
    kind.forward for kind in (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)
)

Output = tuple[torch.Tensor, torch.Tensor | None]  # projections [2b, dim]; of captions [b, dim], objective clip only


class Outcome:
    """What a step leaves to look at."""

    def __init__(self, loss: torch.Tensor, z: torch.Tensor, block: SimilarityBlock | None) -> None:
        self.loss, self.z, self.block = loss, z, block

    def statistics(self) -> dict[str, float]:
        """The block's, and the mean cosine of different samples' projections; costs a sweep, for logging only."""
        one, two = nn.functional.normalize(self.z.float(), dim=1).chunk(2)  # a sample's views
        n = 2 * len(one)
        same = n + 2 * float((one * two).sum())
        cosine = {"mean_cosine": (float((one + two).sum(0).square().sum()) - same) / (n * (n - 2))} if n > 2 else {}
        return {**cosine, **(self.block.statistics() if self.block else {})}


class Stepper:
    """Encoder, optimiser, and what the loss looks up; `step` is the same on one and on many ranks."""

    def __init__(
        self,
        recipe: Recipe,
        encoder: Encoder,
        world: World,
        *,
        steps_per_epoch: int,
        table: TextTable | None,
        captions: Captions | None,
    ) -> None:
        self.recipe, self.world, self.steps_per_epoch = recipe, world, steps_per_epoch
        self.table, self.captions = table, captions
        encoder.to(world.device).to(memory_format=torch.channels_last)
        if world.size > 1 and world.device.type == "cuda":
            encoder = synchronised(encoder)
        _start_as_one(encoder, recipe.model.backbone, world)
        self.encoder = encoder
        self.optimiser = make_optimiser(encoder, recipe.optimiser)
        self.parallel = self._parallel()
        model: nn.Module = self.parallel or encoder
        # Compiled around DDP, not within it: then PyTorch cuts the graph where gradients are exchanged.
        self.model = cast(nn.Module, torch.compile(model)) if recipe.compile else model
        self.bfloat16 = recipe.precision == "bfloat16"
        share = recipe.data.batch_size // world.size
        self.chunk = recipe.data.chunk or share
        if self.chunk < 1 or share % self.chunk:
            raise UserError(f"data.chunk {self.chunk} does not divide the {share} samples of a rank: choose another")

    def _parallel(self) -> DistributedDataParallel | None:
        """What exchanges gradients while the backward pass goes on; None where resumed runs must end in the same bits.

        After the first step of a process DDP puts gradients into other buckets, and where one lies in its bucket
        decides the order in which three ranks or more add it up: a resumed run would differ in the last digits.
        """
        device = self.world.device
        if self.world.size == 1 or device.type == "cpu" or self.recipe.deterministic:
            return None
        return DistributedDataParallel(self.encoder, device_ids=[device.index])

    def _exchange(self) -> None:
        """All gradients at once, in the order of the parameters: means over the ranks.

        A parameter that some ranks' samples did not reach counts as 0 there; one that none reached stays without.
        """
        parameters = [p for p in self.encoder.parameters() if p.requires_grad]
        reached = parameters[0].new_tensor([p.grad is not None for p in parameters])
        gradients = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]
        flat = torch.cat([*gradients, reached]).div_(self.world.size)
        dist.all_reduce(flat)
        *parts, reached = torch.split(flat, [*(p.numel() for p in parameters), len(parameters)])
        for parameter, part, any_rank in zip(parameters, parts, reached.tolist(), strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(part.view_as(parameter))
            elif any_rank:
                parameter.grad = part.view_as(parameter).clone()

    def _check_reached(self) -> None:
        """DDP waits for every gradient, in vain for those that do not come, and says so a step later."""
        lost = [name for name, p in self.encoder.named_parameters() if p.requires_grad and p.grad is None]
        if lost:
            some = ", ".join(lost[:3])
            raise UserError(
                f"{len(lost)} parameters of {self.recipe.model.backbone} have no gradient ({some}): where they are not "
                "to be trained, set requires_grad = False; on several GPUs every step must reach the others"
            )

    def step(self, batch: Batch, step: int, total: int) -> Outcome:
        """Step number `step` of `total`; every rank calls it with its share of the batch."""
        self._set_rate(step, total)
        self.optimiser.zero_grad(set_to_none=True)
        if self.chunk == len(batch.samples):
            self._seed(step, 0)
            z, text = self._forward(batch, step)
            loss, block = self._loss(z, text, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            loss, z, block = self._cached(batch, step)
        if self.world.size > 1 and self.parallel is None:
            self._exchange()
        elif self.parallel:
            self._check_reached()
        self.optimiser.step()
        if isinstance(self.encoder.text, TextTower):
            self.encoder.text.bound()
        return Outcome(loss.detach(), z.detach(), block)

    def _cached(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor, SimilarityBlock | None]:
        pieces = list(_pieces(batch, self.chunk))
        with torch.no_grad(), _buffers_held(self.encoder):
            outputs = [self._piece(piece, step, number) for number, piece in enumerate(pieces)]
        views = [z.chunk(2) for z, _ in outputs]
        z = torch.cat([view[0] for view in views] + [view[1] for view in views]).requires_grad_()
        text = torch.cat([t for _, t in outputs if t is not None]).requires_grad_() if self.captions else None
        loss, block = self._loss(z, text, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        first, second = (torch.split(part, self.chunk) for part in z.grad.chunk(2))
        captions = torch.split(text.grad, self.chunk) if text is not None and text.grad is not None else ()
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1  # ranks exchange gradients once, with the last piece
            quiet = self.parallel.no_sync() if self.parallel and not last else None
            with quiet or nullcontext():
                again, words = self._piece(piece, step, number)
                gradient = torch.cat([first[number], second[number]])
                if words is None:
                    torch.autograd.backward(again, gradient)
                else:
                    torch.autograd.backward([again, words], [gradient, captions[number]])
        return loss, z, block

    def _piece(self, piece: Batch, step: int, number: int) -> Output:
        self._seed(step, number)  # both passes drop the same units
        return self._forward(piece, step)

    def _forward(self, batch: Batch, step: int) -> Output:
        device, tokens = self.world.device, None
        if self.captions:
            tokens = self.captions.tokens(batch.texts, batch.samples, step // self.steps_per_epoch)
            tokens = tokens.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bfloat16):
            return cast(Output, self.model(to_views(batch, device, self.recipe.model.statistics), tokens))

    def _loss(
        self, z: torch.Tensor, text: torch.Tensor | None, batch: Batch
    ) -> tuple[torch.Tensor, SimilarityBlock | None]:
        objective, world, device = self.recipe.objective, self.world, self.world.device
        if objective.name == "clip":
            assert text is not None
            return clip_loss(z, text, world), None
        if self.table is not None:
            block = SimilarityBlock.of_texts(batch.texts, self.table, tau_s=objective.tau_s, world=world)
        elif objective.name == "simclr":
            block = SimilarityBlock.of_samples(len(batch.samples), device, world=world)
        else:
            labels, samples = (x.to(device, non_blocking=True) for x in (batch.labels, batch.samples))
            keys = torch.where(labels < 0, -1 - samples, labels)  # without a label: a key of its own, as in SimCLR
            block = SimilarityBlock.of_keys(keys, world=world)
        return contrastive_loss(z, block, tau=objective.tau, implementation=objective.implementation), block

    def _set_rate(self, step: int, total: int) -> None:
        optimiser = self.recipe.optimiser
        rate = learning_rate(
            step,
            peak=optimiser.peak_lr(self.recipe.data.batch_size),
            warmup=round(optimiser.warmup_epochs * self.steps_per_epoch),
            total=total,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _seed(self, step: int, number: int) -> None:
        """Of dropout and stochastic depth: a function of (seed, step, piece, rank)."""
        # Mixed, since a CPU's generator heeds the lowest 32 bits alone.
        entropy = [self.recipe.seed, step, number, self.world.rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


@torch.no_grad()
def _start_as_one(encoder: Encoder, name: str, world: World) -> None:
    """Rank 0's weights for all: a network of the user's own may draw them from anywhere.

    Raises UserError where the ranks have built networks of other shapes.
    """
    if world.size == 1:
        return
    tensors = [*encoder.parameters(), *encoder.buffers()]
    shapes = hashlib.sha256(str([(tuple(x.shape), x.dtype) for x in tensors]).encode()).digest()
    mine = torch.tensor(int.from_bytes(shapes[:7], "big"), device=world.device)
    if len(set(gather(mine[None], world).tolist())) > 1:
        raise UserError(f"{name} builds networks of other shapes on other ranks: it must be the same everywhere")
    for x in tensors:
        if x.layout is not torch.strided:
            continue
        sent = x.clone(memory_format=torch.contiguous_format)
        dist.broadcast(sent.reshape(-1).view(torch.uint8), 0)  # bytes: of some types none can be sent
        if not torch.equal(sent, x):  # what lies over itself (expand) could not be written
            x.copy_(sent)


def synchronised(encoder: Encoder) -> Encoder:
    """With SyncBatchNorm, by timm's conversion: PyTorch's drops the activations of timm's BatchNormAct2d.

    Raises UserError where it would drop what a class of somebody else's does in its forward pass.
    """
    for name, module in encoder.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward not in CONVERTED:
            raise UserError(
                f"{name} is a {type(module).__name__}, whose forward pass SyncBatchNorm would leave out, which several "
                "GPUs need: make it a BatchNorm2d, and do what it does beside in a module of its own"
            )
    return cast(Encoder, convert_sync_batchnorm(encoder))


def _pieces(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(batch.samples), size):
        part = slice(start, start + size)
        yield Batch(batch.views[part], batch.samples[part], batch.texts[part], batch.labels[part])


@contextmanager
def _buffers_held(encoder: nn.Module) -> Iterator[None]:
    """Running statistics, and what other layers keep, are as before, so that two passes count once. Under no_grad."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in encoder.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            module._buffers[name] = buffer  # a forward pass may put another in its place
            if not any(step == 0 and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)):
                buffer.copy_(value)  # what lies over itself (expand) cannot be written, here as there
