"""Small sources for tests, in the layouts that users have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.tar import TarWriter
from tests.make import jpeg


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        tar = TarWriter(file)
        for name, data in members:
            tar.add(name, data)
        tar.close()
    return path


def img2dataset(root: Path, samples: int = 8, tars: int = 2, failed: int = 0, parquet: bool = True) -> Path:
    """Tars as img2dataset writes them: KEY.jpg, KEY.json, KEY.txt, and a parquet with failed rows."""
    rng = np.random.default_rng(0)
    for number in range(tars):
        members, rows = [], []
        for i in range(samples + failed):
            key, good = f"{number:05d}{i:04d}", i < samples
            captions = [f"picture {i} of tar {number}", f"another view of {i}"]
            row = {"key": key, "caption": captions[0], "captions": captions, "status": "success"}
            if good:
                members += [(f"{key}.jpg", jpeg(rng)), (f"{key}.json", json.dumps(row).encode())]
                members.append((f"{key}.txt", captions[0].encode()))
            rows.append(row if good else row | {"status": "failed_to_download"})
        write_tar(root / f"{number:05d}.tar", members)
        if parquet:
            pq.write_table(pa.Table.from_pylist(rows), root / f"{number:05d}.parquet")
    return root


def class_folders(root: Path, classes: Sequence[str] = ("n02084071", "n02121808"), images: int = 6) -> Path:
    """root/train/CLASS/IMAGE.JPEG, and one image a folder deeper."""
    rng = np.random.default_rng(1)
    for hue, name in enumerate(classes):
        for i in range(images):
            path = root / "train" / name / ("deep" if i == 0 else ".") / f"{name}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(rng, hue=hue))
    return root


def pictures(root: Path, names: Sequence[str], size: int = 32) -> dict[str, bytes]:
    """JPEG files of those names below `root`; name -> content."""
    rng = np.random.default_rng(2)
    made = {name: jpeg(rng, size) for name in names}
    for name, content in made.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return made


def images_inside(
    path: Path, labels: Sequence[int | None], names: Sequence[str] | None, images: Sequence[bytes] | None = None
) -> None:
    """Parquet as Hugging Face writes it: encoded images, and numbers of classes whose names its schema carries."""
    rng = np.random.default_rng(3)
    encoded = images or [jpeg(rng) for _ in labels]
    table = pa.table(
        {"img": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(encoded)], "label": labels}
    )
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


def data_set(path: Path, **values: object) -> str:
    """A data set file of one's own; returns its path as the command line takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return str(path)


ROWS = (("a.jpg", "one"), ("b.jpg", "two, with a comma"), ("a.jpg", 'a "quoted" one'), ("sub/c.jpg", "drei: ü"))


def delimited(rows: Sequence[Sequence[str]], mark: str, header: str) -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if mark in text or '"' in text else text

    return "\r\n".join([header, *(mark.join(map(cell, row)) for row in rows), ""]).encode()


def write_table(path: Path, rows: Sequence[tuple[str, str]] = ROWS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [{"id": i, "image": image, "caption": caption} for i, (image, caption) in enumerate(rows)]
    match path.suffix:
        case ".csv":
            path.write_bytes(b"\xef\xbb\xbf" + delimited(rows, ",", "image,caption"))
        case ".tsv":
            path.write_bytes(delimited(rows, "\t", "image\tcaption"))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in objects))
        case ".json":
            path.write_text(json.dumps(objects, ensure_ascii=False))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(objects), path)
