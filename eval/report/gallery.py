"""Pictures for the report: what the graph calls near, and what each model calls near."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from eval.benchmarks.bench import LEFT_OUT, Bench, Column, ImageSet, Task
from eval.features import extract
from eval.heads.bank import Bank
from eval.heads.knn import KNN, KNNConfig
from eval.models.model import Model
from shards.bars import say
from shards.errors import UserError
from shards.page import data_uri
from shards.reader import Shards
from trainer.augment import BadImage, decode

__all__ = ["GraphStrips", "Neighbour", "Strip", "caption_strips", "image_strips"]

SEED = 0  # of the choice of pictures
THUMBNAIL = 128  # pixels of the shorter side, at most
STRIPS = 6
BLOCK = 8192  # test pictures asked for at once
LENGTH = 6  # neighbours of a strip
NAMES = 3  # of classes that are right for one picture
MOST = 4096  # classes that are tried one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    source: str
    """data: URI."""
    words: str
    similarity: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """A picture and its neighbours, nearest first."""

    query: Neighbour
    neighbours: dict[str, list[Neighbour]]
    """By what calls them near: `captions`, or the name of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphStrips:
    """What a graph calls near."""

    graph: str
    """Its name."""
    shards: Path
    """Whose captions it is of."""
    strips: list[Strip]


def caption_strips(folder: Path, graph: str | None = None) -> GraphStrips | None:
    """Training pictures beside a picture of each of their nearest captions by the graph; None without one."""
    try:
        return _caption_strips(folder, graph)
    except (UserError, OSError) as error:  # shards that were moved or deleted since: the report does without
        say(f"the report does without captions' neighbours: {error}")
        return None


def _caption_strips(folder: Path, graph: str | None) -> GraphStrips:
    shards = Shards.open(folder)
    name = shards.graph_name(graph or None)
    found = shards.graph(name)
    texts, text_of = shards.texts(), shards.index.text_id
    first = np.full(len(texts), -1, np.int64)
    first[text_of[::-1]] = np.arange(len(text_of))[::-1]  # a text's first sample
    strips, seen = [], set[int]()
    having = np.flatnonzero(np.diff(found.indptr)[text_of])  # a graph of classes may list nothing
    for sample in np.random.default_rng(SEED).permutation(having):
        text = int(text_of[sample])
        if text in seen:
            continue
        seen.add(text)
        listed = slice(int(found.indptr[text]), int(found.indptr[text + 1]))
        pairs = list(zip(found.neighbours[listed].tolist(), found.similarities[listed].tolist(), strict=True))
        query = _sample(shards, int(sample), texts[text], None)
        near = [_sample(shards, int(first[i]), texts[i], s) for i, s in pairs[:LENGTH]]
        if query is not None and near:
            strips.append(Strip(query=query, neighbours={"captions": [n for n in near if n is not None]}))
        if len(strips) == STRIPS:
            break
    return GraphStrips(graph=name, shards=folder, strips=strips)


def image_strips(models: dict[str, Model], bench: Bench, features: Path) -> list[Strip]:
    """Test pictures of the first column beside the training pictures whose features are nearest, by model."""
    column = bench.columns[0]
    task = next(task for task in bench.tasks if task.name == column.task)
    train, test = bench.by_name[task.images], bench.by_name[column.images]
    blocks = np.array_split(np.arange(len(test), dtype=np.int64), 1 + len(test) // BLOCK)
    hits = np.concatenate([column.score(np.zeros((len(rows), len(task.classes)), np.float32), rows) for rows in blocks])
    counted = np.flatnonzero(~np.isnan(hits))
    chosen = np.sort(np.random.default_rng(SEED).permutation(counted)[:STRIPS]).astype(np.int64)
    near: dict[str, list[list[Neighbour]]] = {}
    for name, model in models.items():
        bank = extract(model, train, features)
        rows = np.flatnonzero(bank.ok & (task.labels != LEFT_OUT)).astype(np.int64)
        knn = KNN(Bank(bank, rows), np.zeros(len(rows), np.int64), 1, KNNConfig(k=min(LENGTH, len(rows))))
        cosines, found = knn.neighbours(extract(model, test, features).rows(chosen))
        near[name] = [
            [
                Neighbour(source=thumbnail(train, int(rows[i])), words=_word(task, int(rows[i])), similarity=c)
                for i, c in zip(row.tolist(), cosine.tolist(), strict=True)
            ]
            for row, cosine in zip(found, cosines, strict=True)
        ]
    return [
        Strip(
            query=Neighbour(source=thumbnail(test, int(row)), words=_right(column, int(row), task) or test.keys[row]),
            neighbours={name: lists[position] for name, lists in near.items()},
        )
        for position, row in enumerate(chosen)
    ]


def thumbnail(images: ImageSet, row: int) -> str:
    """The picture as a data: URI; the file itself where it is small. Empty for one that does not decode."""
    return _as_uri(images.read(row))


def _sample(shards: Shards, sample: int, words: str, similarity: float | None) -> Neighbour | None:
    source = _as_uri(shards.image(sample))
    return Neighbour(source=source, words=words.replace("\n", " / "), similarity=similarity) if source else None


def _right(column: Column, row: int, task: Task) -> str:
    """The classes that are right for a test picture: those whose choice would be a hit. Empty of very many classes."""
    count = len(task.classes)
    if count > MOST:
        return ""
    rows = np.full(count, row, np.int64)
    hits = column.score(np.eye(count, dtype=np.float32), rows) == 1
    wrong = np.flatnonzero(~hits)
    if len(wrong):  # a class that is no choice (ObjectNet's others) leaves it to the rule of ties: not to a right one
        second = np.eye(count, dtype=np.float32) * 2
        second[:, wrong[0]] += 1
        hits &= column.score(second, rows) == 1
    names = [task.classes[i] for i in np.flatnonzero(hits).tolist()]
    return ", ".join(names[:NAMES]) + (", ..." if len(names) > NAMES else "")


def _word(task: Task, row: int) -> str:
    label = int(task.labels[row])
    return "" if label == LEFT_OUT else task.classes[label]


def _as_uri(data: bytes) -> str:
    try:
        image = decode(data)
    except BadImage:
        return ""
    shorter = min(image.shape[:2])
    if shorter > THUMBNAIL:
        scale = THUMBNAIL / shorter
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    elif data[:2] == b"\xff\xd8":
        return data_uri(data)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return data_uri(encoded.tobytes())
