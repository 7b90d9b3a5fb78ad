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

from pipeline.graph.file import COLUMNS
from pipeline.sources.captions import normalise
from pipeline.work import mapped_zeros
from shards.errors import UserError, first_line

__all__ = ["names_texts", "vectors_by_text", "width"]

TEXT = ("text", "caption", "texts", "captions")
VECTOR = ("embedding", "vector", "embeddings", "vectors", "features")
ROWS = 1 << 12  # read at a time


def names_texts(path: Path) -> bool:
    """Whether it is such a file."""
    if path.suffix != ".parquet":
        return False
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path} as parquet ({first_line(error)})") from None
    if set(COLUMNS) <= set(schema.names):  # edges, which may have others beside them
        return False
    text, vector = _columns(schema)
    if text and not vector and (named := _named(schema, VECTOR)):
        kind = schema.field(named[0]).type
        raise UserError(f"{path}: column {named[0]} holds {kind}, not lists of numbers, one a row: convert it to these")
    return bool(text and vector)


def width(path: Path) -> int:
    """Dimensions of its vectors, by the first that there is. Raises UserError where there is none."""
    found = (len(vector) for _, vectors in _rows(path) for vector in vectors if len(vector))
    if dim := next(found, 0):
        return dim
    raise UserError(f"{path} has no vectors")


def vectors_by_text(path: Path, texts: Sequence[str], out: Path, longest: int) -> npt.NDArray[np.float32]:
    """[texts, dim] of length 1, mapped from the file `out`. A text of several captions that has no vector as a whole
    has the mean of those of its captions; of a text that is listed twice the first vector counts. longest: characters
    at which the build cut captions. Raises UserError where a text has none, and for vectors without direction.
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
            # As one caption, of which the build made one line, or as a text of several.
            forms = normalise(name or "", longest), "\n".join(normalise(s, longest) for s in (name or "").split("\n"))
            words = next((form for form in forms if form in whole or form in owners), None)
            if words is None or words in seen:
                continue
            seen.add(words)
            length = float(np.linalg.norm(vector)) if len(vector) == found.shape[1] else float("nan")
            if not (np.isfinite(length) and length > 0):
                out.unlink()
                raise UserError(
                    f"{path}: the vector of {words[:60]!r} is not of {found.shape[1]} numbers, all zeros, or not finite"
                )
            if words in whole:
                found[whole[words]], as_whole[whole[words]] = vector / length, True
            for i in owners.get(words, ()):
                if not as_whole[i]:
                    found[i] += vector / length
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
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        if not (lengths > 1e-6).all():
            text = texts[start + int(np.argmin(lengths))]
            out.unlink()
            raise UserError(f"{path}: the vectors of the captions of {text[:60]!r} cancel each other out: give it one")
        block /= lengths
    return found


def _columns(schema: pa.Schema) -> tuple[str | None, str | None]:
    text = next((name for name in _named(schema, TEXT) if _is_text(schema.field(name).type)), None)
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    vector = next((name for name in _named(schema, VECTOR) if any(of(schema.field(name).type) for of in lists)), None)
    return text, vector


def _named(schema: pa.Schema, usual: Sequence[str]) -> list[str]:
    """Columns that are called so, in whatever letters, the usual ones first."""
    return [name for one in usual for name in schema.names if name.strip().lower() == one]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


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
