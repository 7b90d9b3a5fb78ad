"""Tars of shards on object storage, fetched before the loader needs them and given up when they are past.

The batch plan works through windows of shards, so what is needed next is known. One rank of each machine looks ahead,
in threads: it fetches the windows to come in their order, and makes room by dropping tars of windows that are past, so
that no more than `limit` bytes lie there. It only ever saves time: a loader that comes before it, on a slow connection,
fetches a tar itself. Where windows are so small that the loader's batches reach beyond the next one, what it fetches
may for a while take more than `limit`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from types import TracebackType

from shards.bars import bar
from shards.errors import UserError
from shards.mirror import THREADS, RemoteShards
from shards.remote import fetchers
from trainer.plan import BatchPlan

__all__ = ["Ahead", "cache_limit"]

SPARE = 0.1  # of the disk's free bytes that stays free
AGAIN = 5.0  # seconds before a tar that did not come is asked for again, twice as many each time
TRIES = 6


def cache_limit(shards: RemoteShards, plan: BatchPlan, gib: float) -> int:
    """Bytes of tars to keep: all of them, if the disk has the room or `gib` (above 0) allows it, else what does.

    Raises UserError where two windows of shards, which one batch may need, do not fit.
    """
    sizes = sorted((shards.bytes_of(shard) for shard in range(len(plan.shard_sizes))), reverse=True)
    free = shutil.disk_usage(shards.root).free + sum(map(shards.bytes_of, shards.here()))
    limit = int(gib * 2**30) if gib > 0 else int((1 - SPARE) * free)
    needed = sum(sizes[: 2 * plan.window])
    if needed > limit:
        fitting = next((window for window in range(plan.window, 0, -1) if sum(sizes[: 2 * window]) <= limit), 0)
        lower = f"lower the recipe's data.window to {fitting}, or " if fitting else ""
        raise UserError(
            f"two windows of {min(plan.window, len(sizes))} shards take up to {needed / 2**30:.2f} GiB, and "
            f"{shards.root.parent} may hold {limit / 2**30:.2f}: {lower}raise --cache-gib, or set XCLR_CACHE to a "
            "larger disk"
        )
    return min(limit, sum(sizes))


class Ahead:
    """Context manager; `at` says which step the run has come to."""

    def __init__(self, shards: RemoteShards, plan: BatchPlan, *, start: int, stop: int, limit: int) -> None:
        self.shards, self.plan, self.limit = shards, plan, limit
        self.last = self._number(stop - 1)
        self.current = self._number(start)
        """Windows are counted over the whole run."""
        self.held = set(shards.here())
        """Here, or on their way."""
        while sum(map(shards.bytes_of, self.held)) > limit:  # what an earlier run, or the monitor, fetched
            past = self.held - set(self._window(self.current))
            shards.drop(min(past))
            self.held.remove(min(past))
        self.coming = set[int]()
        self.change = threading.Condition()
        self.turn = threading.Lock()
        """Of the thread that makes room, so that it goes to the window that is needed first."""
        self.ended = threading.Event()
        self.queue = self._queue(self.current)
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]

    def fill(self) -> None:
        """Fetch what the first batches need, before a loader waits for it. Raises UserError where it cannot be had."""
        first = self._window(self.current)
        missing = [shard for shard in first if shard not in self.held]
        if not missing:
            return
        with bar("fetching shards", len(missing)) as advance, fetchers(THREADS) as pool:
            for shard in missing:
                self._make_room(shard, self.current)
            for _ in pool.map(self.shards.local_tar, missing):
                advance(1)
        self.coming.clear()

    def at(self, step: int) -> None:
        number = self._number(step)
        if number != self.current:
            with self.change:
                self.current = number
                self.change.notify_all()

    def __enter__(self) -> Ahead:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.change:
            self.ended.set()
            self.change.notify_all()

    def _work(self) -> None:
        while not self.ended.is_set():
            with self.turn:
                following = next(self.queue, None)
                if following is None:
                    return
                number, shard = following
                if not self._make_room(shard, number):
                    continue
            for attempt in range(TRIES):
                try:
                    self.shards.local_tar(shard)
                    break
                except (UserError, OSError):
                    if self.ended.wait(AGAIN * 2**attempt):
                        return
            with self.change:  # one that did not come is left to the loader that needs it, which says why
                self.coming.discard(shard)
                self.change.notify_all()

    def _make_room(self, shard: int, number: int) -> bool:
        """Wait until this shard of window `number` fits, and count it in.

        False: the run has ended, or the shard is here, or on its way, already. Then it is not to be asked for: by now
        the run may be past it, it may be dropped, and would come again uncounted.
        """
        with self.change:
            if shard in self.held and self._is_here(shard):
                return False
            while not self.ended.is_set():
                self.held = set(filter(self._is_here, self.held))
                if shard in self.held:  # it came back this moment
                    return False
                if sum(map(self.shards.bytes_of, self.held)) + self.shards.bytes_of(shard) <= self.limit:
                    self.held.add(shard)
                    self.coming.add(shard)
                    return True
                needed = set[int]().union(*(self._window(n) for n in range(self.current, number + 1)))
                past = self.held - needed - self.coming
                if past:
                    victim = min(past)
                    self.shards.drop(victim)
                    self.held.remove(victim)
                else:
                    self.change.wait()
        return False

    def _is_here(self, shard: int) -> bool:
        """Or on its way. Another run on these shards may have given it up."""
        return shard in self.coming or self.shards.tar_path(shard).exists()

    def _queue(self, first: int) -> Iterator[tuple[int, int]]:
        for number in range(first, self.last + 1):
            for shard in self._window(number):
                yield number, shard

    @cached_property
    def _per_epoch(self) -> int:
        return len(self.plan.windows(0))

    def _window(self, number: int) -> Sequence[int]:
        epoch, window = divmod(number, self._per_epoch)
        return [int(shard) for shard in sorted(self.plan.windows(epoch)[window])]

    def _number(self, step: int) -> int:
        epoch, window = self.plan.window_at(step)
        return epoch * self._per_epoch + window
