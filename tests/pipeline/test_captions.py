"""The rule of docs/format.md, sentence by sentence."""

from __future__ import annotations

import time
import unicodedata
from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources.captions import MISSING, first_said, joined, normalise, notes
from pipeline.sources.columns import Names, Unreadable, taken


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
    counts = Counter[str]()
    assert joined(["one", " two\n", "one ", "", None, 3, b"three"], 100, counts) == "one\ntwo\nthree"
    assert joined([], 100, counts) == joined([None, " "], 100, counts) == ""
    assert notes(counts) == []
    assert joined([b"a\r\nb", "c\nd", "e\n"], 100, counts) == "a b\nc d\ne"
    assert notes(counts)[0].startswith("note: 2 of 9 captions held several lines, which were joined: ")


PIECES = st.sampled_from(
    ["", " ", "\t", "\x00", "\x0b", "\x1f", "\x7f", "\x85", "\u00a0", "\u2003", "\u3000", "\u200b", " " * 90, "nan",
     "NaN", "?", "-1", "unknown", "[", "]", '""', "''", ",", "[]", '["nan", " "]', '["", "cat"]', "cat",
     "\u732b", "a" * 90, "\xe9"]
)  # fmt: skip
CELLS = st.lists(PIECES, max_size=4).map("".join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5))
def test_of_several_columns_arrow_chooses_as_the_rule_does(rows: list[tuple[str, str, str]]) -> None:
    """Of which the first cell says something; where none does, the first."""
    cells = [tuple(cell.encode() for cell in row) for row in rows]
    table = pa.table({name: [row[i] for row in cells] for i, name in enumerate("abc")} | {"i": [b"x"] * len(rows)})
    found = taken(Names("i", ("a", "b", "c"), ""), table, Unreadable()).captions
    assert found is not None
    assert found.to_pylist() == [first_said(row) for row in cells]
    for row in cells:
        said = [cell for cell in row if joined([cell], 100, Counter()).lower() not in ("", *MISSING)]
        if not any(b"[" in cell for cell in row):
            assert first_said(row) == (said[0] if said else row[0])


def test_captions_that_are_not_utf8_are_told() -> None:
    counts = Counter[str]()
    joined([b"caf\xe9", "caf\u00e9".encode(), "\ufffd was there".encode(), b'["\xe9", "x"]'], 100, counts)
    assert notes(counts)[0].startswith("note: 2 of 5 captions held bytes that are no UTF-8, which became U+FFFD: ")


def test_a_list_that_was_written_as_text_is_several_captions() -> None:
    def captions(cell: str | bytes) -> list[str]:
        return joined([cell], 100, Counter()).split("\n")

    assert captions('["a cat", "caf\\u00e9"]') == captions(b' ["a cat","caf\xc3\xa9"]\n') == ["a cat", "café"]
    assert captions("['it\\'s', \"two's\", 'a \\d', ]") == ["it's", "two's", "a \\d"]
    assert captions("['a cat' 'a dog'\n 'an ox']") == ["a cat", "a dog", "an ox"]  # NumPy's
    assert captions(b'["caf\xe9", "x"]') == ["caf\ufffd", "x"]
    assert captions("[]") == [""]
    for one in ("[laughs]", '["a", 3]', "['a', 'b'", "['a'] or ['b']", "['\\x']", "[" * 50):
        assert captions(one) == [one]


def test_what_begins_like_a_list_costs_no_more_than_its_length() -> None:
    begin = time.process_time()
    joined([b'["SALE"' + b" \n" * 200_000 + b"lots"], 100, Counter())  # backtracking would take hours
    assert time.process_time() - begin < 5


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
