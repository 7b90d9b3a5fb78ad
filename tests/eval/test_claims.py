"""What a suite's figures say of the paper's claims."""

from __future__ import annotations

from typing import Any

from eval.evaluate import METHODS
from eval.report.claims import verdicts


def table(**figures: tuple[float, float]) -> dict[str, Any]:
    rows = [
        {"method": name, "runs": [{}], **{m: {"object": a, "only_fg": a, "colour": b} for m in ("linear_probe", "knn")}}
        for name, (a, b) in figures.items()
    ]
    sure = [
        {"method": m, "column": c, "row": "xclr", "less": rival, "difference": 5.0, "interval": [4.0, 6.0]}
        for m in ("linear_probe", "knn")
        for c in ("object", "only_fg", "colour")
        for rival in figures
    ]
    return {"rows": rows, "columns": ["object", "only_fg", "colour"], "comparisons": sure, "methods": METHODS}


def test_claims_are_read_off_the_figures() -> None:
    good = verdicts(table(untrained=(10, 10), simclr=(20, 50), supcon=(30, 40), xclr=(25, 45)))
    assert [bool(verdict.failures) for verdict in good] == [False, False, False]
    bad = verdicts(table(untrained=(10, 10), simclr=(26, 50), supcon=(30, 45), xclr=(25, 45)))
    assert [len(verdict.failures) for verdict in bad] == [0, 4, 2]  # two columns or one, by two methods
    assert bad[1].failures[0] == "linear probe on object: X-CLR 25.0, simclr 26.0"
    near = table(simclr=(20, 50), xclr=(25, 45))
    assert verdicts(near)[0].unsure == ()
    near["comparisons"][0]["interval"] = [-0.1, 10.1]
    assert verdicts(near)[0].unsure == ("linear probe on object",)
    lost = verdicts(near | {"comparisons": []})[0]
    assert (lost.unsure, lost.lost[-1]) == ((), "kNN on only_fg")
    assert verdicts(table(simclr=(1, 1), other=(2, 2))) == []
    alone = table(untrained=(10, 10), simclr=(20, 50), xclr=(25, 45)) | {"columns": ["object", "attribute"]}
    assert verdicts(alone) == []  # of MIT-States, which says nothing of grounds
