"""Is the device fed? The whole step from shards, beside the same step without a loader, and beside timm's.

    python -m benchmarks.feed [--rounds 3] [--steps 30] [--model resnet50] [--size 224] [--batch 512] [--workers N]

shards: X-CLR as `xclr-train` runs it, batches from the loader. synthetic: the same steps on one batch that lies on the
device already. timm: what timm's training script does with as many images a step (two for each sample): its model with
1,000 classes, cross-entropy, channels-last, autocast, SGD with momentum, on images that lie on the device already.
Each in a process of its own, taking turns; the first steps are left out; medians.

Last line: data_wait (the share of the time of `shards` that passes before a batch is there), step_over_synthetic,
images_per_s, images_per_s_timm, images_over_timm. Photographs of the folder that XCLR_TEST_DATA names, else the
embedded data set; enlarged for views above 64 pixels. On a GPU ResNet-50 at 224 pixels, else ResNet-18 at 64, where
loader and model share the cores, so that waiting is no defect.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from torch import nn

from benchmarks.loader import write_data
from benchmarks.loss import table
from benchmarks.step import WARM, random_batch, recipe, stepper, world
from shards.machine import cores
from shards.reader import Shards
from trainer.data import Batch, batches_of, make_loader
from trainer.plan import BatchPlan

SAMPLES = 4096


def shards(folder: Path, options: argparse.Namespace) -> Iterator[float]:
    """A step at a time: the seconds that passed before its batch was there."""
    found = Shards.open(folder)
    chosen = recipe("xclr", options.model, options.size, options.batch, "auto")
    plan = BatchPlan(shard_sizes=[s.samples for s in found.manifest.shards], batch_size=options.batch, seed=0)
    step, count = stepper(chosen, table()), WARM + options.steps
    loader = make_loader(found, plan, chosen.augment, world(), start=0, stop=count, workers=options.workers)
    batches = batches_of(loader, None if chosen.data.chunk else world().device)
    for number in range(count):
        begin = time.perf_counter()
        batch = next(batches)
        wait = time.perf_counter() - begin
        step.step(replace(batch, texts=batch.samples), number, 1000)
        yield wait


def synthetic(folder: Path, options: argparse.Namespace) -> Iterator[float]:
    step = stepper(recipe("xclr", options.model, options.size, options.batch, "auto"), table())
    noise = random_batch(options.batch, options.size)
    batch = Batch(noise.views.to(world().device), noise.samples, noise.texts, noise.labels)
    for number in range(WARM + options.steps):
        step.step(batch, number, 1000)
        yield 0.0


def supervised(folder: Path, options: argparse.Namespace) -> Iterator[float]:
    device, bfloat16 = world().device, recipe("xclr", options.model, options.size, options.batch, "auto").precision
    torch.backends.cudnn.benchmark = True
    model = timm.create_model(options.model, num_classes=1000).to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-5, nesterov=True)
    images = torch.randn(2 * options.batch, 3, options.size, options.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels, criterion = torch.randint(1000, (2 * options.batch,), device=device), nn.CrossEntropyLoss()
    for _ in range(WARM + options.steps):
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 == "bfloat16" else nullcontext():
            loss = criterion(model(images), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        yield 0.0


CONTENDERS: dict[str, Callable[[Path, argparse.Namespace], Iterator[float]]] = {
    "shards": shards,
    "synthetic": synthetic,
    "timm": supervised,
}


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step, and the share of them that was waited for a batch."""
    waits, begin = [], 0.0
    for number, wait in enumerate(CONTENDERS[name](folder, options), 1):
        waits.append(wait)
        if number == WARM:
            _finish()
            begin = time.perf_counter()
    _finish()
    elapsed = time.perf_counter() - begin
    return {"seconds": elapsed / options.steps, "wait": sum(waits[WARM:]) / elapsed}


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30 if gpu else 8)
    parser.add_argument("--model", default="resnet50" if gpu else "resnet18")
    parser.add_argument("--size", type=int, default=224 if gpu else 64)
    parser.add_argument("--batch", type=int, default=512 if gpu else 128)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], Path(options.one[1]), options)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), max(SAMPLES, options.batch), options.size)
        passed = [f"--{name}={getattr(options, name)}" for name in ("steps", "model", "size", "batch", "workers")]
        for _ in range(options.rounds):
            for name in CONTENDERS:
                command = [sys.executable, "-m", "benchmarks.feed", "--one", name, folder, *passed]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {name: median(value["seconds"] for value in values) for name, values in found.items()}
    wait = median(value["wait"] for value in found["shards"])
    print(f"{options.model} at {options.size} pixels, {options.batch} samples, {options.workers} loader processes")
    for name, value in seconds.items():
        print(f"{name:10}{1000 * value:9.1f} ms a step {2 * options.batch / value:9.0f} images/s")
    result: dict[str, Any] = {
        "data_wait": round(wait, 4),
        "step_over_synthetic": round(seconds["shards"] / seconds["synthetic"], 4),
        "images_per_s": round(2 * options.batch / seconds["shards"], 1),
        "images_per_s_timm": round(2 * options.batch / seconds["timm"], 1),
        "images_over_timm": round(seconds["timm"] / seconds["shards"], 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
