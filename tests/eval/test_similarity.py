"""`xclr-eval similarity`: the correlation against SciPy's, the graph as training reads it, and a user's commands."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import eval.similarity as module
from eval.benchmarks.bench import Ints
from eval.features import Features, extract
from eval.models.open import open_model, open_models
from eval.report.similarity import _labels, figures, groups_of
from eval.similarity import Compared, Doubles, Pictures, compare_models, correlation, difference, open_pictures, ranks
from shards.errors import UserError
from shards.graph import Graph, write_graph
from shards.manifest import Manifest
from shards.reader import Shards
from tests.eval.make_folders import make_folders, make_model, make_set
from tests.eval.runs import run_eval, train_run
from tests.make import make_graph, make_shards
from tests.pipeline.building import build
from tests.pipeline.sources import data_set

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 pictures of 8 texts, and two runs on them."""
    root = tmp_path_factory.mktemp("similarity")
    make_shards(root / "data/made", classes=8)
    for objective in ("simclr", "xclr"):
        train_run(root / "data/made", root / "runs" / objective, objective)
    return root


def unit(rng: np.random.Generator, rows: int, dim: int = 6) -> Doubles:
    x: Doubles = rng.normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def compared(
    monkeypatch: pytest.MonkeyPatch,
    vectors: Doubles,
    inverse: Ints,
    models: dict[str, Doubles],
    bad: tuple[int, ...] = (),
) -> Compared:
    """Models with such features of pictures, whose texts have such vectors."""
    between = vectors @ vectors.T
    np.fill_diagonal(between, 1)
    pictures = Pictures(
        images=make_set(len(inverse)),
        shards=Path("data/x"),
        split="test",
        graph="g",
        graph_of=Path("data/x"),
        text=inverse,
        captions=[f"text {i}" for i in range(len(vectors))],
        similarity=between[np.ix_(inverse, inverse)],
        unknown=0,
    )
    named = {}
    for i, name in enumerate(models):
        named[name] = replace(make_model(sha=f"{i}" * 64), name=name)

    def features(model: object, *_: object) -> Features:
        found = Features.of(models[model.name].astype(np.float32))  # type: ignore[attr-defined]
        ok = found.ok.copy()
        ok[list(bad)] = False
        return replace(found, ok=ok)

    monkeypatch.setattr(module, "extract", features)
    return compare_models(named, pictures, Path())


def test_correlation_is_spearmans_of_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties (of texts with equal similarities) included; pairs of one text are none."""
    rng = np.random.default_rng(0)
    n = 40
    one, other = (np.round(x @ x.T, 1) for x in (unit(rng, n, 3), unit(rng, n, 3)))
    inverse = rng.integers(0, 15, n)
    use = inverse[:, None] != inverse
    pairs = [(i, j) for i, j in combinations(range(n), 2) if inverse[i] != inverse[j]]
    expected = spearmanr([one[p] for p in pairs], [other[p] for p in pairs]).statistic
    x, y, part = ranks(one, use), ranks(other, use), inverse % 5
    found = correlation(x, y, use, part)
    assert found.value == pytest.approx(expected, abs=1e-12)
    for left in range(5):
        rest = [p for p in pairs if part[p[0]] != left and part[p[1]] != left]
        direct = np.corrcoef([x[p] for p in rest], [y[p] for p in rest])[0, 1]
        assert found.parts[left] == pytest.approx(direct, abs=1e-12)
    assert correlation(x, x, use, part).value == pytest.approx(1)
    assert correlation(x, y, use, part % 3).reach is None  # three parts say nothing of an interval


def test_a_model_that_knows_the_texts_follows_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors, inverse = unit(rng, 60), rng.permutation(np.repeat(np.arange(60), 3))
    noisy = vectors[inverse] + 0.8 * rng.normal(size=(180, 6))
    found = compared(
        monkeypatch, vectors, inverse, {"knows": vectors[inverse], "noisy": noisy, "none": rng.normal(size=(180, 6))}
    )
    knows, noisy_, none = found.models
    assert knows.pairs["features"].value == pytest.approx(1, abs=1e-6)
    assert knows.texts["features"].value == pytest.approx(1, abs=1e-6)
    assert 0.1 < noisy_.pairs["features"].value < noisy_.texts["features"].value < 0.99  # a mean evens out
    assert abs(none.pairs["features"].value) < none.pairs["features"].reach  # type: ignore[operator]
    assert knows.same["features"] > noisy_.same["features"] > 0.3 > abs(none.same["features"])
    value, reach = difference(knows.pairs["features"], none.pairs["features"])
    assert reach is not None
    assert 0.9 - reach < value < 1.1 + reach
    assert reach < 0.3
    curve = np.array(knows.curve["features"])
    assert (np.diff(curve, axis=0) > 0).all()
    assert len(curve) > 10
    assert found.pairs == 180 * 179 // 2 - 60 * 3


def test_intervals_hold_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts drawn anew: the figure of a large sample lies within 95 of 100; here at least 88."""
    rng = np.random.default_rng(2)

    def draw(texts: int) -> Compared:
        vectors, inverse = unit(rng, texts, 4), np.repeat(np.arange(texts), 2)
        own = vectors + 0.4 * rng.normal(size=(texts, 4))
        return compared(monkeypatch, vectors, inverse, {"m": own[inverse] + rng.normal(size=(2 * texts, 4))})

    truth = np.mean([draw(400).models[0].pairs["features"].value for _ in range(4)])
    held = 0
    for _ in range(120):
        figure = draw(40).models[0].pairs["features"]
        assert figure.reach is not None
        held += abs(figure.value - truth) <= figure.reach
    assert held >= 0.88 * 120


def test_pictures_that_do_not_decode_are_of_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors, inverse = unit(rng, 10), np.arange(10)
    features = vectors.copy()
    features[[2, 7]] = 0
    found = compared(monkeypatch, vectors, inverse, {"m": features}, bad=(2, 7))
    assert (found.pictures, found.pairs, found.texts.tolist()) == (8, 28, [0, 1, 3, 4, 5, 6, 8, 9])
    assert found.models[0].pairs["features"].value == pytest.approx(1)
    assert not found.models[0].texts  # a picture each: pairs of texts are pairs of pictures
    assert np.isnan(np.diag(found.models[0].between["features"])).all()


def test_the_graph_is_read_as_training_reads_it(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "made", classes=12, sizes=(40,))
    graph, pictures = Shards.open(root).graph(), open_pictures(root, None, 30)
    assert len(pictures.images) == 30
    assert pictures.captions[3] == "text 3"
    assert [pictures.images.read(i) for i in (0, 29)] == [
        Shards.open(root).image(int(pictures.images.keys[i])) for i in (0, 29)
    ]
    assert pictures.text.tolist() == Shards.open(root).index.text_id[[int(k) for k in pictures.images.keys]].tolist()
    for i, j in combinations(range(30), 2):
        assert pictures.similarity[i, j] == pytest.approx(pair(graph, *pictures.text[[i, j]].tolist()), abs=1e-6)
        assert pictures.similarity[i, j] == pictures.similarity[j, i]


def pair(graph: Graph, a: int, b: int) -> float:
    """1 within a text, else as listed, else by the codes, else the mean of the two backgrounds."""
    if a == b:
        return 1.0
    near = graph.neighbours[graph.indptr[a] : graph.indptr[a + 1]].tolist()
    if b in near:
        return float(graph.similarities[graph.indptr[a] + near.index(b)])
    if graph.codes is None or graph.code_scale is None:
        return float(graph.background_mean[[a, b]].mean())
    x, y = (graph.codes[i].astype(float) * float(graph.code_scale[i]) for i in (a, b))
    return float(x @ y)


def test_a_graph_without_codes_is_read_by_its_background(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "made", classes=12, sizes=(40,), graph=False)
    graph = replace(make_graph(12), codes=None, code_scale=None)
    write_graph(root, "lists", graph, np.zeros(12, np.int32), ["train-000000"])
    pictures = open_pictures(root, "lists", 40)
    for i, j in combinations(range(40), 2):  # the cut at 1 moves a wide background
        assert pictures.similarity[i, j] == pytest.approx(pair(graph, *pictures.text[[i, j]].tolist()), abs=0.02)


def test_projections_are_those_of_training(made: Path, tmp_path: Path) -> None:
    """What the loss compared: the encoder's own output, from kept features."""
    model = open_model(str(made / "runs/xclr"))
    assert isinstance(model.projector, nn.Module)
    pictures = open_pictures(made / "data/made", None, 32)
    features = extract(model, pictures.images, tmp_path)
    state = torch.load(next((made / "runs/xclr").glob("checkpoints/step-*.pt")), weights_only=True)["encoder"]
    x = torch.from_numpy(features.rows(np.arange(32)))
    weight = {name: state[f"projector.{name}"] for name in ("0.weight", "1.weight", "1.bias", "3.weight", "3.bias")}
    hidden = nn.functional.layer_norm(x @ weight["0.weight"].T, (32,), weight["1.weight"], weight["1.bias"])
    expected = hidden.relu() @ weight["3.weight"].T + weight["3.bias"]
    found = module._projections(model.projector, x.numpy())
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    assert found.shape == (32, 16)


def test_commands_of_a_user(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(made)
    both = ["similarity", "--checkpoint", "runs/simclr", "--checkpoint", "runs/xclr"]
    assert run_eval([*both, "--untrained"]) == 0
    shown = capsys.readouterr().out
    assert "runs/eval/similarity-made.html" in shown
    assert "over simclr" in " ".join(shown.split())
    page = (made / "runs/eval/similarity-made.html").read_text()
    assert page.count("<image ") == 4
    assert all(name in page for name in ("simclr", "xclr", "untrained", ">3<"))
    table = json.loads((made / "runs/eval/similarity-made.json").read_text())
    assert set(table["models"]) == {"simclr", "xclr", "untrained"}
    assert set(table["models"]["xclr"]) == {"projections", "features"}
    assert (table["pictures"], table["texts"], table["graph"], table["split"]) == (32, 8, "made", "train")
    assert run_eval([*both, "--untrained"]) == 0  # features are kept, the page is made again
    assert run_eval(["similarity", "--checkpoint", "runs/xclr"]) == 0
    assert (made / "runs/xclr/eval/similarity-made.html").is_file()
    alone = json.loads((made / "runs/xclr/eval/similarity-made.json").read_text())
    assert alone["models"]["xclr"] == table["models"]["xclr"]
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
        (["--checkpoint", "timm:test_vit", "--untrained"], "does not say which shards"),
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


def test_test_shards_go_by_the_graph_beside_them(tmp_path: Path) -> None:
    train = make_shards(tmp_path / "mine", classes=12)
    test = make_shards(tmp_path / "mine-test", (40,), classes=20, graph=False, split="test", seed=1)
    ours, theirs = Shards.open(train), Shards.open(test)
    known = [text in set(ours.texts()) for text in theirs.texts()]
    expected = sum(known[i] for i in theirs.index.text_id.tolist())
    assert 0 < expected < len(theirs)
    pictures = open_pictures(test, None, 5000)
    assert (len(pictures.images), pictures.unknown) == (expected, len(theirs) - expected)
    assert (pictures.graph_of, pictures.split) == (train, "test")
    own = {key: theirs.texts()[i] for key, i in zip(theirs.index.key.to_pylist(), theirs.index.text_id, strict=True)}
    assert [pictures.captions[i] for i in pictures.text] == [own[key] for key in pictures.images.keys]
    graph = ours.graph()
    for i, j in combinations(range(0, expected, 3), 2):
        assert pictures.similarity[i, j] == pytest.approx(pair(graph, *pictures.text[[i, j]].tolist()), abs=1e-6)


def test_texts_that_no_graph_has_are_named(tmp_path: Path) -> None:
    make_shards(tmp_path / "mine", classes=4)
    other = make_shards(tmp_path / "mine-test", classes=2, graph=False, split="test")  # two of the four texts
    with pytest.raises(UserError, match=r"of 32 pictures of .*mine-test that were drawn only 32 .* `xclr-shards graph"):
        open_pictures(other, None, 100)
    with pytest.raises(UserError, match="fewer than three texts"):
        open_pictures(make_shards(tmp_path / "two", classes=2), None, 100)
    with pytest.raises(UserError, match="has no graph"):
        open_pictures(make_shards(tmp_path / "bare", graph=False), None, 100)


def test_a_graph_that_calls_all_alike_has_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="calls all pairs of different texts alike"):
        compared(monkeypatch, np.eye(6), np.repeat(np.arange(6), 2), {"m": np.ones((12, 6))})


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
    assert json.loads((tmp_path / "runs/eval/similarity-made.json").read_text())["graph"] == "other"
    assert run_eval(["similarity", "--checkpoint", "simclr"]) != 0
    assert run_eval(["similarity", "--checkpoint", "simclr", "--graph", "made"]) == 0


def test_rows_are_called_by_what_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {"a/x": Path("a/x"), "b/x": Path("b/x"), "b/y": Path("b/y"), "timm:n": None}
    monkeypatch.setattr("eval.models.open.open_model", lambda spec, **_: replace(make_model(), folder=folders[spec]))
    assert list(open_models(["a/x", "b/y", "timm:n"])) == ["x", "y", "colours"]
    assert list(open_models(["a/x", "b/x"], untrained=True)) == ["a/x", "b/x", "untrained"]


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


def test_labels_leave_out_what_all_begin_with() -> None:
    assert _labels(["a photo of a cat", "a photo of a dog\nmore"]) == ["cat", "dog"]
    assert _labels(["a cat", "a cat that sleeps"]) == ["a cat", "a cat that sleeps"]
    assert _labels(["x" * 40]) == ["x" * 29 + "\N{HORIZONTAL ELLIPSIS}"]


def test_a_model_without_a_projector_has_features_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    found = compared(monkeypatch, unit(rng, 12), np.arange(12), {"a": unit(rng, 12), "b": unit(rng, 12)})
    head, rows = figures(found)
    assert head == ["", "of its", "pairs of pictures", "over a"]
    assert [row[:2] for row in rows] == [["a", "features"], ["b", "features"]]
    assert rows[0][3] == ""


def test_a_test_split_of_class_folders_may_be_called_val(tmp_path: Path) -> None:
    """Never the folders train and val themselves, as two classes."""
    source = make_folders(tmp_path / "in", classes=3)
    (source / "classes.tsv").write_text("class0\tcat\nclass1\tdog\nclass2\tant\n")
    mine = data_set(tmp_path / "mine-test.toml", format="imagefolder", split="test", graph="none")
    shards = Shards.open(build(mine, source, tmp_path / "mine-test"))
    assert (len(shards), shards.manifest.split, sorted(shards.manifest.classes)) == (15, "test", ["ant", "cat", "dog"])
    (source / "val").rename(source / "test")
    make_folders(tmp_path / "other", classes=2, val=1)
    (tmp_path / "other/val").rename(source / "val")
    assert len(Shards.open(build(mine, source, tmp_path / "again"))) == 15  # test before val
