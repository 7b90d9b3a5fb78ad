"""Numbers for what the scans found: text ids, the nodes of the graph, and labels, where these stand beside samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.arrow import write_table
from pipeline.held_out import on_side
from pipeline.scan.samples import NOT_OURS, SCAN_SCHEMA
from pipeline.skipped import SKIPPED
from pipeline.sources.captions import MISSING
from pipeline.sources.class_names import ClassName, class_names, tell_numbers, tell_twins
from pipeline.sources.labels import is_number
from pipeline.sources.source import Source
from shards.bars import say
from shards.class_names import WNID
from shards.errors import UserError
from shards.index import write_texts

__all__ = ["NAMES", "number_samples", "number_texts"]

DOUBTED = 20  # samples from which on a class for nearly each of them is no accident
NAMES = "class_names"  # in a scan's metadata: what its file calls labels 0, 1, ...


def number_samples(
    source: Source, scans: Sequence[Path], out: Path, work: Path, skipped: Mapping[str, int], held_out: bool = False
) -> tuple[pa.Table, Sequence[ClassName]]:
    """Give every sample its text id and its label; returns the places and text ids of all, and the classes.

    Writes texts.parquet, and work/samples.arrow and work/texts.arrow for the writers of shards. Raises UserError where
    no sample is left (`skipped` says why), and where none has a label that all should have.

    held_out: of the held-out samples, where there are any. Classes are those of all, so that both splits list the same.
    """
    side = on_side(source.dataset.held_out, held_out, scans, source.where)
    ids, texts, counts = number_texts(scans, side)
    if not len(ids):
        if source.tables and (urls := skipped.get(NOT_OURS, 0)) > sum(skipped.values()) / 2:
            raise UserError(
                f"{urls:,} of {sum(skipped.values()):,} images that {source.where} names are URLs, which are never "
                'fetched: download them with img2dataset, and read its tars with format = "webdataset"'
            )
        why = f" ({', '.join(f'{count:,} {reason}' for reason, count in skipped.items())})" if skipped else ""
        named = f"; {work / SKIPPED} names them" if (work / SKIPPED).exists() else ""
        raise UserError(
            f"{source.where} holds no usable sample{why}: check that it is the {source.dataset.name} data{named}"
        )
    labels, classes = _number_labels(source, scans) if source.dataset.label else (None, {})
    if source.dataset.by_class:
        texts = _captions(texts, classes)
    else:
        _tell_missing(texts, counts)
    write_texts(out / "texts.parquet", texts, counts)
    write_table(work / "texts.arrow", pa.table({"text": texts}, pa.schema([("text", pa.large_string())])))
    schema = pa.schema([field for field in SCAN_SCHEMA if field.name not in ("text", "label_value", "hash")])
    pieces = pa.concat_tables([pq.read_table(p, columns=schema.names, partitioning=None).cast(schema) for p in scans])
    if side is not None:
        pieces = pieces.filter(pa.array(side))
    # One piece: of thousands Arrow would join all of a column for every shard that takes a few rows of each.
    columns = {}
    for column in schema:  # each is given up once it is joined
        kind = pa.large_string() if pa.types.is_string(column.type) else column.type
        columns[column.name] = pieces[column.name].cast(kind).combine_chunks()
        pieces = pieces.drop_columns([column.name])
    if labels is not None:
        columns["label"] = labels if side is None else labels.filter(pa.array(side))
    whole = pa.table({**columns, "text_id": pa.array(ids)})
    write_table(work / "samples.arrow", whole)
    return whole.select(["file", "size", "text_id"]), list(classes.values()) or source.classes


def number_texts(
    scans: Sequence[Path], side: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.int64], pa.Array, npt.NDArray[np.int64]]:
    """text id of every scanned sample [n], the texts by id, and how many samples have each; every different text once,
    in the order of the source. side: of these samples alone.

    Holds the texts in memory (a gigabyte for 12 M captions), as their encoder will.
    """
    encoded = _encoded(scans, "text")
    ids, texts = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary
    if side is not None:
        used, ids = np.unique(ids[side], return_inverse=True)
        texts = texts.take(pa.array(used))
    return ids, texts, np.bincount(ids, minlength=len(texts)).astype(np.int64)


def _tell_missing(texts: pa.Array, counts: npt.NDArray[np.int64]) -> None:
    short = pc.indices_nonzero(pc.less_equal(pc.utf8_length(texts), max(map(len, MISSING)))).to_numpy()
    found = {texts[i].as_py(): int(counts[i]) for i in short.tolist() if texts[i].as_py().lower() in MISSING}
    if found:
        words = ", ".join(f"{text!r} ({count:,} samples)" for text, count in found.items())
        say(f"note: {words}: a caption like any other; if it says that there is none, leave that empty")


def _encoded(scans: Sequence[Path], name: str) -> pa.DictionaryArray:
    # large_string: offsets of 32 bits end at 2 GB of text
    columns = [pq.read_table(path, columns=[name], partitioning=None)[name].cast(pa.large_string()) for path in scans]
    whole = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.large_string())
    return pc.dictionary_encode(whole.combine_chunks())  # else every scan's chunk carries all texts


def _number_labels(source: Source, scans: Sequence[Path]) -> tuple[pa.Array, dict[str, ClassName]]:
    """[samples] int32 labels, null where a sample has none, and in their order the classes by what the scans call them.

    Classes that are named, by the data set file or the source itself, keep their numbers. Else they are the labels that
    occur, whole numbers by value, anything else as text.
    """
    encoded = _encoded(scans, "label_value")
    found: list[str] = encoded.dictionary.to_pylist()
    if not found:
        raise UserError(
            f"none of {len(encoded):,} samples of {source.where} has a label in {source.dataset.label!r}: it is not "
            "there, or empty (or a negative number); label = ... in the data set file names the column, the field of "
            "KEY.json or the member's extension"
        )
    given = _given(source, scans)
    labels = [str(number) for number in range(len(given))] or _in_order(found)
    numbers = {text: number for number, text in enumerate(labels)}
    if unknown := sorted(source.named.keys() - numbers.keys()):
        say(f"note: classes.tsv names {len(unknown)} labels that no sample has, {unknown[0]!r} among them")
    classes = _named(labels, given, source)
    if not given:
        unnamed = [label for label in labels if label not in source.named]
        if source.dataset.split != "test":  # of which there may be few to a class
            _tell_doubtful(unnamed, len(encoded) - encoded.null_count, source.dataset.label)
    without = f"; {encoded.null_count:,} of {len(encoded):,} samples have no label" if encoded.null_count else ""
    say(f"{len(labels):,} classes by {source.dataset.label!r}{without}")
    by_text = pa.array(np.array([numbers[text] for text in found], np.int32))
    return by_text.take(encoded.indices), dict(zip(labels, classes, strict=True))


def _tell_doubtful(labels: Sequence[str], samples: int, column: str) -> None:
    """What labels that nobody has named may be instead of classes."""
    tell_twins("labels", labels)
    if samples >= DOUBTED and len(labels) > samples / 2:
        say(
            f"warning: {len(labels):,} classes of {samples:,} samples: {column!r} looks like a column of ids; "
            "label = ... in the data set file names another"
        )


def _named(labels: Sequence[str], given: Sequence[str], source: Source) -> list[ClassName]:
    """The classes: a name that is a WordNet id stands for ImageNet's words, as a folder of that name does."""
    names = given or labels
    folders = [name if WNID.fullmatch(name) else label for label, name in zip(labels, names, strict=True)]
    known, plain = {}, Counter(name.replace("_", " ") for name in names)
    for folder, label, name in zip(folders, labels, names, strict=True):
        if label in source.named:
            known[folder] = source.named[label]
        elif not WNID.fullmatch(name):
            words = name.replace("_", " ")
            known[folder] = words if plain[words] == 1 and words.strip() else name  # big_dog beside big dog
    if odd := [label for label in labels if label.lower() in MISSING and label not in source.named and not given]:
        what = "is a class like any other; if it says" if len(odd) == 1 else "are classes like any others; if they say"
        say(f"note: {', '.join(map(repr, odd))} {what} that there is no label, leave that empty")
    if torn := [name for name in names if "\ufffd" in name]:
        say(
            f"note: {len(torn)} classes have names that are no UTF-8 ({torn[0]!r}): save the table as UTF-8 (iconv -f "
            "CP1252 -t UTF-8, say), and build anew"
        )
    texts = {label for label in labels if label not in source.named and not WNID.fullmatch(label)}
    classes = class_names(folders, known, source.dataset.caption, single=() if given else texts)
    if source.dataset.by_class:
        tell_numbers(classes, "in the data set file (classes = [...]) or in classes.tsv")
    return classes


def _given(source: Source, scans: Sequence[Path]) -> Sequence[str]:
    """Names of labels 0, 1, ...; () where nothing names them."""
    carried = {pq.read_schema(path).metadata[NAMES.encode()] for path in scans}
    if len(carried - ({b"[]"} if source.dataset.classes else set())) > 1:
        raise UserError(
            f"the files of {source.where} number their classes differently, or not all name them: give classes = "
            "[...] in the data set file, by the names that the files use"
        )
    return source.dataset.classes or [str(name) for name in json.loads(carried.pop())]


def _in_order(labels: Sequence[str]) -> list[str]:
    return sorted(labels, key=int if all(map(is_number, labels)) else None)


def _captions(labels: pa.Array, classes: Mapping[str, ClassName]) -> pa.Array:
    """Texts for labels that stood in for them. Raises UserError where two classes would be one text."""
    first = dict[str, str]()
    for label, one in classes.items():
        if (other := first.setdefault(one.caption, label)) != label:
            raise UserError(f"classes {other!r} and {label!r} are both {one.caption!r}: name them apart")
    return pa.array([classes[label].caption for label in labels.to_pylist()], pa.large_string())
