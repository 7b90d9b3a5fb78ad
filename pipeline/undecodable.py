"""Which images of finished shards do not decode: a build looks at headers and ends, and training counts the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.images import shows
from pipeline.parallel import Workers
from pipeline.scan.samples import mapped
from shards.errors import TornTar, UserError
from shards.manifest import Manifest, ShardEntry
from shards.tar import groups

__all__ = ["undecodable"]


def undecodable(root: Path, processes: int, advance: Callable[[int], None]) -> list[str]:
    """`KEY of TAR`, and the name that KEY.json says, of each image that gives training no picture. advance: is told of
    each shard that is done. Raises UserError where a shard cannot be read."""
    lines = list[str]()
    with Workers(processes) as workers:
        for found in workers.ordered(partial(_of_shard, root), Manifest.load(root).shards):
            lines += found
            advance(1)
    return lines


def _of_shard(root: Path, shard: ShardEntry) -> list[str]:
    tar = root / shard.tar
    rows = pq.read_table(root / "index" / f"{shard.name}.parquet", columns=["key", "offset", "size"])
    places = zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True)
    try:
        with mapped(tar) as (file, content):
            bad = [key for key, offset, size in places if not shows(bytes(content[offset : offset + size]))]
            wanted = set(bad)
            texts = dict[str, bytes]()
            with suppress(TornTar):  # whose whole samples may be used
                for key, parts in groups(file, content) if bad else ():
                    if key in wanted and (member := parts.get("json")):
                        texts[key] = bytes(content[member.offset : member.offset + member.size])
    except OSError as error:
        raise UserError(f"{tar} cannot be read: {error.strerror}") from None
    return [f"{key} of {tar.name}{_path(texts.get(key, b''))}" for key in bad]


def _path(text: bytes) -> str:
    """What KEY.json names, as builds of folders and tables write it."""
    with suppress(ValueError, RecursionError):
        values = json.loads(text)
        if isinstance(values, dict) and isinstance(values.get("path"), str):
            return f": {values['path']}"
    return ""
