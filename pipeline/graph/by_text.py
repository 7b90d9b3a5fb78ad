"""Vectors from a parquet file that says of which text, or caption, each one is: as embeddings are usually kept.

Rows may stand in any order, and hold texts that the shards have not, so such a file outlives a build that numbers its
texts anew, which an array of vectors does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.captions import normalise
from pipeline.work import mapped_zeros
from shards.errors import UserError, first_line

__all__ = ["names_texts", "vectors_by_text", "width"]

TEXT = ("text", "caption", "texts", "captions")
VECTOR = ("embedding", "vector", "embeddings", "vectors", "features")
ROWS = 1 << 12  # read at a time
LONGEST = 1 << 20  # characters of a text


def names_texts(path: Path) -> bool:
    """Whether it is such a file."""
    if path.suffix != ".parquet":
        return False
    try:
        return None not in _columns(pq.read_schema(path))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path} as parquet ({first_line(error)})") from None


def width(path: Path) -> int:
    """Dimensions of its vectors, by the first row. Raises UserError where there is none."""
    for _, vectors in _rows(path):
        return len(vectors[0])
    raise UserError(f"{path} has no rows")


def vectors_by_text(path: Path, texts: Sequence[str], out: Path) -> npt.NDArray[np.float32]:
    """[texts, dim] of length 1, mapped from the file `out`. A text of several captions that has no vector as a whole
    has the mean of those of its captions. Raises UserError where a text has none, and for vectors without direction.
    """
    whole = {text: i for i, text in enumerate(texts)}
    owners: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        for caption in text.split("\n") if "\n" in text else ():
            owners.setdefault(caption, []).append(i)
    found = mapped_zeros(out, (len(texts), width(path)))
    as_whole, parts = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    seen = set[str]()
    for names, vectors in _rows(path):
        for name, vector in zip(names, vectors, strict=True):
            text = "\n".join(normalise(line, LONGEST) for line in (name or "").split("\n"))
            if text in seen or not (text in whole or text in owners):
                continue
            seen.add(text)
            length = float(np.linalg.norm(vector)) if len(vector) == found.shape[1] else float("nan")
            if not (np.isfinite(length) and length > 0):
                out.unlink()
                raise UserError(
                    f"{path}: the vector of {text[:60]!r} is not of {found.shape[1]} numbers, all zeros, or not finite"
                )
            if text in whole:
                found[whole[text]], as_whole[whole[text]] = vector / length, True
            for i in owners.get(text, ()):
                found[i] += 0 if as_whole[i] else vector / length
                parts[i] += 1
    lost = np.flatnonzero(~as_whole & (parts < [text.count("\n") + 1 for text in texts]))
    if len(lost):
        out.unlink()
        raise UserError(
            f"{path} has no vector for {len(lost):,} of {len(texts):,} texts, {texts[lost[0]][:60]!r} among them: add "
            "them (texts.parquet lists all)"
        )
    for start in range(0, len(texts), ROWS):
        block = found[start : start + ROWS]
        block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return found


def _columns(schema: pa.Schema) -> tuple[str | None, str | None]:
    text = next((name for name in TEXT if name in schema.names), None)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    vector = next((n for n in VECTOR if n in schema.names and any(of(schema.field(n).type) for of in lists)), None)
    return text, vector


def _rows(path: Path) -> Iterator[tuple[list[str | None], list[npt.NDArray[np.float64]]]]:
    """(texts, vectors in float64) of some rows at a time."""
    try:
        with pq.ParquetFile(path) as file:
            text, vector = _columns(file.schema_arrow)
            for batch in file.iter_batches(ROWS, columns=[text, vector]):
                if len(batch):
                    yield batch[text].to_pylist(), [np.array(v or [], np.float64) for v in batch[vector].to_pylist()]
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path} ({first_line(error)})") from None
