"""Contact sheet: self-contained HTML page of images with drawn labels, class counts and suspicious data."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from mtl_jax.data import drawing, findings
from mtl_jax.data.label_shapes import shape_of
from mtl_jax.errors import UserError
from mtl_jax.own_data import table
from mtl_jax.own_data.inspection import Inspected
from mtl_jax.own_data.summary import DatasetSummary
from mtl_jax.report import html_page

BARS, BAR_WIDTH, BAR_HEIGHT = 12, 24, 90  # of a histogram; sizes in px
COLUMNS = ("class", "training images", "training labels", "validation images")


def render(inspected: Sequence[Inspected], leaks: Sequence[str], *, images: int) -> str:
    """Renders the page.

    Args:
        inspected: inspected datasets.
        leaks: messages about validation images in training.
        images: largest number of pictures of a dataset.
    """
    suspicious = [*leaks, *(line for inspection in inspected for line in inspection.suspicious)]
    notes = [note for inspection in inspected for note in inspection.notes]
    rows = [
        [
            inspection.dataset.request.name,
            f"{inspection.dataset.request.kind} ({inspection.dataset.format})",
            table.images(inspection.dataset),
            table.sizes(inspection.dataset),
            table.holds(inspection.dataset),
        ]
        for inspection in inspected
    ]
    body = [
        "<h1>Dataset inspection</h1>",
        html_page.table(("task", "labels", "training + validation", "images, px", "holds"), rows),
        html_page.section("What seems wrong", _lines(suspicious) or "<p>Nothing was found.</p>"),
        html_page.section("Notes of the readers", _lines(notes)) if notes else "",
        *(_dataset(inspection, images) for inspection in inspected),
    ]
    return html_page.page("Dataset inspection", "\n".join(body))


def _lines(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>\n" for sentence in sentences)
    return f"<ul>\n{items}</ul>" if items else ""


def _dataset(inspected: Inspected, images: int) -> str:
    dataset = inspected.dataset
    sections = [_classes(inspected), _histograms(dataset)]
    pictures = list(_pictures(inspected, images))
    sections.append('<div class="singles">\n' + "\n".join(pictures) + "\n</div>\n")
    lead = f"{dataset.request.path}: {table.images(dataset)}; {len(pictures)} are shown."
    name, kind = dataset.request.name, dataset.request.kind
    return html_page.section(name if name == kind else f"{name}: {kind}", "\n".join(sections), lead=lead)


def _classes(inspected: Inspected) -> str:
    dataset = inspected.dataset
    counts = [
        findings.label_figures(inspected.surveys[split], dataset.label, dataset.classes).get("classes", {})
        for split in ("train", "val")
    ]
    rows = []
    for name in dataset.classes:
        train, val = (split_counts.get(name, {"images": 0}) for split_counts in counts)
        labels = train.get("boxes", train.get("pixels", train["images"]))
        rows.append([name, f"{train['images']:,}", f"{labels:,}", f"{val['images']:,}"])
    return html_page.table(COLUMNS, rows, numbers=(1, 2, 3)) if rows else ""


def _histograms(dataset: DatasetSummary) -> str:
    figures = {"longer side of the training images, px": [float(max(size)) for size in dataset.sizes]}
    if dataset.box_shares:
        figures["side of the boxes, % of the longer side"] = [100 * share for share in dataset.box_shares]
    return html_page.panels(histogram(title, values) for title, values in figures.items())


def histogram(title: str, values: Sequence[float]) -> str:
    """Renders a histogram of values as SVG."""
    low, high = min(values), max(values)
    step = (high - low) / BARS or 1.0
    counts = [0] * BARS
    for value in values:
        counts[min(BARS - 1, int((value - low) / step))] += 1
    heights = [BAR_HEIGHT * count / max(counts) for count in counts]
    bars = "".join(
        f'<rect x="{number * BAR_WIDTH}" y="{20 + BAR_HEIGHT - height:.1f}" width="{BAR_WIDTH - 2}" '
        f'height="{height:.1f}" fill="currentColor" opacity="0.6"><title>{counts[number]}</title></rect>'
        for number, height in enumerate(heights)
    )
    width, end = BARS * BAR_WIDTH, 20 + BAR_HEIGHT
    return (
        f'<svg viewBox="0 0 {width} {end + 18}" role="img" fill="currentColor"><text x="0" y="12" font-size="12">'
        f'{escape(title)}</text>{bars}<text x="0" y="{end + 14}" font-size="11">{low:.4g}</text>'
        f'<text x="{width}" y="{end + 14}" font-size="11" text-anchor="end">{high:.4g}</text></svg>'
    )


def _pictures(inspected: Inspected, count: int) -> Iterator[str]:
    """Yields evenly spaced images of both splits; unreadable ones are skipped, because the page lists them."""
    dataset = inspected.dataset
    for split, limit in (("train", count - count // 3), ("val", count // 3)):
        source: Any = inspected.sources[split]
        for index in range(0, len(source), -(-len(source) // limit)) if limit and len(source) else ():
            try:
                sample = source[index]
            except UserError:
                continue
            fields = sample["labels"][dataset.label]
            file, (width, height) = drawing.draw(sample["image"], fields)
            caption = f"{sample['id']} ({split}): {shape_of(fields).caption(fields, dataset.classes)}"
            # Names of files need not be text.
            escaped = escape(caption.encode("utf-8", "backslashreplace").decode())
            encoded = base64.b64encode(file).decode()
            yield (
                f'<figure class="single"><img width="{width}" height="{height}" alt="{escaped}" '
                f'src="data:image/jpeg;base64,{encoded}"><figcaption class="quiet">{escaped}</figcaption></figure>'
            )
