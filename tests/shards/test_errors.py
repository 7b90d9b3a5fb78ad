"""What a command line makes of errors: one line, no box, no traceback, and a code that says which."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import typer

from shards.atomic import write_json
from shards.bars import spoken
from shards.command import run_cli
from shards.config import read_toml
from shards.errors import UserError, first_line
from shards.manifest import Manifest

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(what: str, number: int = 0, kind: Literal["a", "b"] = "a") -> None:
    """Raise what is asked for."""
    if what == "user":
        raise UserError("two\n  lines")
    if what == "interrupt":
        raise KeyboardInterrupt
    if what == "gpu":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    if what == "defect":
        raise OSError("no number, no path")
    if what == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if what == "exit":
        raise typer.Exit(1)
    if what != "fine":
        (Path(what) / "deeper").mkdir(parents=True)
    print("done", number, kind)


def test_a_write_that_fails_names_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*run\.json'"):
        write_json(tmp_path / "run.json", {})
    assert not list(tmp_path.iterdir())


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tool", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_cli(app)
    return caught.value.code if isinstance(caught.value.code, int) else 0


def test_codes_and_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    expected = {
        ("fine",): (0, ""),
        ("exit",): (1, ""),
        ("user",): (2, "error: two lines\n"),
        ("gpu",): (
            2,
            "error: a GPU has no room (CUDA out of memory. Tried to allocate 2.00 GiB.): free it, or hide it",
        ),
        ("full",): (2, "error: No space left on device; make room and run the same command again\n"),
        ("interrupt",): (130, "stopped: run the same command again to go on\n"),
        (str(file),): (2, f"error: {file}/deeper: Not a directory; a file lies where a folder is needed"),
        ("fine", "--numbr", "1"): (2, "error: No such option: --numbr"),
        ("fine", "--number", "x"): (2, "error: Invalid value for '--number': it should be a valid integer ("),
        ("fine", "--kind", "c"): (2, "error: Invalid value for '--kind': 'c' is not one of 'a', 'b'"),
        (): (2, "error: Missing "),
        ("--help",): (0, ""),
    }
    for arguments, (code, line) in expected.items():
        assert run(monkeypatch, *arguments) == code, arguments
        said = capsys.readouterr().err
        assert said.startswith(line) if line else said == "", arguments
        assert said.count("\n") <= 1, arguments
    for command in ("full", "interrupt"):
        monkeypatch.setattr(sys, "argv", ["tool", command])
        with pytest.raises(SystemExit):
            run_cli(app, again="call again with --resume")
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "error: No space left on device; make room and call again with --resume",
        "stopped: call again with --resume to go on",
    ]
    monkeypatch.setattr(sys, "argv", ["tool", "defect"])
    with pytest.raises(OSError, match="no number"):  # a defect of ours keeps its traceback
        run_cli(app)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "s3://bucket/run"], "s3://bucket/run is a URL, and --out takes a folder or file of this machine"),
        (["--out=file:///run"], "file:///run is a URL, and --out takes"),
        (["verify", "https://me:hush@host/shards?sig=hush"], "https://host/shards is a URL, and this command takes"),
        (["--shards", "s3://bucket/cc12m", "--source=https://host/list.txt"], ""),
    ],
)
def test_urls_become_no_folders(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["xclr", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda standalone_mode: 0)  # type: ignore[arg-type]
    assert caught.value.code == (2 if said else 0)
    found = capsys.readouterr().err
    assert said in found
    assert "hush" not in found


@pytest.mark.parametrize(
    "content", ["[]", '"x"', "7", "null", "{}", '{"format": 1}', '{"format": 1, "shards": 3}', "{"]
)
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", "AssertionError"),
        ("one\ntwo", "one"),
        ("\n\none:\ntwo\nthree", "one: two"),
        ("x " * 400, "x " * 148 + "..."),
    ],
)
def test_the_first_line_of_another_librarys_message(message: str, line: str) -> None:
    assert first_line(AssertionError(message)) == line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (172_799, "48.0 h"),
        (200_000, "2.3 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_a_mark_before_toml_is_passed_over(tmp_path: Path) -> None:
    """As Windows' editors write it."""
    (tmp_path / "a.toml").write_bytes(b'\xef\xbb\xbfname = "caf\xc3\xa9"\n')
    assert read_toml(tmp_path / "a.toml") == {"name": "caf\u00e9"}
