"""Small shards for tests, written through the public writer."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from shards.atomic import atomic_file, sha256_file
from shards.graph import Graph, write_graph
from shards.index import write_index, write_texts
from shards.manifest import FileEntry, Manifest, ShardEntry
from shards.tar import TarWriter


def jpeg(rng: np.random.Generator, size: int = 32, hue: int | None = None) -> bytes:
    """A noisy picture; `hue` (0..9) gives pictures of one kind a colour in common."""
    pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
    if hue is not None:
        colour = np.array([25 * hue, 255 - 25 * hue, 128])
        pixels = (0.3 * pixels + 0.7 * colour).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_shards(
    root: Path,
    sizes: tuple[int, ...] = (12, 9, 11),
    *,
    classes: int = 4,
    labels: bool = True,
    graph: bool = True,
    seed: int = 0,
    split: str = "train",
    bad: tuple[int, ...] = (),
) -> Path:
    """A finished folder of shards: `classes` texts a shade apart, images of a colour a class. `bad`: no images."""
    rng = np.random.default_rng(seed)
    shards, files, number = [], {}, 0
    counts = [0] * classes
    for position, size in enumerate(sizes):
        name = f"train-{position:06d}"
        rows: dict[str, list[object]] = {k: [] for k in ("key", "offset", "size", "text_id", "label")}
        with atomic_file(root / f"{name}.tar") as file:
            tar = TarWriter(file)
            for _ in range(size):
                kind = int(rng.integers(classes))
                image = b"not an image" if number in bad else jpeg(rng, hue=kind)
                key = f"{number:06d}"
                rows["key"].append(key)
                rows["offset"].append(tar.add(f"{key}.jpg", image))
                rows["size"].append(len(image))
                rows["text_id"].append(kind)
                rows["label"].append(kind if labels else None)
                tar.add(f"{key}.txt", f"text {kind}".encode())
                tar.add(f"{key}.json", b"{}")
                counts[kind] += 1
                number += 1
            tar.close()
        write_index(root / "index" / f"{name}.parquet", **rows)  # type: ignore[arg-type]
        shards.append(ShardEntry(name=name, samples=size, tar=f"{name}.tar"))
    write_texts(root / "texts.parquet", [f"text {i}" for i in range(classes)], counts)
    for path in sorted([*root.glob("*.tar"), *root.glob("index/*.parquet"), root / "texts.parquet"]):
        files[str(path.relative_to(root))] = FileEntry(sha256=sha256_file(path), bytes=path.stat().st_size)
    Manifest(
        dataset="made",
        split=split,
        source="tests",
        layout="shuffled",
        seed=seed,
        samples=number,
        texts=classes,  # type: ignore[arg-type]
        classes=tuple(f"class {i}" for i in range(classes)) if labels else (),
        shards=tuple(shards),
        files=files,
    ).save(root)
    if graph:
        write_graph(root, "made", make_graph(classes, seed=seed), np.zeros(classes, np.int32), [s.name for s in shards])
    return root


def make_graph(texts: int, *, dim: int = 16, k: int = 2, seed: int = 0) -> Graph:
    """The symmetric union of exact top-k lists, and codes, of random unit vectors."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(texts, dim)) + 1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, -np.inf)
    k = min(k, texts - 1)
    listed = np.zeros((texts, texts), bool)
    np.put_along_axis(listed, np.argsort(-similarity, axis=1, kind="stable")[:, :k], True, 1)
    listed |= listed.T
    order = np.argsort(-similarity.astype(np.float16), axis=1, kind="stable")  # of equals the lower id first
    kept = np.take_along_axis(listed, order, 1)
    np.fill_diagonal(similarity, np.nan)
    scale = np.abs(vectors).max(1) / 127
    return Graph(
        meta={"source": "made", "k": k},
        indptr=np.concatenate([[0], np.cumsum(listed.sum(1))]).astype(np.int64),
        neighbours=order[kept].astype(np.int32),
        similarities=np.take_along_axis(similarity, order, 1)[kept].astype(np.float16),
        background_mean=np.nanmean(similarity, 1).astype(np.float32),
        background_std=np.nanstd(similarity, 1).astype(np.float32),
        codes=np.round(vectors / scale[:, None]).astype(np.int8),
        code_scale=scale.astype(np.float32),
    )
