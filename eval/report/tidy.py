"""results.csv: a line for each figure of each run, to plot and to average elsewhere (pandas, R, a spreadsheet)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from eval.report.settings import setting
from eval.report.titles import model_parts
from shards.atomic import write_text

__all__ = ["HEAD", "tidy_lines", "write_tidy"]

HEAD = ("row", "run", "checkpoint", "step", "seed", "method", "column", "accuracy", "images")


def write_tidy(path: Path, results: dict[str, Any]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(tidy_lines(results))
    write_text(path, text.getvalue())


def tidy_lines(results: dict[str, Any]) -> list[list[Any]]:
    """The head, then one line a figure. Behind HEAD stand the settings in which the runs differ, `objective.tau_s` and
    so on, empty where they are not known. accuracy: percent. run: counted from 1 in each row. step: of the
    checkpoint."""
    keys = [tuple(key.split(".")) for key in results["settings"]["keys"]]
    lines: list[list[Any]] = [[*HEAD, *results["settings"]["keys"]]]
    for row in results["rows"]:
        for number, run in enumerate(row["runs"], 1):
            model, recipe = run["model"], run["recipe"]
            name, _, checkpoint = model_parts(model)
            head = [row["method"], number, checkpoint or name]
            head += [model.get("step", ""), recipe.get("seed", "")]
            settings = [setting(recipe, key) if recipe else "" for key in keys]
            lines += [
                [*head, method, column, run[method][column], row["details"][method][column]["n"], *settings]
                for method in results["methods"]
                for column in results["columns"]
            ]
    return lines
