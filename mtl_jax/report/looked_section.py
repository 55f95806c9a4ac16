"""The report's sections on validation images: predictions next to labels, the worst ones, and figures by class."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Int

from mtl_jax.evaluation.matching import MATCH_IOU
from mtl_jax.report import html_page
from mtl_jax.report.pictures import MOST_IMAGES, Looked, Picture, Shown
from mtl_jax.report.svg_figures import line_svg
from mtl_jax.tasks.detection import MIN_SCORE
from mtl_jax.tasks.multi_label import THRESHOLD

MOST_CONFUSED = 25  # classes of a confusion matrix that is drawn
NOTHING = "nothing"
MOST_PAIRS = 10  # that are listed in the place of a larger one


def predictions(by_task: Mapping[str, Looked]) -> str:
    """Returns the section of the first images of every task and of its worst ones."""
    if not any(of_task.first for of_task in by_task.values()):
        return html_page.section("Predictions", html_page.paragraph("No example predictions were drawn."))
    sections = []
    for task, of_task in by_task.items():
        sections += [f"<h3>{escape(task)}</h3>\n", _pairs(of_task.first)]
        if of_task.worst:
            sections.append(html_page.folded(f"{task}: the worst", _pairs(of_task.worst)))
    lead = "The first validation images: the network's prediction, then the labels. Grey is unlabelled."
    return html_page.section("Predictions", "".join(sections), lead=lead)


def by_class(by_task: Mapping[str, Looked]) -> str:
    """Returns the section of every class's figures, with confusion matrices and curves; nothing without classes."""
    sections = []
    for task, of_task in by_task.items():
        if of_task.by_class is None or not of_task.by_class.rows:
            continue
        figures = of_task.by_class
        sections.append(f"<h3>{escape(task)}</h3>\n")
        sections.append(html_page.table(figures.columns, figures.rows, numbers=range(1, len(figures.columns))))
        names = (*of_task.classes, NOTHING)  # boxes find nothing, or objects are found by none
        if figures.confusion is not None and figures.confusion.any():
            sections.append(_confusion(names, figures.confusion))
        if figures.curve is not None and len(figures.curve[0]) > 1:
            title = f"{task}: precision over recall, all classes"
            recall, precision = (axis.tolist() for axis in figures.curve)
            sections.append(html_page.panels([line_svg(title, recall, precision, x="recall", y="precision")]))
    lead = (
        f"On at most {MOST_IMAGES} validation images. Precision and recall count the boxes and tags that reach the "
        f"threshold chosen for their class, without one boxes of a score of {MIN_SCORE} or more and tags of "
        f"{THRESHOLD} or more. A box finds an object of its class at an IoU of {MATCH_IOU}."
    )
    return html_page.section("Class by class", "".join(sections), lead=lead) if sections else ""


def _pairs(examples: Sequence[Shown]) -> str:
    single = all(example.truth is None for example in examples)
    return f'<div class="{"singles" if single else "pairs"}">\n' + "\n".join(map(_pair, examples)) + "\n</div>\n"


def _pair(example: Shown) -> str:
    sides = _side(example.predicted, "predicted")
    if example.truth is not None:
        sides += _side(example.truth, "labelled")
    words = f"<p>{escape(example.judgement)}</p>" if example.judgement else ""
    return f'<figure class="{"pair" if example.truth else "single"}"><div>{sides}</div>{words}</figure>'


def _side(picture: Picture, alt: str) -> str:
    source = base64.b64encode(picture.webp).decode()
    names = "".join(
        f'<span><i style="background: {escape(colour)}"></i>{escape(name)}</span>' for colour, name in picture.legend
    )
    lines = "<br>".join(map(escape, picture.words.split("\n"))) if picture.words else ""
    caption = f"<figcaption>{names}{lines}</figcaption>" if names or lines else ""
    return f'<figure><img src="data:image/webp;base64,{source}" alt="{alt}">{caption}</figure>'


def _confusion(names: Sequence[str], counts: Int[np.ndarray, "truth predicted"]) -> str:
    """The matrix in shares of each row, or of many classes those pairs that are confused most."""
    class_numbers = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    if len(class_numbers) > MOST_CONFUSED:
        return _most_confused(names, counts)
    counts = counts[np.ix_(class_numbers, class_numbers)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f"<th><span>{escape(names[index])}</span></th>" for index in class_numbers)
    rows = "\n".join(
        f"<tr><th>{escape(names[index])}</th>{''.join(map(_cell, row))}</tr>"
        for index, row in zip(class_numbers, shares, strict=True)
    )
    lead = html_page.paragraph("Confusion: labels in rows, predictions in columns, percent of the row.")
    table = f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>'
    return f'{lead}<div class="wide">{table}</div>\n'


def _cell(share: float) -> str:
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return f'<td style="background: rgba(59, 130, 196, {0.85 * share:.2f})">{text}</td>'


def _most_confused(names: Sequence[str], counts: Int[np.ndarray, "truth predicted"]) -> str:
    confusions = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    pairs: list[tuple[int, int]] = [
        divmod(flat, len(confusions)) for flat in np.argsort(-confusions, axis=None)[:MOST_PAIRS].tolist()
    ]
    rows = [
        (names[truth], names[predicted], f"{confusions[truth, predicted] / counts[truth].sum():.1%}")
        for truth, predicted in pairs
        if confusions[truth, predicted]
    ]
    lead = html_page.paragraph("What is confused most:")
    return lead + html_page.table(("labelled", "predicted", "share of the label"), rows, numbers=(2,))
