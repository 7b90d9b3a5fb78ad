"""Shared by all tests: where real data lies, and a tiny folder of shards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails at once instead


@pytest.fixture(scope="session")
def data_root() -> Path | None:
    """The folder of real images and captions that XCLR_TEST_DATA names; None: use the embedded data set."""
    value = os.environ.get("XCLR_TEST_DATA")
    return Path(value) if value else None
