"""Images that do not decode: counted over all ranks, told as they double, and too many of them end the run."""

from __future__ import annotations

from shards.errors import SkipBudget
from shards.reader import Shards
from trainer.collectives import reduced
from trainer.data import Batch
from trainer.world import World

__all__ = ["BadImages"]

LIMIT = 0.01  # share of samples that may fail before the run stops; stage one reads headers and ends


class BadImages:
    def __init__(self, shards: Shards, world: World) -> None:
        self.shards, self.world = shards, world
        self.named = f"`xclr-shards verify {shards.root} --decode` names all"
        remedy = f"{self.named}: take them out of the source, and build anew"
        self.budget = SkipBudget("training images", LIMIT, remedy=remedy)
        self.before = 0
        """Of the run before it was stopped."""
        self.told, self.last = 0, ""

    def add(self, batch: Batch) -> None:
        """Raises OverBudget where they are too many."""
        self.budget.ok(len(batch.samples) - len(batch.bad))  # first, else the bad ones would be all that was seen
        for sample in batch.bad:
            key, tar = self.shards.index.key[sample], self.shards.tar_path(int(self.shards.index.shard[sample]))
            self.last = f"{key} of {tar.name}"
            self.budget.skip("undecodable image", self.last)

    def total(self) -> int:
        """Of all ranks, and of the run before it was stopped; every rank calls it."""
        return self.before + reduced(self.budget.reasons.total(), self.world)

    def news(self, total: int) -> str:
        """What to tell of them; empty where they are not twice as many as were told of."""
        if total <= 2 * self.told:
            return ""
        self.told = total
        last = f" (the last was {self.last})" if self.last else ""
        return (
            f"images that did not decode so far, with grey pictures in their place: {total}{last}; at more than ten "
            f"and {LIMIT:.0%} the run stops. {self.named}, and tells whether these shards are damaged, or the source "
            "was"
        )
