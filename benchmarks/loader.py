"""Feeding the trainer: our loader beside stock webdataset, torchvision's ImageFolder + DataLoader, and SPDL.

    python -m benchmarks.loader [--samples 4000] [--rounds 3]
    python -m benchmarks.loader --size 224               # views of 224 pixels, from images of 500 x 375
    python -m benchmarks.loader --picture views.png      # 8 x 8 views to look at, no measurement

`raw` hands out encoded images in one process, shuffled, from the page cache (`cold`: after the files were dropped
from it). webdataset parses tars member by member; ours reads by (offset, size). `views` decodes and makes two
SimCLR views (64 pixels: crop, flip, jitter, grey, blur) with one worker a core; webdataset and ImageFolder with
torchvision's transforms on PIL images, SPDL with a thread a core, torchvision's JPEG decoder and v2 transforms on
tensors (its own decoder needs FFmpeg's libraries). Rounds alternate, each contender in a process of its own; medians.
CPU seconds count the workers; memory is the proportional set size of the process with its workers, in MB.

Most of the gain is arithmetic on uint8 in OpenCV and PyTorch in place of PIL's, and one decode for both views; the
workers hand over whole batches of bytes. Results: docs/results.md.
Samples: photographs of 160 pixels from the folder that XCLR_TEST_DATA names, else the embedded data set's of 64; for
larger views enlarged to 500 x 375, the usual size of ImageNet's, whose detail they lack: a real file is larger, and
takes longer to decode.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from shards.atomic import atomic_file
from shards.index import write_index, write_texts
from shards.machine import cores
from shards.manifest import Manifest, ShardEntry
from shards.reader import Shards
from shards.tar import TarWriter, samples
from trainer.augment import AugmentConfig, decode, sample_rng, two_views
from trainer.plan import BatchPlan

SIZE, BATCH = 64, 128
LARGE = 500, 375
RAW_SECONDS = 2.0


def images(count: int) -> Iterator[bytes]:
    """Encoded images: photographs where there are any, else generated ones."""
    folder = os.environ.get("XCLR_TEST_DATA")
    if folder:
        tars = sorted(Path(folder).glob("flickr8k/train/*.tar"))
        yield from islice((sample.parts["jpg"] for tar in tars for sample in samples(tar)), count)
        return
    from pipeline.demo.pictures import samples as demo_samples

    yield from (sample.jpeg for sample in demo_samples("train", count=count))


def enlarged(data: bytes) -> bytes:
    import cv2

    image = cv2.resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), LARGE)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def augment(size: int) -> AugmentConfig:
    return AugmentConfig(image_size=size, jitter=0.5, blur=0.5)


def write_data(folder: Path, count: int, size: int) -> None:
    """The same images as shards with an index, and as an image folder."""
    entries, files = [], [enlarged(data) if size > SIZE else data for data in images(count)]
    loose = folder / "images" / "all"
    loose.mkdir(parents=True)
    length = min(1000, -(-len(files) // 4))  # webdataset wants a shard for each worker
    for first in range(0, len(files), length):
        name, part = f"train-{first // length:06d}", files[first : first + length]
        offsets, keys = [], [f"{first + i:08d}" for i in range(len(part))]
        with atomic_file(folder / f"{name}.tar") as file:
            tar = TarWriter(file)
            for key, data in zip(keys, part, strict=True):
                offsets.append(tar.add(f"{key}.jpg", data))
                tar.add(f"{key}.txt", b"a caption of usual length, as collections from the web have them")
                tar.add(f"{key}.json", b'{"width": 160, "height": 160}')
                (loose / f"{key}.jpg").write_bytes(data)
            tar.close()
        sizes = [len(data) for data in part]
        write_index(folder / "index" / f"{name}.parquet", key=keys, offset=offsets, size=sizes,
                    text_id=[0] * len(part), label=[None] * len(part))  # fmt: skip
        entries.append(ShardEntry(name=name, samples=len(part), tar=f"{name}.tar"))
    write_texts(folder / "texts.parquet", ["a caption"], [len(files)])
    Manifest(dataset="bench", split="train", source="bench", layout="shuffled", seed=0, samples=len(files), texts=1,
             shards=tuple(entries), files={}).save(folder)  # fmt: skip


def tars(folder: Path) -> list[str]:
    return sorted(map(str, folder.glob("*.tar")))


def plan(shards: Shards) -> BatchPlan:
    return BatchPlan(shard_sizes=[s.samples for s in shards.manifest.shards], batch_size=BATCH, seed=0)


def raw_webdataset(folder: Path) -> Iterator[int]:
    import webdataset as wds

    dataset = wds.WebDataset(tars(folder), shardshuffle=100, seed=0).shuffle(1000)
    for sample in dataset:
        assert sample["jpg"]
        yield 1


def raw_ours(folder: Path) -> Iterator[int]:
    shards = Shards.open(folder)
    order = plan(shards).order(0)
    for first in range(0, len(order), BATCH):
        for sample in np.sort(order[first : first + BATCH]).tolist():
            assert shards.image(sample)
        yield len(order[first : first + BATCH])


def torchvision_views(size: int) -> Callable[[Any], Any]:
    """SimCLR's transforms as everybody writes them, twice."""
    from torchvision import transforms as T

    one = T.Compose(
        [
            T.RandomResizedCrop(size, scale=augment(size).crop_scale),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(size // 10 | 1, (0.1, 2.0))], p=0.5),
            T.PILToTensor(),
        ]
    )
    return lambda image: (one(image), one(image))


def views_webdataset(folder: Path, workers: int, size: int) -> Iterator[int]:
    import webdataset as wds
    from torch.utils.data import DataLoader

    views = torchvision_views(size)
    dataset = wds.WebDataset(tars(folder), shardshuffle=100, seed=0).shuffle(1000).decode("pil").to_tuple("jpg")
    batched = dataset.map_tuple(views).batched(BATCH, partial=True)
    for (pair,) in DataLoader(batched, batch_size=None, num_workers=workers):
        yield len(pair) if isinstance(pair, list) and not hasattr(pair[0], "shape") else len(pair[0])


def views_imagefolder(folder: Path, workers: int, size: int) -> Iterator[int]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(str(folder / "images"), torchvision_views(size))
    for (first, _), _ in DataLoader(dataset, BATCH, shuffle=True, num_workers=workers):
        yield len(first)


def views_spdl(folder: Path, workers: int, size: int) -> Iterator[int]:
    import torch
    from spdl.pipeline import PipelineBuilder
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    one = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=augment(size).crop_scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(size // 10 | 1, (0.1, 2.0))], p=0.5),
        ]
    )

    def make(path: str) -> Any:
        data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
        image = decode_jpeg(data, ImageReadMode.RGB)
        return torch.stack([one(image), one(image)])

    paths = sorted(map(str, (folder / "images" / "all").iterdir()))
    np.random.default_rng(0).shuffle(paths)
    builder = PipelineBuilder().add_source(paths).pipe(make, concurrency=workers).aggregate(BATCH)
    pipeline = builder.pipe(torch.stack).add_sink(4).build(num_threads=workers + 1)
    with pipeline.auto_stop():
        for batch in pipeline.get_iterator(timeout=60):
            yield len(batch)


def views_ours(folder: Path, workers: int, size: int) -> Iterator[int]:
    import torch

    from trainer.data import make_loader
    from trainer.world import World

    shards = Shards.open(folder)
    order = plan(shards)
    world = World(device=torch.device("cpu"))
    for batch in make_loader(shards, order, augment(size), world, start=0, stop=order.steps_per_epoch, workers=workers):
        yield len(batch.views)


RAW = {"webdataset": raw_webdataset, "ours": raw_ours}
VIEWS = {"webdataset": views_webdataset, "ImageFolder": views_imagefolder, "SPDL": views_spdl, "ours": views_ours}


def measure(task: str, name: str, folder: Path, workers: int, size: int) -> dict[str, float]:
    """One contender, once, in this process; libraries are loaded before the clock starts."""
    for module in ("torch", "torchvision.transforms.v2", "webdataset", "trainer.data"):
        importlib.import_module(module)
    if task == "cold":
        for tar in tars(folder):
            descriptor = os.open(tar, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    if task == "raw":
        sum(RAW[name](folder))  # into the page cache
    begin, count, memory = time.perf_counter(), 0, 0.0
    while count == 0 or (task == "raw" and time.perf_counter() - begin < RAW_SECONDS):
        for number in VIEWS[name](folder, workers, size) if task == "views" else RAW[name](folder):
            count += number
            if task == "views" and memory == 0 and count > BATCH * 8:
                paused = time.perf_counter()
                memory = proportional_memory()
                begin += time.perf_counter() - paused
    seconds = time.perf_counter() - begin
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(part.ru_utime + part.ru_stime for part in usage)
    return {"rate": count / seconds, "cpu": cpu / count * 1000, "memory": memory}


def proportional_memory() -> float:
    """MB of this process and its children, shared pages counted once."""
    try:
        children = [
            pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
        ]
        rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in ["self", *children]]
    except OSError:
        return 0.0  # not Linux, or a worker that has just ended
    return sum(int(line.split()[1]) for text in rollups for line in text.splitlines() if line.startswith("Pss:")) / 1024


def picture(path: Path) -> None:
    """8 x 8: for each of 32 images a pair of views, upscaled."""
    import cv2

    config = AugmentConfig(image_size=SIZE, blur=0.5)
    rows = [two_views(decode(data), config, sample_rng(0, 0, i)) for i, data in enumerate(images(32))]
    grid = np.concatenate(rows).reshape(8, 8, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(8 * SIZE, 8 * SIZE, 3)
    large = cv2.resize(grid, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), cv2.cvtColor(large, cv2.COLOR_RGB2BGR))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--size", type=int, default=SIZE, help="side of the views, pixels")
    parser.add_argument("--picture", type=Path, help="write 8 x 8 augmented views to this PNG and stop")
    parser.add_argument("--one", nargs=3, metavar=("TASK", "NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
    elif options.one:
        task, name, folder = options.one
        print(json.dumps(measure(task, name, Path(folder), options.workers, options.size)))
    else:
        compare(options.samples, options.rounds, options.workers, options.size)


def compare(count: int, rounds: int, workers: int, size: int) -> None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch), count, size)
        runs = [("raw", name) for name in RAW] + [("cold", name) for name in RAW] + [("views", name) for name in VIEWS]
        for task, name in runs * rounds:
            command = [
                sys.executable,
                "-m",
                "benchmarks.loader",
                "--workers",
                str(workers),
                "--size",
                str(size),
                "--one",
                task,
                name,
                scratch,
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{task} {name} did not run: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            found.setdefault((task, name), []).append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':24}{'samples/s':>12}{'CPU s/1000':>12}{'MB':>8}")
    middle = {key: {k: median(row[k] for row in rows) for k in rows[0]} for key, rows in found.items()}
    for (task, name), row in middle.items():
        shown = f"{row['memory']:8.0f}" if row["memory"] else f"{'-':>8}"
        print(f"{task + ', ' + name:24}{row['rate']:12.0f}{row['cpu']:12.3f}{shown}")
    speedup = {
        f"{task}_speedup": round(middle[task, "ours"]["rate"] / middle[task, "webdataset"]["rate"], 2)
        for task in ("raw", "cold", "views")
    }
    rates = {f"{task}_{name.lower()}": round(row["rate"]) for (task, name), row in middle.items()}
    print(json.dumps({**speedup, **rates, "size": size, "samples": count, "rounds": rounds, "workers": workers}))


if __name__ == "__main__":
    main()
