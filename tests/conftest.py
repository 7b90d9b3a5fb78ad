"""Shared by all tests: where real data lies, and a tiny folder of shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shards import remote
from tests.served import Files, new_handler, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that would download fails at once instead
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: kernels run on the CPU, op by op


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: none is left for the end, when but one of the processes would still have something to run."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def data_root() -> Path | None:
    """The folder of real images and captions that XCLR_TEST_DATA names; None: use the embedded data set."""
    value = os.environ.get("XCLR_TEST_DATA")
    return Path(value) if value else None


@pytest.fixture
def handler() -> type[Files]:
    return new_handler()


@pytest.fixture
def url(made: Path, handler: type[Files], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where a server has the module's shards `made`; the cache lies in tmp_path."""
    monkeypatch.setenv("XCLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "WAIT", 0.01)
    with serving(made.parent, handler) as served:
        yield f"{served}/{made.name}"
