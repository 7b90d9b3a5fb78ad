"""The page of `xclr-eval similarity`: how far models follow the graph, in numbers, curves and matrices of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from itertools import accumulate, takewhile
from pathlib import Path
from unicodedata import east_asian_width

import cv2
import numpy as np
import numpy.typing as npt

from eval.report.titles import model_parts
from eval.similarity.compare import PLACES, Compared, Followed, Place
from eval.similarity.pictures import GraphPictures
from eval.similarity.rank import Correlation, Doubles, difference
from shards.page import COLOURS, data_uri, legend, line_chart, table, write_page

__all__ = ["figures", "notes", "shortened", "write_similarity"]

LABEL = 26  # letters of a text
NAME = 20  # of a model: longer ones do without what they have in common
SIDE, LEFT, CELLS = 480, 190, 280  # units of a matrix's view box: its width, that of labels, that of cells
REACHED = 0.999  # largest possible figure: what is above is as good as 1
STYLE = """
.matrices { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1.5rem;
  margin-top: 1rem; }
.matrices image { image-rendering: pixelated; }
th { white-space: normal; }
.models td:nth-child(2) { white-space: normal; overflow-wrap: anywhere; }
.models :is(th, td):nth-child(2) { text-align: left; }
"""
WORDS = {
    "projections": "projections, which the loss compared",
    "features": "features, which are kept",
}


def write_similarity(path: Path, pictures: GraphPictures, compared: Compared) -> None:
    name = pictures.shards.resolve().name
    of = "" if pictures.graph_of == pictures.shards else f" of {pictures.graph_of.resolve().name}"
    title = f"{name}, graph {pictures.graph}{of}"
    told = [_words(pictures, compared), *notes(pictures, compared)]
    compared = shortened(compared)
    head, rows = figures(compared)
    models = table(["", "checkpoint", "step"], [_of_what(model) for model in compared.models])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(str(pictures.shards))}. Do the similarities of pictures follow the graph\'s?</p>',
        table(head, rows),
        *(f'<p class="soft">{escape(line)}</p>' for line in told),
        f'<div class="models">{models}</div>',
        "<h2>How near pictures are, by how near their texts are</h2>",
        _curves(compared),
        "<h2>Some texts</h2>",
        _matrices(pictures, compared),
    ]
    write_page(path, title, parts, STYLE)


def shortened(compared: Compared) -> Compared:
    """With models' names that do without what all have in common, where some are long."""
    names, _ = _apart([model.name for model in compared.models])
    return replace(compared, models=[replace(m, name=name) for m, name in zip(compared.models, names, strict=True)])


def _apart(names: list[str]) -> tuple[list[str], str]:
    """(names without the parts between hyphens that they begin and end with alike, these: `mini-*-resnet18`).

    A name of one part (untrained) has no say in it. As they are, and nothing, where all are short or none gets shorter.
    """
    parts = [name.split("-") for name in names if "-" in name]
    if len(parts) < 2 or max(map(len, names)) <= NAME:
        return names, ""
    start = _alike(parts)
    end = _alike([part[start:][::-1] for part in parts])
    inner = {"-".join(part): "-".join(part[start : len(part) - end]) for part in parts}
    short = [inner.get(name, name) for name in names]
    if start + end == 0 or len(set(short)) < len(short):
        return names, ""
    first = parts[0]
    return short, "-".join([*first[:start], "*", *first[len(first) - end :]])


def _alike(parts: list[list[str]]) -> int:
    """How many the lists begin with alike, one of each left over."""
    rest = zip(*(part[:-1] for part in parts), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, rest))


def _words(pictures: GraphPictures, compared: Compared) -> str:
    """What the table's columns are."""
    held_out = (
        "of a test split, which xclr-train does not train on"
        if pictures.split == "test"
        else "of a training split (models that were trained on them have seen these very pictures)"
    )
    words = (
        "Spearman's rank correlation between the graph's similarity of two pictures and the cosine of what a model "
        f"makes of them: 1 ranks all pairs as the graph does, 0 is no relation. {compared.pairs:,} pairs of different "
        f"texts, of {compared.pictures:,} pictures with {len(compared.texts):,} texts {held_out}. "
    )
    if any(found.reach is not None for model in compared.models for found in model.pairs.values()):
        words += "\N{PLUS-MINUS SIGN} is half of the 95 % interval, were other texts drawn."
    else:
        words += "Of so few texts there is no interval: the figures may be chance."
    if any(model.texts for model in compared.models):
        words += (
            " Pairs of texts: of the mean cosine of their pictures, which evens out what single pictures differ in, "
            "the more so the more pictures a text has; compare it at equally many alone."
        )
    if compared.same:
        words += (
            f" Same text: how far the {compared.same:,} pairs of one text stand above the mean of pairs of different "
            "texts, in standard deviations."
        )
    return words


def _of_what(model: Followed) -> list[str]:
    name, _, checkpoint = model_parts(model.about)
    step = model.about.get("step")
    return [model.name, checkpoint or name, "" if step is None else f"{step:,}"]


def figures(compared: Compared) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: of each model, of what it projects and of its features."""
    places = [place for place in PLACES if any(place in model.pairs for model in compared.models)]
    texts = any(model.texts for model in compared.models)
    same = any(model.same for model in compared.models)
    several = len(compared.models) > 1
    head = ["", "of its", "pairs of pictures"]
    head += ["over the first"] if several else []
    head += ["pairs of texts"] if texts else []
    head += ["same text"] if same else []
    rows = []
    for model in compared.models:
        for place in places:
            if place not in model.pairs:
                continue
            row = [model.name, place, _plus_minus(model.pairs[place])]
            if several:
                row.append(_over(model, compared.models[0], place))
            if texts:
                row.append(_plus_minus(model.texts[place]) if place in model.texts else "")
            if same:
                row.append(f"{model.same[place]:+.2f}" if place in model.same else "")
            rows.append(row)
    return head, rows


def _plus_minus(found: Correlation) -> str:
    reach = found.reach
    if not np.isfinite(found.value):
        return "all alike"
    return f"{found.value:.3f}" + ("" if reach is None else f" \N{PLUS-MINUS SIGN}{reach:.3f}")


def _over(model: Followed, first: Followed, place: Place) -> str:
    if model is first or place not in first.pairs:
        return ""
    value, reach = difference(model.pairs[place], first.pairs[place])
    if not np.isfinite(value):
        return ""
    return f"{value:+.3f}" + ("" if reach is None else f" \N{PLUS-MINUS SIGN}{reach:.3f}")


def notes(pictures: GraphPictures, compared: Compared) -> list[str]:
    """What a reader of the figures has to know besides."""
    lost = len(pictures.images) - compared.pictures
    found = []
    _, alike = _apart([model.name for model in compared.models])
    if alike:
        found.append(f"Models are called by what the star stands for in {alike}.")
    if pictures.unknown:
        found.append(
            f"Of {pictures.unknown:,} more pictures of {pictures.shards} the graph of {pictures.graph_of} has no text."
        )
    if lost:
        found.append(f"{lost:,} pictures do not decode and are left out.")
    if compared.most < REACHED:
        found.append(
            f"The graph calls many pairs alike, which no model does: the largest figure of pairs of pictures that can "
            f"be reached here is {compared.most:.3f}, so figures of different graphs are not to be compared."
        )
    return found


def _curves(compared: Compared) -> str:
    """A chart of each place: the models that have it."""
    colours = {model.name: i % COLOURS for i, model in enumerate(compared.models, 1)}
    charts = []
    for place in PLACES:
        series = {model.name: model.curve[place] for model in compared.models if place in model.curve}
        if not series:
            continue
        chart = line_chart(
            series, x_title="similarity by the graph", y_title="standard deviations", colours=colours, low_x=None
        )
        shown = {name: colours[name] for name in series}
        charts.append(
            f"<figure>{chart}{legend(shown)}<figcaption>Of {WORDS[place]}: mean cosine of pairs, in standard "
            "deviations above that of all pairs, over the graph's similarity. Far right lie the few pairs of nearest "
            "texts. A model that follows the graph rises all the way.</figcaption></figure>"
        )
    return f'<div class="charts">{"".join(charts)}</div>'


def _matrices(pictures: GraphPictures, compared: Compared) -> str:
    labels = _labels([pictures.captions[i] for i in compared.shown.tolist()])
    shown = [_matrix("the graph", "", compared.similarity, labels)]
    for model in compared.models:
        place = next(place for place in PLACES if place in model.shown)
        shown.append(_matrix(model.name, place, model.shown[place], labels))
    return (
        f'<p class="soft">{len(labels)} texts, in groups that the graph calls near. A cell is the mean over pairs of '
        "pictures of the two texts, on the diagonal of different pictures of one (blank where there is one alone). "
        "Each matrix has colours of its own, from its least to its largest value off the diagonal: what counts is "
        "whether the blocks and the bands between them are the graph's.</p>"
        f'<div class="matrices">{"".join(shown)}</div>'
    )


def _labels(texts: Sequence[str]) -> list[str]:
    """First captions, without the words that all begin with ("a photo of a"), cut to LABEL letters."""
    first = [text.split("\n")[0] for text in texts]
    words = [text.split(" ") for text in first]
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))
    if len(first) > 1 and alike < min(map(len, words)):
        first = [" ".join(text[alike:]) for text in words]
    return [_cut(text) for text in first]


def _cut(text: str) -> str:
    """To LABEL letters; those of East Asian scripts are as wide as two."""
    ends = list(accumulate(2 if east_asian_width(letter) in "FW" else 1 for letter in text))
    if not ends or ends[-1] <= LABEL:
        return text
    return f"{text[: sum(end < LABEL for end in ends)]}\N{HORIZONTAL ELLIPSIS}"


def _matrix(name: str, place: str, values: Doubles, labels: Sequence[str]) -> str:
    off = values[~np.eye(len(values), dtype=bool)]
    low, high = float(np.nanmin(off)), float(np.nanmax(off))
    cell = CELLS / len(labels)
    words = "".join(
        f'<text x="{LEFT - 6}" y="{cell * (i + 0.5) + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        for i, label in enumerate(labels)
    )
    image = (
        f'<image x="{LEFT}" y="0" width="{CELLS}" height="{CELLS}" href="{_pixels(values, low, high)}" '
        'preserveAspectRatio="none"/>'
    )
    of = f", {place}" if place else ""
    digits = 2 if high - low > 0.05 else 4
    return (
        f'<figure><svg class="chart" viewBox="0 0 {SIDE} {CELLS}" role="img" aria-label="{escape(name)}">{words}{image}'
        f"</svg><figcaption><b>{escape(name)}</b>{of}: {low:.{digits}f} to {high:.{digits}f}</figcaption></figure>"
    )


def _pixels(values: Doubles, low: float, high: float) -> str:
    """A PNG of a pixel a value, as a data: URI; NaN is transparent."""
    known = np.isfinite(values)
    scaled = np.clip((np.where(known, values, low) - low) / ((high - low) or 1), 0, 1)
    grey: npt.NDArray[np.uint8] = np.round(255 * scaled).astype(np.uint8)
    colours = cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS)
    _, data = cv2.imencode(".png", np.dstack([colours, np.where(known, 255, 0).astype(np.uint8)]))
    return data_uri(data.tobytes(), "image/png")
