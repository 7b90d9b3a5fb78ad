"""Estimates kept beside the real figures: NAME.costs.jsonl next to the folder of shards.

Not inside: times differ from run to run, and the same input must give the same folder, byte for byte.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["costs_path", "keep_cost", "read_costs"]


def costs_path(root: Path) -> Path:
    root = root.absolute()
    return root.with_name(f"{root.name}.costs.jsonl")


def keep_cost(root: Path, step: str, **figures: Any) -> None:
    """Append a line. Where nothing may be written beside the folder, nothing is: it is only a note."""
    with suppress(OSError), costs_path(root).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")


def read_costs(root: Path) -> list[dict[str, Any]]:
    """What was kept, oldest first; lines that cannot be read are left out."""
    found = []
    with suppress(OSError):
        for line in costs_path(root).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                value = json.loads(line)
                if isinstance(value, dict):
                    found.append(value)
    return found
