"""Where the protocol of a suite is not the one that is shown: each difference once, of all that it holds for."""

from __future__ import annotations

from typing import Any

from eval.report.titles import TITLES, model_parts

__all__ = ["otherwise"]


def otherwise(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(`simclr, xclr by kNN on imagenet 1%`, what their protocol has otherwise than the table's first); no rows are
    named where it is all of them, nor all methods or all benchmarks."""
    runs = [run for row in results["rows"] for run in row["runs"]]
    places: dict[tuple[str, str], dict[int, list[str]]] = {}
    values: dict[tuple[str, str], Any] = {}
    for number, run in enumerate(runs):
        for place, unlike in run["otherwise"].items():
            usual = results["protocol"][place.rpartition("/")[2]]
            for key, found in unlike.items():
                value = _unlike(found, usual.get(key))
                values[key, repr(value)] = value
                places.setdefault((key, repr(value)), {}).setdefault(number, []).append(place)
    groups: dict[tuple[tuple[int, ...], tuple[str, ...]], dict[str, Any]] = {}
    for what, by_run in places.items():
        for at in dict.fromkeys(map(tuple, by_run.values())):
            numbers = tuple(number for number, found in by_run.items() if tuple(found) == at)
            groups.setdefault((numbers, at), {})[what[0]] = values[what]
    return [(f"{_rows(results, of)} {_places(results, at)}".strip(), found) for (of, at), found in groups.items()]


def _unlike(value: Any, usual: Any) -> Any:
    """Of a table, such as a transform, only what differs."""
    if isinstance(value, dict) and isinstance(usual, dict):
        return {key: part for key, part in value.items() if part != usual.get(key)}
    return value


def _rows(results: dict[str, Any], numbers: tuple[int, ...]) -> str:
    """Of which rows these runs are, with checkpoints where not all of a row's are among them."""
    names, start, whole = [], 0, True
    for row in results["rows"]:
        among = [run for number, run in enumerate(row["runs"], start) if number in numbers]
        start += len(row["runs"])
        if len(among) == len(row["runs"]):
            names.append(row["method"])
        else:
            names += [f"{row['method']} ({_checkpoint(run['model'])})" for run in among]
            whole = False
    return "" if whole else ", ".join(names)


def _checkpoint(model: dict[str, Any]) -> str:
    name, _, checkpoint = model_parts(model)
    return checkpoint or name


def _places(results: dict[str, Any], places: tuple[str, ...]) -> str:
    """`by kNN on imagenet 1%` of `PREFIX/METHOD`s."""
    on: dict[str, list[str]] = {}
    for prefix, _, method in (place.rpartition("/") for place in places):
        on.setdefault(method, []).append(prefix)
    parts = []
    for prefixes in dict.fromkeys(map(tuple, on.values())):
        methods = [TITLES[method] for method, found in on.items() if tuple(found) == prefixes]
        by = f"by {' and '.join(methods)}" if len(methods) < len(results["methods"]) else ""
        at = f"on {', '.join(prefixes)}" if len(prefixes) < len(results["benches"]) else ""
        parts.append(f"{by} {at}".strip())
    return ", ".join(parts)
