"""Stage one's moving of bytes: a shuffled build beside `cp` of the same files, and indexing beside webdataset's reader.

    python -m benchmarks.write [--rounds 3] [--gigabytes 6]

copy_ratio: throughput of scanning, numbering and writing shuffled shards (all cores, sha256 and fsync included, no
graph) over that of `cp -r` followed by `sync`, on the same tars: with images of some 100 KB, as ImageNet's are, and
nothing in the page cache, as with any data set that is larger than memory. Beside it: images of CC12M's size
(copy_ratio_cc12m; 331 GB in 12.4 M) and small ones (copy_ratio_small), where the work is one for each sample; and each
with the files in the cache (copy_ratio_warm and so on), where sha256 alone costs as much as `cp`.

index_speedup: samples/s of one scan (headers, image sizes, one caption each as cc12m has; with five beside it) over
iterating webdataset.WebDataset, which decodes nothing, but is what one would otherwise use to find out what a tar
holds; small images in the page cache, one process each. Medians of rounds in turn.

Tars: Flickr8k's of the folder that XCLR_TEST_DATA names, else generated ones, copied under other names to some
gigabytes; for the first their images are enlarged. Results: docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from statistics import fmean, median

import cv2
import numpy as np

from pipeline.build import build_shards
from pipeline.scan.samples import Limits
from pipeline.scan.scan import scan
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.tar import TarWriter, samples

SIZES = {"": 110_000, "_cc12m": 27_000, "_small": None}  # bytes of an image: ImageNet's mean, CC12M's, as they are


def originals(folder: Path) -> list[Path]:
    """Tars, with their parquet files beside them."""
    data = os.environ.get("XCLR_TEST_DATA")
    if data:
        return sorted((Path(data) / "flickr8k" / "train").glob("*.tar"))
    build_shards(open_source(load_dataset("demo"), None), folder, BuildSettings(shard_size=1000))
    return sorted(folder.glob("*.tar"))


def enlarged(tars: list[Path], folder: Path, size: int) -> list[Path]:
    """The same tars with images of about `size` bytes."""
    folder.mkdir()
    for tar in tars:
        with (folder / tar.name).open("wb") as file:
            writer = TarWriter(file)
            for sample in samples(tar):
                members = [(f"{sample.key}.{kind}", content) for kind, content in sample.parts.items()]
                writer.add_all([(name, large(data, size) if name.endswith(".jpg") else data) for name, data in members])
            writer.close()
        if tar.with_suffix(".parquet").exists():
            shutil.copyfile(tar.with_suffix(".parquet"), folder / f"{tar.stem}.parquet")
    return sorted(folder.glob("*.tar"))


def large(jpeg: bytes, wanted: int) -> bytes:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    scale = (wanted / len(jpeg)) ** 0.5  # bytes grow about as the area, or somewhat more slowly
    while True:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        content = cv2.imencode(".jpg", cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))[1].tobytes()
        if len(content) > 0.8 * wanted:
            return content
        scale *= 1.2


def copies(tars: list[Path], source: Path, gigabytes: float) -> float:
    """Fill `source` with copies; returns megabytes."""
    source.mkdir()
    size = sum(tar.stat().st_size for tar in tars)
    for copy in range(max(1, round(1e9 * gigabytes / size))):
        for tar in tars:
            for path in (tar, tar.with_suffix(".parquet")):
                if path.exists():
                    shutil.copyfile(path, source / f"{copy:03d}{path.name}")
    return sum(path.stat().st_size for path in source.glob("*.tar")) / 1e6


def build_seconds(source: Path, out: Path) -> float:
    begin = time.perf_counter()
    build_shards(open_source(load_dataset("flickr8k"), str(source)), out, BuildSettings())
    return time.perf_counter() - begin


def copy_seconds(source: Path, out: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    os.sync()
    return time.perf_counter() - begin


def forget(folder: Path) -> None:
    """Take the files out of the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def remember(folder: Path) -> None:
    for path in folder.iterdir():
        path.read_bytes()


def scan_speed(source: Path, dataset: str) -> float:
    found = open_source(load_dataset(dataset), str(source))
    begin = time.perf_counter()
    count = sum(scan(found, part, Limits(), Path("unused")).table().num_rows for part in found.partitions)
    return count / (time.perf_counter() - begin)


def stock_speed(source: Path) -> float:
    import webdataset  # here, since the build's processes import this module again, and that takes seconds

    urls = [str(path) for path in sorted(source.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        count = sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))
    return count / (time.perf_counter() - begin)


def index_speedups(source: Path, rounds: int) -> dict[str, float]:
    runs = [(scan_speed(source, "cc12m"), scan_speed(source, "flickr8k"), stock_speed(source)) for _ in range(rounds)]
    one, several, stock = (median(values) for values in zip(*runs, strict=True))
    print(f"  samples/s of one process: scan {one:.0f}, with five captions {several:.0f}, webdataset {stock:.0f}")
    return {"index_speedup": round(one / stock, 2), "index_speedup_five_captions": round(several / stock, 2)}


def copy_ratio(source: Path, out: Path, megabytes: float, rounds: int, *, warm: bool) -> float:
    times: dict[str, list[float]] = {"cp -r, sync": [], "shuffled build": []}
    for _ in range(rounds):
        for name, function in zip(times, (copy_seconds, build_seconds), strict=True):
            (remember if warm else forget)(source)
            times[name].append(function(source, out))
            shutil.rmtree(out)
            os.sync()
    for name, values in times.items():
        print(f"  {'warm' if warm else 'cold'}  {name:20}{median(values):8.2f} s{megabytes / median(values):8.0f} MB/s")
    return round(median(times["cp -r, sync"]) / median(times["shuffled build"]), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="of tars; a third as much of small images")
    options = parser.parse_args()
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small = originals(folder / "demo")
        for suffix, size in SIZES.items():
            tars = enlarged(small, folder / f"tars{suffix}", size) if size else small
            source = folder / f"source{suffix}"
            megabytes = copies(tars, source, options.gigabytes / (3 if size is None else 1))
            mean = fmean(len(sample.parts["jpg"]) for tar in tars for sample in samples(tar)) / 1000
            print(f"{megabytes:.0f} MB in tars, images of {mean:.0f} KB, medians of {options.rounds}", flush=True)
            for warm in (False, True):
                key = f"copy_ratio{suffix}{'_warm' if warm else ''}"
                result[key] = copy_ratio(source, folder / "out", megabytes, options.rounds, warm=warm)
            if size is None:
                result |= index_speedups(source, options.rounds)
            shutil.rmtree(source)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
