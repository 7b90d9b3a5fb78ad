"""How far a model follows a graph: the correlation against SciPy's, intervals, and the graph as training reads it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import eval.similarity.compare as module
from eval.benchmarks.bench import ImageSet, Ints
from eval.features import Features, extract
from eval.models.model import Model
from eval.models.open import open_model
from eval.report.similarity import figures, notes
from eval.similarity.compare import Compared, compare_models, similarity_hash
from eval.similarity.pictures import GraphPictures, open_pictures
from eval.similarity.rank import Doubles, correlation, curve, difference, ranks
from eval.similarity.table import as_table
from shards.errors import UserError
from shards.graph import Graph, write_graph
from shards.reader import Shards
from tests.eval.demo_shards import make_demo
from tests.eval.make_folders import make_model
from tests.eval.runs import train_run
from tests.make import make_graph, make_shards

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
    """Models with such features of `some_pictures`."""
    named = {}
    for i, name in enumerate(models):
        named[name] = replace(make_model(sha=f"{i}" * 64), name=name)

    def features(model: object, *_: object) -> Features:
        found = Features.of(models[model.name].astype(np.float32))  # type: ignore[attr-defined]
        ok = found.ok.copy()
        ok[list(bad)] = False
        return replace(found, ok=ok)

    monkeypatch.setattr(module, "extract", features)
    return compare_models(named, some_pictures(vectors, inverse), Path())


def some_pictures(vectors: Doubles, inverse: Ints) -> GraphPictures:
    """Of texts that have such vectors."""
    between = vectors @ vectors.T
    np.fill_diagonal(between, 1)
    return GraphPictures(
        images=ImageSet(name="x", keys=[str(i) for i in range(len(inverse))], read=lambda i: b"", fingerprint="x"),
        shards=Path("data/x"),
        split="test",
        graph="g",
        graph_of=Path("data/x"),
        text=inverse,
        captions=[f"text {i}" for i in range(len(vectors))],
        similarity=between[np.ix_(inverse, inverse)],
        unknown=0,
    )


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
    assert correlation(x, y, use, 0 * part).reach is None


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
    g = some_pictures(vectors, inverse).similarity[inverse[:, None] != inverse]
    np.testing.assert_allclose(curve[:, 1], (curve[:, 0] - g.mean()) / g.std(), atol=1e-5)  # in deviations
    assert knows.same["features"] == pytest.approx((1 - g.mean()) / g.std(), abs=1e-5)
    assert found.pairs == 180 * 179 // 2 - 60 * 3


def test_intervals_hold_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts drawn anew: the figure of a large sample lies within 95 of 100, and they are no wider than it takes."""
    rng = np.random.default_rng(2)

    def draw(texts: int) -> list[float | None]:
        """One model that finds a third of what the other does: its figure, its interval, those of the difference."""
        vectors, inverse = unit(rng, texts, 4), np.repeat(np.arange(texts), 5)
        own = [(vectors + 0.5 * rng.normal(size=(texts, 4)))[inverse] for _ in range(2)]
        models = {f"{i}": x + (1 + i) * rng.normal(size=x.shape) for i, x in enumerate(own)}
        one, other = compared(monkeypatch, vectors, inverse, models).models
        figure = one.pairs["features"]
        return [figure.value, figure.reach, *difference(one.pairs["features"], other.pairs["features"])]

    truth = np.mean([draw(60) for _ in range(40)], axis=0)
    drawn = np.array([draw(20) for _ in range(100)], float)
    for value, reach in ((0, 1), (2, 3)):
        held = np.mean(np.abs(drawn[:, value] - truth[value]) <= drawn[:, reach])
        assert held >= 0.88
        assert 1.7 < drawn[:, reach].mean() / drawn[:, value].std() < 3.2  # t of 19 degrees of freedom: 2.1


def test_pictures_that_do_not_decode_are_of_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors, inverse = unit(rng, 10), np.arange(10)
    features = vectors.copy()
    features[[2, 7]] = 0
    found = compared(monkeypatch, vectors, inverse, {"m": features}, bad=(2, 7))
    assert (found.pictures, found.pairs, found.texts.tolist()) == (8, 28, [0, 1, 3, 4, 5, 6, 8, 9])
    assert found.models[0].pairs["features"].value == pytest.approx(1)
    assert not found.models[0].texts  # a picture each: pairs of texts are pairs of pictures
    assert np.isnan(np.diag(found.models[0].shown["features"])).all()
    assert found.models[0].pairs["features"].reach is None  # of eight texts nobody knows


def test_means_of_texts_want_several_pictures_of_most(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    vectors, inverse = unit(rng, 12), np.array([*range(12), 3, 3, 5])
    features = unit(rng, 15)
    found = compared(monkeypatch, vectors, inverse, {"m": features}).models[0]
    assert not found.texts
    direct = np.mean([features[i] @ features[j] for i, j in ((3, 12), (3, 13), (12, 13))])
    shown = compared(monkeypatch, vectors, inverse, {"m": features})
    place = shown.shown.tolist().index(3)
    assert shown.models[0].shown["features"][place, place] == pytest.approx(direct, abs=1e-6)
    across = np.mean([features[i] @ features[j] for i in (3, 12, 13) for j in (5, 14)])
    other = shown.shown.tolist().index(5)
    assert shown.models[0].shown["features"][place, other] == pytest.approx(across, abs=1e-6)


def test_another_model_other_pictures_or_another_graph_is_another_result() -> None:
    """Which has a file of its own."""
    pictures, models = some_pictures(unit(np.random.default_rng(11), 6), np.arange(6)), {"m": make_model()}
    found = [
        similarity_hash(models, pictures),
        similarity_hash({"n": make_model()}, pictures),
        similarity_hash({"m": make_model(sha="1" * 64)}, pictures),
        similarity_hash(models, replace(pictures, images=replace(pictures.images, fingerprint="y"))),
        similarity_hash(models, replace(pictures, similarity=pictures.similarity / 2)),
    ]
    assert len(set(found)) == 5
    assert similarity_hash({"m": make_model()}, pictures) == found[0]


def test_few_different_similarities_are_a_bin_each() -> None:
    """Graphs of classes know two; without this the nearest pairs were joined with the next."""
    g = np.array([0.0] * 90 + [1.0] * 10)
    assert curve(g, g * 2) == [(0.0, 0.0), (1.0, 2.0)]
    g = np.concatenate([np.linspace(0, 0.9, 920), np.ones(80)])  # many at the end of a continuum
    assert curve(g, g)[-1] == (1.0, 1.0)
    assert len(curve(np.linspace(0, 1, 5000), np.ones(5000))) == 15


def test_equal_similarities_bound_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model calls pairs alike; a perfect one, ties broken at random, reaches what is said to be the largest."""
    rng = np.random.default_rng(8)
    kinds = np.eye(4)[np.arange(60) % 4]
    found = compared(monkeypatch, kinds, np.arange(60), {"m": kinds + 1e-5 * rng.normal(size=(60, 4))})
    assert found.models[0].pairs["features"].value == pytest.approx(found.most, abs=0.01)
    assert found.most < 0.75
    assert any("the largest figure" in note for note in notes(some_pictures(kinds, np.arange(60)), found))


def test_a_model_that_makes_the_same_of_all_has_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of its spread is rounding."""
    rng = np.random.default_rng(9)
    vectors, inverse = unit(rng, 30), np.repeat(np.arange(30), np.tile([2, 3, 5], 10))
    same = np.full((100, 384), 0.1234567) + 1e-9 * rng.normal(size=(100, 384))
    found = compared(monkeypatch, vectors, inverse, {"good": vectors[inverse], "same": same})
    _, rows = figures(found)
    assert rows[1][2:] == ["all alike", "", "all alike", "+0.00"]
    table = as_table(some_pictures(vectors, inverse), found)
    assert table["models"]["same"]["features"]["pairs"] == {"spearman": None, "half_interval": None}
    json.dumps(table, allow_nan=False)


def test_the_table_says_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    vectors, inverse = unit(rng, 30), np.repeat(np.arange(30), 2)
    models = {name: vectors[inverse] + noise * rng.normal(size=(60, 6)) for name, noise in (("a", 0.3), ("b", 0.5))}
    found = compared(monkeypatch, vectors, inverse, models)
    over = as_table(some_pictures(vectors, inverse), found)["models"]["b"]["features"]["pairs_over_a"]
    value, reach = difference(found.models[1].pairs["features"], found.models[0].pairs["features"])
    assert reach is not None
    assert over == {"spearman": round(value, 6), "half_interval": round(reach, 6)}
    assert figures(found)[1][1][3] == f"{value:+.3f} \N{PLUS-MINUS SIGN}{reach:.3f}"
    own = found.models[0].pairs["features"].parts - found.models[1].pairs["features"].parts
    assert reach == pytest.approx(2.093 * np.sqrt(19 / 20 * ((own - own.mean()) ** 2).sum()), rel=1e-3)


def test_the_graph_is_read_as_training_reads_it(tmp_path: Path) -> None:
    root = make_shards(tmp_path / "made", classes=12, sizes=(40,))
    graph, pictures = Shards.open(root).graph(), open_pictures(root, None, 30)
    assert len(pictures.images) == 30
    assert pictures.images.keys != [f"{i:06d}" for i in range(30)]  # at random
    assert pictures.images.fingerprint != open_pictures(root, None, 31).images.fingerprint
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
    found = module._projections("xclr", model.projector, x.numpy())
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    assert found.shape == (32, 16)
    with torch.no_grad():
        model.projector[3].bias[0] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match="xclr gives projections that are no numbers"):
        compare_models({"xclr": model}, pictures, tmp_path)


def test_a_checkpoint_without_its_projector_has_features(made: Path, tmp_path: Path) -> None:
    path = next((made / "runs/xclr").glob("checkpoints/step-*.pt"))
    state = torch.load(path, weights_only=True)
    state["encoder"] = {name: value for name, value in state["encoder"].items() if not name.startswith("projector.")}
    torch.save(state, tmp_path / "bare.pt")
    bare, whole = open_model(str(tmp_path / "bare.pt")), open_model(str(path))
    assert bare.projector is None
    assert bare.sha256 == whole.sha256


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


def test_test_shards_go_by_the_graph_that_a_model_was_trained_with(tmp_path: Path) -> None:
    """Though they have one of their own, as a build with split = "test" makes."""
    train = make_shards(tmp_path / "mine", classes=12)
    test = make_shards(tmp_path / "mine-test", (40,), classes=12, split="test", seed=1)
    home, shard_names = np.zeros(12, np.int32), [shard.name for shard in Shards.open(train).manifest.shards]
    for name in ("tree", "other"):
        write_graph(train, name, make_graph(12, seed=3), home, shard_names)
    (own,) = Shards.open(test).graph_names()
    on_train, on_test = (replace(make_model(), shards=folder) for folder in (train, test))

    def where(graph: str | None, *models: Model) -> tuple[str, Path]:
        found = open_pictures(test, graph, 100, models)
        return found.graph, found.graph_of

    assert where(None) == (own, test)
    assert where(None, replace(on_train, graph="tree")) == ("tree", train)
    assert where(None, on_train, replace(on_train, graph="tree"), replace(on_train, graph="other")) == ("tree", train)
    assert where(None, replace(on_train, graph="gone")) == (own, test)
    assert where(None, replace(on_test, graph=own)) == (own, test)
    assert where("tree", replace(on_train, graph="other")) == ("tree", train)
    assert where(own, replace(on_train, graph="tree")) == (own, test)
    with pytest.raises(UserError, match=f"no graph 'gone', only {own}"):
        where("gone")


def test_a_graph_that_is_gone_is_not_replaced_without_a_word(tmp_path: Path) -> None:
    train = make_shards(tmp_path / "mine", classes=12)
    test = make_shards(tmp_path / "mine-test", (40,), classes=12, split="test", graph=False)
    (other,) = Shards.open(train).graph_names()
    model = replace(make_model(), shards=train, graph="gone")
    for root in (train, test):
        with pytest.raises(UserError, match=f"no graph 'gone', only {other}"):
            open_pictures(root, None, 100, [model])
        assert open_pictures(root, None, 100, [model, replace(model, graph=other)]).graph == other
        assert open_pictures(root, other, 100, [model]).graph == other


@pytest.mark.parametrize("common", [2, 4, 12])
def test_a_graph_of_other_texts_is_not_taken_for_the_pictures_own(tmp_path: Path, common: int) -> None:
    """As captions of a test split are other texts than those of training."""
    train, test = make_shards(tmp_path / "mine", classes=common), make_shards(tmp_path / "mine-test", classes=12)
    (name,) = Shards.open(train).graph_names()
    shards = [shard.name for shard in Shards.open(test).manifest.shards]
    write_graph(test, "own", make_graph(12), np.zeros(12, np.int32), shards)
    shutil.rmtree(test / "graphs" / name)
    model = replace(make_model(), shards=train, graph=name)
    found = open_pictures(test, None, 100, [model])
    assert (found.graph, found.graph_of) == ((name, train) if common == 12 else ("own", test))
    if common == 2:
        with pytest.raises(UserError, match=f"fewer than three texts .*: give --graph own, of {test}"):
            open_pictures(test, name, 100)


def test_a_graph_that_was_made_anew_under_its_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_shards(tmp_path / "data", classes=8)
    run = train_run(root, tmp_path / "runs/xclr", "xclr")
    open_pictures(root, None, 100, [open_model(str(run))])
    assert "another graph" not in capsys.readouterr().err
    shutil.rmtree(root / "graphs/made")
    write_graph(
        root, "made", make_graph(8, seed=5), np.zeros(8, np.int32), [s.name for s in Shards.open(root).manifest.shards]
    )
    open_pictures(root, None, 100, [open_model(str(run))])
    said = " ".join(capsys.readouterr().err.split())
    assert f"warning: {run} was trained on another graph made than lies there now" in said


def test_texts_that_no_graph_has_are_named(tmp_path: Path) -> None:
    make_shards(tmp_path / "mine", classes=2)
    other = make_shards(tmp_path / "mine-test", classes=6, graph=False, split="test")
    with pytest.raises(
        UserError, match=r"three texts among \d+ .*\(of \d+ others .*/mine has no .* `xclr-shards graph"
    ):
        open_pictures(other, None, 100)
    with pytest.raises(UserError, match="fewer than three texts"):
        open_pictures(make_shards(tmp_path / "two", classes=2), None, 100)
    with pytest.raises(UserError, match="has no graph"):
        open_pictures(make_shards(tmp_path / "bare", graph=False), None, 100)


def test_a_graph_that_calls_all_alike_has_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="calls all pairs of different texts alike"):
        compared(monkeypatch, np.eye(6), np.repeat(np.arange(6), 2), {"m": np.ones((12, 6))})


def test_of_the_demo_s_test_scenes_the_originals_are_taken(tmp_path: Path) -> None:
    """One of the variants shows a ground without the object that the caption names."""
    _, test = make_demo(tmp_path, 3, 8)
    names = [shard.name for shard in Shards.open(test).manifest.shards]
    write_graph(test, "own", make_graph(Shards.open(test).manifest.texts), np.zeros(8, np.int32), names)
    pictures = open_pictures(test, None, 5000)
    assert sorted(pictures.images.keys) == [f"{i:06d}-original" for i in range(8)]
