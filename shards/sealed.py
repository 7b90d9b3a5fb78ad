"""JSON files that carry their own checksum: what names all other checksums is named by none.

The checksum is over the file as it would be written without it. The text is canonical (sorted keys, fixed indent), so
a flipped byte is found wherever it lies, white space included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.atomic import json_bytes, write_json

__all__ = ["CHECKSUM", "seal_problem", "write_sealed"]

CHECKSUM = "checksum"


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    write_json(path, _sealed(value))


def seal_problem(path: Path) -> str | None:
    """What is wrong with the file, in words; None for what write_sealed wrote."""
    data = path.read_bytes()
    try:
        value = json.loads(data)
        if CHECKSUM not in value:
            return f"{path} has no checksum of its own, so nothing says that it is whole"
        sound = json_bytes(_sealed(value)) == data
    except (ValueError, TypeError, RecursionError):
        sound = False
    return None if sound else f"{path} has changed: it does not fit its own checksum"


def _sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: content for key, content in value.items() if key != CHECKSUM}
    return rest | {CHECKSUM: hashlib.sha256(json_bytes(rest)).hexdigest()}
