"""`shards`: exact figures on colours, classes by name, samples without a label, real builds, and what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.benchmarks.bench import Bench
from eval.benchmarks.registry import open_bench
from eval.evaluate import Method, Settings, evaluate
from eval.heads.knn import KNNConfig
from eval.models.open import open_model
from shards.errors import UserError
from shards.manifest import Manifest
from tests.eval.label_shards import Sample, coloured, write_labelled
from tests.eval.make_folders import as_tars, make_folders, make_model
from tests.eval.runs import run_eval, train_run
from tests.make import make_shards
from tests.pipeline.building import build
from tests.pipeline.sources import data_set, images_inside
from trainer.cli import _bench

Names = tuple[str, ...]
NAMES = ("red", "green", "blue", "yellow")
OTHERS = ("yellow", "red", "blue", "green")  # of the test shards: another order
EACH, ASKED, WITHOUT = 12, 5, 3
TRAINING: list[Sample] = [(name, label) for label, name in enumerate(NAMES)] * EACH + [("red", None)] * WITHOUT
RIGHT: list[Sample] = [(name, label) for label, name in enumerate(OTHERS)] * ASKED
TESTED: list[Sample] = [("yellow", 2), ("red", 2), *RIGHT[2:], ("red", None)]
"""Two of twenty have the label of another class, and one more has none."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training shards; test shards lie beside them."""
    root = tmp_path_factory.mktemp("shards")
    write_labelled(root / "colours-test", TESTED, OTHERS, "test")
    return write_labelled(root / "colours", TRAINING, NAMES)


def pair(root: Path, train: list[Sample], test: list[Sample], ours: Names = NAMES, theirs: Names = NAMES) -> Path:
    """Other shards, and the names of their classes."""
    write_labelled(root / "mine-test", test, theirs, "test")
    return write_labelled(root / "mine", train, ours)


def score(bench: Bench, method: Method, cache: Path) -> dict[str, Any]:
    return evaluate(make_model(), bench, method, Settings(features=cache, knn=KNNConfig(k=3)))


@pytest.mark.parametrize("method", ["linear_probe", "knn"])
def test_figures_are_exact_whatever_the_order_of_classes(made: Path, tmp_path: Path, method: Method) -> None:
    result = score(open_bench("shards", made), method, tmp_path)
    top1 = result["columns"]["top1"]
    assert (top1["accuracy"], top1["n"], top1["unreadable"]) == (90.0, 20, 0)  # two of twenty have a wrong label
    assert list(result["columns"]) == ["top1"]
    assert result["chosen"]["class"]["trained_on"] == EACH * len(NAMES)
    assert result["root"] == str(made)


def test_samples_without_a_label_are_left_out_and_counted(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = open_bench("shards", made)
    said = capsys.readouterr().err
    assert f"{made}: 3 of 51 samples have no label and are left out\n" in said
    assert f"{made}-test: 1 of 21 samples have no label and are left out\n" in said
    assert bench.notes == {
        "of_training": {"compared": 20, "found": 0},
        "train": str(made),
        "test": f"{made}-test",
        "classes": 4,
        "not_in_test": 0,
        "unlabelled": {"train": 3, "test": 1},
    }
    assert bench.tasks[0].labels.tolist() == [0, 1, 2, 3] * EACH
    assert bench.by_name["test"].keys == [f"{i:06d}" for i in range(20)]


def test_pictures_are_those_of_their_labels(tmp_path: Path) -> None:
    """Samples without a label stand before, between and behind."""
    colours, labels = ["red", "green", "blue", "red", "yellow", "green", "blue"], [None, 0, None, None, 1, 0, None]
    some: list[Sample] = [("red", 0), ("blue", 1)]
    mine = open_bench("shards", pair(tmp_path, [*zip(colours, labels, strict=True)], some)).by_name["train"]
    every = open_bench("shards", pair(tmp_path / "every", [(c, i % 4) for i, c in enumerate(colours)], some))
    assert mine.keys == ["000001", "000004", "000005"]
    assert [mine.read(i) for i in range(3)] == [every.by_name["train"].read(i) for i in (1, 4, 5)]


def test_only_the_training_shards_may_train(made: Path) -> None:
    assert [images.name for images in open_bench("shards", made).sets if images.may_train] == ["train"]


@pytest.mark.parametrize(("classes", "columns"), [(9, ["top1"]), (10, ["top1", "top5"])])
def test_five_likeliest_from_ten_classes_on(tmp_path: Path, classes: int, columns: list[str]) -> None:
    """Classes that have a picture: the manifest may name more."""
    names = tuple(f"class {i}" for i in range(11))
    samples: list[Sample] = [("red", 10 - i) for i in range(classes)]
    bench = open_bench("shards", pair(tmp_path, samples, samples, names, names))
    assert [column.name for column in bench.columns] == columns
    assert bench.tasks[0].classes == list(names[11 - classes :])
    for column in bench.columns:  # of scores that fall from class 0 on, the first (five) are right
        ranked = -np.arange(classes, dtype=np.float32)[None].repeat(classes, 0)
        hits = column.score(ranked, np.arange(classes))
        assert hits.tolist() == [classes - 1 - i < (5 if column.name == "top5" else 1) for i in range(classes)]


def test_a_class_that_is_not_tested_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = pair(tmp_path, TRAINING, [("yellow", 1), ("green", 0)], theirs=("green", "yellow", "never"))
    bench = open_bench("shards", root)
    assert bench.notes["not_in_test"] == 2
    assert f"{root}-test has no picture of 2 of 4 classes, 'red' among them\n" in capsys.readouterr().err


def test_classes_of_one_name_stay_two_where_the_lists_are_equal(tmp_path: Path) -> None:
    """ImageNet has two cranes."""
    names = ("crane", "heron", "crane")
    some: list[Sample] = [("red", 0), ("green", 1), ("blue", 2)]
    bench = open_bench("shards", pair(tmp_path, some * 4, some, names, names))
    assert bench.tasks[0].classes == list(names)
    assert score(bench, "knn", tmp_path / "cache")["columns"]["top1"]["accuracy"] == 100.0


def test_pictures_that_do_not_decode_are_counted_and_left_out(tmp_path: Path) -> None:
    root = pair(tmp_path, TRAINING, TESTED, theirs=OTHERS)
    write_labelled(root.with_name("mine-test"), TESTED, OTHERS, "test", bad=(4,))
    result = score(open_bench("shards", root), "knn", tmp_path / "cache")
    top1 = result["columns"]["top1"]
    assert (top1["accuracy"], top1["n"], top1["unreadable"]) == (pytest.approx(100 * 17 / 19), 19, 1)


def test_features_go_by_tars_and_index(tmp_path: Path) -> None:
    def found(root: Path) -> str:
        return open_bench("shards", root).by_name["train"].fingerprint

    first = found(pair(tmp_path, TRAINING, TESTED))
    files = Manifest.load(tmp_path / "mine").files
    for name in ("train-000001.tar", "index/train-000001.parquet"):
        changed(tmp_path / "mine", files=files | {name: replace(files[name], sha256="0" * 64)})
        assert found(tmp_path / "mine") != first
    changed(tmp_path / "mine", files=files)
    assert found(shutil.copytree(tmp_path, tmp_path / "copy") / "mine") == first
    write_labelled(tmp_path / "mine", TRAINING, NAMES, text="another caption")
    assert found(tmp_path / "mine") == first
    write_labelled(tmp_path / "mine", [*TRAINING[:-1], ("red", 0)], NAMES)  # equal pictures, one more of them labelled
    assert found(tmp_path / "mine") != first


@pytest.mark.parametrize("layout", ["shuffled", "in-place"])
def test_what_stage_one_builds_scores_as_its_class_folders(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    for split, samples in (("train", TRAINING), ("val", TESTED)):
        names = NAMES if split == "train" else OTHERS
        for number, (colour, label) in enumerate(samples):
            if label is not None:
                path = tmp_path / "folders" / split / names[label] / f"{number}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(coloured(rng, colour))
    source = as_tars(tmp_path / "folders", tmp_path / "tars")
    (source / "val.tar").rename(source / "test.tar")
    for name, split in (("mine", "train"), ("mine-test", "test")):
        (tmp_path / f"{name}.toml").write_text(f'format = "imagefolder"\nsplit = "{split}"\n')
        build(str(tmp_path / f"{name}.toml"), source, tmp_path / name, layout=layout)
    own = score(open_bench("shards", tmp_path / "mine"), "knn", tmp_path / "cache")
    theirs = score(open_bench("imagefolder", source), "knn", tmp_path / "cache")
    assert own["columns"]["top1"]["accuracy"] == theirs["columns"]["top1"]["accuracy"] == 90.0
    assert Path(Manifest.load(tmp_path / "mine").shards[0].tar).is_absolute() == (layout == "in-place")


def test_parquet_of_hugging_face_is_trained_and_scored_by_its_own_classes(tmp_path: Path) -> None:
    """From files whose labels are numbers to a figure: both splits take the names that the schema carries."""
    rng = np.random.default_rng(0)
    for split, samples in (("train", TRAINING), ("test", TESTED)):
        names = NAMES if split == "train" else OTHERS
        pairs = [(coloured(rng, colour), label) for colour, label in samples]
        images, labels = [image for image, _ in pairs], [-1 if label is None else label for _, label in pairs]
        images_inside(tmp_path / "in" / "data" / f"{split}-0.parquet", labels, names, images)
    for name, split in (("mine", "train"), ("mine-test", "test")):
        mine = data_set(tmp_path / f"{name}.toml", format="table", split=split, label="label", captions=[])
        build(mine, tmp_path / "in", tmp_path / name, max_skipped=1)
    found = score(open_bench("shards", tmp_path / "mine"), "knn", tmp_path / "cache")
    assert found["columns"]["top1"]["accuracy"] == 90.0
    assert _bench(str(tmp_path / "mine")) == "shards"
    assert _bench("s3://bucket/mine") == "imagefolder --data DIR"


@pytest.mark.parametrize("shared", [0, 4])
def test_training_images_among_the_test_images_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    rng = np.random.default_rng(0)
    ours = [(coloured(rng, NAMES[label]), label) for label in [0, 1, 2, 3] * 6]
    theirs = [(coloured(rng, NAMES[label]), label) for label in [0, 1, 2, 3] * 4] + ours[:shared]
    for split, pairs in (("train", ours), ("test", theirs)):
        images, labels = [image for image, _ in pairs], [label for _, label in pairs]
        images_inside(tmp_path / "in" / "data" / f"{split}-0.parquet", labels, NAMES, images)
    for name, split in (("mine", "train"), ("mine-test", "test")):
        mine = data_set(tmp_path / f"{name}.toml", format="table", split=split, label="label", captions=[])
        build(mine, tmp_path / "in", tmp_path / name, max_skipped=1)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("eval.benchmarks.overlap.READ", 1)
        assert (
            open_bench("shards", tmp_path / "mine").notes["of_training"]["compared"] <= 16
        )  # those without an equal size
    capsys.readouterr()
    bench = open_bench("shards", tmp_path / "mine")
    assert bench.notes["of_training"] == {"compared": 16 + shared, "found": shared}
    said = f"warning: 4 of 20 pictures of {tmp_path}/mine-test that were looked at are in {tmp_path}/mine too"
    assert (said in capsys.readouterr().err) == (shared > 0)


def test_test_pictures_in_what_the_model_was_trained_on_are_told(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where a split is held out after a run has seen all; shards that are damaged, or gone, are not asked for."""
    seen = shutil.copytree(f"{made}-test", tmp_path / "all")
    replace(Manifest.load(seen), split="train").save(seen)
    run = train_run(seen, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    call = ["knn", "--bench", "shards", "--data", str(made), "--k", "3", "--checkpoint", str(run)]
    call += ["--features", str(tmp_path / "cache"), "--out", str(tmp_path / "r.json")]

    def told() -> str:
        assert run_eval(call) == 0
        return " ".join(capsys.readouterr().err.split())

    assert f"20 of 20 pictures of {made}-test that were looked at are in {tmp_path}/all too" in told()
    for tar in (tmp_path / "all").glob("*.tar"):
        tar.unlink()
    assert "looked at" not in told()


def test_the_training_images_under_another_name_are_no_test(tmp_path: Path) -> None:
    for name, split in (("mine", "train"), ("mine-test", "test")):
        write_labelled(tmp_path / name, TRAINING, NAMES, split)
    train, test = (Manifest.load(tmp_path / name) for name in ("mine", "mine-test"))
    for ours, theirs in zip(train.shards, test.shards, strict=True):
        shutil.copy(tmp_path / "mine" / ours.tar, tmp_path / "mine-test" / theirs.tar)
    files = dict(test.files)
    files[test.shards[0].tar] = train.files[train.shards[0].tar]
    replace(test, files=files).save(tmp_path / "mine-test")
    with pytest.raises(UserError, match=r"mine-test holds the training images \(test-000000.tar is a tar of \S*mine\)"):
        open_bench("shards", tmp_path / "mine")


def test_without_data_it_is_the_checkpoints_own_shards(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(made, tmp_path / "runs" / "one")
    monkeypatch.chdir(tmp_path)
    cache = ["--features", str(tmp_path / "cache")]
    assert run_eval(["knn", "--bench", "shards", "--k", "3", *cache]) == 0
    assert f"on shards ({made})" in capsys.readouterr().err
    result = json.loads((run / "eval" / "knn-shards-colours.json").read_text())
    assert result["columns"]["top1"]["n"] == 20
    monkeypatch.chdir(made)
    call = ["knn", "--bench", "shards", "--k", "3", *cache, "--checkpoint", str(run)]
    assert run_eval([*call, "--data", ".", "--out", str(tmp_path / "here.json")]) == 0
    here = json.loads((tmp_path / "here.json").read_text())
    assert here["columns"] == result["columns"]
    assert here["notes"]["test"] == f"{made}-test"


def test_other_shards_where_a_run_had_its_own_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path from the folder that it was started in; the run's own shards are found beside it from anywhere."""
    for place, seed in (("here", 0), ("there", 1)):
        make_shards(tmp_path / place / "data/own", (24,), classes=4, seed=seed)
        make_shards(tmp_path / place / "data/own-test", (24,), classes=4, seed=seed + 2, split="test", graph=False)
    monkeypatch.chdir(tmp_path / "here")
    run = train_run("data/own", tmp_path / "here/runs/one")
    call = ["knn", "--bench", "shards", "--k", "3", "--features", str(tmp_path / "cache"), "--checkpoint", str(run)]

    def told() -> str:
        assert run_eval(call) == 0
        return " ".join(capsys.readouterr().err.split())

    assert "is not what" not in told()
    monkeypatch.chdir(tmp_path / "there")
    assert f"on shards ({run.parent.parent}/data/own)" in (said := told())
    assert "is not what" not in said
    monkeypatch.chdir(run)  # and by a name that says nothing of where it lies
    assert open_model(".").shards == tmp_path / "here/data/own"
    monkeypatch.chdir(tmp_path / "there")
    (tmp_path / "disk").mkdir()
    (tmp_path / "here/runs").rename(tmp_path / "disk/runs")
    (tmp_path / "here/runs").symlink_to(tmp_path / "disk/runs")  # as where there is more room
    (tmp_path / "best").symlink_to(run)
    assert open_model(str(run)).shards == tmp_path / "here/data/own"
    (tmp_path / "here/runs").unlink()
    (tmp_path / "disk/runs").rename(tmp_path / "here/runs")
    assert open_model(str(tmp_path / "best")).shards == tmp_path / "here/data/own"
    shutil.rmtree(tmp_path / "here/data")
    said = told()
    assert f"warning: data/own is not what {run} was trained on" in said
    assert "on shards (data/own)" in said
    call += ["--data", "data/own"]
    assert "is not what" not in told()
    (tmp_path / "mine.toml").write_text("benches = ['shards']\nmethods = ['knn']\nknn = {k = 3}\n")
    suite = ["suite", "--config", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "out"), *call[5:-2]]
    assert run_eval(suite) == 0
    assert " ".join(capsys.readouterr().err.split()).count(f"data/own is not what {run} was trained on") == 1
    call = ["similarity", "--samples", "10", *call[5:-2]]
    assert f"warning: data/own is not what {run} was trained on" in told()


NETWORK = """
from eval.models.model import Transform
from tests.eval.make_folders import NORMAL, Colours

def colours():
    return Colours(), Transform(image_size=16, crop_pct=1.0, mean=NORMAL, std=NORMAL)
"""


def test_a_run_on_a_file_url_knows_its_folder(made: Path, tmp_path: Path) -> None:
    run = train_run(f"file://{made}", tmp_path / "run")
    assert open_model(str(run)).shards == made


def test_a_suite_takes_it_too(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("benches = ['shards']\nfew_shot = [50]\n")
    (tmp_path / "mine.py").write_text(NETWORK)
    call = ["suite", "--config", "mine.toml", "--checkpoint", str(tmp_path / "mine.py:colours"), "--out", "out"]
    assert run_eval([*call, "--data", str(made)]) == 0
    row = json.loads((tmp_path / "out/results.json").read_text())["rows"][0]
    assert list(row["linear_probe"].values()) == [90.0, 90.0]
    capsys.readouterr()
    assert run_eval(call) == 2
    assert "the checkpoint names no folder of shards that it was trained on" in capsys.readouterr().err


def test_the_list_says_how_to_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert run_eval(["list"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["shards"])
    assert "any" in line.split()
    assert line.rstrip().endswith("give --data SHARDS")


def changed(root: Path, **values: Any) -> None:
    replace(Manifest.load(root), **values).save(root)


def broken(root: Path, what: str) -> Path:
    """--data of a copy of `made` that is wrong."""
    train, test = root / "colours", root / "colours-test"
    if what == "nowhere":
        return root / "nowhere"
    if what == "class folders":
        return make_folders(root / "folders", classes=2, train=1, val=1)
    if what == "unfinished":
        (train / "manifest.json").unlink()
    elif what == "test split":
        return test
    elif what == "test split of another name":
        changed(train, split="test")
    elif what == "no labels":
        write_labelled(train, [("red", None)] * 4, ())
        shutil.rmtree(test)  # captions need none
    elif what == "no test labels":
        write_labelled(test, [("red", None)] * 4, (), "test")
    elif what == "no test shards":
        shutil.rmtree(test)
    elif what == "unfinished test shards":
        (test / "manifest.json").unlink()
    elif what == "train split beside":
        changed(test, split="train")
    elif what == "foreign class":
        changed(test, classes=("yellow", "zebra", "blue", "ibis"))
    elif what == "class without training pictures":
        write_labelled(train, [("red", 0), ("green", 1), ("blue", 2)], NAMES)
    elif what == "one class":
        write_labelled(train, [("red", 1)] * 4, NAMES)
        write_labelled(test, [("red", 1)] * 2, NAMES, "test")
    elif what == "fewer names than labels":
        changed(train, classes=("red", "green"))
    elif what == "names in common":
        changed(test, classes=("yellow", "red", "yellow", "green"))
    elif what == "no tar":
        (test / "test-000001.tar").unlink()
    return train


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nowhere", "--data {root}/nowhere is no folder: give --data a folder of labelled training shards"),
        ("class folders", "--data {root}/folders has no manifest.json, .* class folders are --bench imagefolder"),
        ("unfinished", "colours has no manifest.json, so its shards are not finished, or none: give --data"),
        ("test split", "colours-test is a test split .*: give --data {root}/colours, whose test shards are {test}$"),
        ("test split of another name", "colours is a test split .*: give --data the training shards"),
        ("no labels", "none of the 4 samples of {train} has a label: give --data a folder of labelled"),
        ("no test labels", "none of the 4 samples of {test} has a label"),
        (
            "no test shards",
            'there are no test shards {test}: write colours-test.toml, .* with split = "test" .* and run '
            "`xclr-shards build colours-test.toml --source '/data/my pictures' --out {test} --graph none`$",
        ),
        ("unfinished test shards", "{test} has no manifest.json, so its shards are unfinished, or none: run"),
        (
            "train split beside",
            "{test} has split 'train' .*: delete it, put split = \"test\" into colours-test.toml .* and run "
            "`xclr-shards build colours-test.toml --source '/data/my pictures' --out {test} --graph none`$",
        ),
        ("foreign class", r"{test} has the class 'zebra' \(4 pictures\), which {train} lacks \(2 such of 4\): classes"),
        ("class without training pictures", r"'yellow' \(4 pictures\), which {train} lacks \(1 such of 4\)"),
        ("one class", "{train} has one class, 'green': a probe needs two, so give shards of more"),
        ("fewer names than labels", "{train} has the label 3, and its manifest.json names 2 classes: build"),
        (
            "names in common",
            "{test} has 2 classes that are called 'yellow', .* give both data set files the same classes",
        ),
        ("no tar", "test-000001.tar is missing: run `xclr-shards verify {test}`"),
    ],
)
def test_wrong_shards_are_one_line(made: Path, tmp_path: Path, what: str, message: str) -> None:
    root = shutil.copytree(made.parent, tmp_path / "data")
    data = broken(root, what)
    known = {"root": root, "train": root / "colours", "test": root / "colours-test"}
    with pytest.raises(UserError, match=message.format(**known)) as caught:
        open_bench("shards", data)
    assert "\n" not in str(caught.value)


def test_without_data_and_shards_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLR_BENCHMARKS", str(tmp_path))
    with pytest.raises(UserError, match="names no folder of shards that it was trained on: give --data a folder"):
        open_bench("shards")
    with pytest.raises(UserError, match=f"{tmp_path}/gone, which the checkpoint was trained on, is no folder: give"):
        open_bench("shards", shards=tmp_path / "gone")


def test_what_lies_where_benchmarks_do_is_taken(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XCLR_BENCHMARKS", str(tmp_path))
    pair(tmp_path, TRAINING, TESTED).rename(tmp_path / "shards")
    (tmp_path / "mine-test").rename(tmp_path / "shards-test")
    assert open_bench("shards", shards=made).root == tmp_path / "shards"
