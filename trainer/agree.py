"""What all ranks must have in common before they train together: place, time, and what they were told."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256

import torch
import torch.distributed as dist

from shards.errors import UserError
from trainer.collectives import gather
from trainer.own import code_id, short
from trainer.recipe import Recipe, as_table
from trainer.world import PeerGone, World, someone_gone

__all__ = ["alike", "meet", "settings"]

POLL = 0.05  # seconds
LONGEST = 24 * 3600.0  # seconds, where a rank is killed and nobody who started the others ends them
OWN_TO_A_RANK = ("name", "data.shards", "model.start", "run.workers", "run.cache_gib", "run.track")
"""Places on its machine (of weights to start from rank 0's count for all), its cores and disk, and what rank 0 alone
does."""


def meet(world: World, place: str) -> None:
    """Return when all ranks have come here, though one may fetch for hours: collectives wait for half an hour only.

    Raises PeerGone where one has ended with an error meanwhile.
    """
    if world.size == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    here = store.add(f"met/{place}", 1)
    wanted = -(-here // world.size) * world.size  # the ranks may meet here again
    until = time.monotonic() + LONGEST
    while store.add(f"met/{place}", 0) < wanted:
        if someone_gone():
            raise PeerGone("this rank ends because another did, which says why")
        if time.monotonic() > until:
            raise UserError(f"not all ranks came to {place} within {LONGEST / 3600:.0f} hours")
        time.sleep(POLL)


def settings(recipe: Recipe, data_id: str) -> dict[str, str]:
    """What decides the training on every rank, by what a message calls it. data_id: the manifest's checksum.

    The files of a recipe, of shards, of a network of one's own are each machine's, and what `auto` is depends on it.
    """
    backbone = short(recipe.model.backbone)
    table = as_table(replace(recipe, model=replace(recipe.model, backbone=backbone)))
    found = {"shards (manifest.json)": data_id, backbone: code_id(recipe.model.backbone)}
    for section, values in table.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            name = f"{section}.{key}" if key else section
            if name not in OWN_TO_A_RANK:
                found[name] = json.dumps(value)
    return found


def alike(what: Mapping[str, str], world: World) -> None:
    """Raises UserError, on every rank, where a rank has another value of one of these than rank 0."""
    if world.size == 1:
        return
    names = sorted(what)
    numbers = [int.from_bytes(sha256(f"{name}\n{what[name]}".encode()).digest()[:7], "big") for name in names]
    found = gather(torch.tensor([numbers], device=world.device), world).tolist()
    for rank, theirs in enumerate(found):
        unlike = [name for name, ours, first in zip(names, theirs, found[0], strict=True) if ours != first]
        if unlike:
            some = ", ".join(unlike[:4]) + (f" and {len(unlike) - 4} more" if len(unlike) > 4 else "")
            raise UserError(f"rank {rank} was given another {some} than rank 0: all ranks must train the same")
