"""Captions and their embeddings for the benchmarks; run on its own it only says what there is.

    python -m benchmarks.captions

Embeddings are made once (three minutes for 160,840 captions on two cores) and kept below data/, which git ignores.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.encode.embed import encode_texts
from pipeline.encode.encoder import resolve_encoder

CACHE = Path("data/.bench")


def read_captions() -> list[str]:
    """All captions of captions.tsv.gz in $XCLR_TEST_DATA, copies included; else those of the embedded data set."""
    folder = os.environ.get("XCLR_TEST_DATA")
    if folder:
        with gzip.open(Path(folder) / "captions" / "captions.tsv.gz", "rt", encoding="utf-8") as file:
            return [line.rstrip("\n").split("\t", 1)[1] for line in file][1:]
    from pipeline.demo.pictures import samples

    return [sample.caption for sample in samples("train")]


def embeddings() -> npt.NDArray[np.float32]:
    """[captions, 384] unit vectors of the bundled encoder, copies included."""
    captions = read_captions()
    unique = list(dict.fromkeys(captions))
    path = CACHE / f"captions-{len(unique)}.npy"
    if not path.exists():
        vectors, _ = encode_texts(unique, resolve_encoder(None), CACHE / "work")
        np.save(path, vectors)
    position = {caption: i for i, caption in enumerate(unique)}
    vectors: npt.NDArray[np.float32] = np.load(path)[[position[caption] for caption in captions]]
    return vectors


if __name__ == "__main__":
    captions = read_captions()
    print(f"{len(captions)} captions, {len(set(captions))} different")
    print(json.dumps({"captions": len(captions), "unique": len(set(captions))}))
