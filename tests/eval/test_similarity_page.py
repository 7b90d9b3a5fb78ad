"""`xclr-eval similarity`: a user's commands, and what the page shows."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from eval.models.open import open_models
from eval.report.show import show_similarity
from eval.report.similarity import _apart, _labels, _pixels, figures, write_similarity
from eval.similarity.compare import Compared, groups_of
from eval.similarity.pictures import GraphPictures
from shards.errors import UserError
from shards.graph import write_graph
from shards.manifest import Manifest
from shards.page import STYLE
from tests.eval.make_folders import make_model
from tests.eval.runs import run_eval
from tests.eval.test_similarity import compared, made, some_pictures, unit
from tests.make import make_graph, make_shards

__all__ = ["made"]


def test_commands_of_a_user(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    both = ["similarity", "--checkpoint", "runs/simclr", "--checkpoint", "runs/xclr"]
    assert run_eval([*both, "--untrained"]) == 0
    shown = capsys.readouterr().out
    assert "runs/eval/similarity-made-made.html" in shown
    page = (made / "runs/eval/similarity-made-made.html").read_text()
    assert page.count("<image ") == 4
    assert "over the first" in page
    assert all(name in page for name in ("simclr", "xclr", "untrained", ">3<"))
    table = json.loads((made / "runs/eval/similarity-made-made.json").read_text())
    assert set(table["models"]) == {"simclr", "xclr", "untrained"}
    assert set(table["models"]["xclr"]) == {"about", "projections", "features"}
    assert (table["pictures"], table["texts"], table["graph"], table["split"]) == (32, 8, "made", "train")
    assert run_eval([*both, "--untrained"]) == 0  # features are kept, the page is made again
    assert run_eval(["similarity", "--checkpoint", "runs/xclr"]) == 0
    assert (made / "runs/xclr/eval/similarity-made-made.html").is_file()
    alone = json.loads((made / "runs/xclr/eval/similarity-made-made.json").read_text())
    assert alone["models"]["xclr"]["features"]["pairs"] == table["models"]["xclr"]["features"]["pairs"]
    assert alone["models"]["xclr"]["about"]["objective"] == "xclr"
    assert run_eval(["similarity", "--samples", "12", "--out", "p.html"]) == 0  # the newest run
    assert json.loads((made / "p.json").read_text())["pictures"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "runs/xclr", "--checkpoint", "runs/xclr"], "runs/xclr is given twice"),
        (["--checkpoint", "runs/xclr", "--graph", "other"], "has no graph 'other', only made"),
        (["--checkpoint", "runs/xclr", "--data", "runs"], "runs has no manifest.json"),
        (["--checkpoint", "runs/xclr", "--out", "page.json"], "ends in .html"),
        (["--checkpoint", "runs/xclr", "--out", "there.html"], "there.html is there and no earlier result"),
        (["--checkpoint", "runs/xclr", "--out", "theirs.html"], "theirs.json is there and no earlier result"),
        (["--checkpoint", "timm:test_vit", "--untrained"], "names no folder of shards that it was trained on"),
        (["--checkpoint", "runs/xclr", "--samples", "2"], "--samples"),
    ],
)
def test_mistakes_are_one_line(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(made)
    (made / "there.html").write_text("mine")
    (made / "theirs.json").write_text("{}")
    monkeypatch.setattr("eval.models.rivals.open_timm", lambda *_, **__: make_model())
    assert run_eval(["similarity", *arguments]) != 0
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert (made / "there.html").read_text() == "mine"
    assert (made / "theirs.json").read_text() == "{}"


def test_the_page_is_of_what_was_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts 0 to 9 have no picture here, and of 40 others 25 are shown: those that the graph's groups name."""
    rng = np.random.default_rng(11)
    vectors, inverse = unit(rng, 50), np.repeat(np.arange(10, 50), 2)
    found = compared(monkeypatch, vectors, inverse, {"b<b>": vectors[inverse], "other": unit(rng, 80)})
    pictures = replace(some_pictures(vectors, inverse), unknown=7, graph_of=Path("data/y"))
    write_similarity(tmp_path / "p.html", pictures, found)
    page = (tmp_path / "p.html").read_text()
    assert "b&lt;b&gt;" in page
    assert "<b>b<b>" not in page
    assert "of a test split, which xclr-train does not train on" in page
    assert "Of 7 more pictures of data/x the graph of data/y has no text." in page
    assert "<h1>x, graph g of y</h1>" in page
    assert ("Pairs of texts:" in page, "the 40 pairs of one text" in page) == (True, True)
    labels = [int(n) for n in re.findall(r'text-anchor="end">(\d+)</text>', page.split("<b>the graph</b>")[0])][-25:]
    assert labels == found.shown.tolist()
    assert min(labels) >= 10
    assert labels == (10 + groups_of((vectors @ vectors.T)[10:, 10:])).tolist()
    write_similarity(tmp_path / "p.html", replace(pictures, split="train", unknown=0), found)
    assert "models that were trained on them have seen these very pictures" in (tmp_path / "p.html").read_text()
    assert "has no text" not in (tmp_path / "p.html").read_text()
    alone = compared(monkeypatch, vectors, np.arange(50), {"m": vectors})
    write_similarity(tmp_path / "p.html", pictures, alone)
    assert not any(words in (tmp_path / "p.html").read_text() for words in ("Pairs of texts", "Same text"))
    few = compared(monkeypatch, vectors[:8], np.arange(8), {"m": vectors[:8]})
    write_similarity(tmp_path / "few.html", some_pictures(vectors[:8], np.arange(8)), few)
    for text, shown in ((page, True), ((tmp_path / "few.html").read_text(), False)):
        assert ("is half of the 95 % interval" in text, "there is no interval" in text) == (shown, not shown)
    drawn = re.findall(r'class="line s(\d+)"[^>]*><title>([^<]*)', page)
    assert drawn == [("1", "b&lt;b&gt;"), ("2", "other")]
    assert re.findall(r'<i class="s(\d+)"></i>([^<]*)', page) == drawn


def test_near_texts_are_bright(tmp_path: Path) -> None:
    values = np.array([[np.nan, 0.2, 0.9], [0.2, 0.5, 0.4], [0.9, 0.4, 1.5]])
    uri = _pixels(values, 0.2, 0.9)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    light = pixels[..., :3].astype(int).sum(axis=2)
    assert pixels[0, 0, 3] == 0  # unknown
    assert (pixels[..., 3] == 255).sum() == 8
    assert light[0, 1] < light[1, 2] < light[0, 2] == light[2, 2]  # what is above the scale is at its end


def test_the_graph_of_the_training_is_taken(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several graphs that which a model was trained with; where none says so, the user must."""
    root = tmp_path / "data/made"
    make_shards(root, classes=8)
    write_graph(
        root, "other", make_graph(8, seed=5), np.zeros(8, np.int32), [s.name for s in Manifest.load(root).shards]
    )
    monkeypatch.chdir(tmp_path)
    models = {
        name: replace(make_model(), shards=root, graph=graph, folder=tmp_path / name)
        for name, graph in (("simclr", None), ("xclr", "other"))
    }
    monkeypatch.setattr("eval.models.open.open_model", lambda spec, **_: models[spec])
    assert run_eval(["similarity", "--checkpoint", "simclr", "--checkpoint", "xclr"]) == 0
    assert json.loads((tmp_path / "runs/eval/similarity-made-other.json").read_text())["graph"] == "other"
    assert run_eval(["similarity", "--checkpoint", "simclr"]) != 0
    assert run_eval(["similarity", "--checkpoint", "simclr", "--graph", "made"]) == 0
    make_shards(tmp_path / "data/made-test", classes=8, split="test")  # its own graph is called otherwise
    assert run_eval(["similarity", "--checkpoint", "xclr", "--data", "data/made-test"]) == 0
    assert json.loads((tmp_path / "xclr/eval/similarity-made-test-other.json").read_text())["graph"] == "other"
    assert run_eval(["similarity", "--checkpoint", "xclr", "--data", "data/made-test", "--graph", "made"]) == 0
    assert json.loads((tmp_path / "xclr/eval/similarity-made-test-made.json").read_text())["graph"] == "made"


def test_another_comparison_stands_beside_the_first(
    made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for names in (["xclr", "simclr"], ["simclr", "xclr"], ["xclr", "simclr"]):
        assert run_eval(["similarity", *(f"--checkpoint={made}/runs/{name}" for name in names)]) == 0
    first, second = sorted(tmp_path.glob("runs/eval/similarity-made-made*.json"), key=lambda path: len(path.name))
    assert first.name == "similarity-made-made.json"
    assert second.with_suffix(".html").is_file()


def test_rows_are_called_by_what_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"a/x": Path("a/x"), "b/x": Path("b/x"), "b/y": Path("b/y"), "timm:n": None}
    monkeypatch.setattr("eval.models.open.open_model", lambda spec, **_: replace(make_model(), folder=folders[spec]))
    assert list(open_models(["a/x", "b/y", "timm:n"])) == ["x", "y", "colours"]
    assert list(open_models(["a/x", "b/x"], untrained=True)) == ["a/x", "b/x", "untrained"]
    folders |= {
        "./a/x": Path("a/x"),
        "c/untrained": Path("c/untrained"),
        "c/initial weights": Path("c/initial weights"),
    }
    several = open_models(["a/x", "c/untrained", "c/initial weights"], untrained=True)
    assert list(several) == ["x", "untrained", "initial weights", "a/x, untrained"]
    with pytest.raises(UserError, match="x is given twice"):
        open_models(["a/x", "./a/x"])


def test_matrices_show_groups_that_are_near() -> None:
    """Five of eight clusters of seven texts: five texts of each, cluster by cluster."""
    rng = np.random.default_rng(4)
    vectors = np.repeat(unit(rng, 8, 16), 7, axis=0) + 0.02 * rng.normal(size=(56, 16))
    mixed = rng.permutation(56)
    chosen = groups_of((vectors @ vectors.T)[np.ix_(mixed, mixed)])
    clusters = (mixed[chosen] // 7).reshape(5, 5)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0])) == 5
    few = vectors[::7][:4]
    assert sorted(groups_of(few @ few.T).tolist()) == [0, 1, 2, 3]


COMMON = "resnet10t-image_size64-epochs3-seed1"


def test_long_names_do_without_what_they_have_in_common(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"mini-simclr-{COMMON}", f"mini-xclr-minilm-k32-{COMMON}", "untrained"]
    found, pictures = similar(monkeypatch, names)
    write_similarity(tmp_path / "p.html", pictures, found)
    page = (tmp_path / "p.html").read_text()
    said = f"Models are called by what the star stands for in mini-*-{COMMON}."
    assert page.count(COMMON) == page.count(said) == 1
    drawn = re.findall(r'<i class="s(\d+)"></i>([^<]*)', page)
    assert drawn == [("1", "simclr"), ("2", "xclr-minilm-k32"), ("3", "untrained")]
    assert re.findall(r"<figcaption><b>([^<]*)</b>", page)[1:] == ["simclr", "xclr-minilm-k32", "untrained"]
    show_similarity(pictures, found, tmp_path / "p.html")
    shown = capsys.readouterr().out
    rows = [line for line in shown.splitlines() if " features " in line]
    assert [line.split()[0] for line in rows] == ["simclr", "xclr-minilm-k32", "untrained"]
    assert max(map(len, rows)) <= 80
    assert said in shown


def test_long_names_that_have_nothing_in_common_break_at_hyphens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"mini-simclr-{COMMON}", "pets-xclr-minilm-k32-resnet18-image_size64-epochs30"]
    found, pictures = similar(monkeypatch, names)
    monkeypatch.setenv("COLUMNS", "80")
    show_similarity(pictures, found, tmp_path / "p.html")
    shown = capsys.readouterr().out
    table = [line for line in shown.splitlines()[1:] if re.match(" [a-z]", line)]
    assert max(map(len, table)) <= 80
    cells = [line.split()[0] for line in table]
    assert "".join(cells) == "".join(names)
    assert [cell for cell in cells if not cell.endswith("-")] == ["epochs3-seed1", "epochs30"]
    monkeypatch.setenv("COLUMNS", "140")
    show_similarity(pictures, found, tmp_path / "p.html")
    shown = capsys.readouterr().out
    assert all(f"\n {name} " in shown for name in names)
    assert re.search(r"\.legend span \{[^}]*overflow-wrap: anywhere", STYLE)  # and in a page, else legends overprint


def similar(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> tuple[Compared, GraphPictures]:
    """Models so called, and what they were compared on: 40 texts of two pictures."""
    rng = np.random.default_rng(5)
    vectors, inverse = unit(rng, 40), np.repeat(np.arange(40), 2)
    found = compared(monkeypatch, vectors, inverse, {name: unit(rng, 80) for name in names})
    return found, some_pictures(vectors, inverse)


@pytest.mark.parametrize(
    ("names", "short", "alike"),
    [
        (["a-simclr", "a-xclr"], ["a-simclr", "a-xclr"], ""),  # short enough
        ([f"a-x-{COMMON}"], [f"a-x-{COMMON}"], ""),
        ([f"a-x-{COMMON}", f"b-x-{COMMON}"], ["a", "b"], f"*-x-{COMMON}"),
        ([f"a-{COMMON}", f"a-{COMMON}-t"], ["seed1", "seed1-t"], "a-resnet10t-image_size64-epochs3-*"),
        ([f"a-x-{COMMON}", f"a-x-y-{COMMON}"], ["resnet10t", "y-resnet10t"], "a-x-*-image_size64-epochs3-seed1"),
        ([f"a-x-{COMMON}", f"a-y-{COMMON}", "x"], [f"a-x-{COMMON}", f"a-y-{COMMON}", "x"], ""),  # two would be x
    ],
)
def test_names_are_told_apart(names: list[str], short: list[str], alike: str) -> None:
    assert _apart(names) == (short, alike)


def test_labels_leave_out_what_all_begin_with() -> None:
    assert _labels(["a photo of a cat", "a photo of a dog\nmore"]) == ["cat", "dog"]
    assert _labels(["a cat", "a cat that sleeps"]) == ["a cat", "a cat that sleeps"]
    assert _labels(["x" * 40]) == ["x" * 25 + "\N{HORIZONTAL ELLIPSIS}"]


def test_wide_letters_count_twice() -> None:
    assert _labels(["\u72ac" * 14]) == ["\u72ac" * 12 + "\N{HORIZONTAL ELLIPSIS}"]


def test_a_model_without_a_projector_has_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    found = compared(monkeypatch, unit(rng, 12), np.arange(12), {"a": unit(rng, 12), "b": unit(rng, 12)})
    head, rows = figures(found)
    assert head == ["", "of its", "pairs of pictures", "over the first"]
    assert [row[:2] for row in rows] == [["a", "features"], ["b", "features"]]
    assert rows[0][3] == ""
