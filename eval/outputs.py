"""Where a command puts its result: which file, and whether it may be written there."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from eval.benchmarks.bench import Bench
from eval.benchmarks.registry import BENCHES
from eval.evaluate import Method, Settings
from eval.models.model import Model
from eval.rows import is_before_end
from eval.similarity.pictures import GraphPictures
from shards.errors import UserError

__all__ = ["check_writable", "free_file", "result_file", "similarity_file"]


def result_file(model: Model, bench: Bench, method: Method, untrained: bool, settings: Settings) -> Path:
    """RUN/eval/NAME.json; for a model without a run, runs/eval/MODEL/NAME.json."""
    parts = [method.replace("_", "-"), bench.name]
    parts += [bench.root.resolve().name] if BENCHES[bench.name].own else []
    parts += ["untrained"] if untrained else []
    parts += [settings.probe.solver] if method == "linear_probe" and settings.probe.solver != "sgd" else []
    parts += ["views"] if settings.views else []
    parts += [f"{settings.few_shot:g}pct"] if settings.few_shot else []
    # The plain name is that of a run's last checkpoint.
    parts += [f"step{model.about['step']}"] if is_before_end(model) and not untrained else []
    folder = (
        model.folder / "eval" if model.folder else Path("runs/eval") / model.name.replace(":", "-").replace("/", "_")
    )
    return folder / f"{'-'.join(parts)}.json"


def similarity_file(models: list[Model], pictures: GraphPictures) -> Path:
    """In the run's folder where there is one run; else in runs/eval."""
    folders = {model.folder for model in models}
    folder = folders.pop() if len(folders) == 1 else None
    name = f"similarity-{pictures.shards.resolve().name}-{pictures.graph}.json"
    return (folder / "eval" if folder else Path("runs/eval")) / name


def free_file(path: Path, name: str) -> Path:
    """`path`, or where it holds another evaluation (other options, data or weights) one with this one's hash."""
    try:
        taken = json.loads(path.read_text(encoding="utf-8")).get("hash") != name
    except (OSError, ValueError, AttributeError):
        return path
    return path.with_name(f"{path.stem}-{name[:8]}.json") if taken else path


def check_writable(path: Path, keys: set[str]) -> None:
    """Raises UserError where the file cannot be made, or is there and no earlier result, which has these keys."""
    folder = path.parent
    if path.is_dir():
        raise UserError(f"{path} is a folder, where the result would be written: choose another --out")
    if path.exists() and not (path.is_file() and _may_be_replaced(path, keys)):
        raise UserError(
            f"{path} is there and no earlier result, which it would replace: choose another --out, or delete it"
        )
    # Nothing is made yet: what is refused leaves no empty folder.
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: choose another --out") from None


def _may_be_replaced(path: Path, keys: set[str]) -> bool:
    """An earlier result, or an empty file (of mktemp)."""
    try:
        text = path.read_text(encoding="utf-8")
        return not text or keys <= set(json.loads(text))
    except (ValueError, TypeError):
        return False
