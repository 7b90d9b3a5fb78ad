"""The rule of docs/format.md, sentence by sentence."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.captions import joined, normalise


def test_the_rule() -> None:
    assert normalise(b"caf\xc3\xa9 \xff!", 100) == "café \ufffd!"
    assert normalise("cafe\u0301", 100) == "café"
    assert normalise("  two \t\r\n words\x00\x1b[31m \u2028here\x85 ", 100) == "two words [31m here"
    assert normalise("x" * 50, 7) == "xxxxxxx"
    assert normalise("six   and more", 4) == "six"
    assert normalise("\ud800 alone", 100) == "\ufffd alone"
    assert normalise("\n\t ", 100) == ""
    assert normalise("\u200b \t\u0007\ufeff", 100) == ""  # nothing that is seen
    assert normalise("\U0001f468\u200d\U0001f469", 100) == "\U0001f468\u200d\U0001f469"


def test_a_sample_of_several_captions() -> None:
    assert joined(["one", " two\n", "one ", "", None, 3, b"three"], 100) == "one\ntwo\nthree"
    assert joined([], 100) == joined([None, " "], 100) == ""


def test_a_cut_leaves_whole_characters() -> None:
    syllables = unicodedata.normalize("NFD", "\ud55c" * 1900)  # three characters, nine bytes each
    assert normalise(syllables, 2000) == normalise(syllables.encode(), 2000) == "\ud55c" * 1900
    assert normalise(("\U0001f600" * 5000).encode(), 1999) == "\U0001f600" * 1999
    assert normalise(" " * 20_000 + "a cat", 1000) == normalise(b" " * 20_000 + b"a cat", 1000) == "a cat"
    assert normalise(b"torn \xf0\x9f", 100) == "torn \ufffd"
    assert normalise(b"a" + b" " * 118 + "\u00e9".encode() + b"t" * 500, 10) == "a"  # the cut falls within the letter


def test_a_huge_caption_costs_little() -> None:
    assert normalise("word " * 20_000_000, 1000) == ("word " * 200).strip()


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(), st.binary()), st.integers(1, 50))
def test_normal_form(caption: str | bytes, longest: int) -> None:
    text = normalise(caption, longest)
    assert len(text) <= longest
    assert text == text.strip()
    assert not any(unicodedata.category(c) == "Cc" for c in text)
    text.encode()
    assert normalise(text, longest) == text
