"""One copy of a graph for all ranks of a machine: eight of 12 M captions would take eight times 8 GB.

The first rank of a machine reads the graph and writes it into a file of memory (memfd), which all its ranks map. Such
a file has no name and no place on a disk: it needs no room in /dev/shm, of which containers often have 64 MB, and is
gone with the last process that maps it, however that ends. Where it cannot be made or opened (no Linux, a container for
each rank) a rank reads a graph of its own.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from shards.bars import say
from shards.errors import UserError
from shards.graph import Graph
from trainer.collectives import gather
from trainer.world import World

__all__ = ["read_for_all"]

NAME = "xclr-graph"
ALIGNED = 64  # bytes, as numpy's own arrays are
ARRAYS = ("indptr", "neighbours", "similarities", "background_mean", "background_std", "codes", "code_scale")


class _Offer(NamedTuple):
    """Where the file of a machine's first rank is to be opened, and what it begins with."""

    process: int = 0
    descriptor: int = 0
    token: int = 0
    """Its first eight bytes: seen from another container, the process may be another one. 0: there is no file."""
    refused: int = 0
    """1 where the graph could not be read."""


def read_for_all(read: Callable[[], Graph], world: World) -> Graph:
    """What `read` returns, read once a machine. All ranks of `world` call it together.

    Raises UserError on every rank where a machine's first rank cannot read. Nothing in it may be written to.
    """
    if world.size == 1:
        return read()
    graph, refused, offer = None, None, _Offer()
    if world.local_rank == 0:
        try:
            if world.local_size == 1:
                graph = read()
            else:
                offer = _offered(read())
        except UserError as error:
            refused, offer = error, _Offer(refused=1)
    offers = [_Offer(*numbers) for numbers in gather(torch.tensor([offer], device=world.device), world).tolist()]
    refusing = [rank for rank, other in enumerate(offers) if other.refused]
    shared = offers[world.rank - world.local_rank]
    if shared.token and not refusing:
        try:
            graph = _opened(shared)
        except OSError as error:
            say(f"note: rank {world.rank} reads a graph of its own, having none of its machine's first rank ({error})")
    gather(torch.zeros(1, device=world.device), world).tolist()  # all have opened it; a GPU's gather is waited for
    if offer.token:
        os.close(offer.descriptor)  # the map holds the file
    if refused:
        raise refused
    if refusing:
        raise UserError(f"rank {refusing[0]} does not start, and says why")
    return read() if graph is None else graph


def _offered(graph: Graph) -> _Offer:
    """A new file: token, length of the header, header, arrays. Each array is given up once it is written."""
    arrays = {name: getattr(graph, name) for name in ARRAYS if getattr(graph, name) is not None}
    header = json.dumps([graph.meta, [(name, array.dtype.str, array.shape) for name, array in arrays.items()]]).encode()
    del graph
    offer = _Offer(os.getpid(), -1, 1 + secrets.randbits(62))
    try:
        offer = offer._replace(descriptor=os.memfd_create(NAME))
        with open(offer.descriptor, "wb", closefd=False) as file:
            file.write(np.array([offer.token, len(header)], np.int64).tobytes() + header)
            for name in list(arrays):
                file.write(b"\0" * (-file.tell() % ALIGNED))
                file.write(np.ascontiguousarray(arrays.pop(name)).reshape(-1).view(np.uint8).data)
    except (AttributeError, OSError) as error:  # not on Linux; no memory
        if offer.descriptor >= 0:
            os.close(offer.descriptor)
        say(f"note: each rank reads a graph of its own ({error})")
        return _Offer()
    return offer


def _opened(offer: _Offer) -> Graph:
    """Mapped: pages are shared until someone writes, which nobody does. Raises OSError where it is not this file."""
    path = f"/proc/{offer.process}/fd/{offer.descriptor}"
    if not os.readlink(path).startswith(f"/memfd:{NAME}"):  # opening a pipe waits, and reading takes from it
        raise OSError("another process has its number")
    with open(path, "rb") as file:
        token, length = np.frombuffer(file.read(16).ljust(16, b"\0"), np.int64)
        if token != offer.token:
            raise OSError("another process has its number")
        meta, places = json.loads(file.read(length))
        start = file.tell()
        arrays: dict[str, Any] = dict.fromkeys(ARRAYS)
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch takes no read-only arrays
    for name, kind, shape in places:
        start += -start % ALIGNED
        arrays[name] = np.ndarray(shape, kind, data, start)
        start += arrays[name].nbytes
    return Graph(meta=meta, **arrays)
