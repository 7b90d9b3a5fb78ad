"""Quotes and line ends in CSV and TSV: which lines are rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sources.datasets import Dataset
from pipeline.sources.delimited import read_delimited
from shards.errors import UserError
from tests.pipeline.building import grouped


@pytest.mark.parametrize(("later", "mark"), [("", "\t"), ('200 "nails"', "\t"), ('"quoted', "\t"), ('"quoted', ",")])
def test_a_quote_that_is_a_mere_character_takes_no_rows(tmp_path: Path, later: str, mark: str) -> None:
    lines = [f"{i}.jpg{mark}number {i}" for i in range(80)]
    lines[40] = f'40.jpg{mark}"5 inch nails'
    lines[60] += later if later[:1] != '"' else ""
    if later[:1] == '"':
        lines[60] = f"60.jpg{mark}{later}"
    (tmp_path / "t.csv").write_text("\n".join([f"image{mark}caption", *lines, ""]))
    found = grouped(tmp_path / "t.csv")
    assert len(found) == 80
    assert found["40.jpg"] == ['"5 inch nails']
    assert found["41.jpg"] == ["number 41"]


def test_captions_of_several_lines_stay_so_and_unclosed_quotes_are_told(tmp_path: Path) -> None:
    rows = [f'{i}.jpg,"number {i},\nand ""more"" of it"' for i in range(80)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["image,caption", *rows, ""]))
    found = grouped(path)
    assert found["79.jpg"] == ['number 79,\nand "more" of it']
    assert len(found) == 80
    rows[40] = '40.jpg,"number 40, and no end'
    path.write_text("\n".join(["image,caption", *rows, ""]))
    with pytest.raises(UserError, match=r't\.csv: a quote is opened and not closed in line 82 \(\'40\.jpg,"number 40'):
        grouped(path)
    plain = [f"{i}.jpg,a" for i in range(200)]
    plain[10], plain[20], plain[120] = '10.jpg,"a, b"', '20.jpg,"b', '120.jpg,b"'  # an even number of quotes
    path.write_text("\n".join(["image,caption", *plain, ""]))
    with pytest.raises(UserError, match=r"not closed in line 22 \('20\.jpg,\"b'\), so 100 lines were taken"):
        grouped(path)


def test_lines_within_quotes_that_look_like_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,caption\na.jpg,"A dog\nruns, fast"\nb.jpg,a cat\n')
    assert grouped(path) == {"a.jpg": ["A dog\nruns, fast"], "b.jpg": ["a cat"]}
    path.write_text('image,caption\na.jpg,"A dog\nruns"\nb.jpg,a 19" monitor\n')  # an odd number of quotes
    assert grouped(path)["b.jpg"] == ['a 19" monitor']
    long = "\n".join(f"line {i} of many" for i in range(60))
    path.write_text(f'image,caption\na.jpg,"{long}"\nb.jpg,"x ""y"", z"\n')
    assert grouped(path) == {"a.jpg": [long], "b.jpg": ['x "y", z']}
    path.write_text('image,caption\na.jpg,"hello, there\nb.jpg,"hi, x\nc.jpg,x\n')
    with pytest.raises(UserError, match="a quote is opened and not closed in line 2 "):
        grouped(path)


@pytest.mark.parametrize("mark", [",", "\t", "|"])
def test_ragged_rows_of_a_table_that_is_not_utf8_are_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mark: str
) -> None:
    """And all bytes of the other rows stay."""
    cells = ["image,l\xc3\xa9gende", "\xe9.jpg,caf\xe9", "b.jpg,x,ragged \xe9", "c.jpg,caf\xc3\xa9\xff", ""]
    bom = b"\xef\xbb\xbf" if mark == "," else b""
    (tmp_path / "t.csv").write_bytes(bom + "\n".join(cells).encode("latin-1").replace(b",", mark.encode()))
    dataset = Dataset(name="mine", format="table", captions=("l\u00e9gende",))
    found = read_delimited(dataset, tmp_path / "t.csv")
    assert found.images.to_pylist() == [b"\xe9.jpg", b"c.jpg"]
    assert found.captions.to_pylist() == [b"caf\xe9", b"caf\xc3\xa9\xff"]
    assert found.unreadable == (1, repr(f"b.jpg{mark}x{mark}ragged \ufffd"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("top", "mark"),
    [
        ('image;caption;"price, EUR"\n', ";"),
        ("image,caption,size|colour\n", ","),
        ("image;caption;a|b,c\td\n", ";"),
        ('"image"|"caption"|"price, EUR"\n', "|"),
        ("sep=;\nimage;caption;a,image,caption\n", ";"),
        ("\n  \nimage,caption,c\n", ","),
        ("sep=,\r\n,,\r\n\r\nimage,caption,c\r\n", ","),
        ("sep=:\nimage:caption:c\n", ":"),
        ("sep=;\nimage,caption,c\n", ","),
        ("\ufeffimage,caption,c\n", ","),
    ],
)
def test_the_mark_between_cells_is_the_one_by_which_the_header_names_the_columns(
    tmp_path: Path, top: str, mark: str
) -> None:
    rows = (("a.jpg", f'"one{mark}\n""two"""', "3"), ("b.jpg", "two", "4"))
    (tmp_path / "t.csv").write_text("\ufeff" + top + "".join(mark.join(row) + "\n" for row in rows), newline="")
    assert grouped(tmp_path / "t.csv") == {"a.jpg": [f'one{mark}\n"two"'], "b.jpg": ["two"]}
