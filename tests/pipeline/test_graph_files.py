"""Graphs from WordNet and from files. A small taxonomy is written in WordNet's own format."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.graph.file
from pipeline.build import build_shards
from pipeline.graph.build import build_graph
from pipeline.graph.estimate import lines
from pipeline.graph.wordnet import Nouns, find_wordnet, read_nouns, synset_of, wu_palmer
from pipeline.settings import BuildSettings
from pipeline.sources.datasets import load_dataset
from pipeline.sources.find import open_source
from shards.errors import UserError
from shards.graph import Graph, read_graph
from shards.reader import Shards
from shards.verify import verify
from tests.pipeline.sources import class_folders, data_set, pictures
from tests.pipeline.texts import text_shards

# offset, words, hypernyms (an @i is an individual): two ways lead from the dog up to the animal
TAXONOMY = [
    (1, ["entity"], []),
    (2, ["animal", "beast"], [("@", 1)]),
    (3, ["canine"], [("@", 2)]),
    (4, ["pet"], [("@", 2)]),
    (5, ["dog", "domestic_dog"], [("@", 3), ("@", 4)]),
    (6, ["cat"], [("@", 4)]),
    (7, ["machine"], [("@", 1)]),
    (8, ["crane"], [("@", 7)]),
    (9, ["crane"], [("@", 2)]),
    (10, ["Crane", "Hart_Crane"], [("@i", 2)]),
]
NPY = (lambda file: (np.save(file, np.zeros((3, 4))), file.getvalue())[1])(BytesIO())
SENSES = {"crane": [10, 8, 9]}


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    lines = ["  1 This is a licence.\n"]
    for offset, words, up in TAXONOMY:
        words_field = " ".join(f"{word} 0" for word in words)
        pointers = "".join(f" {symbol} {target:08d} n 0000" for symbol, target in up)
        lines.append(
            f"{offset:08d} 03 n {len(words):02x} {words_field} {len(up):03d}{pointers} | a gloss; | with @ 9\n"
        )
    (folder / "data.noun").write_text("".join(lines))
    index = {
        word.lower(): [offset for offset, words, _ in TAXONOMY if word in words] for _, ws, _ in TAXONOMY for word in ws
    }
    index |= SENSES
    (folder / "index.noun").write_text(
        "  1 This is a licence.\n"
        + "".join(
            f"{word} n {len(o)} 2 @ ~ {len(o)} 0 {' '.join(f'{x:08d}' for x in o)}  \n"
            for word, o in sorted(index.items())
        )
    )
    return tmp_path


def test_wu_palmer_by_hand(wordnet: Path) -> None:
    nouns = read_nouns(find_wordnet(wordnet))
    # depths: entity 1, animal 2, canine, pet 3. dog and cat meet at pet: 2*3 / (2*3 + 1 + 1)
    matrix = wu_palmer([5, 6, 8, 2, 5], nouns)
    dog_cat, dog_crane, cat_crane = 6 / 8, 2 / (2 + 3 + 2), 2 / (2 + 3 + 2)
    dog_animal, cat_animal, crane_animal = 4 / (4 + 2), 4 / (4 + 2), 2 / (2 + 2 + 1)
    expected = [
        [1, dog_cat, dog_crane, dog_animal, 1],
        [dog_cat, 1, cat_crane, cat_animal, dog_cat],
        [dog_crane, cat_crane, 1, crane_animal, dog_crane],
        [dog_animal, cat_animal, crane_animal, 1, dog_animal],
        [1, dog_cat, dog_crane, dog_animal, 1],
    ]
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)


def test_depth_is_that_of_the_longest_way_up() -> None:
    """As NLTK has it: to 4 ways of three and of four lead, and its lemma comes before that of 3, which is as deep."""
    up = {1: (), 2: (1,), 3: (2,), 4: (2, 3), 5: (4,), 6: (4,)}
    lemmas = {synset: ("a" if synset == 4 else f"b{synset}",) for synset in up}
    nouns = Nouns(hypernyms=up, lemmas=lemmas, instances=frozenset(), senses={})
    assert wu_palmer([5, 6], nouns)[0, 1] == pytest.approx(2 * 4 / (2 * 4 + 1 + 1))


def test_class_names_to_synsets(wordnet: Path) -> None:
    nouns = read_nouns(find_wordnet(wordnet))
    assert synset_of("n00000009", nouns) == 9
    assert synset_of("n00000099", nouns) is None
    assert synset_of("dog", nouns) == 5
    assert synset_of("Domestic dog, dog", nouns) == 5
    assert synset_of("crane", nouns) == 8  # the poet is no class, the machine the more frequent of the rest
    assert synset_of("crane, beast", nouns) == 8
    assert synset_of("zebra", nouns) is None


def test_wordnet_graph(wordnet: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = text_shards(tmp_path / "s", ["a dog", "a cat", "my cat", "a crane"], [0, 1, 1, 2], ["dog", "cat", "crane"])
    graph = read_graph(build_graph(root, kind="wordnet", source=wordnet))
    dog_cat, dog_crane = np.float16(0.75), np.float16(2 / 7)
    expected = [
        [1, dog_cat, dog_cat, dog_crane],
        [dog_cat, 1, 1, dog_crane],
        [dog_cat, 1, 1, dog_crane],
        [dog_crane, dog_crane, dog_crane, 1],
    ]
    np.testing.assert_array_equal(listed_matrix(graph), expected)
    assert graph.meta["source"]["synsets"] == ["n00000005", "n00000006", "n00000008"]
    assert graph.meta["complete"] is True
    assert graph.meta["fidelity"]["none"]["kl"] < 1e-5
    strange = text_shards(tmp_path / "t", ["a", "b"], [0, 1], ["dog", "zebra"])
    capfd.readouterr()
    with pytest.raises(UserError, match=r"1 of 2 classes are no nouns .* 'zebra'"):
        build_graph(strange, kind="wordnet", source=wordnet)
    assert "making" not in capfd.readouterr().err
    with pytest.raises(UserError, match="apt install wordnet-base"):
        build_graph(root, kind="wordnet", source=tmp_path / "s", name="x")


def test_wordnet_goes_by_names_where_folders_are_no_ids(wordnet: Path, tmp_path: Path) -> None:
    nouns = read_nouns(find_wordnet(wordnet))
    source = class_folders(tmp_path / "in", ["dog", "n00000008", "x1"], images=2)
    (source / "classes.tsv").write_text("dog\tcat\nn00000008\tcat\nx1\tdog\n")
    mine = data_set(tmp_path / "mine.toml", format="imagefolder")
    build_shards(open_source(load_dataset(mine), str(source)), tmp_path / "s", BuildSettings(), 1)
    graph = read_graph(build_graph(tmp_path / "s", kind="wordnet", source=wordnet))
    assert graph.meta["source"]["synsets"] == ["n00000006", "n00000008", "n00000005"]
    assert synset_of("cat", nouns) == 6


def test_real_wordnet_equals_nltk() -> None:
    """Similarities that NLTK 3.10 gives for WordNet 3.0, written down on 2026-11-23."""
    try:
        folder = find_wordnet()
    except UserError as error:
        pytest.skip(str(error))
    nouns = read_nouns(folder)
    if synset_of("n02084071", nouns) is None:
        pytest.skip(f"{folder} is not WordNet 3.0")
    names = ["n02084071", "n02121620", "n02958343", "n07753592", "n04597913"]  # dog, cat, car, banana, wooden spoon
    matrix = wu_palmer([synset_of(name, nouns) or 0 for name in names], nouns)
    nltk = [0.8571429, 0.4, 0.4, 0.4444444, 0.32, 0.32, 0.3478261, 0.3636364, 0.7, 0.4]
    np.testing.assert_allclose(matrix[np.triu_indices(5, 1)], nltk, rtol=1e-6)
    assert synset_of("black widow, Latrodectus mactans", nouns) == 1774384


def listed_matrix(graph: Graph) -> npt.NDArray[np.float64]:
    matrix = np.eye(len(graph))
    matrix[np.repeat(np.arange(len(graph)), np.diff(graph.indptr)), graph.neighbours] = graph.similarities
    return matrix


def test_matrix_of_classes_or_of_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c"], [0, 1, 1], ["x", "y"])
    np.save(tmp_path / "By Class.npy", np.array([[1, 0.25], [0.25, 0.5]]))
    folder = build_graph(root, kind="file", source=tmp_path / "By Class.npy")
    assert folder.name == "by-class"
    np.testing.assert_array_equal(listed_matrix(read_graph(folder)), [[1, 0.25, 0.25], [0.25, 1, 0.5], [0.25, 0.5, 1]])
    given = np.array([[1, -0.5, 0], [-0.5, 1, 0.75], [0, 0.75, 1]])
    np.save(tmp_path / "texts.npy", given)
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "texts.npy"))
    np.testing.assert_array_equal(listed_matrix(graph), given)
    assert "diagonal" not in capsys.readouterr().err  # that of the classes says how alike different texts of one are
    np.save(tmp_path / "half.npy", given - 0.5 * np.eye(3))
    half = read_graph(build_graph(root, kind="file", source=tmp_path / "half.npy"))
    np.testing.assert_array_equal(listed_matrix(half), given)
    assert "half.npy is not 1 and says nothing here" in capsys.readouterr().err
    (root / "graphs/half/graph.json").unlink()
    assert graph.codes is None
    assert sorted(Shards.open(root).graph_names()) == ["by-class", "texts"]


def test_a_file_that_was_edited_is_another_graph(tmp_path: Path) -> None:
    root, path = text_shards(tmp_path / "s", ["a", "b"]), tmp_path / "m.npy"
    np.save(path, np.array([[1, 0.5], [0.5, 1]]))
    assert build_graph(root, kind="file", source=path) == build_graph(root, kind="file", source=path)
    np.save(path, np.array([[1, 0.25], [0.25, 1]]))
    with pytest.raises(UserError, match="m was made with source_sha256"):
        build_graph(root, kind="file", source=path)


@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [0, 1, 2, 3]])
def test_distances_in_place_of_similarities_are_told(
    labels: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c", "d"], labels, ["w", "x", "y", "z"][: max(labels) + 1])
    alike = np.array([[1, 0.6, 0, 0], [0.6, 1, 0, 0], [0, 0, 1, 0.2], [0, 0, 0.2, 1]])
    alike = alike[: max(labels) + 1, : max(labels) + 1]
    np.save(tmp_path / "alike.npy", alike)
    np.save(tmp_path / "far.npy", 1 - alike)
    build_graph(root, kind="file", source=tmp_path / "alike.npy")
    assert "warning" not in capsys.readouterr().err
    build_graph(root, kind="file", source=tmp_path / "far.npy")
    told = " ".join(capsys.readouterr().err.split())
    assert "far.npy is the least of every row, as that of distances is" in told


def test_vectors_of_texts_or_of_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an encoder's, of any length and number format; written a few rows at a time."""
    monkeypatch.setattr(pipeline.graph.file, "ROWS", 3)
    root = text_shards(tmp_path / "s", [f"text {i}" for i in range(50)], [i % 10 for i in range(50)],
                       [f"class {i}" for i in range(10)])  # fmt: skip
    rng = np.random.default_rng(0)
    given = (rng.normal(size=(50, 12)) * rng.uniform(0.1, 30, (50, 1))).astype(np.float16)
    np.save(tmp_path / "v.npy", given)
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "v.npy", k=4))
    unit = given.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    for row in range(50):
        span = slice(graph.indptr[row], graph.indptr[row + 1])
        assert {*np.argsort(-cosine[row])[:4].tolist()} <= {*graph.neighbours[span].tolist()}
        np.testing.assert_allclose(graph.similarities[span], cosine[row, graph.neighbours[span]], atol=1e-3)
    assert graph.codes is not None
    assert graph.meta["source"].items() >= {"kind": "file", "name": "v.npy", "dim": 12}.items()
    assert graph.meta["audit"]["recall"] == 1
    assert graph.meta["fidelity"]["code"]["kl"] < 1e-3
    assert verify(root) == []
    np.save(tmp_path / "c.npy", rng.normal(size=(10, 6)))
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "c.npy", k=4))
    near = {int(other) for other in graph.neighbours[graph.indptr[3] : graph.indptr[4]]}
    assert near == {13, 23, 33, 43}
    assert (graph.similarities[graph.indptr[3] : graph.indptr[4]] == 1).all()


@pytest.mark.parametrize("turned", [False, True])
def test_vectors_beside_their_texts(tmp_path: Path, turned: bool) -> None:
    """In another order than the shards', with captions for a text of several, and some of other data."""
    texts = ["b", "a\nx", "c", "a\ny", "d"]
    root = text_shards(tmp_path / "s", texts)
    rng = np.random.default_rng(0)
    of = {name: rng.normal(size=6) for name in ("c", "y", "other", "a", " b ", "x", "d", "a\ny")}
    table = pa.table({"id": range(8), "caption": list(of), "vector": list(of.values())})
    pq.write_table(table.take(list(range(7, -1, -1))) if turned else table, tmp_path / "v.parquet")
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "v.parquet", k=4))

    def unit(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x / np.linalg.norm(x)

    mean = unit(unit(of["a"]) + unit(of["x"]))
    expected = np.stack([unit(of[" b "]), mean, unit(of["c"]), unit(of["a\ny"]), unit(of["d"])])
    cosine = expected @ expected.T
    for row in range(5):
        span = slice(graph.indptr[row], graph.indptr[row + 1])
        np.testing.assert_allclose(graph.similarities[span], cosine[row, graph.neighbours[span]], atol=1e-3)
    assert graph.meta["source"].items() >= {"kind": "file", "name": "v.parquet", "dim": 6}.items()
    assert lines(root, "file", None, tmp_path / "v.parquet", 4, 4)[0].split() == ["texts", "5"]


def test_captions_are_found_as_they_were_given_to_the_build(tmp_path: Path) -> None:
    """Lines of one caption, which it joins, and more letters than it keeps; the first row has no vector."""
    pictures(tmp_path / "in", ["a.jpg", "b.jpg", "c.jpg"])
    given = ["two\nlines", "long " * 500, "c"]
    rows = [{"image": f"{name}.jpg", "caption": caption} for name, caption in zip("abc", given, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "t.parquet")
    mine = data_set(tmp_path / "mine.toml", format="table", graph="none")
    build_shards(open_source(load_dataset(mine), str(tmp_path / "in")), tmp_path / "out", BuildSettings(), 1)
    vectors = [None, [1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 1.0]]
    pq.write_table(pa.table({"caption": [None, *given], "vector": vectors}), tmp_path / "v.parquet")
    assert len(read_graph(build_graph(tmp_path / "out", kind="file", source=tmp_path / "v.parquet"))) == 3


@pytest.mark.parametrize(
    ("texts", "vectors", "message"),
    [
        (["a", "b"], [[1.0, 0], [0, 1.0]], r"no vector for 1 of 3 texts, 'c\\nd' among them: add them"),
        (["a", "b", "c"], [[1.0, 0], [0, 1.0], [1.0, 1.0]], r"no vector for 1 of 3 texts, 'c\\nd'"),
        (["a", "b", "c", "c"], [[1.0, 0], [0, 1.0], [1.0, 1.0], [1.0, 0]], r"no vector for 1 of 3 texts, 'c\\nd'"),
        (
            ["a", "b", "c", "d"],
            [[1.0, 0], [0, 1.0], [1.0, 1.0], [-1.0, -1.0]],
            "cancel each other out: give it one",
        ),
        (["a", "b"], [[1.0, 0], [0, 1.0, 2.0]], "the vector of 'b' is not of 2 numbers, all zeros, or not finite"),
        (["a", "b"], [[1.0, 0], [0.0, 0.0]], "the vector of 'b' is not of 2"),
        (["a", "b"], [[1.0, 0], [float("nan"), 0.0]], "the vector of 'b' is not of 2"),
        (["a", None, "b"], [[1.0, 0], None, None], "the vector of 'b' is not of 2"),
        ([], [], "v.parquet has no vectors"),
        ([["a"], ["b"]], [[1.0, 0], [0, 1.0]], "as edges .*: it has text, embedding, and no a"),
    ],
)
def test_wrong_vectors_beside_texts(tmp_path: Path, texts: list[Any], vectors: list[Any], message: str) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c\nd"])
    lists = bool(texts) and isinstance(texts[0], list)
    kind = pa.list_(pa.string()) if lists else pa.string()
    table = pa.table({"text": pa.array(texts, kind), "embedding": pa.array(vectors, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(UserError, match=message):
        build_graph(root, kind="file", source=tmp_path / "v.parquet")
    assert not list(root.rglob("vectors.npy"))


def test_texts_of_a_class_have_its_vector_and_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = text_shards(tmp_path / "s", [f"t{i}" for i in range(8)], [i % 2 for i in range(8)], ["x", "y"])
    np.save(tmp_path / "v.npy", np.eye(2, 3))
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "v.npy", k=3))
    assert graph.meta["as_another"] == 0
    assert "have the vector of another" not in capsys.readouterr().err


def test_edges_may_have_texts_and_vectors_beside_them(tmp_path: Path) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c"])
    edges = {"a": [0], "b": [1], "similarity": [0.5], "text": ["a to b"], "vector": ["none"]}
    pq.write_table(pa.table(edges), tmp_path / "e.parquet")
    assert len(read_graph(build_graph(root, kind="file", source=tmp_path / "e.parquet", k=1)).neighbours) == 2


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.float32()])
def test_columns_that_hold_no_vectors_are_told(tmp_path: Path, kind: pa.DataType) -> None:
    cells = {pa.string(): "[1.0, 0.0]", pa.binary(): b"12345678", pa.float32(): 1.0}
    root = text_shards(tmp_path / "s", ["a", "b"])
    table = {"text": ["a", "b"], "embedding": pa.array([cells[kind]] * 2, kind)}
    pq.write_table(pa.table(table), tmp_path / "v.parquet")
    with pytest.raises(UserError, match=f"column embedding holds {kind}, not lists of numbers, one a row"):
        build_graph(root, kind="file", source=tmp_path / "v.parquet")
    pq.write_table(pa.table({"Text": ["a", "b"], " EMBEDDING": [[1.0, 0], [0, 1.0]]}), tmp_path / "v.parquet")
    assert len(read_graph(build_graph(root, kind="file", source=tmp_path / "v.parquet"))) == 2


def test_cosines_are_taken_with_their_rounding(tmp_path: Path) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c"])
    exact = np.array([[1, 0.5, 0.25], [0.5, 1, -1], [0.25, -1, 1]])
    rounded = exact + np.array([[2e-7, 1e-7, 0], [0, 1e-7, -1e-7], [0, 0, 3e-4]])
    np.save(tmp_path / "cosines.npy", rounded)
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "cosines.npy"))
    np.testing.assert_array_equal(listed_matrix(graph), exact)


def test_wrong_vectors_can_be_mended_under_the_same_name(tmp_path: Path) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c"])
    np.save(tmp_path / "v.npy", np.array([[1, 0], [0, 1], [0, np.nan]]))
    with pytest.raises(UserError, match="row 2"):
        build_graph(root, kind="file", source=tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.array([[1, 0], [0, 1], [1, 1]]))
    assert len(read_graph(build_graph(root, kind="file", source=tmp_path / "v.npy"))) == 3


def test_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c", "d"])
    edges = {"a": [0, 1, 2, 3, 3], "b": [1, 0, 1, 0, 3], "similarity": [0.5, 0.5, 0.25, 0.75, 1.0]}
    pq.write_table(pa.table(edges), tmp_path / "e.parquet")
    graph = read_graph(build_graph(root, kind="file", source=tmp_path / "e.parquet", k=1))
    lists = [graph.neighbours[i:j].tolist() for i, j in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]
    assert lists == [[3, 1], [0, 2], [1], [0]]
    assert graph.similarities.tolist() == [0.75, 0.5, 0.5, 0.25, 0.25, 0.75]
    assert graph.meta["audit"]["recall"] == 1
    assert graph.meta["fidelity"]["background"]["kl"] == pytest.approx(0, abs=1e-9)
    assert "no edge" not in capsys.readouterr().err


def test_texts_without_an_edge_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As those are that edges between classes do not reach."""
    root = text_shards(tmp_path / "s", ["a", "b", "c", "d", "e"], [0, 0, 1, 1, 1], ["x", "y"])
    pq.write_table(pa.table({"a": [0, 0], "b": [1, 0], "similarity": [0.5, 1.0]}), tmp_path / "e.parquet")
    build_graph(root, kind="file", source=tmp_path / "e.parquet")
    told = " ".join(capsys.readouterr().err.split())
    assert "3 of 5 texts have no edge in" in told
    assert "no numbers of classes" in told


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.npy", np.zeros((2, 3, 1)), "no table of numbers"),
        ("m.npy", np.zeros((3, 0)), "no table of numbers"),
        ("m.npy", np.zeros((4, 4)), "4 rows; .* 2 classes and 3 texts"),
        ("m.npy", np.zeros((4, 9)), "4 rows; .* 2 classes and 3 texts"),
        ("m.npy", np.array([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]), "row 1 has no direction"),
        ("m.npy", np.array([[1, 0, 0, 0], [0, 2, 0, 0], [1, np.inf, 0, 0]]), "row 2 has no direction"),
        ("m.npy", np.array([[1, 0.5], [0.25, 1]]), "not symmetric.*need one more column"),
        ("m.npy", b"", "no whole .npy file"),
        ("m.npy", NPY[:-9], "no whole .npy file.*mmap length is greater"),
        ("m.npy", np.array([[{}]]), "no whole .npy file.*Python objects"),
        ("m.npy", np.array([[1, 2], [2, 1.0]]), "2 similarities outside -1..1, such as 2.0: scale them"),
        ("m.npy", np.array([[1, np.nan], [np.nan, 1]]), "such as nan: each is a number"),
        ("m.npy", np.array([["a", "b"], ["b", "a"]]), "not numbers"),
        ("e.parquet", {"a": [0], "b": [3], "similarity": [0.5]}, "names text 3; text ids go from 0 to 2"),
        ("e.parquet", {"a": [0], "b": [-1], "similarity": [0.5]}, "names text -1; text ids go from 0 to 2"),
        ("e.parquet", {"a": [0, 1], "b": [1, 0], "similarity": [0.5, 0.6]}, "two similarities for texts 1 and 0"),
        ("e.parquet", {"a": [0], "b": [1]}, "cannot read .* as edges"),
        ("e.txt", "text", "neither .npy"),
    ],
)
def test_wrong_files(name: str, content: object, message: str, tmp_path: Path) -> None:
    root = text_shards(tmp_path / "s", ["a", "b", "c"], [0, 1, 1], ["x", "y"])
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict):
        pq.write_table(pa.table(content), path)
    else:
        path.write_text(str(content))
    with pytest.raises(UserError, match=message):
        build_graph(root, kind="file", source=path)
    assert not (root / "graphs" / path.stem).exists()
