"""The page that `xclr-shards preview` writes: what was measured, and under each picture how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipeline.preview.compare import Comparison
from pipeline.preview.target import Target
from shards.manifest import Manifest
from shards.page import legend, line_chart, table, write_page

__all__ = ["Numbers", "Picture", "Strip", "write_comparison", "write_preview"]

Paired = tuple["Picture", Sequence[Sequence["Picture"]]]
"""A text's picture, and its nearest by each of two graphs."""

PAPER = 0.1  # tau_s
ENDS = {"": "", "<=": "\N{LESS-THAN OR EQUAL TO} ", ">=": "\N{GREATER-THAN OR EQUAL TO} ", "any": "any, as "}
ROWS = (0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)  # tau_s of the table
TAILS = {
    "code": "listed, and the code for all other pairs",
    "background": "listed, and each text's background",
    "none": "listed neighbours only",
    "one_hot": "the own text alone",
}
STYLE = """
.strips { display: grid; gap: 1rem; margin-top: 1rem; }
.strip { display: grid; grid-template-columns: repeat(7, minmax(0, 1fr)); gap: .6rem; padding-bottom: 1rem;
  border-bottom: 1px solid var(--line); }
.picture { font-size: .75rem; line-height: 1.3; }
.picture img, .picture .none { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px;
  background: var(--line); margin-bottom: .25rem; }
.picture b { font-variant-numeric: tabular-nums; } .picture .role { color: var(--soft); }
.picture p { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 5; overflow: hidden; margin: 0; }
.strip > :first-child img { outline: 2px solid var(--s1); outline-offset: 2px; }
@media (max-width: 40rem) { .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    source: str
    """data: URI; empty for an image that does not decode."""
    text: str
    similarity: float | None
    """To the strip's first picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    query: Picture
    nearest: Sequence[tuple[int, Picture]]
    """(place in the list, of that text)"""
    last: Picture | None
    """Of the last text that the list holds."""
    listed: int
    """Texts in the list."""
    random: Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """All that the page says, besides the pictures."""

    name: str
    """Of the graph."""
    root: str
    manifest: Manifest
    meta: dict[str, Any]
    """graph.json."""
    targets: Sequence[Target]
    """By rising tau_s."""
    batch: int
    """Samples of the batch that the targets are of."""
    edges: dict[str, float]
    """Order of samples -> listed neighbours a row of a batch."""


CONTROL = (
    "<p><b>A control:</b> similarities drawn at random, which training should not gain by. What this page says about "
    "choosing tau_s is of graphs that mean something: take the tau_s of the graph it is compared with.</p>"
)


def write_preview(path: Path, numbers: Numbers, strips: Sequence[Strip]) -> None:
    title = f"{numbers.manifest.dataset}, graph {numbers.name}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(numbers.root)}. Is the graph worth training on, and at which tau_s?</p>',
        CONTROL if numbers.meta.get("source", {}).get("kind") == "random" else "",
        _facts(numbers),
        "<h2>What the graph calls near</h2>",
        *_near(numbers, strips),
        '<h2>Similarities and the target</h2><div class="charts">',
        _histogram(numbers.meta["histogram"]),
        _mass(numbers),
        "</div>",
        _temperatures(numbers),
        _fidelity(numbers.meta["fidelity"]),
        _edges(numbers),
    ]
    write_page(path, title, parts, STYLE)


def _near(numbers: Numbers, strips: Sequence[Strip]) -> list[str]:
    if not strips:
        return ["<p>It lists no pair of different texts.</p>"]
    more = "" if numbers.meta.get("complete") else " If the last is as close as the first, raise k."
    if numbers.meta.get("source", {}).get("kind") == "encoder":
        more += " If near ones are unrelated, try another encoder."
    if any(strip.nearest[-1][0] > len(strip.nearest) for strip in strips):
        more += " Where many are equally near, as texts of a class are, the first of lower similarities follow."
    return [
        '<p class="soft">A random image in each row, then images of its nearest texts, of the last text that its list '
        "holds, and of a random text. Read the captions: near ones should say nearly the same, the last one something "
        f"related, the random one little in common.{more}</p>",
        f'<div class="strips">{"".join(map(_strip, strips))}</div>',
    ]


def write_comparison(
    path: Path,
    title: str,
    root: str,
    names: tuple[str, str],
    found: Comparison,
    strips: Mapping[str, Sequence[Paired]],
) -> None:
    """Two graphs of the same texts."""
    one, other = names
    shared = [[f"{k} nearest", f"{100 * share:.1f}", f"{100 * chance:.3g}"] for k, share, chance in found.shared]
    order = (
        f"Over random pairs of texts the two rank similarities alike to {found.correlation:.2f} (Spearman; 1: in the "
        "same order, 0: unrelated)."
        if found.correlation is not None
        else "How random pairs rank is not compared: one of the two has no codes for them, or calls all of them alike."
    )
    matches = [
        [f"{m.tau_s:g}", f"{m.effective:.1f}", f"{ENDS[m.end]}{m.other:.3g}", f"{m.distance:.2f}"]
        for m in found.matches
    ]
    head = [f"tau_s of {one}", "effective positives", f"the same at tau_s of {other}", "total variation"]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(root)}. Do the two graphs say the same, and which is right where they do not?</p>',
        "<h2>Neighbours in common</h2>",
        table(["of each text's", "in both graphs %", "by chance %"], shared) if shared else "<p>None to compare.</p>",
        f'<p class="soft">{order} Equally near texts, as those of a graph of classes, are listed in any order, so that '
        "two such graphs may name few in common; of lists that begin so the pictures show lower similarities too.</p>",
        "<h2>Targets as spread out</h2>",
        table(head, matches, marked=[f"{PAPER:g}"]),
        f'<p class="soft">Encoders have scales of their own, so the same tau_s is another target: compare two graphs '
        f"at tau_s of equally many effective positives, in a random batch of {found.batch:,}. Total variation is the "
        "share of the target's mass that lies elsewhere: 0 is the same target, at 1 they have nothing in common.</p>",
    ]
    for heading, rows in strips.items():
        if rows:
            parts.append(f'<h2>{heading}</h2><div class="strips">{"".join(_paired(row, names) for row in rows)}</div>')
    write_page(path, title, parts, STYLE)


def _paired(strip: Paired, names: tuple[str, str]) -> str:
    query, near = strip
    cells = [_picture(query, "")]
    for name, pictures in zip(names, near, strict=True):
        cells += [_picture(picture, name) for picture in pictures] + ["<div></div>"] * (3 - len(pictures))
    return f'<div class="strip">{"".join(cells)}</div>'


def _facts(numbers: Numbers) -> str:
    manifest, meta = numbers.manifest, numbers.meta
    skipped = ", ".join(f"{count:,} {reason}" for reason, count in manifest.skipped.items()) or "none"
    audit, source = meta["audit"], meta["source"]
    facts = {
        "samples": f"{manifest.samples:,} in {len(manifest.shards):,} shards, {manifest.layout}",
        "skipped": skipped,
        "texts": f"{manifest.texts:,}, {manifest.samples / max(manifest.texts, 1):.2f} samples a text",
        "classes": f"{len(manifest.classes):,}" if manifest.classes else "none",
        "graph": f"{source.get('id', source.get('kind'))}, k = {meta['k']}: "
        f"{meta['listed'] / max(meta['texts'], 1):.1f} listed neighbours a text",
        "recall": f"{audit['recall']:.4f} of the {audit['k']} nearest, audited on {audit['sample']:,} texts",
    }
    if meta.get("as_another"):
        why = ", whose words the encoder may not know" if source.get("kind") == "encoder" else ""
        facts["same vector"] = f"{meta['as_another']:,} texts have that of another{why}"
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f'<table class="facts">{rows}</table>'


def _strip(strip: Strip) -> str:
    cells = [_picture(strip.query, "")]
    cells += [_picture(picture, f"nearest {place}") for place, picture in strip.nearest]
    cells += ["<div></div>"] * (4 - len(strip.nearest))
    cells.append(_picture(strip.last, f"last of {strip.listed}") if strip.last else "<div></div>")
    cells.append(_picture(strip.random, "random"))
    return f'<div class="strip">{"".join(cells)}</div>'


def _picture(picture: Picture, role: str) -> str:
    first, *others = picture.text.split("\n")
    more = f' <span class="role">(+{len(others)} more)</span>' if others else ""
    near = "" if picture.similarity is None else f"<b>{picture.similarity:.2f}</b> "
    image = (
        f'<img alt="" src="{picture.source}">' if picture.source else '<div class="none" title="does not decode"></div>'
    )
    head = f'<div>{near}<span class="role">{escape(role)}</span></div>' if role else '<div class="role">image</div>'
    return f'<div class="picture" title="{escape(picture.text)}">{image}{head}<p>{escape(first)}{more}</p></div>'


def _histogram(histogram: dict[str, Any]) -> str:
    bins = len(histogram["random"])
    width = (histogram["high"] - histogram["low"]) / bins
    series = {}
    for name, key in (("random pairs", "random"), ("listed pairs", "listed")):
        total = sum(histogram[key])
        centres = [histogram["low"] + (i + 0.5) * width for i in range(bins)]
        shares = [100 * count / max(total, 1) for count in histogram[key]]
        series[name] = [(x, y) for x, y in zip(centres, shares, strict=True) if total]
    held = [i for i in range(bins) if histogram["random"][i] or histogram["listed"][i]]
    low, high = (held[0] - 1, held[-1] + 1) if held else (0, bins)
    series = {name: points[max(low, 0) : high + 1] for name, points in series.items()}
    colours = {"random pairs": 0, "listed pairs": 1}
    chart = line_chart(
        series, x_title="similarity", y_title="percent of pairs in each bin", colours=colours, low_x=None
    )
    return (
        f"<figure>{chart}{legend(colours)}<figcaption>Similarities, percent of pairs a bin. The two hills should "
        "stand apart: where they overlap, the list holds pairs that are no nearer than chance. The targets see "
        "differences relative to tau_s, so a narrow hill of random pairs far left of the listed one allows a larger "
        "tau_s.</figcaption></figure>"
    )


def _mass(numbers: Numbers) -> str:
    series: dict[str, list[tuple[float, float]]] = {"same text": [], "listed pairs": [], "everything else": []}
    for target in numbers.targets:
        for name, share in zip(series, (target.view + target.same_text, target.listed, target.rest), strict=True):
            series[name].append((target.tau_s, 100 * share))
    colours = {"same text": 3, "listed pairs": 1, "everything else": 0}
    chart = line_chart(series, x_title="tau_s", y_title="percent of the target", colours=colours, mark=PAPER)
    return (
        f"<figure>{chart}{legend(colours)}<figcaption>Percent of the target's mass in a random batch of "
        f"{numbers.batch:,} (another has another target: --batch-size), over tau_s (dashed: the paper's). Far left all "
        "of it is on the same text, which is "
        "SimCLR, or SupCon where texts are classes. Far right everything counts alike and nothing is taught. Choose "
        "tau_s where listed pairs carry a good part and everything else has not taken over yet.</figcaption></figure>"
    )


def _temperatures(numbers: Numbers) -> str:
    chosen = [target for target in numbers.targets if target.tau_s in ROWS]
    rows = [
        [f"{t.tau_s:g}", *(f"{max(0.0, 100 * share):.1f}" for share in (t.view, t.same_text, t.listed, t.rest)),
         f"{t.effective:.1f}"]
        for t in chosen
    ]  # fmt: skip
    head = ["tau_s", "own other view %", "others of its text %", "listed %", "everything else %", "effective positives"]
    return table(head, rows, marked=[f"{PAPER:g}"]) + (
        f'<p class="soft">The same in numbers. Effective positives (exp of the entropy): so many equally good ones '
        f"among {2 * numbers.batch - 1:,} views would be as spread out; 1 is SimCLR, some tens are a soft target, many "
        "hundreds are noise.</p>"
    )


def _fidelity(fidelity: dict[str, Any]) -> str:
    rows = []
    for tail, name in TAILS.items():
        if tail in fidelity:
            kl = fidelity[tail]["kl"]
            rows.append([name, "infinite" if kl is None else f"{kl:.2g}", f"{fidelity[tail]['tv']:.2g}"])
    return (
        "<h2>How true the target is</h2>"
        + table(["what training sees of a pair", "KL(dense, target)", "total variation"], rows)
        + f'<p class="soft">Distance from the target that all similarities would give, random batch of '
        f"{fidelity['batch']:,} texts at tau_s = {fidelity['tau_s']:g}. The first line is what training uses where "
        "there is a code: a total variation under 0.02 is as good as exact; above it raise --code-dim. The last "
        "line is a target that knows only which samples share a text (SimCLR where no two do, SupCon where texts are "
        "classes): near 0, this graph would teach nothing more at this tau_s.</p>"
    )


def _edges(numbers: Numbers) -> str:
    rows = [[name, f"{edges:.2f}"] for name, edges in numbers.edges.items()]
    here = (
        "Raise data.grouped in the recipe to draw a share of each batch as whole groups."
        if "packed" in numbers.edges
        else "With fewer than a few, shards built with --layout packed can give more (data.grouped in the recipe)."
    )
    return (
        "<h2>Listed neighbours in a batch</h2>"
        + table(["order of samples", "listed neighbours a row"], rows)
        + f'<p class="soft">What a row meets of its list in a batch of {numbers.batch:,}. {here}</p>'
    )
