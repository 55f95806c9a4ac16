"""The curves of a report, as SVG to stand inside an HTML page; text and axes take the page's own colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MAX_POINTS = 300  # per curve; longer ones are averaged, which keeps a page small and a noisy loss readable
COLOURS = (
    "#3b82c4",
    "#d9822b",
    "#2f9e6e",
    "#c2477f",
    "#8468cf",
    "#7d8a2e",
)  # legible on white and on near-black
TEXT_COLOUR = "#010203"  # stands for the page's own text colour, and is replaced by it
MAX_NAMED_SPANS = 6  # the names of more stages would overlap
HEIGHT, ROW_HEIGHT = 2.7, 0.18  # inches, of a panel, and of a row of names below it
MAX_NAMES_INSIDE = 8  # of curves: more would cover them
BELOW: Mapping[str, Any] = {"ncols": 2, "loc": "upper left", "bbox_to_anchor": (-0.1, -0.2), "borderaxespad": 0}
MAX_SPAN_LENGTH, MAX_LABEL_LENGTH, MAX_TITLE_LENGTH = 12, 28, 44  # characters that fit a panel
LOG_SCALE_RATIO = 30.0  # curves that span more than so much are drawn on a logarithmic axis


class Curve(NamedTuple):
    """Values over training steps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


class Span(NamedTuple):
    """The steps of one stage."""

    name: str
    first_step: float
    last_step: float


def curves_by(events: Sequence[Mapping[str, Any]], label: Callable[[Mapping[str, Any]], str]) -> list[Curve]:
    """Gathers events into curves, one for each label, in the order of their first events."""
    points: dict[str, tuple[list[float], list[float]]] = {}
    for event in events:
        steps, values = points.setdefault(label(event), ([], []))
        steps.append(event["step"])
        values.append(event["value"])
    return [Curve(name, steps, values) for name, (steps, values) in points.items()]


def averaged(curve: Curve, most: int = MAX_POINTS) -> Curve:
    """The same curve with at most `most` points, each the mean of as many neighbours (the last of fewer)."""
    size = -(-len(curve.steps) // most)
    if size <= 1:
        return curve
    starts = range(0, len(curve.steps), size)
    steps, values = (
        [sum(column[i : i + size]) / len(column[i : i + size]) for i in starts]
        for column in (curve.steps, curve.values)
    )
    return Curve(curve.name, steps, values)


def panel_svg(
    title: str,
    curves: Sequence[Curve],
    spans: Sequence[Span],
    *,
    baseline: float | None = None,
    floor: float | None = None,
    log_scale: bool = False,
) -> str:
    """Draws curves over the steps of a run.

    Args:
        title: above the panel.
        curves: at least one; each has at least one point, all finite.
        spans: the stages, marked along the top.
        baseline: a dotted line, where the task was right after its own stage.
        floor: a dashed line, the worst value that the contract allows.
        log_scale: use a logarithmic axis where the curves are positive and span much.

    Returns:
        An <svg> element.
    """

    def draw(axes: Any) -> None:
        _draw_curves(axes, curves)
        if log_scale:
            _scale(axes, [value for curve in curves for value in curve.values])
        _draw_spans(axes, spans)
        _draw_limits(axes, baseline, floor)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=8, **(BELOW if is_long else {}))
        axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("step", fontsize=8)

    is_long = len(curves) > MAX_NAMES_INSIDE
    rows = -(-len(curves) // BELOW["ncols"]) if is_long else 0
    return figure_svg(title, draw, height=HEIGHT + ROW_HEIGHT * rows)


def line_svg(title: str, xs: Sequence[float], ys: Sequence[float], *, x: str, y: str) -> str:
    """Draws one line between values from 0 to 1.

    Args:
        title: above the panel.
        xs: at least two, rising.
        ys: as many.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        An <svg> element.
    """

    def draw(axes: Any) -> None:
        curve = averaged(Curve("", xs, ys))
        axes.plot(curve.steps, curve.values, color=COLOURS[0], linewidth=1.5)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.grid(color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(y, fontsize=8)

    return figure_svg(title, draw)


def figure_svg(title: str, draw: Callable[[Any], None], *, height: float = HEIGHT) -> str:
    """A panel of one set of axes, as an <svg> element."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": "mtl_jax",  # the same data gives the same bytes
        "text.parse_math": False,  # a name with a dollar sign is a name
        "font.family": "sans-serif",
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), TEXT_COLOUR),
        **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), TEXT_COLOUR),
        "axes.unicode_minus": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(shortened(title, MAX_TITLE_LENGTH), loc="left", fontsize=10, fontweight="bold", pad=14)
        draw(axes)
        axes.tick_params(labelsize=8)
        return _inline_svg(figure)


def _draw_curves(axes: Any, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        has_markers = len(curve.steps) <= 30
        curve_shown = averaged(curve)
        axes.plot(
            curve_shown.steps,
            curve_shown.values,
            label=shortened(
                curve.name.lstrip("_") or "-", MAX_LABEL_LENGTH
            ),  # matplotlib hides labels that start with an underscore
            color=COLOURS[index % len(COLOURS)],
            linestyle="-" if index < len(COLOURS) else "--",
            linewidth=1.5,
            marker="o" if has_markers else "",
            markersize=4,
        )


def _scale(axes: Any, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > LOG_SCALE_RATIO * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # the default is mathematical markup
        axes.yaxis.set_minor_formatter(lambda _value, _: "")


def _draw_spans(axes: Any, spans: Sequence[Span]) -> None:
    if not spans:
        return
    across = axes.get_xaxis_transform()
    for index, span in enumerate(spans):
        if index % 2:
            axes.axvspan(span.first_step, span.last_step, color=TEXT_COLOUR, alpha=0.05, linewidth=0)
        middle = (span.first_step + span.last_step) / 2
        if len(spans) <= MAX_NAMED_SPANS:
            name = shortened(span.name, MAX_SPAN_LENGTH)
            axes.text(middle, 1.02, name, transform=across, ha="center", fontsize=8, alpha=0.65)
    first, last = spans[0].first_step, max(span.last_step for span in spans)
    margin = 0.03 * max(last - first, 1.0)
    axes.set_xlim(first - margin, last + margin)


def shortened(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _draw_limits(axes: Any, baseline: float | None, floor: float | None) -> None:
    for value, style in ((baseline, ":"), (floor, "--")):
        if value is not None:
            axes.axhline(value, color=TEXT_COLOUR, alpha=0.7, linewidth=1, linestyle=style)


def _inline_svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    # Inside HTML neither the namespaces nor the ids of groups are needed, and the ids would repeat by panel.
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'<g id="[\w.]+">', "<g>", svg)
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 role="img">', svg, count=1)
