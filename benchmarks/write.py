"""Stage one's moving of bytes: a shuffled build beside `cp` of the same files, and indexing beside webdataset's reader.

    python -m benchmarks.write [--copies 10]

copy_ratio: throughput of scanning, numbering and writing shuffled shards (both cores, sha256 and fsync included, no
graph) over that of `cp -r` followed by `sync`, on the same tars, which lie in the page cache for both. index_speedup:
samples/s of one scan (headers, captions, image sizes) over iterating webdataset.WebDataset, one process each, which is
what one would otherwise use to find out what a tar holds. Both are medians of rounds in turn.

Tars: Flickr8k's of the folder that XCLR_TEST_DATA names, copied `copies` times under other names; else generated ones.
Results: docs/results.md.
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
from statistics import median

import webdataset

from pipeline.build import BuildSettings, build_shards
from pipeline.datasets import load_dataset
from pipeline.scan import Limits, scan
from pipeline.sources import open_source

ROUNDS = 3


def make_source(folder: Path, copies: int) -> Path:
    """`copies` times the tars, with their parquet files."""
    data = os.environ.get("XCLR_TEST_DATA")
    if data:
        tars = sorted((Path(data) / "flickr8k" / "train").glob("*.tar"))
    else:
        build_shards(open_source(load_dataset("demo"), None), folder / "demo", BuildSettings(shard_size=1000))
        tars = sorted((folder / "demo").glob("*.tar"))
    source = folder / "source"
    source.mkdir()
    for copy in range(copies):
        for tar in tars:
            for path in (tar, tar.with_suffix(".parquet")):
                if path.exists():
                    shutil.copyfile(path, source / f"{copy:03d}{path.name}")
    return source


def build_seconds(source: Path, out: Path) -> float:
    begin = time.perf_counter()
    build_shards(open_source(load_dataset("flickr8k"), str(source)), out, BuildSettings())
    return time.perf_counter() - begin


def copy_seconds(source: Path, out: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    os.sync()
    return time.perf_counter() - begin


def scan_speed(source: Path) -> float:
    found = open_source(load_dataset("flickr8k"), str(source))
    begin = time.perf_counter()
    samples = sum(len(scan(found, part, Limits(), Path("unused")).rows["key"]) for part in found.partitions)
    return samples / (time.perf_counter() - begin)


def stock_speed(source: Path) -> float:
    urls = [str(path) for path in sorted(source.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        samples = sum(1 for _ in webdataset.WebDataset(urls, shardshuffle=False))
    return samples / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=10)
    copies = parser.parse_args().copies
    times: dict[str, list[float]] = {"build": [], "cp": [], "scan": [], "stock": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_source(folder, copies)
        megabytes = sum(path.stat().st_size for path in source.glob("*.tar")) / 1e6
        for _ in range(ROUNDS):
            for method, function in (("cp", copy_seconds), ("build", build_seconds)):
                out = folder / "out"
                times[method].append(function(source, out))
                shutil.rmtree(out)
                os.sync()
            times["scan"].append(scan_speed(source))
            times["stock"].append(stock_speed(source))
    seconds = {name: median(values) for name, values in times.items()}
    print(f"{megabytes:.0f} MB in tars, medians of {ROUNDS}")
    print(f"{'cp -r, sync':32}{seconds['cp']:8.2f} s{megabytes / seconds['cp']:8.0f} MB/s")
    print(f"{'shuffled build, fsync, sha256':32}{seconds['build']:8.2f} s{megabytes / seconds['build']:8.0f} MB/s")
    print(f"{'webdataset, one process':32}{seconds['stock']:10.0f} samples/s")
    print(f"{'scan, one process':32}{seconds['scan']:10.0f} samples/s")
    result = {
        "copy_ratio": round(seconds["cp"] / seconds["build"], 3),
        "index_speedup": round(seconds["scan"] / seconds["stock"], 2),
    }
    print(json.dumps(result | {"megabytes": round(megabytes)}))


if __name__ == "__main__":
    main()
