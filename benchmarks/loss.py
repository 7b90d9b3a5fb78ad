"""The loss, forward and backward: dense, tiled, fused, NT-Xent of lightly, a CLIP loss after open_clip, bare products.

    python -m benchmarks.loss [--rows 1024 2048 ...] [--rounds 5] [--precision high]

One batch of `rows` views (rows / 2 samples), 128 dimensions, a graph of 100,000 texts with 32 neighbours and codes of
384 bytes each. What is timed is all that a step pays: the similarity block, the loss, the gradient of z. Methods take
turns within a round, and the median of the rounds counts. `cpu ms` is the processor time of all threads, which says
what a busy machine hides (set OMP_WAIT_POLICY=PASSIVE there, or waiting counts as work). Peak extra memory is measured
in processes of their own, three for each method and size, whose median counts: the peak since the inputs lay there (on
Linux VmHWM, reset before), so it includes the block and the gradients. On GPUs, where PyTorch counts what it hands out,
one step in this process tells it. Time and memory grow as rows^slope from one size to the next. `fused` needs a GPU;
`--precision high` lets all methods use TF32 there.

`matmul` is the floor: the matrix products that the tiled form does, in the same tiles, and nothing else. lightly's
NT-Xent has hard labels; so has the CLIP loss (Cherti et al. 2023, open_clip's local loss), which for the same samples
has a quarter of the pairs: images against texts, not views against views.

The last line holds the figures of the quicker of tiled and fused at the largest size: implementation, rows,
peak_extra_mb, time_over_matmul, and time_over_dense at the largest size that dense fits (dense_rows). Results:
docs/loss.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from shards.errors import first_line
from shards.graph import Graph
from trainer.block import SimilarityBlock
from trainer.loss import TILE_ENTRIES, Implementation, contrastive_loss
from trainer.table import TextTable

DIM, CODE, TEXTS, LISTED, TAU = 128, 384, 100_000, 32, 0.1
METHODS = ("dense", "tiled", "fused", "lightly", "clip", "matmul")
# A pair of rows at the peak (measured, 2026-11: 21, 19 and 6): logits, targets and what autograd keeps of them.
PAIR_BYTES = {"dense": 24, "lightly": 24, "clip": 8}
Step = Callable[[], Any]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def table() -> TextTable:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((TEXTS, CODE), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scale = np.abs(vectors).max(1) / 127
    # Of each text a run of others with a stride of its own: distinct, and never itself, as a graph's lists are.
    stride = rng.integers(1, (TEXTS - 1) // LISTED, (TEXTS, 1))
    places = (rng.integers(0, TEXTS - 1, (TEXTS, 1)) + stride * np.arange(LISTED)) % (TEXTS - 1)
    neighbours = (np.arange(TEXTS)[:, None] + 1 + places) % TEXTS
    graph = Graph(
        meta={},
        indptr=np.arange(TEXTS + 1, dtype=np.int64) * LISTED,
        neighbours=neighbours.ravel().astype(np.int32),
        similarities=np.sort(rng.uniform(0.4, 0.9, (TEXTS, LISTED)), axis=1)[:, ::-1].ravel().astype(np.float16),
        background_mean=np.zeros(TEXTS, np.float32),
        background_std=np.full(TEXTS, 0.05, np.float32),
        codes=np.round(vectors / scale[:, None]).astype(np.int8),
        code_scale=scale,
    )
    return TextTable.from_graph(graph, device())


def soft(how: Implementation, rows: int, texts: TextTable | None) -> Step:
    """X-CLR's loss of one batch, block included."""
    assert texts is not None
    b = rows // 2
    z = torch.randn(rows, DIM, device=device(), requires_grad=True)
    ids = torch.randint(TEXTS, (b,))

    def step() -> None:
        z.grad = None
        block = SimilarityBlock.of_texts(ids, texts)
        contrastive_loss(z, block, tau=TAU, implementation=how).backward()  # type: ignore[no-untyped-call]

    return step


def lightly(rows: int, texts: TextTable | None) -> Step:
    from lightly.loss import NTXentLoss

    criterion = NTXentLoss(temperature=TAU)
    one, two = (torch.randn(rows // 2, DIM, device=device(), requires_grad=True) for _ in range(2))

    def step() -> None:
        one.grad = two.grad = None
        criterion(one, two).backward()

    return step


def clip(rows: int, texts: TextTable | None) -> Step:
    """open_clip's ClipLoss on one rank: images against texts and back, hard labels."""
    image, text = (torch.randn(rows // 2, DIM, device=device(), requires_grad=True) for _ in range(2))
    labels = torch.arange(rows // 2, device=device())

    def step() -> None:
        image.grad = text.grad = None
        a, b = functional.normalize(image, dim=1), functional.normalize(text, dim=1)
        to_text, to_image = a @ b.T / TAU, b @ a.T / TAU
        loss = (functional.cross_entropy(to_text, labels) + functional.cross_entropy(to_image, labels)) / 2
        loss.backward()  # type: ignore[no-untyped-call]

    return step


def matmul(rows: int, texts: TextTable | None) -> Step:
    """The products of the tiled form: similarities of codes; targets times features, both ways; for each of two views
    logits, and their gradient times features, both ways."""
    b = rows // 2
    z, code = torch.randn(rows, DIM, device=device()), torch.randn(b, CODE, device=device())
    height = max(1, TILE_ENTRIES[device().type] // rows)
    logits, weights = (torch.empty(height, m, device=device()) for m in (rows, b))
    pushed, pulled = torch.zeros_like(z), torch.zeros(b, DIM, device=device())

    def step() -> None:
        for start in range(0, b, height):
            tile = z[start : min(start + height, b)]
            weight = torch.mm(code[start : start + len(tile)], code.T, out=weights[: len(tile)])
            weight @ z[:b]
            pulled.addmm_(weight.T, tile)
            for _ in range(2):
                logit = torch.mm(tile, z.T, out=logits[: len(tile)])
                logit @ z
                pushed.addmm_(logit.T, tile)

    return step


MAKERS: dict[str, Callable[[int, TextTable | None], Step]] = {
    "dense": partial(soft, "dense"),
    "tiled": partial(soft, "tiled"),
    "fused": partial(soft, "fused"),
    "lightly": lightly,
    "clip": clip,
    "matmul": matmul,
}


def available() -> float:
    """Bytes that a measurement may take."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return 8e9


def fits(method: str, rows: int) -> bool:
    return PAIR_BYTES.get(method, 0) * rows**2 < 0.8 * available()


def seconds(step: Step) -> float:
    return clocks(step)[0]


def clocks(step: Step) -> tuple[float, float]:
    """Seconds of wall time and of processor time."""
    begin, busy = time.perf_counter(), time.process_time()
    step()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - busy


def status_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def peak_extra_mb(method: str, rows: int, texts: TextTable | None = None) -> float:
    """Of one step, in this process, which on a CPU must not have done anything else."""
    texts = texts or (table() if method in ("dense", "tiled", "fused") else None)
    MAKERS[method](64, texts)()  # threads, libraries, caches of kernels
    step = MAKERS[method](rows, texts)
    if device().type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
        resident = status_kb("VmRSS")
        step()
        return (status_kb("VmHWM") - resident) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss; the peak before the step may hide a part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before) / 1e6


def memory(method: str, rows: int, texts: TextTable) -> float:
    if device().type == "cuda":
        return peak_extra_mb(method, rows, texts)
    command = [sys.executable, "-m", "benchmarks.loss", "--peak", method, "--rows", str(rows)]
    command += ["--precision", torch.get_float32_matmul_precision()]
    # Buffers are mapped each by itself, and given back: else what was freed before hides a part of what a step takes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment) for _ in range(3)]
    return statistics.median(float(one.stdout.splitlines()[-1]) for one in done)


def measure(rows: int, methods: list[str], texts: TextTable, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of `rounds` rounds in which the methods take turns, and each one's peak memory."""
    steps = {method: MAKERS[method](rows, texts) for method in methods if fits(method, rows)}
    for method, step in list(steps.items()):
        try:
            seconds(step)
        except Exception as error:  # a kernel that does not compile must not cost the others' figures
            if method != "fused":
                raise
            print(f"{rows:>8}{method:>10} failed: {type(error).__name__}: {first_line(error)}", flush=True)
            del steps[method]
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in steps}
    for _ in range(rounds):
        for method, step in steps.items():
            times[method].append(clocks(step))
    steps.clear()  # the gradients that they hold would count as what was there before
    found = {}
    for method, taken in times.items():
        wall, busy = (statistics.median(values) for values in zip(*taken, strict=True))
        found[method] = {"seconds": wall, "cpu": busy, "peak_mb": memory(method, rows, texts)}
    return found


def slope(small: dict[str, float], large: dict[str, float], ratio: float, key: str) -> float:
    return math.log(max(large[key], 1e-9) / max(small[key], 1e-9)) / math.log(ratio)


def summary(results: dict[int, dict[str, dict[str, float]]]) -> dict[str, Any]:
    largest = max(results)
    dense = max((rows for rows, row in results.items() if "dense" in row), default=None)
    implementation = min(
        (name for name in ("tiled", "fused") if name in results[largest]), key=lambda m: results[largest][m]["seconds"]
    )
    ours = results[largest][implementation]
    found = {
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"cpu, {torch.get_num_threads()} cores",
        "precision": torch.get_float32_matmul_precision(),
        "implementation": implementation,
        "rows": largest,
        "peak_extra_mb": round(ours["peak_mb"], 1),
        "time_over_matmul": round(ours["seconds"] / results[largest]["matmul"]["seconds"], 3),
    }
    found["cpu_time_over_matmul"] = round(ours["cpu"] / results[largest]["matmul"]["cpu"], 3)
    if dense is not None:
        found["dense_rows"] = dense
        found["time_over_dense"] = round(
            results[dense][implementation]["seconds"] / results[dense]["dense"]["seconds"], 3
        )
        found["cpu_time_over_dense"] = round(results[dense][implementation]["cpu"] / results[dense]["dense"]["cpu"], 3)
        found["dense_peak_extra_mb"] = round(results[dense]["dense"]["peak_mb"], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="*", help="views of a batch, even")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=METHODS, help="only this method's peak memory, in this process")
    parser.add_argument(
        "--precision", choices=("highest", "high"), default="highest", help="of float32 products on GPUs"
    )
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision(arguments.precision)
    if any(rows < 2 or rows % 2 for rows in arguments.rows or ()):
        parser.error("--rows are two views of each sample: even numbers from 2 on")
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    if arguments.peak:
        if not arguments.rows:
            parser.error("--peak needs --rows")
        print(peak_extra_mb(arguments.peak, arguments.rows[0]))
        return
    sizes = arguments.rows or [1 << n for n in range(10, 17 if torch.cuda.is_available() else 15)]
    methods = [method for method in METHODS if method != "fused" or torch.cuda.is_available()]
    try:
        import lightly.loss  # noqa: F401
    except ImportError:
        methods.remove("lightly")
        print("lightly is not installed, so its NT-Xent is left out: pip install 'xclr[bench]'")
    texts, results = table(), {}
    print(f"{'rows':>8}{'method':>10}{'ms':>10}{'cpu ms':>10}{'peak MB':>10}{'time^':>8}{'memory^':>9}", flush=True)
    for rows in sizes:
        results[rows] = measure(rows, methods, texts, arguments.rounds)
        smaller = max((other for other in results if other < rows), default=None)
        for method, row in results[rows].items():
            line = (
                f"{rows:>8}{method:>10}{1000 * row['seconds']:>10.1f}{1000 * row['cpu']:>10.1f}{row['peak_mb']:>10.1f}"
            )
            if smaller and method in results[smaller]:
                before, ratio = results[smaller][method], rows / smaller
                line += f"{slope(before, row, ratio, 'seconds'):>8.2f}{slope(before, row, ratio, 'peak_mb'):>9.2f}"
            print(line, flush=True)
    print(json.dumps(summary(results)))


if __name__ == "__main__":
    main()
