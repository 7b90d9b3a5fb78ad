"""Scans of images that are files of their own: class folders, and what tables name."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.images import kind
from pipeline.scan.samples import NOT_OURS, Limits, Scan, mapped
from pipeline.sources.labels import Labels
from pipeline.sources.source import Partition, Source, refuse_unread
from pipeline.sources.tables import URL, find_image, grouped_rows
from shards.class_names import as_text
from shards.pictures import EXTENSIONS, usual

__all__ = ["folder", "of_class", "table"]

LONGEST, SHOWN = 1000, 100  # characters of a name: no path is so long, but a cell may be
BASE64 = re.compile(r"data:|/9j/|iVBORw0KGgo|R0lGOD|UklGR")  # as JPEG, PNG, GIF and WebP begin in it


def folder(source: Source, partition: Partition, limits: Limits) -> Scan:
    """Every image below a class folder, however deep; a class's label is its position among the partitions.

    Files with another extension, and hidden ones, are passed over; those without any are counted.
    """
    found = Scan()
    for number, path in enumerate(_visible(partition.path)):
        extension = path.suffix[1:].lower()
        if not extension:
            found.skip("no extension", str(path))
        elif extension in EXTENSIONS:
            values = of_class(source, partition.number, str(path.relative_to(partition.path.parent)))
            _keep(found, limits, path, key=f"{partition.number:05d}_{number:07d}", **values)
    return found


def table(source: Source, partition: Partition, limits: Limits, spool: Path) -> Scan:
    """Images that a table names, part `start` of `stop`. Absolute paths and `..` may lead anywhere on this machine;
    URLs are never opened."""
    first, rows, unreadable, names = grouped_rows(
        source, spool.with_name(f"rows-{source.columns_fingerprint()[:16]}.arrow"), partition.start, partition.stop
    )
    found = Scan(labels=Labels(source.dataset.classes, names))
    if unreadable.rows and partition.start == 0:
        found.skip("unreadable row", unreadable.last, unreadable.rows)
    for number, (name, captions, labels) in enumerate(rows, first):
        path = find_image(os.fsdecode(name), source.images)
        if path is None:
            reason = NOT_OURS if URL.match(os.fsdecode(name)) else "missing file"
            lost = 1 if name else max(1, len(captions), len(labels))  # all rows without a name are of one image here
            found.skip(reason, _nowhere(source.images[0], name.decode("utf-8", "replace")), lost)
            continue
        meta = json.dumps({"path": name.decode("utf-8", "replace")}, ensure_ascii=False)
        if values := found.described(source.dataset, captions, labels, limits, str(path)):
            _keep(found, limits, path, key=f"{number:08d}", meta=meta, **values)
    return found


def _nowhere(root: Path, name: str) -> str:
    """A name that leads to no file, as messages give it: of what can be none, both ends."""
    encoded = bool(BASE64.match(name))
    if len(name) <= (SHOWN if encoded else LONGEST):
        return str(root / name)
    hint = " (base64, it seems: write the images to files)" if encoded else ""
    return f"{name[: SHOWN // 2]}...{name[-SHOWN // 2 :]}{hint}"


def of_class(source: Source, label: int, path: str) -> dict[str, Any]:
    """Text, label and KEY.json of an image of a class."""
    name = source.classes[label]
    content = {"class": name.folder, "names": name.name, "path": as_text(path)}
    meta = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return {"text": name.caption, "label": label, "meta": meta}


def _visible(root: Path) -> Iterator[Path]:
    """Files below `root`, sorted, but hidden ones. Links to folders are not followed: they may lead in a circle."""
    for place, folders, files in os.walk(root, onerror=refuse_unread):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(place, name) for name in sorted(files) if name[0] != ".")


def _keep(found: Scan, limits: Limits, path: Path, *, text: str, **values: Any) -> None:
    """Add a sample, or count why not. Only regular files are opened: reading a pipe would never end."""
    extension = path.suffix[1:].lower()
    try:
        str(path).encode()
        if not stat.S_ISREG(path.stat().st_mode):
            raise FileNotFoundError
        with mapped(path) as (_, content):
            if found.usable(content, text, limits, str(path)):
                extension = usual(extension) if extension in EXTENSIONS else kind(content)
                found.add(text=text, file=str(path), offset=0, size=len(content), extension=extension, **values)
    except UnicodeEncodeError:
        found.skip("file name that is not UTF-8", as_text(str(path)))
    except PermissionError:
        found.skip("unreadable file", str(path))
    except OSError:  # a dangling link
        found.skip("missing file", str(path))
