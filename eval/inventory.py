"""xclr-eval list: what of the benchmarks and models is on this machine, and what is missing."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.benchmarks.bench import Absent, Bench
from eval.benchmarks.registry import BENCHES, benchmarks_root, open_bench
from shards.errors import UserError

__all__ = ["look", "show_inventory"]


def look(name: str) -> tuple[str, str, list[str]]:
    """(`ready`, `partial`, `missing` or `damaged`; what is there, or what is not; what to fetch)."""
    try:
        bench = open_bench(name, partial=True)
    except Absent as error:
        paths = (path.removeprefix(f"{benchmarks_root()}/") for paths in error.lacks.values() for path in paths)
        return "missing", ", ".join(f"no {path}" for path in paths), list(error.lacks)
    except (UserError, OSError) as error:
        return "damaged", " ".join(str(error).split()), []
    if bench.partial:
        return "partial", f"{_counts(bench)}; {'; '.join(bench.partial)}", []
    return "ready", _counts(bench), []


def show_inventory() -> None:
    """Benchmarks, then runs; files are listed, no picture is decoded."""
    console = Console(highlight=False)
    root = benchmarks_root()
    table = Table(
        title=f"benchmarks, below {escape(str(root))} ($XCLR_BENCHMARKS)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("--bench", "", "what is scored", "on this machine"):
        table.add_column(heading, overflow="fold")
    missing: dict[str, None] = {}
    for name, entry in BENCHES.items():
        state, words, lacks = ("any", f"give {entry.where}", []) if entry.own else look(name)
        table.add_row(name, state, entry.about, escape(words))
        missing |= dict.fromkeys(lacks)
    console.print(table)
    if missing:
        console.print("where to get what is missing (docs/benchmarks/ tells what to do with it):")
        for name in missing:
            console.print(f"  {name:<{max(map(len, missing))}}  {BENCHES[name].where}", soft_wrap=True)
        console.print()
    found = sorted({path.parent.parent for path in Path("runs").rglob("checkpoints/step-*.pt")})
    console.print("runs:" if found else "runs: none below runs/")
    for run in found:
        console.print(f"  {run}", soft_wrap=True, markup=False)


def _counts(bench: Bench) -> str:
    return ", ".join(f"{images.name} {len(images):,}" for images in bench.sets)
