"""One pool of ranks for all tests that need several."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainer.ranks import Ranks, pool


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    with pool(4) as started:
        yield started
