"""xclr-eval list: what of the benchmarks and models is on this machine, and what is missing."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from eval.bench import Bench
from eval.registry import BENCHES, benchmarks_root, open_bench
from shards.errors import UserError

__all__ = ["look", "show_inventory"]


def look(name: str, data: Path | None = None) -> tuple[str, str]:
    """(`ready`, `partial` or `missing`; what is there, or what is not and where to get it)."""
    try:
        bench = open_bench(name, data, partial=True)
    except UserError as error:
        return "missing", f"{' '.join(str(error).split())} [{BENCHES[name].where}]"
    return ("partial", f"{_counts(bench)}; {'; '.join(bench.partial)}") if bench.partial else ("ready", _counts(bench))


def show_inventory(runs: Path = Path("runs")) -> None:
    """Benchmarks, then runs; listing files only, no picture is opened."""
    console = Console(highlight=False)
    root = benchmarks_root()
    table = Table(title=f"benchmarks, below {root} ($XCLR_BENCHMARKS)", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("--bench", "", "what is scored", "on this machine"):
        table.add_column(heading, overflow="fold")
    for name, entry in BENCHES.items():
        state, words = look(name) if name != "imagefolder" else ("any", "give --data DIR")
        table.add_row(name, state, entry.about, words)
    console.print(table)
    found = sorted({path.parent.parent for path in runs.rglob("checkpoints/step-*.pt")})
    console.print(f"runs: {', '.join(map(str, found)) or f'none below {runs}/'}", soft_wrap=True)


def _counts(bench: Bench) -> str:
    return ", ".join(f"{images.name} {len(images):,}" for images in bench.sets)
