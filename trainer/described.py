"""What a run's folder says of the run, for whoever asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["DESCRIPTION", "described"]

DESCRIPTION = "run.json"


def described(run: Path) -> dict[str, Any]:
    """run.json; {} where there is none, or none that can be read."""
    try:
        found = json.loads((run / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
