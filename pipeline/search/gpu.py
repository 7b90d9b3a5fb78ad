"""Brute force on a CUDA device: FAISS's where its GPU build sees one, torch tiles in half precision otherwise.

Both only propose candidates, which neighbours.rank orders by float32, so both give the same lists wherever
the margin covers the rounding; the audit says if it does not. The vectors stay on the device in half precision
(9 GB for 12 M texts of 384 dimensions).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from pipeline.search.neighbours import Vectors
from shards.bars import say
from shards.errors import first_line

__all__ = ["Find", "faiss_gpu", "gpu_search", "has_room", "torch_tiles"]

Find = Callable[[npt.NDArray[np.int64], int], npt.NDArray[np.int64]]
"""(rows, keep) -> [rows, keep] ids of the largest dot products."""
FAISS_MOST = 2048  # neighbours a query that FAISS selects on a GPU
COLUMNS = 1 << 16  # texts a tile: with 4,096 rows 512 MB of float16 products
BESIDE = 2 << 30  # bytes beside the vectors: FAISS takes 1.5 GB for its work, tiles some products


def has_room(n: int, dim: int) -> bool:
    """Whether n vectors fit what is free on a CUDA device, or on each its share where FAISS spreads them."""
    import torch

    library: Any = faiss
    if not torch.cuda.is_available():
        return False
    gc.collect()  # what an encoder held, which holds itself in circles
    torch.cuda.empty_cache()
    devices = max(1, library.get_num_gpus())
    free = min(torch.cuda.mem_get_info(device)[0] for device in range(devices))
    return bool(2 * n * dim / devices + BESIDE <= free)


def gpu_search(vectors: Vectors, device: str) -> Find:
    library: Any = faiss  # the CPU build lacks the GPU functions
    if not library.get_num_gpus():
        return torch_tiles(vectors, device)
    try:
        few = faiss_gpu(vectors)
        few(np.zeros(1, np.int64), 1)
    except RuntimeError as error:  # a card that is newer or older than those that the wheel was built for
        say(f"note: FAISS cannot search on this GPU ({first_line(error)}), so PyTorch does")
        return torch_tiles(vectors, device)
    many = cache(lambda: torch_tiles(vectors, device))
    return lambda rows, keep: few(rows, keep) if keep <= FAISS_MOST else many()(rows, keep)


def faiss_gpu(vectors: Vectors) -> Find:
    """A flat index in half precision, its rows spread over all devices. At most FAISS_MOST a row."""
    library: Any = faiss
    options = library.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    index = library.index_cpu_to_all_gpus(faiss.IndexFlatIP(vectors.shape[1]), co=options)
    index.add(np.ascontiguousarray(vectors))  # at once, as an index of several devices demands; FAISS pages

    def find(rows: npt.NDArray[np.int64], keep: int) -> npt.NDArray[np.int64]:
        ids: npt.NDArray[np.int64] = index.search(np.ascontiguousarray(vectors[rows]), keep)[1]
        return ids

    return find


def torch_tiles(vectors: Vectors, device: str) -> Find:
    """Half precision on a GPU; float32 on a CPU, where this serves the tests."""
    import torch

    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    base = torch.empty(vectors.shape, dtype=dtype, device=device)
    for start in range(0, len(vectors), COLUMNS):
        base[start : start + COLUMNS] = torch.from_numpy(np.array(vectors[start : start + COLUMNS]))

    def find(rows: npt.NDArray[np.int64], keep: int) -> npt.NDArray[np.int64]:
        queries = base[torch.from_numpy(rows).to(device)]
        best = torch.full((len(rows), keep), -torch.inf, device=device, dtype=dtype)
        ids = torch.full((len(rows), keep), -1, device=device)
        for start in range(0, len(base), COLUMNS):
            tile = base[start : start + COLUMNS]
            products, columns = torch.topk(queries @ tile.T, min(keep, len(tile)), dim=1)
            best, order = torch.topk(torch.cat([best, products], dim=1), keep, dim=1)
            ids = torch.cat([ids, columns + start], dim=1).gather(1, order)
        found: npt.NDArray[np.int64] = ids.cpu().numpy()
        return found

    return find
