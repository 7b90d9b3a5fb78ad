"""`shards`: labelled shards (format 1) of any data set; one probe on those at --data, judged on NAME-test beside them.

    data/cifar10/manifest.json         split "train", and `classes`, the names of the labels in index/
    data/cifar10-test/manifest.json    split "test"; its classes may stand in another order, or be fewer

What a manifest says of its split is believed, not what its folder is called: a head trained on a test split, or judged
on pictures that models are trained on, would give a figure that looks like any other. Samples without a label belong to
neither set: their features are not even extracted, since in a crawl with a few labels they are most of it.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from shlex import quote

import numpy as np

from eval.benchmarks.bench import Bench, ImageSet, Ints, Source, fingerprint
from eval.benchmarks.classes import Classified, Words, class_figures
from eval.benchmarks.overlap import Held, of_training
from shards.bars import say
from shards.errors import UserError
from shards.reader import TEST, Shards, is_finished, test_folder, training_folder

__all__ = ["open_labelled"]

NAME = "shards"
DATA = "give --data a folder of labelled training shards"
WORDS = Words(
    truth="the class of the label",
    matched="classes are matched by their names in manifest.json",
    needs="so give shards of more classes",
)


def open_labelled(source: Source) -> Bench:
    """Train shards: --data, else the checkpoint's; test shards beside them. Raises UserError naming what is missing."""
    train = _training(_train_folder(source))
    rows = _labelled(train)  # before the test shards are asked for: captions alone need none
    test = _testing(test_folder(train.root), train)
    test_labelled = _labelled(test)
    test_rows = _taught(train, rows, test, test_labelled)
    _check_names(train, test)
    _check_apart(train, test)
    task, columns, notes = class_figures(_classified("train", train, rows), _classified("test", test, test_rows), WORDS)
    unlabelled = {"train": len(train) - len(rows), "test": len(test) - len(test_labelled)}
    _look_in(source.shards, train, _held(test, test_rows))
    return Bench(
        name=NAME,
        root=train.root,
        sets=(_image_set("train", train, rows), _image_set("test", test, test_rows)),
        tasks=(task,),
        columns=columns,
        notes={**notes, "unlabelled": unlabelled, "of_training": of_training(_held(train), _held(test, test_rows))},
    )


def _look_in(trained: Path | None, train: Shards, test: Held) -> None:
    """Tell of test pictures among what the model was trained on, where that is neither the probe's nor gone."""
    if trained and is_finished(trained) and trained.resolve() != train.root.resolve():
        with suppress(UserError):  # shards that nobody has asked for, and that may be damaged
            of_training(_held(Shards.open(trained)), test)


def _train_folder(source: Source) -> Path:
    """--data; without it the checkpoint's shards (or what lies where benchmarks do)."""
    if source.root != source.benchmarks / NAME or source.root.exists():
        folder, whose = source.root, f"--data {source.root}"
    elif source.shards is None:
        raise UserError(f"the checkpoint names no folder of shards that it was trained on: {DATA}")
    else:
        folder, whose = source.shards, f"{source.shards}, which the checkpoint was trained on,"
    if not is_finished(folder):
        what = "has no manifest.json, so its shards are not finished, or none" if folder.is_dir() else "is no folder"
        raise UserError(f"{whose} {what}: {DATA}; class folders are --bench imagefolder")
    return folder


def _training(folder: Path) -> Shards:
    """Raises UserError for a test split."""
    shards = Shards.open(folder)
    if shards.manifest.split == "test":
        train = training_folder(folder)
        raise UserError(
            f"{folder} is a test split by its manifest.json, and no head is trained on one: give --data "
            f"{train if train != folder else 'the training shards'}, whose test shards are "
            f"{test_folder(train if train != folder else Path('NAME'))}"
        )
    shards.check_sizes()
    return shards


def _testing(folder: Path, train: Shards) -> Shards:
    """Raises UserError where there are none, and for those of another split."""
    if not folder.exists() and _held_out(train):
        raise UserError(
            f"there are no test shards {folder}: {train.root} leaves {_held_out(train):.3g} of the samples out for "
            f"them; build these by `{_build(folder, train, train.manifest.dataset)}`, with any other options (such as "
            "--image-size) that it was built with"
        )
    if not folder.exists():
        raise UserError(
            f"there are no test shards {folder}: write {folder.name}.toml, a copy of the data set's file of "
            f'{train.root} with split = "test" and the test files (docs/sources.md), and run `{_build(folder, train)}`'
        )
    shards = Shards.open(folder)
    if shards.manifest.split != "test":
        raise UserError(
            f"{folder} has split {shards.manifest.split!r} in its manifest.json, so models may be trained on it: "
            f'delete it, put split = "test" into {folder.name}.toml (docs/sources.md), and run '
            f"`{_build(folder, shards)}`"
        )
    ours, theirs = _held_out(train), _held_out(shards)
    files = (one.manifest.settings.get("files_sha256") for one in (train, shards))
    if shards.manifest.settings.get("held_out") and theirs > ours and len(set(files)) == 1:
        raise UserError(
            f"{folder} holds {theirs:.3g} of the samples of {shards.manifest.source}, and {train.root} leaves only "
            f"{ours:.3g} of them out: delete one, and build both of one data set file"
        )
    shards.check_sizes()
    return shards


def _held_out(shards: Shards) -> float:
    """Share of the source's samples that a data set file holds out for a test split."""
    share: float = shards.manifest.settings.get("dataset", {}).get("held_out", 0)
    return share


def _build(folder: Path, like: Shards, held_out_of: str = "") -> str:
    """The command that builds test shards from where others were built. held_out_of: or of the same data set."""
    if like.manifest.dataset == "demo":
        return f"xclr-shards build demo{TEST}"
    file = f"{held_out_of or folder.name}.toml"
    command = ["xclr-shards", "build", file, "--source", like.manifest.source, "--out", str(folder)]
    return " ".join([*map(quote, command), "--held-out" if held_out_of else "--graph none"])


def _check_names(train: Shards, test: Shards) -> None:
    """Raises UserError where a name stands for several classes and the two lists are not one: which is meant?"""
    if train.manifest.classes == test.manifest.classes:
        return
    for shards in (train, test):
        name, count = Counter(shards.manifest.classes).most_common(1)[0] if shards.manifest.classes else ("", 0)
        if count > 1:
            raise UserError(
                f"{shards.root} has {count} classes that are called {name!r}, and {train.root} and {test.root} list "
                "their classes differently, so they cannot be matched by name: give both data set files the same "
                "classes = [...], and build again"
            )


def _check_apart(train: Shards, test: Shards) -> None:
    """Raises UserError where images of a tar are in both: built of the same files, under two names.

    A tar that stays in its place may hold both splits, each by its index.
    """
    ours = {train.manifest.files[shard.tar].sha256: number for number, shard in enumerate(train.manifest.shards)}
    for number, shard in enumerate(test.manifest.shards):
        other = ours.get(test.manifest.files[shard.tar].sha256)
        if other is None:
            continue
        here, there = test.index.shard == number, train.index.shard == other
        if np.isin(test.index.offset[here], train.index.offset[there]).any():
            raise UserError(
                f"{test.root} holds the training images ({shard.tar} is a tar of {train.root}): build it of the test "
                "files (`files` in its data set file)"
            )


def _taught(train: Shards, rows: Ints, test: Shards, test_rows: Ints) -> Ints:
    """The held-out pictures of a class that has training pictures too: a hash may hold out all of a rare one."""
    known = np.isin(test.index.label[test_rows], train.index.label[rows])
    listed = train.manifest.classes == test.manifest.classes
    if not (test.manifest.settings.get("held_out") and listed and known.any()) or known.all():
        return test_rows
    say(f"{test.root}: {(~known).sum():,} pictures are left out, of classes of which all are held out")
    return test_rows[known]


def _held(shards: Shards, rows: Ints | None = None) -> Held:
    """The pictures at `rows`, or all."""
    at: Ints = np.arange(len(shards)) if rows is None else rows
    return Held(where=shards.root, sizes=shards.index.size[at], read=lambda i: shards.image(int(at[i])))


def _labelled(shards: Shards) -> Ints:
    """Positions of the samples that have a label. Raises UserError without any, and for labels without a name."""
    rows: Ints = np.flatnonzero(shards.index.label >= 0).astype(np.int64)
    if not len(rows):
        raise UserError(
            f"none of the {len(shards):,} samples of {shards.root} has a label: {DATA} (docs/sources.md says where "
            "labels come from)"
        )
    most, names = int(shards.index.label.max()), len(shards.manifest.classes)
    if most >= names:
        raise UserError(
            f"{shards.root} has the label {most}, and its manifest.json names {names} classes: build the shards again"
        )
    if len(rows) < len(shards):
        say(f"{shards.root}: {len(shards) - len(rows):,} of {len(shards):,} samples have no label and are left out")
    return rows


def _classified(images: str, shards: Shards, rows: Ints) -> Classified:
    labels = shards.index.label[rows].astype(np.int64)
    return Classified(images=images, where=shards.root, names=shards.manifest.classes, labels=labels)


def _image_set(name: str, shards: Shards, rows: Ints) -> ImageSet:
    """The samples at `rows`; the index is read by now, before workers fork, so that they share it."""
    files = shards.manifest.files
    paths = [path for shard in shards.manifest.shards for path in (shard.tar, f"index/{shard.name}.parquet")]
    return ImageSet(
        name=name,
        keys=shards.index.key.take(rows).to_pylist(),
        read=lambda i: shards.image(int(rows[i])),
        fingerprint=fingerprint(["labelled", *(files[path].sha256 for path in paths)]),
        may_train=shards.manifest.split == "train",
    )
