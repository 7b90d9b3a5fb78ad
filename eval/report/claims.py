"""The paper's claims, held against a table: X-CLR above what it is compared with, said in words from the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eval.report.compare import is_sure
from eval.report.titles import TITLES

__all__ = ["Verdict", "verdicts"]

OBJECT = ("original", "object", "mixed_same", "mixed_rand", "only_fg")
ATTRIBUTES = ("colour", "texture")


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: str
    failures: tuple[str, ...]
    """Where it does not hold, with the figures; empty: it holds everywhere."""
    unsure: tuple[str, ...] = ()
    """Where it holds, but by a difference that may be none."""
    lost: tuple[str, ...] = ()
    """Where it is of other pictures and was not compared."""
    single: bool = False
    """It is of one run each: other seeds may say otherwise."""


def verdicts(results: dict[str, Any]) -> list[Verdict]:
    """The claims that a table can speak to: those whose rows and columns it has."""
    rows = {row["method"]: row for row in results["rows"]}
    claims = (
        ("X-CLR recognises objects better than the untrained network, on every ground", "untrained", OBJECT),
        ("X-CLR recognises objects better than SimCLR, on every ground", "simclr", OBJECT),
        ("X-CLR keeps colour and texture better than SupCon", "supcon", ATTRIBUTES),
    )
    found = []
    for claim, rival, columns in claims:
        present = [column for column in columns if column in results["columns"]]
        if "xclr" in rows and rival in rows and present and present != ["object"]:  # MIT-States has that one as well
            failures = _failures(rows["xclr"], rows[rival], rival, present, results["methods"])
            single = all(len(rows[name]["runs"]) == 1 for name in ("xclr", rival))
            unsure, lost = _doubts(results, rival, present)
            found.append(Verdict(claim, failures, unsure, lost, single))
    return found


def _doubts(results: dict[str, Any], rival: str, columns: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(where the difference may be none, where there is no comparison)"""
    sure = {
        (found["method"], found["column"]): is_sure(found)
        for found in results["comparisons"]
        if {found["row"], found["less"]} == {"xclr", rival}
    }
    places = [(method, column, f"{TITLES[method]} on {column}") for method in results["methods"] for column in columns]
    unsure = tuple(words for method, column, words in places if sure.get((method, column)) is False)
    return unsure, tuple(words for method, column, words in places if (method, column) not in sure)


def _failures(
    xclr: dict[str, Any], other: dict[str, Any], rival: str, columns: list[str], methods: list[str]
) -> tuple[str, ...]:
    return tuple(
        f"{TITLES[method]} on {column}: X-CLR {xclr[method][column]:.1f}, {rival} {other[method][column]:.1f}"
        for method in methods
        for column in columns
        if not xclr[method][column] > other[method][column]
    )
