"""xclr-train: the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from shards.errors import UserError, run_cli
from shards.manifest import Manifest
from shards.reader import latest_shards
from trainer.loop import Stopped, train
from trainer.recipe import Recipe, builtin_recipes, changed, load_recipe
from trainer.world import join_world

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

INTERRUPTED = 143  # 128 + SIGTERM: what schedulers take for "was told to stop", and requeue


@app.command()
def command(
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A built-in recipe or a .toml file. Default: the one named like the data set, else `default`."
        ),
    ] = None,
    shards: Annotated[
        Path | None, typer.Option(help="Folder of shards. Default: the recipe's, else the one built last below data/.")
    ] = None,
    graph: Annotated[str | None, typer.Option(help="Graph of the shards, by name. Default: the only one.")] = None,
    model: Annotated[str | None, typer.Option(help="Backbone: any timm model.")] = None,
    objective: Annotated[str | None, typer.Option(help="xclr, simclr or supcon.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/DATASET-OBJECTIVE-MODEL.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run, if there is one.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a global batch, over all ranks.")] = None,
    grouped: Annotated[
        float | None, typer.Option(help="Share of each batch drawn as neighbour groups (shards of the packed layout).")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the views, pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Base learning rate (the recipe's scaling rule applies).")] = None,
    tau: Annotated[float | None, typer.Option(help="Temperature of the image similarities.")] = None,
    tau_s: Annotated[float | None, typer.Option(help="Temperature of the text similarities.")] = None,
    tail: Annotated[str | None, typer.Option(help="Unlisted pairs: code, background or none.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Initial weights, batches and augmentations.")] = None,
    workers: Annotated[int | None, typer.Option(help="Loader processes a rank.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of metrics.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Train an image encoder on shards that `xclr-shards build` made.

    \b
    xclr-train                                     the shards built last, with the recipe of that data set
    xclr-train --model vit_small_patch16_224       another backbone on the same shards
    xclr-train --objective simclr                  the same run without the similarity graph
    torchrun --nproc-per-node 8 -m trainer.cli     eight GPUs; the batch of the recipe is split between them

    The run goes to a folder with run.json, metrics.jsonl, checkpoints/ and tensorboard/. A stopped run goes on with
    the same command and --resume. Options given here replace the recipe's values.
    """
    chosen = _recipe(recipe, shards)
    chosen = changed(
        chosen,
        {
            "data.shards": str(shards) if shards else None,
            "data.graph": graph,
            "data.batch_size": batch_size,
            "data.grouped": grouped,
            "augment.image_size": image_size,
            "model.backbone": model,
            "objective.name": objective,
            "objective.tau": tau,
            "objective.tau_s": tau_s,
            "objective.tail": tail,
            "optimiser.lr": lr,
            "run.workers": workers,
            "run.checkpoint_every": checkpoint_every,
            "run.log_every": log_every,
            "epochs": epochs,
            "precision": precision,
            "seed": seed,
        },
    )
    with join_world(device) as world:
        run = out or _default_run(chosen)
        if world.is_main:
            _announce(chosen, run, world.size, str(world.device))
        try:
            result = train(chosen, run, world, resume=resume)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(INTERRUPTED)
        if world.is_main:
            state = "already finished" if result.already_done else "finished"
            print(f"{state}: {result.run} ({result.steps} steps)")
            print(f"next: xclr-eval linear-probe --bench imagefolder --data DIR --checkpoint {result.run}")


def _recipe(name: str | None, shards: Path | None) -> Recipe:
    """The named recipe, or the one of the data set; with a folder of shards in it."""
    if name is not None:
        recipe = load_recipe(name)
        if shards or recipe.data.shards:
            return recipe
    folder = shards or latest_shards()
    dataset = Manifest.load(folder).dataset
    if name is None:
        recipe = load_recipe(dataset if dataset in builtin_recipes() else "default")
        # The recipe of a data set names its usual folder; what was built last is what was asked for here.
    return changed(recipe, {"data.shards": str(folder)})


def _default_run(recipe: Recipe) -> Path:
    dataset = Manifest.load(Path(recipe.data.shards)).dataset
    seed = f"-seed{recipe.seed}" if recipe.seed else ""
    return Path("runs") / f"{dataset}-{recipe.objective.name}-{recipe.model.backbone.replace('/', '_')}{seed}"


def _announce(recipe: Recipe, run: Path, ranks: int, device: str) -> None:
    """Say what will be trained on what, before anything slow happens."""
    manifest = Manifest.load(Path(recipe.data.shards))
    if manifest.samples < recipe.data.batch_size:
        raise UserError(
            f"{recipe.data.shards} has {manifest.samples} samples, too few for a batch of {recipe.data.batch_size}: "
            "lower --batch-size"
        )
    table = Table.grid(padding=(0, 2))
    steps = manifest.samples // recipe.data.batch_size
    rows: list[tuple[str, str]] = [
        (
            "shards",
            f"{recipe.data.shards}  ({manifest.dataset}, {manifest.samples:,} samples, {manifest.texts:,} texts)",
        ),
        ("recipe", f"{recipe.name}  ({recipe.epochs} epochs of {steps:,} steps, batch {recipe.data.batch_size})"),
        ("model", f"{recipe.model.backbone} at {recipe.augment.image_size} pixels, {ranks} rank(s) on {device}"),
        ("objective", _objective_line(recipe)),
        ("run", str(run)),
    ]
    for name, value in rows:
        table.add_row(f"[bold]{name}", value)
    Console(stderr=True).print(table, highlight=False)


def _objective_line(recipe: Recipe) -> str:
    objective = recipe.objective
    if objective.name != "xclr":
        return f"{objective.name}, tau {objective.tau}"
    graph = recipe.data.graph or "(the only one)"
    return f"xclr, tau {objective.tau}, tau_s {objective.tau_s}, graph {graph}, tail {objective.tail}"


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
