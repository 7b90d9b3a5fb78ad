"""Encoding: which captions, in which precision, resumed after a stop; and the CLIP text tower."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

import pipeline.encode.embed
import pipeline.encode.load
from pipeline.encode.embed import (
    FLOAT32,
    Precision,
    choose_precision,
    embed,
    encode_captions,
    encode_texts,
    unique_captions,
)
from pipeline.encode.encoder import Encoder, EncoderSource, resolve_encoder
from pipeline.encode.load import load_encoder
from shards.errors import UserError


def test_each_caption_once_longest_first() -> None:
    found = unique_captions(["bb\na\nbb", "ccc", "a", "dd"])
    assert found.unique == ["ccc", "bb", "dd", "a"]
    held = [found.member[i:j].tolist() for i, j in zip(found.indptr[:-1], found.indptr[1:], strict=True)]
    assert held == [[1, 3], [0], [3], [2]]


class Counting:
    """Stands in for a model: vectors from the caption's letters; stops after so many batches."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.seen: list[str] = []
        self.left = stop_after

    def load(self, source: EncoderSource, device: str, precision: str) -> Encoder:
        return Encoder(embed=self.embed, tokens=self.tokens, dim=8, max_tokens=16, device="cpu")

    def tokens(self, captions: Sequence[str]) -> list[int]:
        return [len(caption) // 3 for caption in captions]

    def embed(self, captions: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        self.seen += captions
        rows = np.array([[caption.count(letter) + 0.5 for letter in "abcdefgh"] for caption in captions], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))) for _ in range(1200)]
    return ["\n".join(words[i : i + 3]) for i in range(0, 600, 3)] + words[600:]


@pytest.fixture
def source() -> EncoderSource:
    return EncoderSource(id="counting", revision=None, sha256="0", folder=Path("/nowhere"))


@pytest.mark.usefixtures("two_threads")
def test_node_is_the_normalised_mean_of_its_captions(
    texts: list[str], source: EncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Counting()
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", model.load)
    monkeypatch.setattr(pipeline.encode.embed, "CHUNK", 100)
    vectors, record = encode_texts(texts, source, tmp_path)
    for text, vector in zip(texts, vectors, strict=True):
        mean = model.embed(list(dict.fromkeys(text.split("\n")))).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert record == {
        "captions": len({c for text in texts for c in text.split("\n")}),
        "dim": 8,
        "max_tokens": 16,
        "precision": "float32",
        "similarity_error": 0.0,
    }


class Narrow(Counting):
    """In half precision a long caption is no number; a broken one never is."""

    def load(self, source: EncoderSource, device: str, precision: str) -> Encoder:
        def embed(captions: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
            rows = self.embed(list(captions))
            bad = ["broken" in c or (precision != "float32" and len(c) > 60) for c in captions]
            rows[np.array(bad), 3] = np.nan
            return rows

        return replace(super().load(source, device, precision), embed=embed)


def test_a_batch_that_a_gpu_cannot_hold_is_halved(source: EncoderSource) -> None:
    plain, sizes = Counting(), []

    def cramped(captions: list[str]) -> Any:
        sizes.append(len(captions))
        if len(captions) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain.embed(captions)

    captions = [f"{'a' * (i % 7)}{'b' * i}" for i in range(100)]
    expected = embed(plain.load(source, "cpu", "float32"), captions)
    encoder = replace(plain.load(source, "cpu", "float32"), embed=cramped)
    room = 5
    np.testing.assert_array_equal(embed(encoder, captions), expected)
    assert set(sizes) == {32, 16, 8, 4}
    room = 0
    with pytest.raises(UserError, match=r"^cpu has no room for a single caption .*2\.00 GiB\.\): free it, hide it"):
        embed(encoder, captions)


def test_vectors_that_are_no_numbers(
    source: EncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", Narrow().load)
    half = Precision(precision="float16", similarity_error=0.0)
    texts = ["a" * 70, "b", "c"]
    paths, record = encode_captions(texts, source, tmp_path / "a", half)
    assert record["precision"] == "float32"
    assert np.isfinite(np.load(paths[0])).all()
    assert "float16 is too narrow for 'aaaa" in " ".join(capsys.readouterr().err.split())
    assert encode_captions(texts, source, tmp_path / "a")[1] == record
    assert choose_precision(["a" * 70] * 200, source, "cpu") == FLOAT32
    with pytest.raises(UserError, match="counting gives no finite vector for 'broken': use another --encoder"):
        encode_captions(["b", "broken"], source, tmp_path / "b")


def test_an_encoder_is_its_settings_too(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"max_seq_length": 256}')
    (tmp_path / "README.md").write_text("a")
    first = resolve_encoder(str(tmp_path))
    (tmp_path / "README.md").write_text("b")
    assert resolve_encoder(str(tmp_path)) == first
    (tmp_path / "config.json").write_text('{"max_seq_length": 8}')
    other = resolve_encoder(str(tmp_path))
    assert other.identity() != first.identity()
    assert other.record() == first.record()


def test_a_stop_costs_one_chunk(
    texts: list[str], source: EncoderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.encode.embed, "CHUNK", 64)  # two batches of 32
    monkeypatch.setattr(pipeline.encode.embed, "LANES", 1)
    whole = Counting()
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", whole.load)
    expected, _ = encode_texts(texts, source, tmp_path / "whole")
    stopped, resumed = Counting(stop_after=7), Counting()
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", stopped.load)
    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts, source, tmp_path / "stopped")
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", resumed.load)
    vectors, _ = encode_texts(texts, source, tmp_path / "stopped")
    np.testing.assert_array_equal(vectors, expected)
    assert stopped.seen[:192] + resumed.seen == whole.seen  # three chunks had landed, half of one was lost
    # Other texts in the same folder: nothing of the old ones is taken over.
    other = Counting()
    monkeypatch.setattr(pipeline.encode.embed, "load_encoder", other.load)
    encode_texts(texts[1:], source, tmp_path / "stopped")
    assert set(other.seen) == {c for text in texts[1:] for c in text.split("\n")}
    first = replace(source, sha256="1")
    for another in (first, replace(first, config_sha256="1")):  # nor of another encoder
        again = Counting()
        monkeypatch.setattr(pipeline.encode.embed, "load_encoder", again.load)
        encode_texts(texts[1:], another, tmp_path / "stopped")
        assert set(again.seen) == set(other.seen)


def test_half_precision_is_within_its_bound(
    captions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this machine's probe chooses; and half precision itself, if need be by force."""
    source = resolve_encoder(None)
    sample = unique_captions(captions[::18]).unique
    exact, _ = encode_captions(sample, source, tmp_path / "exact")
    first = np.concatenate([np.load(path) for path in exact])
    monkeypatch.setattr(pipeline.encode.embed, "HALF_FROM", 1)
    monkeypatch.setattr(pipeline.encode.embed, "MIN_SPEEDUP", 0)
    monkeypatch.setattr(pipeline.encode.embed, "PROBE", 8)
    rounded, record = encode_captions(sample, source, tmp_path / "rounded")
    second = np.concatenate([np.load(path) for path in rounded])
    assert record["precision"] == "bfloat16"
    assert 0 < record["similarity_error"] <= 0.01
    assert 1e-5 < np.abs(first @ first.T - second @ second.T).max() <= 0.01
    monkeypatch.setattr(pipeline.encode.embed, "MAX_ERROR", 1e-6)
    assert choose_precision(sample, source, "cpu") == FLOAT32
    # The choice of a stopped run stays: a resumed one must not mix precisions.
    _, record = encode_captions(sample, source, tmp_path / "rounded")
    assert record["precision"] == "bfloat16"


@pytest.mark.parametrize("whole", [False, True], ids=["text tower", "whole CLIP"])
def test_clip_text_tower_from_a_folder(whole: bool, tmp_path: Path) -> None:
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
        CLIPVisionConfig,
    )  # fmt: skip

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(names), hidden_size=16, intermediate_size=32, projection_dim=12, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=20, bos_token_id=len(names) - 2, eos_token_id=len(names) - 1,
        pad_token_id=len(names) - 1,
    )  # fmt: skip
    model = CLIPTextModelWithProjection(config).eval()
    if whole:
        vision = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        clip = CLIPModel(CLIPConfig(text_config=config.to_dict(), vision_config=vision.to_dict(), projection_dim=12))
        clip.load_state_dict(model.state_dict(), strict=False)
        clip.save_pretrained(tmp_path)
    else:
        CLIPTextModel(config).save_pretrained(tmp_path)  # as image generators keep it
        with pytest.raises(UserError, match=r"lacks text_projection\.weight"):
            load_encoder(resolve_encoder(str(tmp_path)), "cpu", "float32")
        model.save_pretrained(tmp_path)

    encoder = load_encoder(resolve_encoder(str(tmp_path)), "cpu", "float32")
    captions = ["a red dog", "a cat", "an owl by night and a very long tail"]
    vectors = encoder.embed(captions)
    assert (encoder.dim, encoder.max_tokens) == (12, 20)
    for caption, vector in zip(captions, vectors, strict=True):  # one at a time: no padding
        ids = [len(names) - 2, *(vocabulary[t] for t in tokenizer.tokenize(caption)[:18]), len(names) - 1]
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).text_embeds[0].numpy()
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_folders_that_are_no_encoders(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot load the encoder"):
        load_encoder(resolve_encoder(str(tmp_path)), "cpu", "float32")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UserError, match="cannot load the CLIP text tower"):
        load_encoder(resolve_encoder(str(tmp_path)), "cpu", "float32")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds no settings"):
        load_encoder(resolve_encoder(str(tmp_path)), "cpu", "float32")


def test_two_models_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    load = pipeline.encode.load._load

    def models() -> int:
        return sum(type(thing) is SentenceTransformer for thing in gc.get_objects())

    def counted(*arguments: Any) -> Encoder:
        encoder = load(*arguments)
        held.append(models())
        return encoder

    monkeypatch.setattr(pipeline.encode.load, "_load", counted)
    monkeypatch.setattr(pipeline.encode.load, "_checked", set())
    gc.collect()
    before = models()
    load_encoder(resolve_encoder(None), "cpu", "float32")
    assert [count - before for count in held] == [1, 1]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("a layer", "lacks weights of its model"),
        ("tokenizer", "one and the same vector|cannot load"),  # transformers 5, 4
        ("1_Pooling", "cannot load"),
    ],
)
def test_what_a_folder_lacks_is_not_made_up(tmp_path: Path, lost: str, said: str) -> None:
    """The libraries draw missing weights at random, and make an empty tokenizer, without a word."""
    folder = tmp_path / "encoder"
    shutil.copytree(resolve_encoder(None).folder, folder)
    load_encoder(resolve_encoder(str(folder)), "cpu", "float32")
    if lost == "a layer":
        weights = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in weights.items() if ".layer.5." not in k}, folder / "model.safetensors")
    elif lost == "tokenizer":
        for path in [*folder.glob("tokenizer.json"), *folder.glob("vocab*")]:
            path.unlink()
    else:
        shutil.rmtree(folder / lost)
    with pytest.raises(UserError, match=said):
        load_encoder(resolve_encoder(str(folder)), "cpu", "float32")
