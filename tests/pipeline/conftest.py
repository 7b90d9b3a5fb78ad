"""Real captions, and the graph of them that several tests look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.graph.build import build_graph
from shards.tar import samples
from tests.pipeline.texts import text_shards


@pytest.fixture
def two_threads() -> Iterator[None]:
    """So that what is done side by side is, also where each process of tests has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def captions(data_root: Path | None) -> list[str]:
    """Texts of one caption and of five: Flickr8k's validation part where there is one, else the embedded captions."""
    if data_root is None:
        from pipeline.demo.pictures import samples as demo_samples

        drawn = list(dict.fromkeys(sample.caption for sample in demo_samples("train", count=1200)))
        return ["\n".join(drawn[i : i + 5]) for i in range(0, 500, 5)] + drawn[500:]
    held = [
        json.loads(sample.parts["json"])["captions"] for sample in samples(data_root / "flickr8k" / "val" / "00000.tar")
    ]
    single = dict.fromkeys(several[0] for several in held[100:500])
    return ["\n".join(several) for several in held[:100]] + list(single)


@pytest.fixture(scope="session")
def caption_shards(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the captions, with the default graph."""
    root = text_shards(tmp_path_factory.mktemp("captions"), captions)
    build_graph(root)
    return root
