"""xclr-eval: the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.benchmarks.registry import BENCHES, check_bench
from shards.bars import say
from shards.command import run_cli
from shards.errors import UserError

if TYPE_CHECKING:
    from eval.evaluate import Method, Settings
    from eval.models.model import Model

__all__ = ["app", "main"]

MOST = 5000  # pictures of `similarity`: their pairs take 3 GB

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

Bench = Annotated[str, typer.Option(help=f"One of {', '.join(BENCHES)}.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the benchmark (for a suite: of its only one). Default: $XCLR_BENCHMARKS/BENCH, or "
        "data/benchmarks/BENCH; imagenet-real takes imagenet's, demo data/demo, shards those of the checkpoint."
    ),
]
Checkpoint = Annotated[
    list[str] | None,
    typer.Option(
        help="A run folder or checkpoint file, an exported folder, a folder in transformers' format, timm:NAME, "
        "torchvision:NAME or FILE.py:FUNCTION, which gives a network (FILE.py:FUNCTION@RUN: with a run's weights); "
        "several are scored one after the other. Default: the newest run below runs/."
    ),
]
Untrained = Annotated[bool, typer.Option("--untrained", help="The initial weights of that run, or of a model by name.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="JSON file of the result. Default: RUN/eval/NAME.json; without a run, runs/eval/MODEL/NAME.json."
    ),
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Score an incomplete copy of a benchmark; the result is marked so.")
]
FewShot = Annotated[
    float | None, typer.Option(help="Percent of the training images of each class, a fixed subset (1, 5, 10).")
]
Cache = Annotated[
    Path | None, typer.Option("--features", help="Where features are kept. Default: $XCLR_FEATURES, or data/features.")
]


@app.callback()
def _group() -> None:
    """What comes after training: how good frozen features are, on benchmarks, and how far they follow the graph."""


@app.command()
def linear_probe(
    bench: Bench,
    data: Data = None,
    checkpoint: Checkpoint = None,
    untrained: Untrained = False,
    out: Out = None,
    partial: Partial = False,
    features: Cache = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            help="Candidates, separated by commas, relative to the features' curvature. Default: 0.03,0.1,0.3,1,3,10."
        ),
    ] = None,
    weight_decays: Annotated[
        str | None,
        typer.Option(help="Candidates, separated by commas. Default: 0.001,0.01,0.1; of lbfgs eight, 1e-5 to 1."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(help="Kinds of features, separated by commas: standardised, unit. Default: standardised."),
    ] = None,
    solver: Annotated[str, typer.Option(help="sgd, or lbfgs: every weight decay to convergence.")] = "sgd",
    protocol: Annotated[
        str, typer.Option(help="features: one centre crop an image, kept. views: augmented views, as papers do; slow.")
    ] = "features",
    few_shot: FewShot = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training features. Default: 40, and at least 500 steps.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images of a step, at most an eighth of all. Default: 512.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Held-out part and order of the training features.")] = 0,
) -> None:
    """Accuracy of linear classifiers on frozen features, trained for every hyper-parameter at once.

    \b
    xclr-eval linear-probe --bench demo                      the newest run
    xclr-eval linear-probe --bench imagefolder --data DIR --checkpoint runs/A
    xclr-eval linear-probe --bench shards --data data/mine   and data/mine-test

    Features are extracted once and kept; what selects a candidate is a part of the training images, never the test.
    """
    from eval.evaluate import Settings
    from eval.features import features_root
    from eval.heads.probe import ProbeConfig

    if protocol not in ("features", "views"):
        raise UserError(f"--protocol is features or views, not {protocol!r}")
    if protocol == "views" and solver != "sgd":
        raise UserError("--protocol views trains by SGD: leave out --solver")
    if solver == "lbfgs" and (learning_rates or epochs or batch_size):
        raise UserError(
            "L-BFGS takes every weight decay to convergence: leave out --learning-rates, --epochs, --batch-size"
        )
    changes: dict[str, Any] = {
        "solver": solver,
        "learning_rates": _numbers(learning_rates, "--learning-rates"),
        "weight_decays": _numbers(weight_decays, "--weight-decays"),
        "features": tuple(kinds.split(",")) if kinds else None,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    config = ProbeConfig(**{key: value for key, value in changes.items() if value is not None})
    settings = Settings(
        features=features or features_root(),
        probe=config,
        partial=partial,
        views=protocol == "views",
        few_shot=few_shot,
    )
    _run("linear_probe", bench, data, checkpoint, untrained, out, settings)


@app.command()
def knn(
    bench: Bench,
    data: Data = None,
    checkpoint: Checkpoint = None,
    untrained: Untrained = False,
    out: Out = None,
    partial: Partial = False,
    features: Cache = None,
    k: Annotated[int, typer.Option("--k", help="Neighbours that vote.")] = 20,
    temperature: Annotated[float, typer.Option(help="Temperature of the votes' weights.")] = 0.07,
    few_shot: FewShot = None,
) -> None:
    """Accuracy of a weighted vote of the nearest training images (Wu et al. 2018); nothing is trained.

    \b
    xclr-eval knn --bench demo   the newest run
    xclr-eval knn --bench imagefolder --data DIR --checkpoint timm:resnet50
    """
    from eval.evaluate import Settings
    from eval.features import features_root
    from eval.heads.knn import KNNConfig

    config = KNNConfig(k=k, temperature=temperature)
    settings = Settings(features=features or features_root(), knn=config, partial=partial, few_shot=few_shot)
    _run("knn", bench, data, checkpoint, untrained, out, settings)


@app.command()
def suite(
    config: Annotated[str, typer.Option(help="A built-in suite or a .toml file.")] = "demo",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of results.json and report.html; runs are looked for here unless the suite says where. "
            "Default: runs/CONFIG."
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="Evaluate these instead of the suite's rows; may be given several times.")
    ] = None,
    data: Data = None,
    partial: Partial = False,
    features: Cache = None,
) -> None:
    """Several models on several benchmarks: results.json, .md, .tex, .csv and report.html. Run again, it goes on.

    \b
    xclr-eval suite --config demo --out runs/demo   as `make demo` ends
    xclr-eval suite --config paper --checkpoint runs/A --checkpoint runs/B
    xclr-eval suite --config mine.toml --out runs   see docs/evaluation.md

    Rows of several seeds have their mean and spread, and each pair of rows is compared picture by picture.
    """
    from eval.evaluate import Settings
    from eval.features import features_root
    from eval.outputs import check_writable
    from eval.suite import load_suite, run_suite

    chosen = load_suite(config)
    settings = Settings(features=features or features_root(), partial=partial)
    folder = out or Path("runs") / chosen.name
    if folder.is_file():
        raise UserError(f"--out {folder} is a file: give a folder")
    check_writable(folder / "results.json", {"suite", "rows", "columns"})
    run_suite(
        chosen,
        folder,
        settings=settings,
        checkpoints=checkpoint or [],
        data=data,
    )


@app.command()
def similarity(
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(help="As for linear-probe; several, to be compared with the first. Default: the newest run."),
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="The first's initial weights as well.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(help="Shards, training or test ones. Default: those that the first was trained on."),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(
            help="Name of the graph, in these shards or in the training shards beside them. Default: the one trained "
            "with, or the only one."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=3, max=MOST, help="Pictures, drawn at random.")] = 2000,
    out: Annotated[
        Path | None,
        typer.Option(help="The page, FILE.html; FILE.json beside it. Default: RUN/eval/similarity-DATA-GRAPH.html."),
    ] = None,
    features: Cache = None,
) -> None:
    """Do the similarities of pictures follow the graph's? A page of rank correlations, curves and matrices.

    \b
    xclr-eval similarity                    the newest run, on its own shards
    xclr-eval similarity --data data/mine-test       and on pictures new to it
    xclr-eval similarity --checkpoint runs/A --checkpoint runs/B --untrained

    Test shards go by the graph of the training shards beside them that a
    model was trained with, if it has most of their texts, or if they have
    none of their own.
    """
    from eval.features import features_root
    from eval.models.model import tell_of_other_data
    from eval.models.open import open_models
    from eval.outputs import check_writable, free_file, similarity_file
    from eval.report.show import show_similarity
    from eval.report.similarity import write_similarity
    from eval.similarity.compare import compare_models, similarity_hash
    from eval.similarity.pictures import open_pictures
    from eval.similarity.table import as_table
    from shards.atomic import write_json
    from shards.reader import is_finished

    if out and out.suffix != ".html":
        raise UserError(f"--out {out}: the page's name ends in .html")
    models = open_models(checkpoint or [None], untrained=untrained)
    first = next(iter(models.values()))
    root = data or first.shards
    if root is None:
        raise UserError("the first checkpoint names no folder of shards that it was trained on: give --data")
    if not is_finished(root):
        whose = "" if data else ", which the first checkpoint was trained on,"
        what = "has no manifest.json, so its shards are not finished, or none" if root.is_dir() else "is no folder here"
        raise UserError(f"{root}{whose} {what}: give --data a folder of shards")
    if data is None:
        tell_of_other_data([first])
    pictures = open_pictures(root, graph, samples, models.values())
    name = similarity_hash(models, pictures)
    table = out.with_suffix(".json") if out else free_file(similarity_file(list(models.values()), pictures), name)
    page = table.with_suffix(".html")
    check_writable(table, {"shards", "graph", "models"})
    if page.is_dir() or (page.exists() and page.stat().st_size and not table.exists()):
        raise UserError(f"{page} is there and no earlier result: choose another --out, or delete it")
    compared = compare_models(models, pictures, features or features_root())
    write_json(table, {"hash": name, **as_table(pictures, compared)})
    write_similarity(page, pictures, compared)
    show_similarity(pictures, compared, page)


@app.command(name="list")
def list_() -> None:
    """What of the benchmarks and runs is on this machine, and where to get what is missing."""
    from eval.inventory import show_inventory

    show_inventory()


def _run(
    method: Method,
    bench: str,
    data: Path | None,
    checkpoints: list[str] | None,
    untrained: bool,
    out: Path | None,
    settings: Settings,
) -> None:
    from eval.benchmarks.registry import open_bench
    from eval.models.open import open_model

    check_bench(bench)  # before anything slow
    if data and not data.exists():
        open_bench(bench, data, partial=settings.partial)  # which says what is missing, before weights are fetched
    if bench == "demo" and data and not any((at / "manifest.json").is_file() for at in (data, data / "demo")):
        raise UserError(
            f"--data {data} is no folder of shards, such as data/demo: class folders are --bench imagefolder"
        )
    if out and checkpoints and len(checkpoints) > 1:
        raise UserError(f"--out {out} takes one result, and {len(checkpoints)} checkpoints are given: leave it out")
    specs: Sequence[str | None] = checkpoints or [None]
    for model in [open_model(spec, untrained=untrained) for spec in specs]:  # all, before any is scored
        _score(method, bench, data, model, untrained, out, settings)


def _score(
    method: Method, bench: str, data: Path | None, model: Model, untrained: bool, out: Path | None, settings: Settings
) -> None:
    from eval.benchmarks.registry import open_bench
    from eval.evaluate import evaluate, evaluation_hash
    from eval.models.model import tell_of_other_data
    from eval.outputs import check_writable, free_file, result_file
    from eval.report.show import show_result
    from shards.atomic import write_json

    if data is None and bench in ("shards", "demo"):
        tell_of_other_data([model])
    opened = open_bench(bench, data, partial=settings.partial, shards=model.shards)
    name = evaluation_hash(model, opened, method, settings)
    path = out or free_file(result_file(model, opened, method, untrained, settings), name)
    check_writable(path, {"bench", "method", "columns"})  # before the work, not after it
    say(f"{model.folder or model.name}{_at_step(model)} on {bench} ({opened.root})")
    result = evaluate(model, opened, method, settings)
    write_json(path, {"hash": name, **result})
    show_result(result, path)


def _at_step(model: Model) -> str:
    from eval.rows import is_before_end, steps_of

    step = model.about.get("step")
    if not model.folder or not isinstance(step, int):
        return ""
    return f", step {step:,}{f' of {steps_of(model):,}' if is_before_end(model) else ''}"


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{option} takes numbers separated by commas, not {text!r}") from None


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
