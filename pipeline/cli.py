"""xclr-shards: the command line."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.command import run_cli
from shards.errors import UserError

if TYPE_CHECKING:
    from pipeline.sources.datasets import Dataset

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


class Layout(StrEnum):
    shuffled = "shuffled"
    in_place = "in-place"
    packed = "packed"


class Kind(StrEnum):
    encoder = "encoder"
    class_ = "class"
    random = "random"
    wordnet = "wordnet"
    file = "file"


KOption = Annotated[
    int,
    typer.Option(
        "--k",
        min=1,
        help="Nearest texts that a text lists; as many as there are texts: every pair. Where codes stand for the other "
        "pairs (the default tail of training) it hardly changes the target; it decides with --tail none or background.",
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(help="A sentence-transformers name or folder, or a CLIP folder. Default: the bundled MiniLM."),
]
CodeOption = Annotated[int, typer.Option(min=1, help="Dimensions of the int8 code of unlisted pairs, at most.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of random graphs, searches and audits.")]
RecallOption = Annotated[float, typer.Option(help="Recall that the search must reach on a sample, 0..1.")]
MemoryOption = Annotated[
    float | None, typer.Option(min=0.001, help="GB that the search may hold beside the embeddings.")
]
OF_GRAPHS = ("graph", "encoder", "k", "code_dim", "recall", "memory", "group_size", "processes", "dry_run")
RootArgument = Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder of shards, e.g. data/flickr8k.")]


@app.callback()
def _group() -> None:
    """Stage one: images and captions to WebDataset shards with a similarity graph."""


@app.command()
def build(
    context: typer.Context,
    dataset: Annotated[str, typer.Argument(help="A built-in data set (see --list), or a TOML file of your own.")] = "",
    source: Annotated[str | None, typer.Option(help="Where its files lie.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of shards. Default: data/DATASET, with --held-out data/DATASET-test.")
    ] = None,
    layout: Annotated[
        Layout,
        typer.Option(
            help="shuffled: a global shuffle, images copied. in-place: the tars stay where they are. "
            "packed: groups of samples with neighbouring captions, shuffled."
        ),
    ] = Layout.shuffled,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order of samples, the graph, and generated data.")] = 0,
    shard_size: Annotated[int, typer.Option(help="Samples a shard, at most.")] = 4096,
    group_size: Annotated[int, typer.Option(help="Samples a group of layout packed.")] = 32,
    image_size: Annotated[
        int | None,
        typer.Option(help="Shrink images to this shorter side (JPEG, quality 95). Default: bytes as they are."),
    ] = None,
    max_skipped: Annotated[
        float | None,
        typer.Option(
            help="Share of unusable samples above which the build stops (ten always pass). Default: DATASET's."
        ),
    ] = None,
    max_caption: Annotated[int, typer.Option(min=1, help="Characters; longer captions are cut.")] = 2000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Images of more are skipped.")] = 100_000_000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Encoded images of more are skipped.")] = 64 << 20,
    use_torn: Annotated[bool, typer.Option("--use-torn", help="Take the whole samples of a torn tar.")] = False,
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Build the test split: the samples that held_out = ... in DATASET leaves out."),
    ] = False,
    graph: Annotated[
        str | None,
        typer.Option(help="encoder, class, random or none. Default: the data set's; with --held-out none."),
    ] = None,
    encoder: EncoderOption = None,
    k: KOption = 32,
    code_dim: CodeOption = 384,
    recall: RecallOption = 0.99,
    memory: MemoryOption = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Default: one a core.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and do nothing.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the built-in data sets and stop.")] = False,
) -> None:
    """Build shards and their similarity graph.

    \b
    xclr-shards build demo                         generated, nothing needed
    xclr-shards build flickr8k --source DIR        img2dataset's tars below DIR
    xclr-shards build tiny-imagenet-100 --source DIR
    xclr-shards build mine.toml --source DIR       data of your own
    xclr-shards build mine.toml --source DIR --held-out   its held_out = 0.1

    Unusable samples (no image, no caption, cut files) are counted and skipped.
    A stopped build goes on with the same command; a finished one returns at
    once. --dry-run says beforehand what it will cost.
    """
    from pipeline.build import build_shards, is_built
    from pipeline.built import say_built, say_left_out
    from pipeline.encode.encoder import resolve_encoder
    from pipeline.estimate import estimate, lines
    from pipeline.graph.build import build_graph, check_options
    from pipeline.packing import Packing
    from pipeline.scan.samples import Limits
    from pipeline.settings import BuildSettings, most_skipped, share_of
    from pipeline.sources.datasets import load_dataset
    from pipeline.sources.find import open_source
    from shards.machine import cores
    from shards.reader import test_folder

    if list_ or not dataset:
        _list_datasets()
        return
    chosen = load_dataset(dataset)
    kind = graph or ("none" if held_out else chosen.graph)
    _check_graph(kind, chosen, layout, encoder)
    if kind != "none":
        check_options(kind, encoder, None, k, code_dim, recall)
    weights = resolve_encoder(encoder) if kind == "encoder" else None
    found = open_source(chosen, source, demo_seed=seed)
    train = Path("data") / chosen.name
    root = out or (test_folder(train) if held_out else train)
    settings = BuildSettings(
        layout=layout.value,
        seed=seed,
        shard_size=shard_size,
        image_size=image_size,
        max_skipped=max_skipped,
        held_out=held_out,
        limits=Limits(max_caption=max_caption, max_pixels=max_pixels, max_bytes=max_bytes, use_torn=use_torn),
        packing=Packing(encoder=weights, group_size=group_size, k=k, recall=recall, memory=_bytes(memory))
        if layout is Layout.packed and weights
        else None,
    )
    if dry_run:
        there = is_built(found, root, settings)
        cost = estimate(
            found,
            root,
            settings.limits,
            copy=layout is not Layout.in_place,
            image_size=image_size,
            encoder=weights,
            k=k,
            code_dim=code_dim,
            processes=processes or cores(),
            share_built=share_of(found, settings),
        )
        print("\n".join(lines(cost, most_skipped(found, settings))))
        if chosen.held_out and not held_out:
            print(_built_with(context, chosen, root))
        if there:
            print(f"{root}: the shards are there already; of these steps at most encoding and search are left")
            say_left_out(root)
        return
    fresh = build_shards(found, root, settings, processes)
    say_built(root, fresh, found.where)
    if kind != "none":
        build_graph(
            root,
            kind=kind,
            encoder=weights,
            k=k,
            code_dim=code_dim,
            seed=seed,
            recall=recall,
            memory=_bytes(memory),
        )
    if chosen.held_out and not held_out:
        print(_built_with(context, chosen, root))


def _built_with(context: typer.Context, dataset: Dataset, root: Path) -> str:
    """How the held-out samples are built: as the others were, but for the graph."""
    from shards.reader import test_folder

    command = ["xclr-shards", "build"]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        given = getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        if not given or name in OF_GRAPHS or (name == "layout" and value == Layout.packed):
            continue
        value = test_folder(root) if name == "out" else value
        flag = [] if name == "dataset" else [parameter.opts[0]]
        command += flag if value is True else [*flag, str(value)]
    return (
        f"held out: some {dataset.held_out:.3g} of the samples, a test split that is built with `{shlex.join(command)} "
        "--held-out`"
    )


def _check_graph(kind: str, dataset: Dataset, layout: Layout, encoder: str | None) -> None:
    """Raises UserError where shards of this data set can have no such graph, or not with these options."""
    if kind not in ("encoder", "class", "random", "none"):
        raise UserError(f"--graph is encoder, class, random or none here, not {kind!r}; others: xclr-shards graph")
    if layout is Layout.packed and kind != "encoder":
        raise UserError(f"layout packed groups by the neighbours of an encoder graph, not by --graph {kind}")
    if kind in ("class", "random") and dataset.format not in ("imagefolder", "demo") and not dataset.label:
        raise UserError(
            f"--graph {kind} needs class labels, and {dataset.name} has none: use encoder, or say in a data set file "
            "of your own where they stand, label = ... (docs/sources.md)"
        )
    if kind == "none" and encoder is not None:
        raise UserError(f"--graph none encodes nothing: leave --encoder {encoder} out")


@app.command()
def graph(
    root: RootArgument,
    kind: Annotated[Kind, typer.Option(help="What the similarities come from.")] = Kind.encoder,
    name: Annotated[
        str | None, typer.Option(help="Folder below graphs/. Default: the kind's, encoder's or file's.")
    ] = None,
    encoder: EncoderOption = None,
    source: Annotated[
        Path | None,
        typer.Option(
            help="file: .npy of vectors or of a square matrix, or .parquet of vectors beside their texts (text, "
            "embedding) or of edges (a, b: text ids, similarity). "
            "wordnet: folder of data.noun."
        ),
    ] = None,
    k: KOption = 32,
    code_dim: CodeOption = 384,
    seed: SeedOption = 0,
    recall: RecallOption = 0.99,
    memory: MemoryOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost, and do nothing.")] = False,
) -> None:
    """Add a similarity graph to finished shards; no tar is touched.

    \b
    xclr-shards graph data/cc12m --encoder all-mpnet-base-v2
    xclr-shards graph data/imagenet --kind class     SupCon's
    xclr-shards graph data/imagenet --kind random    the paper's control
    xclr-shards graph data/imagenet --kind wordnet   Wu-Palmer similarities
    xclr-shards graph data/cc12m --kind file --source V.npy   a row a text

    Train on it with xclr-train --graph NAME.
    """
    from pipeline.graph.build import build_graph, check_options
    from pipeline.graph.estimate import lines

    if dry_run:
        check_options(kind.value, encoder, source, k, code_dim, recall)
        print("\n".join(lines(root, kind.value, encoder, source, k, code_dim)))
        return
    build_graph(
        root,
        kind=kind.value,
        name=name,
        encoder=encoder,
        source=source,
        k=k,
        code_dim=code_dim,
        seed=seed,
        recall=recall,
        memory=_bytes(memory),
    )


@app.command()
def verify(
    root: RootArgument,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image as well, and name those that training cannot show.")
    ] = False,
    processes: Annotated[int | None, typer.Option(min=1, help="Of --decode. Default: one a core.")] = None,
) -> None:
    """Check every byte and row against the manifest. Exit code 1 when something is wrong."""
    from shards.bars import bar, say
    from shards.manifest import Manifest
    from shards.verify import verify as check

    manifest = Manifest.load(root)
    steps = len(manifest.files) + len(manifest.shards) + len(list(root.glob("graphs/*/")))
    with bar(f"verifying {root}", steps) as advance:
        problems = check(root, lambda name: advance(1))
    if decode and not problems:
        from pipeline.undecodable import undecodable
        from shards.machine import cores

        with bar(f"decoding {root}", len(manifest.shards)) as advance:
            bad = undecodable(root, processes or cores(), advance)
        for line in bad:
            print(line)
        if bad:
            say(f"{len(bad):,} of {manifest.samples:,} images do not decode: take them out, and build anew")
            raise typer.Exit(1)
    for problem in problems:
        print(problem)
    if problems:
        if any(not problem.startswith(f"{root / 'graphs'}/") for problem in problems):
            say(f"copy these files again if there is another copy of {root}; else delete it, and build it again")
        raise typer.Exit(1)
    print(f"{root} is sound: {manifest.samples:,} samples, {len(manifest.shards)} shards")


@app.command()
def info(root: RootArgument) -> None:
    """What a folder of shards holds, on one screen."""
    from pipeline.info import describe

    describe(root)


@app.command()
def preview(
    root: RootArgument,
    graph: Annotated[str | None, typer.Option(help="Which graph. Default: the only one.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file. Default: preview-GRAPH.html in SHARDS, or preview-GRAPH-against-OTHER.html."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Samples of a batch, as training will have: targets depend on it.")
    ] = 1024,
    against: Annotated[
        str | None, typer.Option(help="Another graph of the shards: a page of the two side by side instead.")
    ] = None,
) -> None:
    """Write a page to judge a graph by, and to choose tau_s, before paying for training.

    \b
    xclr-shards preview data/mine
    xclr-shards preview data/mine --graph A --against B   which of the two
    """
    from pipeline.preview.measure import compare
    from pipeline.preview.measure import preview as write

    if against is None:
        print(write(root, graph, out, batch_size))
        return
    if graph is None:
        raise UserError(f"say with --graph which graph of {root} is compared with {against}")
    print(compare(root, graph, against, out, batch_size))


def _list_datasets() -> None:
    from pipeline.sources.datasets import builtin_datasets, load_dataset

    for name in builtin_datasets():
        print(f"{name:20} {load_dataset(name).about}")


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
