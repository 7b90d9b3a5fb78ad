"""One screen about a folder of shards: what a person asks before training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.costs import read_costs
from shards.errors import UserError
from shards.index import unlabelled
from shards.reader import Shards
from shards.sealed import seal_problem

__all__ = ["describe"]


def describe(root: Path) -> None:
    """Print counts, sizes and graphs. Raises UserError for a folder without a manifest."""
    shards = Shards.open(root)
    table = Table.grid(padding=(0, 2))
    for name, value in _rows(shards):
        table.add_row(f"[bold]{name}", escape(value))
    console = Console(highlight=False)
    console.print(table)
    graphs = _graphs(shards)
    console.print(escape(graphs) if isinstance(graphs, str) else graphs)
    problem = seal_problem(root / "manifest.json")
    if problem:
        console.print(f"[red]{escape(problem)}[/]: xclr-shards verify {escape(str(root))}")
    newest = {str(cost.get("step")): cost for cost in read_costs(root)}  # a graph may have been made again
    for step, cost in newest.items():
        if step.removeprefix("search of ") in (step, *shards.graph_names()):
            console.print(escape(_cost(cost)))


def _rows(shards: Shards) -> list[tuple[str, str]]:
    manifest = shards.manifest
    per_text = manifest.samples / max(manifest.texts, 1)
    size = sum(entry.bytes for entry in manifest.files.values())
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()) or "none"
    names = [name.split(",")[0] for name in manifest.classes]
    classes = f"{len(names):,} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
    if names and (without := unlabelled(shards.root, manifest)):
        classes += f"; {without:,} samples have no label"
    return [
        ("data set", f"{manifest.dataset} ({manifest.split}), from {manifest.source}"),
        ("samples", f"{manifest.samples:,} in {len(manifest.shards):,} shards, {size / 1e6:,.1f} MB"),
        ("texts", f"{manifest.texts:,} ({per_text:.2f} samples a text)"),
        ("classes", classes if manifest.classes else "none"),
        ("layout", f"{manifest.layout}, seed {manifest.seed}"),
        ("skipped", skipped),
        *_held_out(manifest.settings),
    ]


def _held_out(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """A row, where a data set file holds samples out for a test split."""
    if not (share := settings.get("dataset", {}).get("held_out")):
        return []
    what = "these are they" if settings.get("held_out") else "they are not in these shards"
    return [("held out", f"{share:.3g} of the source's samples; {what}")]


def _graphs(shards: Shards) -> Table | str:
    names = shards.graph_names()
    if not names:
        if shards.manifest.split == "test":
            return "no graph: a test split needs none"
        return f"no graph yet: xclr-shards graph {shards.root}"
    table = Table("graph", box=None, padding=(0, 2, 0, 0))
    for heading in ("k", "pairs a text", "recall", "KL to dense"):
        table.add_column(heading, justify="right")
    table.add_column("made from", overflow="fold")
    for name in names:
        meta = _meta(shards.root / "graphs" / name / "graph.json")
        source, audit = meta["source"], meta["audit"]
        fidelity = meta["fidelity"].get("code", {}).get("kl")
        table.add_row(
            escape(name),
            "all" if meta["search"].get("method") == "complete" else str(meta["k"]),
            f"{meta['listed'] / max(meta['texts'], 1):.1f}",
            f"{audit['recall']:.4f}",
            "no codes" if fidelity is None else f"{fidelity:.1e}",
            escape(str(source.get("id", source["kind"]))),
        )
    return table


def _cost(cost: dict[str, Any]) -> str:
    try:
        return (
            f"{cost['step']}, {cost['method']}: {cost['estimated_seconds']:.0f} s estimated, "
            f"{cost['seconds']:.0f} s taken; {cost['estimated_mb']:.0f} MB estimated beside the embeddings, "
            f"{cost['peak_mb']:.0f} MB the process at most"
        )
    except (KeyError, TypeError, ValueError):
        return str(cost)


def _meta(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content[key] for key in ("source", "audit", "fidelity", "k", "listed", "texts", "search")}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete its folder and run `xclr-shards graph` again") from None
