"""A whole training step: X-CLR beside SimCLR, and end to end beside lightly's SimCLR example.

    python -m benchmarks.step [--only objective|lightly] [--rounds 3]

objective: the same model, batches and optimiser; the two objectives take turns step by step, and a round's ratio is
that of its two medians. On a GPU ResNet-50 at 224 pixels and 1024 samples a batch, forwarded 256 at a time (all at once
may take more than 80 GB); on a CPU the demo's model
(ResNet-10-T at 32 pixels, 256 samples), where a loss weighs far more, since the model costs so little. `block` is the
similarity block alone (look-up and codes), `loss` everything from projections to their gradient. X-CLR has a graph of
100,000 random texts with 32 neighbours and codes of 384 bytes, and every sample a text of its own.

lightly: images a second from encoded images to updated weights, in the middle of an epoch. Its SimCLR example
(ImageFolder, SimCLRTransform, NTXentLoss, SGD) with our backbone, against X-CLR on shards of the same images: the same
batch, augmentations, projector and number of loader processes, each in a process of its own, taking turns; medians.
Ours at the precision that recipes choose here (`auto`), and in float32 as theirs. Photographs of the folder that
XCLR_TEST_DATA names, else the embedded data set.

Last line: xclr_over_simclr, speedup_lightly (auto), speedup_lightly_float32. H200s, November 2026: 0.996, 1.002, 1.008.
Two AMD EPYC cores with AVX512-BF16, 24 November 2026: 0.981 (three rounds 0.980 to 1.031; the losses themselves differ
by 0.5% of a step, docs/loss.md); lightly, ours, ours in float32: 42.2, 77.8, 55.3 samples/s on a busy machine and 75.8,
151.4, 93.8 on a quiet one, a round each: 1.84 and 2.00 times lightly, in float32 1.31 and 1.24.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.loader import write_data
from benchmarks.loss import seconds, table
from shards.machine import cores
from shards.reader import Shards
from trainer.augment import AugmentConfig
from trainer.block import Objective, SimilarityBlock
from trainer.data import Batch, make_loader
from trainer.loss import contrastive_loss
from trainer.model import build_encoder, feature_dim
from trainer.plan import BatchPlan
from trainer.recipe import DataConfig, ModelConfig, ObjectiveConfig, OptimiserConfig, Recipe
from trainer.setup import _fast_bfloat16
from trainer.step import Stepper
from trainer.table import TextTable
from trainer.world import World

SIZE, BATCH, BACKBONE = 64, 128, "resnet18"  # of the comparison with lightly
AHEAD = 4  # batches that a loader's worker has ready
WARM = 3  # steps that do not count: loaders start, kernels are chosen
STEPS = 12  # of one objective in a round


def world() -> World:
    return World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def recipe(objective: Objective, backbone: str, size: int, batch: int, precision: str, chunk: int = 0) -> Recipe:
    if precision == "auto":
        precision = "bfloat16" if _fast_bfloat16(world().device) else "float32"
    return Recipe(
        name="benchmark",
        precision=precision,  # type: ignore[arg-type]
        data=DataConfig(batch_size=batch, chunk=chunk),
        augment=AugmentConfig(image_size=size, jitter=0.5, blur=0.5),
        model=ModelConfig(backbone=backbone),
        objective=ObjectiveConfig(name=objective),
        optimiser=OptimiserConfig(name="sgd", lr=0.06, lr_scaling="none", warmup_epochs=0),
    )


def stepper(chosen: Recipe, texts: TextTable | None) -> Stepper:
    torch.backends.cudnn.benchmark = True  # as xclr-train, and timm
    encoder = build_encoder(chosen.model, chosen.augment.image_size, 0).train()
    return Stepper(chosen, encoder, world(), steps_per_epoch=1000, table=texts, captions=None)


def random_batch(count: int, size: int) -> Batch:
    """Noise, each sample with a text of its own."""
    views = torch.randint(0, 256, (count, 2, size, size, 3), dtype=torch.uint8)
    return Batch(views, torch.arange(count), torch.randperm(100_000)[:count], torch.zeros(count, dtype=torch.int64))


def parts(texts: TextTable, batch: Batch) -> dict[str, float]:
    """Milliseconds of the block and of the loss, for both objectives: medians of 30."""
    device, count = world().device, len(batch.samples)
    ids, samples = batch.texts, batch.samples.to(device)
    z = torch.randn(2 * count, 128, device=device, requires_grad=True)

    def build(objective: Objective) -> SimilarityBlock:
        return SimilarityBlock.of_texts(ids, texts) if objective == "xclr" else SimilarityBlock.of_keys(samples)

    def whole(objective: Objective) -> None:
        z.grad = None
        contrastive_loss(z, build(objective)).backward()  # type: ignore[no-untyped-call]

    found = {}
    for objective in ("simclr", "xclr"):
        for name, function in (("block", build), ("loss", whole)):
            times = [seconds(lambda f=function, o=objective: f(o)) for _ in range(33)]  # type: ignore[misc]
            found[f"{name}_ms_{objective}"] = round(1000 * median(times[3:]), 3)
    return found


def objectives(rounds: int) -> dict[str, Any]:
    gpu = torch.cuda.is_available()
    backbone, size, count, chunk = ("resnet50", 224, 1024, 256) if gpu else ("resnet10t", 32, 256, 0)
    texts, batch = table(), random_batch(count, size)
    steppers = {
        name: stepper(recipe(name, backbone, size, count, "auto", chunk), texts if name == "xclr" else None)
        for name in ("simclr", "xclr")
    }
    for each in steppers.values():
        for number in range(WARM):
            each.step(batch, number, 1000)
    ratios, times = [], {name: list[float]() for name in steppers}
    for _ in range(rounds):
        taken = {name: list[float]() for name in steppers}
        for number in range(STEPS):
            for name, each in steppers.items():
                taken[name].append(seconds(lambda e=each, n=number: e.step(batch, n, 1000)))  # type: ignore[misc]
        ratios.append(median(taken["xclr"]) / median(taken["simclr"]))
        for name, values in taken.items():
            times[name] += values
    found = {"model": f"{backbone} at {size} pixels, {count} samples", **parts(texts, batch)}
    found |= {f"step_ms_{name}": round(1000 * median(values), 2) for name, values in times.items()}
    found["xclr_over_simclr"] = round(median(ratios), 4)
    print(f"{found['model']}: xclr / simclr {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}")
    for name in ("simclr", "xclr"):
        step, loss, block = (found[f"{part}_ms_{name}"] for part in ("step", "loss", "block"))
        print(f"{name:8}step {step:8.1f} ms, of which loss {loss:6.2f} ms, of which block {block:6.2f} ms", flush=True)
    return found


def ours(folder: Path, workers: int, precision: str) -> Iterator[None]:
    """X-CLR from shards, a step at a time."""
    shards = Shards.open(folder)
    chosen = recipe("xclr", BACKBONE, SIZE, BATCH, precision)
    plan = BatchPlan(shard_sizes=[shard.samples for shard in shards.manifest.shards], batch_size=BATCH, seed=0)
    step = stepper(chosen, table())
    loader = make_loader(shards, plan, chosen.augment, world(), start=0, stop=plan.steps_per_epoch, workers=workers)
    for number, batch in enumerate(loader):
        step.step(replace(batch, texts=batch.samples), number, 1000)
        yield


def lightly(folder: Path, workers: int, precision: str) -> Iterator[None]:
    """lightly's examples/pytorch/simclr.py, with our backbone and projector sizes."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms.simclr_transform import SimCLRTransform

    device = world().device
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    backbone = build_encoder(ModelConfig(backbone=BACKBONE), SIZE, 0).backbone
    width = feature_dim(backbone)
    model = nn.Sequential(backbone, SimCLRProjectionHead(width, width, 128)).to(device)
    dataset = LightlyDataset(str(folder / "images"), SimCLRTransform(input_size=SIZE, cj_strength=0.5))
    ahead = AHEAD if workers else None
    loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=True, num_workers=workers, prefetch_factor=ahead)
    criterion, optimiser = NTXentLoss(temperature=0.1), torch.optim.SGD(model.parameters(), lr=0.06)
    for batch in loader:
        one, two = batch[0]
        loss = criterion(model(one.to(device)), model(two.to(device)))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        yield


CONTENDERS: dict[str, tuple[Callable[[Path, int, str], Iterator[None]], str]] = {
    "lightly": (lightly, "float32"),
    "ours": (ours, "auto"),
    "ours, float32": (ours, "float32"),
}


def steps(workers: int) -> tuple[int, int, int]:
    """Before the clock, on the clock, after it. What workers have ready when it starts would hide a slow loader, and so
    would the end of an epoch, where they have nothing left to do."""
    return WARM + AHEAD * workers, max(13, AHEAD * workers), AHEAD * workers


def rate(name: str, folder: Path, workers: int) -> float:
    """Samples a second of one epoch, without its beginning and its end."""
    function, precision = CONTENDERS[name]
    before, measured, _ = steps(workers)
    begin, count = 0.0, -before
    for _ in function(folder, workers, precision):
        count += 1
        if count == 0:
            begin = time.perf_counter()
        if count == measured:
            break
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return count * BATCH / (time.perf_counter() - begin)


def end_to_end(rounds: int, workers: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), BATCH * sum(steps(workers)), SIZE)
        for _ in range(rounds):
            for name in CONTENDERS:
                command = [sys.executable, "-m", "benchmarks.step", "--one", name, folder, "--workers", str(workers)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rates[name].append(float(done.stdout.splitlines()[-1]))
    print(f"{BACKBONE} at {SIZE} pixels, {BATCH} samples, {workers} loader processes; samples a second")
    for name, values in rates.items():
        print(f"{name:16}{median(values):8.1f}   ({', '.join(f'{value:.0f}' for value in sorted(values))})")
    middle = {name: median(values) for name, values in rates.items()}
    return {
        "samples_per_s": round(middle["ours"], 1),
        "speedup_lightly": round(middle["ours"] / middle["lightly"], 3),
        "speedup_lightly_float32": round(middle["ours, float32"] / middle["lightly"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=["objective", "lightly"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    if options.one:
        print(rate(options.one[0], Path(options.one[1]), options.workers))
        return
    result: dict[str, Any] = {}
    if options.only != "lightly":
        result |= objectives(options.rounds)
    if options.only != "objective":
        try:
            import lightly.loss  # noqa: F401
        except ImportError as error:
            print(f"lightly cannot be imported ({error}), so there is no comparison with it: pip install 'xclr[bench]'")
        else:
            result |= end_to_end(options.rounds, options.workers)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
