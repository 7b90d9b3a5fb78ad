"""The commands as they are installed."""

from __future__ import annotations

import io
import os
import pkgutil
import re
import sys
from importlib.metadata import entry_points
from types import ModuleType

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import pipeline
import trainer
from eval.cli import app as eval_app
from pipeline.cli import app as shards_app
from shards import start
from trainer.cli import app as train_app


@pytest.mark.parametrize(
    ("name", "module"), [("shards", "pipeline.cli"), ("train", "trainer.cli"), ("evaluate", "eval.cli")]
)
def test_each_command_is_its_module_s(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    stand_in = ModuleType(module)
    stand_in.main = lambda: called.append(module)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, stand_in)
    getattr(start, name)()
    assert called == [module]


def test_opencv_does_not_warn_of_pictures_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    stand_in = ModuleType("trainer.cli")
    stand_in.main = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainer.cli", stand_in)
    start.train()
    assert os.environ["OPENCV_LOG_LEVEL"] == "ERROR"
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")  # who wants to see them may
    start.train()
    assert os.environ["OPENCV_LOG_LEVEL"] == "INFO"


def test_names_that_are_no_text_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in, raw = ModuleType("trainer.cli"), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    stand_in.main = lambda: print("\u732b \udce9", flush=True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trainer.cli", stand_in)
    start.train()
    assert raw.getvalue() == b"? ?\n"


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(module: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "import_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        start.train()
    assert ended.value.code == 130


def test_what_is_installed_leads_there() -> None:
    """An installation from before may still lead to the modules themselves."""
    found = {
        point.name: point.value for point in entry_points(group="console_scripts") if point.name.startswith("xclr-")
    }
    assert set(found) >= {"xclr-shards", "xclr-train", "xclr-eval"}
    assert all(callable(point.load()) for point in entry_points(group="console_scripts") if point.name in found)


@pytest.mark.parametrize(("app", "least"), [(shards_app, 12), (train_app, 9), (eval_app, 11)])
def test_examples_are_shown_as_they_are_typed_on_80_columns(app: typer.Typer, least: int) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    examples, shown = [], set()
    for name, command in {"": group, **group.commands}.items():
        examples += [line.strip() for line in (command.help or "").splitlines() if line.startswith("xclr-")]
        output = CliRunner().invoke(app, [*([name] if name else []), "--help"], env={"COLUMNS": "80"}).output
        shown |= {line.strip() for line in output.splitlines()}
    assert len(examples) >= least
    assert set(examples) <= shown


@pytest.mark.parametrize("package", [pipeline, trainer])
def test_the_map_of_a_package_names_its_modules(package: ModuleType) -> None:
    modules = {name + "/" * is_folder for _, name, is_folder in pkgutil.iter_modules(package.__path__)}
    named = set(re.findall(r"\w+/?", package.__doc__ or ""))
    assert modules <= named
