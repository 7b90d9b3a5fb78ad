"""xclr-train: the command line."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from shards.bars import say, spoken
from shards.command import run_cli
from shards.errors import UserError
from shards.manifest import Manifest
from shards.mirror import local_folder, open_shards
from shards.reader import Shards, is_finished, latest_shards, test_folder
from shards.remote import shown
from trainer.advice import at_start, fitting_batch
from trainer.names import default_run, unheeded, usual_recipe
from trainer.own import is_own
from trainer.recipe import Recipe, builtin_recipes, changed, load_recipe

if TYPE_CHECKING:
    from trainer.dryrun import Estimate
    from trainer.world import World

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(builtin_recipes())}, or a .toml file. Default: the one named like the data set, else "
            "`default`."
        ),
    ] = None,
    shards: Annotated[
        str | None,
        typer.Option(
            help="Folder of shards, or its URL (s3://, hf://, https://). Default: with --recipe the recipe's, else "
            "the one built last below data/."
        ),
    ] = None,
    graph: Annotated[str | None, typer.Option(help="Graph of the shards, by name. Default: the only one.")] = None,
    model: Annotated[str | None, typer.Option(help="Backbone: any timm model, or FILE.py:FUNCTION.")] = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="Fine-tune from a run folder, a checkpoint, a file of backbone weights, or `timm`: timm's own."
        ),
    ] = None,
    objective: Annotated[str | None, typer.Option(help="xclr, simclr, supcon or clip.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the run. Default: below runs/, called by data set, objective, graph, model, and what else "
            "differs from the recipe."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run, if there is one.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a global batch, over all ranks.")] = None,
    grouped: Annotated[
        float | None, typer.Option(help="Share of each batch drawn as neighbour groups (shards of the packed layout).")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Samples a device forwards at a time (cached gradients), for large batches.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the views, pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Base learning rate (the recipe's scaling rule applies).")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Epochs in which the learning rate rises.")] = None,
    tau: Annotated[float | None, typer.Option(help="Temperature of the image similarities.")] = None,
    tau_s: Annotated[float | None, typer.Option(help="Temperature of the text similarities.")] = None,
    tail: Annotated[str | None, typer.Option(help="Unlisted pairs: code, background or none.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32 or bfloat16.")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile the encoder.", show_default=False)
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="GPU: resumed runs end in the same bits; slower.", show_default=False),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Initial weights, batches and augmentations.")] = None,
    cache_gib: Annotated[
        float | None,
        typer.Option(help="Room for tars of shards that are read by URL. 0, the default: most of the free disk."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Loader processes a rank; -1: one a core, shared between the ranks.")
    ] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of metrics.")] = None,
    track: Annotated[
        str | None, typer.Option(help="Send the metrics to wandb or mlflow as well, where that is installed.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    ranks: Annotated[
        int | None,
        typer.Option(help="Processes of this machine that share each batch; 0: one for each GPU."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only measure a few steps: parameters, memory, hours on this device.")
    ] = False,
) -> None:
    """Train an image encoder on shards that `xclr-shards build` made.

    \b
    xclr-train                                   the shards built last
    xclr-train --model vit_small_patch16_224     another backbone on them
    xclr-train --objective simclr                without the similarity graph
    xclr-train --dry-run                         what it would take here
    xclr-train --ranks 8                         eight GPUs share each batch
    xclr-train recipe cc3m > mine.toml           every setting, to be changed
    xclr-train export runs/NAME --out DIR        the backbone for timm

    The run goes to a folder with run.json, metrics.jsonl, checkpoints/ and
    tensorboard/. A stopped run goes on with the same command and --resume.
    Options given here replace the recipe's values.
    """
    # Lines of the help are kept as they are written, and wrapped beyond the 78 columns that a terminal of 80 leaves.
    if context.invoked_subcommand:
        _refuse_options(context)
        return
    given = {
        "data.shards": shards,
        "data.graph": graph,
        "data.batch_size": batch_size,
        "data.grouped": grouped,
        "data.chunk": chunk,
        "augment.image_size": image_size,
        "model.backbone": model,
        "model.start": start,
        "objective.name": objective,
        "objective.tau": tau,
        "objective.tau_s": tau_s,
        "objective.tail": tail,
        "optimiser.lr": lr,
        "optimiser.warmup_epochs": warmup_epochs,
        "run.cache_gib": cache_gib,
        "run.workers": workers,
        "run.checkpoint_every": checkpoint_every,
        "run.log_every": log_every,
        "run.track": track,
        "epochs": epochs,
        "precision": precision,
        "compile": compile_,
        "deterministic": deterministic,
        "seed": seed,
    }
    base = _recipe(recipe, shards)
    idle = unheeded(objective or base.objective.name, given)
    chosen = changed(base, {key: value for key, value in given.items() if key not in idle})
    dataset = open_shards(chosen.data.shards).manifest.dataset  # before PyTorch is loaded: whether they are there
    run = out or default_run(chosen, base, dataset)
    if ranks is not None:
        from torch import cuda

        from trainer.launch import launch, ranks_wanted

        count = ranks_wanted(ranks, chosen.data.batch_size, device)
        if count > 1:
            on_gpus = device != "cpu" and cuda.is_available()
            sys.exit(
                launch(
                    count,
                    sys.argv[1:],
                    on_gpus=on_gpus,
                    restart=resume and not dry_run,
                    newest=lambda: sorted(run.glob("checkpoints/step-*.pt"))[-1:],
                )
            )
    _train(chosen, device, run, [*idle.values()], resume=resume, dry_run=dry_run, alone=ranks is not None)


def _train(
    chosen: Recipe, device: str, run: Path, idle: list[str], *, resume: bool, dry_run: bool, alone: bool
) -> None:
    """idle: options that change nothing. alone: one rank was asked for, or is all there may be."""
    # Here, since they take seconds to import, and --help should not.
    from torch import OutOfMemoryError

    from trainer.dryrun import estimate
    from trainer.launch import BY_HAND, stop_without_launcher
    from trainer.loop import Stopped, train
    from trainer.memory import too_large
    from trainer.signals import INTERRUPTED
    from trainer.world import LoaderGone, join_world

    stop_without_launcher()
    with join_world(device) as world:
        if world.is_main:
            _announce(chosen, run, world.size, str(world.device), dry_run=dry_run)
            for option in idle:
                say(f"warning: {option} is left out: {chosen.objective.name} trains on no similarity graph")
            if not alone:
                _say_idle(world, device)
        try:
            if dry_run:
                found = estimate(chosen, world, run)
                if world.is_main:
                    _show(found)
                return
            result = train(chosen, run, world, resume=resume)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(BY_HAND if stopped.by == signal.SIGINT else INTERRUPTED)
        except OutOfMemoryError as error:
            raise UserError(too_large(chosen, world.size, str(error).split(". ")[0])) from None
        except RuntimeError as error:  # PyTorch raises it wherever the step happens to be
            # "in DataLoader worker process": raised by code that a worker ran, whose traceback says where.
            if "DataLoader worker" not in str(error) or "in DataLoader worker process" in str(error):
                raise
            raise LoaderGone(
                "a loader process was killed, for lack of memory perhaps: give fewer --workers; with --resume the "
                "same command goes on from the newest checkpoint"
            ) from None
        if world.is_main:
            state = "already finished" if result.already_done else "finished"
            print(f"{state}: {result.run} ({result.steps} steps)")
            code = f"{chosen.model.backbone}@" if is_own(chosen.model.backbone) else ""
            checkpoint = quote(f"{code}{result.run}")
            print(f"next: xclr-eval linear-probe --bench {_bench(chosen.data.shards)} --checkpoint {checkpoint}")


@app.command("export")
def export_command(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A run folder or a checkpoint, e.g. checkpoints/best.pt. Default: the newest.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: export/ in the run's folder.")] = None,
) -> None:
    """Write the backbone as safetensors with a configuration that timm loads, and a model card."""
    from trainer.checkpoint import run_of
    from trainer.export import export, find

    path = find(checkpoint)
    folder = export(path, out or run_of(path) / "export")
    print(f"{path} -> {folder}")
    print(f"next: timm.create_model({f'local-dir:{folder}'!r}, pretrained=True)")


@app.command("recipe")
def recipe_command(
    name: Annotated[
        str, typer.Argument(help=f"{', '.join(builtin_recipes())}, a .toml file, or the folder of a run.")
    ] = "default",
) -> None:
    """Print a recipe with every key and what it means, to make one's own of.

    \b
    xclr-train recipe cc3m > mine.toml      then: xclr-train --recipe mine.toml
    xclr-train recipe runs/NAME > again.toml
    """
    from trainer.template import as_toml, recipe_of

    text = as_toml(recipe_of(name))  # before anything is written: the output may be a recipe's file
    print(f"# As {name}, with every key. A key left out of a file takes the program's own value, not that of a recipe.")
    print(text, end="")


def _refuse_options(context: typer.Context) -> None:
    """Raises UserError for options that stand before a subcommand, where nothing would heed them."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    if given:
        name = context.invoked_subcommand
        raise UserError(
            f"{', '.join(given)} before {name} would not be heeded: leave it out, or write it after {name} if "
            f"`xclr-train {name} --help` lists it"
        )


def _show(found: Estimate) -> None:
    print(
        f"parameters  {found.parameters / 1e6:.1f} M, of them {found.backbone_parameters / 1e6:.1f} M in the backbone"
    )
    print(f"steps       {found.steps:,}")
    print(f"a step      {found.step_s:.2f} s, of them {found.compute_s:.2f} s the model's")
    print(f"memory      {found.memory / 2**30:.1f} GiB at the peak")
    print(f"time        {spoken(3600 * found.hours)} at this speed")


def _bench(shards: str) -> str:
    """The benchmark that the training shards' own test shards are of, where they lie beside them."""
    folder = local_folder(shards)
    if folder is None:
        return "imagefolder --data DIR"
    manifest = Manifest.load(folder)
    if not is_finished(test_folder(folder)) and manifest.settings.get("dataset", {}).get("format") == "imagefolder":
        return "imagefolder --data DIR"
    return "demo" if manifest.dataset == "demo" else "shards" if manifest.classes else "imagefolder --data DIR"


def _recipe(name: str | None, shards: str | None) -> Recipe:
    """The named recipe, or the one of the data set; with a folder of shards in it."""
    if name is not None:
        recipe = load_recipe(name)
        if shards or recipe.data.shards:
            return recipe
    folder = shards or str(latest_shards())
    dataset = open_shards(folder).manifest.dataset
    if name is None:
        recipe = load_recipe(usual_recipe(dataset))
        # The recipe of a data set names its usual folder; what was built last is what was asked for here.
    return changed(recipe, {"data.shards": folder})


def _announce(recipe: Recipe, run: Path, ranks: int, device: str, *, dry_run: bool) -> None:
    """Say what will be trained on what, before anything slow happens."""
    from trainer.setup import check_split

    shards = open_shards(recipe.data.shards)
    manifest = shards.manifest
    check_split(shards)
    objective = _objective_line(recipe, shards, run)  # names what is wrong with the graph, which no batch size mends
    where = shown(recipe.data.shards)
    if manifest.samples < recipe.data.batch_size:
        raise UserError(
            f"{where} has {manifest.samples} samples, too few for a batch of {recipe.data.batch_size}: "
            f"give --batch-size {fitting_batch(manifest.samples)}, or any up to {manifest.samples}"
        )
    table = Table.grid("", Column(overflow="fold"), padding=(0, 2))  # a path is whole, to be copied
    steps = manifest.samples // recipe.data.batch_size
    rows: list[tuple[str, str]] = [
        (
            "shards",
            f"{where}  ({manifest.dataset}, {manifest.samples:,} samples, {manifest.texts:,} texts)",
        ),
        (
            "recipe",
            f"{recipe.name}  ({recipe.epochs} epoch{'s' * (recipe.epochs > 1)} of {steps:,} step{'s' * (steps > 1)}, "
            f"batch {recipe.data.batch_size})",
        ),
        ("model", f"{recipe.model.backbone} at {recipe.augment.image_size} pixels, {ranks} rank(s) on {device}"),
        ("objective", objective),
    ]
    rows.append(("run", f"{run}{'  (a dry run writes nothing)' if dry_run else ''}"))
    for name, value in rows:
        table.add_row(f"[bold]{name}", value)
    Console(stderr=True).print(table, highlight=False)
    for text in at_start(recipe, samples=manifest.samples, texts=manifest.texts, classes=len(manifest.classes)):
        say(f"warning: {text}")


def _say_idle(world: World, device: str) -> None:
    from torch import cuda

    if world.size == 1 and world.device.type == "cuda" and ":" not in device and cuda.device_count() > 1:
        say(f"note: one of {cuda.device_count()} GPUs is used; --ranks 0 shares each batch between all of them")


def _objective_line(recipe: Recipe, shards: Shards, run: Path) -> str:
    from trainer.setup import graph_name

    objective = recipe.objective
    if objective.name != "xclr":
        without = int((shards.index.label < 0).sum()) if objective.name == "supcon" else 0
        alone = f"; {without:,} of {len(shards):,} samples have no label, and are like themselves alone"
        return f"{objective.name}, tau {objective.tau}{alone if 0 < without < len(shards) else ''}"
    graph = shards.graph_name(graph_name(recipe, shards, run))
    return f"xclr, tau {objective.tau}, tau_s {objective.tau_s}, graph {graph}, tail {objective.tail}"


def main() -> None:
    def is_ours_to_say(line: str) -> bool:
        if "RANK" not in os.environ:
            return True
        from trainer.launch import first_to_say  # with PyTorch

        return first_to_say(line)

    resumed = sys.argv[1:2] not in (["export"], ["recipe"]) and "--dry-run" not in sys.argv
    run_cli(app, say=is_ours_to_say, again=f"run the same command {'with --resume' if resumed else 'again'}")


if __name__ == "__main__":
    main()
