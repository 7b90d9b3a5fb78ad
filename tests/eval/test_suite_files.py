"""A suite's file with wrong keys or values, and names that are misspelt: one line that says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.benchmarks.registry import open_bench
from eval.rows import Row, rows_of
from eval.suite import load_suite
from shards.errors import UserError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("benches = ['demo']\nrow = 1", "unknown key 'row' .*; known are"),
        ("title = 'x'", "benches is missing"),
        ("benches = ['demon']", "unknown benchmark 'demon'"),
        ("benches = []", "names no benchmark"),
        ("benches = ['imagefolders:x']", "unknown benchmark 'imagefolders'"),
        ("benches = ['imagefolder:a/pets', 'shards:b/pets']", "two benchmarks are called pets"),
        ("benches = ['demo', 'demo']", "two benchmarks are called demo"),
        ("benches = ['imagefolder:/']", "a benchmark has no name"),
        ("benches = ['demo']\nfew_shot = [1, 1]", "two benchmarks are called demo 1%"),
        ("benches = ['shards:']", "'shards:' names no folder: shards:DIR, or shards alone"),
        ("benches = ['demo']\nagainst = 'b'\n[[rows]]\nmethod = 'a'\ncheckpoint = 'c'", r"against is the name .*\(a\)"),
        ("benches = ['demo']\nagainst = ['a', 'b']\n[[rows]]\nmethod = 'a'\ncheckpoint = 'c'", r"\(a\), not 'b'"),
        ("benches = ['demo']\nagainst = 5", r"against is a list, not 5: write \[5\]"),
        ("benches = ['demo']\nmethods = []", "methods is of one or both of linear_probe, knn"),
        ("benches = ['demo']\nmethods = ['knn', 'knn']", "methods is of one or both"),
        ("benches = ['demo']\nmethods = ['linear-probe', 'linear_probe']", "methods is of one or both"),
        ("benches = ['demo']\nmethods = ['svm']", r"methods\[0\] is one of linear_probe, knn, not 'svm'"),
        ("benches = ['demo']\nrows = [{method='a',checkpoint='b'},{method='a',checkpoint='c'}]", "two rows .* 'a'"),
        ("benches = [", r"cannot read .*mine\.toml as TOML"),
        ("benches = ['demo']\n[[rows]]\nmethod = 'a'", "row 'a' is of one checkpoint = '...', or of"),
        ("benches = ['demo']\n[[rows]]\nmethod = 'a'\ncheckpoint = 'b'\ncheckpoints = ['c']", "row 'a' is of one"),
        ("benches = ['demo']\n[[rows]]\nmethod = 'a'\ncheckpoints = ['b', 'b']", "'a' names a checkpoint twice"),
        ("benches = ['demo']\nfew_shot = 1", "few_shot is a list"),
        ("benches = ['demo']\nfew_shot = ['x']", r"few_shot\[0\] is of type float"),
        ("benches = ['demo']\nfew_shot = [150]", "percentages between 0 and 100, not 150"),
        ("benches = ['demo']\n[knn]\nk = 0", "k must be at least 1"),
        ("benches = ['demo']\n[probe]\nlr = 1", r"mine.toml \[probe\]: unknown key 'lr'"),
        ("benches = ['demo']\nrows = 5", r"rows are written as \[\[rows\]\]"),
        ("benches = ['demo']\nrows = [5]", r"rows are written as \[\[rows\]\]"),
        ("benches = ['demo']\ntitle = 5", "title is of type str"),
        ("benches = ['demo']\n[[rows]]\nmethod = 5\ncheckpoint = 'b'", "row 1: method is of type str"),
        (
            "benches = ['demo']\n[[rows]]\nmethod = 'a'\ncheckpoint = 'b'\nuntrained = 'false'",
            "row 1: untrained is of type bool",
        ),
        ("benches = ['demo']\n[[rows]]\nmethod = 'a'\ncheckpoint = 'b'\nk = 1", "row 1: unknown key 'k'"),
    ],
)
def test_wrong_suite_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_suite(str(path))


def test_misspelt_names_are_told_what_they_are_near(tmp_path: Path) -> None:
    for name in ("xclr-seed0", "xclr-seed1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")

    def lost(*specs: str) -> str:
        with pytest.raises(UserError, match="runs that are not there") as refused:
            rows_of((Row(method="m", checkpoints=specs),), "s", tmp_path, [])
        return str(refused.value).replace(f"{tmp_path}/", "")

    assert "not there: xlcr-seed1 (did you mean xclr-seed1 or xclr-seed0?); train" in lost("xlcr-seed1")
    assert "not there: xclr-sed* (did you mean" in lost("xclr-sed*")
    assert "(did you mean mine.py:net@xclr-seed0 or mine.py:net@xclr-seed1?)" in lost("mine.py:net@xclr-sed0")
    # What has a place already is not what was meant.
    assert "not there: xclr-seed2; train" in lost("xclr-seed0", "xclr-seed1", "xclr-seed2")
    assert "not there: another; train" in lost("another")

    row = "[[rows]]\nmethod = 'simclr'\ncheckpoint = 'a'"
    for text, message in (
        ("benches = ['imagent']", r"unknown benchmark 'imagent' \(did you mean imagenet\?\): give one of"),
        ("benches = ['demo']\nmethods = ['kn']", r"methods\[0\] is one of .*, not 'kn' \(did you mean knn\?\)"),
        (f"benches = ['demo']\nagainst = 'simcrl'\n{row}", r"not 'simcrl' \(did you mean simclr\?\)"),
    ):
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(UserError, match=message):
            load_suite(str(tmp_path / "mine.toml"))
    with pytest.raises(UserError, match=r"unknown suite 'papr' \(did you mean paper\?\): give"):
        load_suite("papr")
    with pytest.raises(UserError, match=r"unknown benchmark 'objctnet' \(did you mean objectnet\?\): give"):
        open_bench("objctnet")
