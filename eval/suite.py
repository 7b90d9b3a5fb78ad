"""A suite: several models on several benchmarks, resumable, as results.json and report.html.

OUT/results.json                rows, columns, protocol
OUT/results.md                  the tables
OUT/results.tex                 the same for a paper
OUT/results.csv                 a line for each figure of each run
OUT/report.html                 the same to look at
OUT/evaluations/HASH.json       each finished evaluation, used again while weights, pictures and protocol stay the same
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from eval.benchmarks.bench import Bench
from eval.benchmarks.registry import BENCHES, check_bench, open_bench
from eval.evaluate import METHODS, Method, Settings, evaluate, evaluation_hash, is_whole, prepared
from eval.heads.knn import KNNConfig
from eval.heads.probe import ProbeConfig
from eval.models.model import Model, tell_of_other_data
from eval.report.gallery import GraphStrips, caption_strips, image_strips
from eval.report.latex import write_latex
from eval.report.markdown import write_markdown
from eval.report.page import read_curves, write_report
from eval.report.show import show_rows
from eval.report.table import gather
from eval.report.tidy import write_tidy
from eval.report.titles import TITLES
from eval.rows import Row, open_rows, recipe_of, rows_of, run_names, unalike, unfinished
from shards.atomic import write_json
from shards.bars import say
from shards.config import did_you_mean, from_table, read_toml
from shards.errors import UserError

__all__ = ["Suite", "load_suite", "run_suite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    name: str
    title: str
    benches: tuple[str, ...]
    """By name, or NAME:FOLDER, of which there may be several (`imagefolder:data/pets`, `cats=imagefolder:b/pets`)."""
    methods: tuple[Method, ...] = METHODS
    """What every row is evaluated by."""
    runs: str = ""
    """Folder that the rows' checkpoints lie in, from the current one on; empty: that of the results."""
    against: tuple[str, ...] = ()
    """The row, or rows, that tables compare the others with; none: every pair."""
    few_shot: tuple[float, ...] = ()
    """Percentages of the training images: each benchmark once more with each."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    knn: KNNConfig = field(default_factory=KNNConfig)
    rows: tuple[Row, ...]


def builtin_suites() -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files("eval").joinpath("suites").iterdir())


def load_suite(name: str) -> Suite:
    """A built-in suite by name, or a TOML file by path. Raises UserError for unknown names, keys and values."""
    path = Path(name)
    if path.suffix != ".toml":
        if name not in builtin_suites():
            hint = did_you_mean(name, builtin_suites())
            raise UserError(f"unknown suite {name!r}{hint}: give a .toml file or one of {', '.join(builtin_suites())}")
        path = Path(str(files("eval").joinpath(f"suites/{name}.toml")))
    where, table = f"suite {name}", read_toml(path)
    rows = table.get("rows", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{where}: rows are written as [[rows]], one for each model")
    table["rows"] = tuple(from_table(Row, row, f"{where}, row {number}") for number, row in enumerate(rows, 1))
    if isinstance(against := table.get("against"), str):
        table["against"] = [against]
    if isinstance(methods := table.get("methods"), list):  # as commands spell them, too
        table["methods"] = [method.replace("-", "_") if isinstance(method, str) else method for method in methods]
    suite = from_table(Suite, {"name": path.stem, "title": path.stem, **table}, where)
    _check(suite)
    return suite


def run_suite(
    suite: Suite,
    out: Path,
    *,
    settings: Settings,
    checkpoints: list[str],
    data: Path | None = None,
) -> dict[str, Any]:
    """Evaluate every row, write results and report, show the table; returns what results.json holds.

    checkpoints: evaluate these instead of the suite's rows. data: folder of the benchmark, if there is one only. Raises
    UserError where a row cannot be evaluated, after the others are, with their tables written.
    """
    rows = rows_of(suite.rows, suite.name, Path(suite.runs).expanduser() if suite.runs else out, checkpoints)
    models = open_rows(rows)
    # Other rows than its own are another suite's: they do not replace those.
    called = f"{suite.name} with --checkpoint" if checkpoints else suite.name
    _check_ours(called, out)
    benches = _open_benches(suite, models, data, partial=settings.partial)
    settings = replace(settings, probe=suite.probe, knn=suite.knn)
    parts = [(name, bench, replace(settings, few_shot=None)) for name, bench in benches.items()]
    parts += [
        (f"{name} {percent:g}%", bench, replace(settings, few_shot=percent))
        for name, bench in benches.items()
        for percent in suite.few_shot
    ]
    work = [(*part, method) for part, method in product(parts, suite.methods)]
    _check_all(work)
    for line in (line for row in rows for line in unalike(row, models[row.method])):
        say(f"note: not alike but for the seed: {line}")
    evaluated, failed = _evaluate_rows(rows, models, work, out)
    rows = [row for row in rows if row.method in {one["method"] for one in evaluated}]
    results = gather(
        called,
        suite.title,
        evaluated,
        [(prefix, bench) for prefix, bench, _ in parts],
        unfinished=[line for row in rows for line in unfinished(row, models[row.method])],
        unalike=[line for row in rows for line in unalike(row, models[row.method])],
        failed=failed,
        # --checkpoint has rows of its own
        against=[name for name in suite.against if name in {row.method for row in rows}],
        methods=suite.methods,
    )
    _write(out, results, rows, models, next(iter(benches.values())), settings.features)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(failed) + len(rows)} rows could not be evaluated ({failed[0]}); the tables hold "
            "the others"
        )
    return results


def _write(
    out: Path, results: dict[str, Any], rows: list[Row], models: dict[str, list[Model]], bench: Bench, features: Path
) -> None:
    """Tables and report of rows that were evaluated. bench: whose pictures the report shows."""
    write_json(out / "results.json", results)
    write_markdown(out / "results.md", results)
    write_latex(out / "results.tex", results)
    write_tidy(out / "results.csv", results)
    show_rows(results, out)
    trained = {row.method: models[row.method] for row in rows if not row.untrained}
    first = {method: several[0] for method, several in trained.items()}
    write_report(
        out / "report.html",
        results,
        curves={method: [read_curves(m.folder) for m in several if m.folder] for method, several in trained.items()},
        captions=_captions(first),
        images=image_strips(first, bench, features),
    )


def _check_all(work: list[tuple[str, Bench, Settings, Method]]) -> None:
    """Raises UserError for the first evaluation that could not be made, before any is paid for."""
    for prefix, bench, settings, method in work:
        try:
            prepared(bench, method, settings)
        except UserError as error:
            raise UserError(f"{prefix}, {TITLES[method]}: {error}") from None


def _open_benches(
    suite: Suite, models: dict[str, list[Model]], data: Path | None, *, partial: bool
) -> dict[str, Bench]:
    """By what their columns begin with: the benchmark's name, or that of the folder of one's own data."""
    if data is not None and (len(suite.benches) > 1 or ":" in suite.benches[0]):
        named = ", ".join(suite.benches)
        raise UserError(f"--data names the folder of a suite's one benchmark; the suite {suite.name} names {named}")
    folders = {m.shards.resolve(): m.shards for several in models.values() for m in several if m.shards}
    theirs = any(name in ("shards", "demo") and not folder for _, name, folder in map(_place, suite.benches))
    if len(folders) > 1 and data is None and theirs:
        raise UserError(
            f"the models of the suite {suite.name} were trained on {' and '.join(map(str, folders.values()))}: say "
            "with --data on which to evaluate all of them, or with benches = ['shards:FOLDER', ...]"
        )
    if theirs and data is None:
        tell_of_other_data(model for several in models.values() for model in several)
    shards = next(iter(folders.values()), None)
    benches = {}
    for prefix, name, folder in map(_place, suite.benches):
        if folder and not Path(folder).exists():
            raise UserError(
                f"the suite {suite.name} names {name}:{folder}, and there is no {os.path.abspath(folder)}: it is "
                "looked for from the current folder"
            )
        if name in ("imagefolder", "backgrounds") and not folder and len(suite.benches) > 1:
            raise UserError(f"the suite {suite.name} has several benchmarks: say the folder, '{name}:DIR'")
        benches[prefix] = open_bench(name, Path(folder) if folder else data, partial=partial, shards=shards)
    return benches


def _place(bench: str) -> tuple[str, str, str]:
    """(what its columns begin with, benchmark, folder) of `imagenet`, `imagefolder:DIR` or `pets=imagefolder:DIR`."""
    head, _, folder = bench.partition(":")
    called, _, name = (part.strip() for part in head.rpartition("="))
    folder = os.path.expanduser(folder.strip())
    if not called:
        own = folder and name in BENCHES and BENCHES[name].own
        called = os.path.basename(os.path.abspath(folder)) if own else name
    return called, name, folder


def _check_ours(called: str, out: Path) -> None:
    """Raises UserError where the folder has the results of another suite, which would be lost."""
    if (out / "run.json").is_file():
        raise UserError(f"{out} is a run of xclr-train, and results in it would go with it: give another --out")
    found = (_read(out / "results.json") or {}).get("suite", called)
    if found != called:
        raise UserError(f"{out} has the results of the suite {found}: give another --out, or move these")


def _captions(models: dict[str, Model]) -> GraphStrips | None:
    """From the shards and the graph of the last row that was trained with one, the control `random` aside, or else of
    the last that says what it was trained on; None for a folder that is gone."""
    having = [m for m in models.values() if m.shards and m.shards.is_dir() and (m.graph or not _several(m.shards))]
    having.sort(key=lambda model: (model.about.get("objective") == "xclr", model.graph != "random"))
    return caption_strips(having[-1].shards, having[-1].graph) if having and having[-1].shards else None


def _several(folder: Path) -> bool:
    """Whether shards have several graphs, of which a model that was trained without one names none."""
    return len([path for path in folder.glob("graphs/*") if path.is_dir()]) > 1


@dataclass(slots=True)
class Count:
    """Of evaluations, for who watches."""

    total: int
    done: int = 0


def _evaluate_rows(
    rows: list[Row], models: dict[str, list[Model]], work: list[tuple[str, Bench, Settings, Method]], out: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """(of each row what `_evaluate_row` says, a line for each that cannot be evaluated). Raises UserError where none
    can."""
    count = Count(sum(len(models[row.method]) for row in rows) * len(work))
    evaluated, failed = [], list[str]()
    for row in rows:
        at = count.done
        try:
            evaluated.append(_evaluate_row(row, models[row.method], work, out, count))
        except UserError as error:
            say(f"{row.method} is left out: {error}")
            failed.append(f"{row.method}: {error}")
            count.done = at + len(models[row.method]) * len(work)
    if not evaluated:
        raise UserError(failed[0])
    return evaluated, failed


def _evaluate_row(
    row: Row, models: list[Model], work: list[tuple[str, Bench, Settings, Method]], out: Path, count: Count
) -> dict[str, Any]:
    """{"method", "runs": [{"model", "evaluations": {(prefix, method): value}}]}"""
    runs = []
    for name, model in zip(run_names(row), models, strict=True):
        evaluations = {}
        for prefix, bench, settings, method in work:
            count.done += 1
            path = out / "evaluations" / f"{evaluation_hash(model, bench, method, settings)}.json"
            found = _read(path)
            if found is None or not is_whole(found):
                say(f"{count.done} of {count.total}  {name}: {prefix}, {TITLES[method]}")
                found = evaluate(model, bench, method, settings)
                write_json(path, found)
            evaluations[prefix, method] = found
        model.network.to("cpu")  # a suite may have dozens
        recipe = {} if row.untrained else recipe_of(model)
        runs.append({"model": dict(model.about), "recipe": recipe, "evaluations": evaluations})
    return {"method": row.method, "runs": runs}


def _check(suite: Suite) -> None:
    places = [_place(bench) for bench in suite.benches]
    for bench, (_, name, folder) in zip(suite.benches, places, strict=True):
        check_bench(name, f"suite {suite.name}: ")
        if ":" in bench and not folder:
            raise UserError(f"suite {suite.name}: {bench!r} names no folder: {name}:DIR, or {name} alone")
    if not suite.benches:
        raise UserError(f"suite {suite.name} names no benchmark")
    prefixes = [prefix for prefix, _, _ in places]
    prefixes += [f"{prefix} {percent:g}%" for prefix in prefixes for percent in suite.few_shot]
    if "" in prefixes:
        raise UserError(f"suite {suite.name}: a benchmark has no name: name it, as in 'mine=imagefolder:DIR'")
    if twice := next((prefix for prefix in prefixes if prefixes.count(prefix) > 1), None):
        raise UserError(
            f"suite {suite.name}: two benchmarks are called {twice}: name one otherwise, as in 'mine=imagefolder:DIR'"
        )
    for percent in suite.few_shot:
        if not 0 < percent < 100:
            raise UserError(f"suite {suite.name}: few_shot is of percentages between 0 and 100, not {percent:g}")
    names = [row.method for row in suite.rows]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"suite {suite.name}: two rows are called {double!r}; several runs of one method are one row's")
    if names and (lost := next((row for row in suite.against if row not in names), None)):
        raise UserError(
            f"suite {suite.name}: against is the name of a row ({', '.join(names)}), not {lost!r}"
            f"{did_you_mean(lost, names)}"
        )
    if not suite.methods or len(set(suite.methods)) < len(suite.methods):
        raise UserError(f"suite {suite.name}: methods is of one or both of {', '.join(METHODS)}")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except (OSError, ValueError):
        return None  # not evaluated yet, or torn: evaluated again
