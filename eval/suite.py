"""A suite: several models on several benchmarks by both methods, resumable, as results.json and report.html.

OUT/results.json                rows, columns, protocol
OUT/report.html                 the same to look at
OUT/evaluations/HASH.json       each finished evaluation, used again while weights, pictures and protocol stay the same
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from eval.bars import say
from eval.bench import Bench
from eval.evaluate import METHODS, Settings, evaluate, evaluation_hash
from eval.gallery import Strip, caption_strips, image_strips
from eval.models import Model, open_checkpoint
from eval.registry import BENCHES, open_bench
from eval.report import read_curves, write_report
from eval.show import show_rows
from shards.atomic import write_json
from shards.errors import UserError

__all__ = ["Row", "Suite", "load_suite", "run_suite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of the table."""

    method: str
    """What the row is called: `xclr`, `untrained`."""
    checkpoint: Path
    """A run folder or checkpoint; in a suite file relative to the suite's folder of results."""
    untrained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    title: str
    benches: tuple[str, ...]
    rows: tuple[Row, ...]


def builtin_suites() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files("eval").joinpath("suites").iterdir())


def load_suite(name: str) -> Suite:
    """A built-in suite by name, or a TOML file by path. Raises UserError for unknown names, keys and values."""
    path = Path(name)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"there is no suite file {path}")
        text, stem = path.read_text(encoding="utf-8"), path.stem
    elif name in builtin_suites():
        text, stem = files("eval").joinpath(f"suites/{name}.toml").read_text(encoding="utf-8"), name
    else:
        raise UserError(f"unknown suite {name!r}: give a .toml file or one of {', '.join(builtin_suites())}")
    try:
        table = tomllib.loads(text)
        unknown = set(table) - {"title", "benches", "rows"}
        if unknown:
            raise UserError(f"suite {name}: unknown {', '.join(sorted(unknown))}; known are title, benches, rows")
        rows = tuple(_row(row, name) for row in table.get("rows", []))
        suite = Suite(name=stem, title=table.get("title", stem), benches=tuple(table["benches"]), rows=rows)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"suite {name}: {error}") from None
    except KeyError as error:
        raise UserError(f"suite {name}: {error} is missing") from None
    _check(suite)
    return suite


def run_suite(
    suite: Suite,
    out: Path,
    *,
    settings: Settings,
    checkpoints: list[Path],
    data: Path | None = None,
) -> dict[str, Any]:
    """Evaluate every row, write results.json and report.html, show the table; returns what results.json holds.

    checkpoints: evaluate these instead of the suite's rows. data: folder of the benchmark, if there is one only.
    """
    rows = _rows(suite, out, checkpoints)
    if data is not None and len(suite.benches) > 1:
        raise UserError(f"--data names the folder of one benchmark; the suite {suite.name} has {len(suite.benches)}")
    evaluated: list[dict[str, Any]] = []
    models: dict[str, Model] = {}
    benches: dict[str, Bench] = {}
    for row in rows:
        model = models[row.method] = open_checkpoint(row.checkpoint, untrained=row.untrained)
        for name in suite.benches:
            if name not in benches:
                benches[name] = open_bench(name, data, partial=settings.partial, shards=model.shards)
        evaluated.append(_evaluate_row(row, model, list(benches.values()), out, settings))
    results = _results(suite, evaluated, benches)
    write_json(out / "results.json", results)
    trained = {row.method: models[row.method] for row in rows if not row.untrained}
    write_report(
        out / "report.html",
        results,
        curves={name: read_curves(model.folder) for name, model in trained.items() if model.folder},
        captions=_captions(models),
        images=image_strips(trained, benches[suite.benches[0]], settings.features),
    )
    show_rows(results["rows"], results["columns"], list(METHODS), results["partial"])
    say(f"written to {out / 'results.json'} and {out / 'report.html'}")
    return results


def _captions(models: dict[str, Model]) -> list[Strip]:
    """From the shards of the last row that says what it was trained on; none for a folder that is gone."""
    folders = [(model.shards, model.graph) for model in models.values() if model.shards and model.shards.is_dir()]
    return caption_strips(*folders[-1]) if folders else []


def _evaluate_row(row: Row, model: Model, benches: list[Bench], out: Path, settings: Settings) -> dict[str, Any]:
    """{"method", "model", "evaluations": [one for each benchmark and method]}"""
    evaluations = []
    for bench in benches:
        for method in METHODS:
            path = out / "evaluations" / f"{evaluation_hash(model, bench, method, settings)}.json"
            found = _read(path)
            if found is None:
                say(f"{row.method}: {bench.name}, {method.replace('_', ' ')}")
                found = evaluate(model, bench, method, settings)
                write_json(path, found)
            evaluations.append(found)
    return {"method": row.method, "model": dict(model.about), "evaluations": evaluations}


def _results(suite: Suite, evaluated: list[dict[str, Any]], benches: dict[str, Bench]) -> dict[str, Any]:
    """What results.json holds: figures by row, method and column, then everything about them."""
    several = len(benches) > 1
    columns = [f"{bench.name}/{c.name}" if several else c.name for bench in benches.values() for c in bench.columns]
    rows = []
    for row in evaluated:
        figures: dict[str, dict[str, float]] = {method: {} for method in METHODS}
        details: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
        for evaluation in row["evaluations"]:
            for name, value in evaluation["columns"].items():
                column = f"{evaluation['bench']}/{name}" if several else name
                figures[evaluation["method"]][column] = value["accuracy"]
                details[evaluation["method"]][column] = {k: value[k] for k in ("interval", "n", "unreadable", "about")}
        chosen = {f"{e['bench']}/{e['method']}": _without_table(e["chosen"]) for e in row["evaluations"]}
        rows.append({"method": row["method"], **figures, "details": details, "model": row["model"], "chosen": chosen})
    evaluations = [evaluation for row in evaluated for evaluation in row["evaluations"]]
    return {
        "suite": suite.name,
        "title": suite.title,
        "rows": rows,
        "columns": columns,
        "protocol": {e["method"]: e["protocol"] for e in evaluated[0]["evaluations"]},
        "benches": {e["bench"]: {"root": e["root"], "notes": e["notes"]} for e in evaluated[0]["evaluations"]},
        "partial": sorted({reason for e in evaluations for reason in e["partial"]}),
        "versions": evaluations[0]["versions"],
    }


def _without_table(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        task: {key: value for key, value in values.items() if key != "candidates"} for task, values in chosen.items()
    }


def _rows(suite: Suite, out: Path, checkpoints: list[Path]) -> list[Row]:
    """The rows to evaluate, with names that tell them apart; every checkpoint is there, said before anything slow."""
    if checkpoints:
        names = [path.name if path.is_dir() else path.stem for path in checkpoints]
        if len(set(names)) < len(names):
            names = [str(path) for path in checkpoints]
        return [Row(method=name, checkpoint=path) for name, path in zip(names, checkpoints, strict=True)]
    if not suite.rows:
        raise UserError(f"the suite {suite.name} names no rows: give --checkpoint, once for each model")
    rows = [Row(method=r.method, checkpoint=out / r.checkpoint, untrained=r.untrained) for r in suite.rows]
    missing = sorted({str(row.checkpoint) for row in rows if not row.checkpoint.exists()})
    if missing:
        raise UserError(
            f"the suite {suite.name} evaluates runs that are not there: {', '.join(missing)}; train them first "
            "(`make demo` does), give --out FOLDER of the runs, or --checkpoint"
        )
    return rows


def _row(table: dict[str, Any], suite: str) -> Row:
    unknown = set(table) - {"method", "checkpoint", "untrained"}
    if unknown:
        raise UserError(f"suite {suite}: unknown {', '.join(sorted(unknown))} in a row")
    return Row(
        method=table["method"], checkpoint=Path(table["checkpoint"]), untrained=bool(table.get("untrained", False))
    )


def _check(suite: Suite) -> None:
    for bench in suite.benches:
        if bench not in BENCHES:
            raise UserError(f"suite {suite.name}: unknown benchmark {bench!r}, known are {', '.join(BENCHES)}")
    if not suite.benches:
        raise UserError(f"suite {suite.name} names no benchmark")
    names = [row.method for row in suite.rows]
    if len(set(names)) < len(names):
        raise UserError(f"suite {suite.name}: two rows have the same name")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except (OSError, ValueError):
        return None  # not evaluated yet, or torn: evaluated again
