"""The curves of a report, as SVG to stand inside an HTML page; text and axes take the page's own colour."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, product
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
MARKERS = "osD^v"  # the next where all colours are taken
TEXT_COLOUR = "#010203"  # stands for the page's own text colour, and is replaced by it
MAX_NAMED_SPANS = 6  # the names of more stages would overlap
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
            axes.legend(frameon=False, fontsize=8)
        axes.grid(axis="y", color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("step", fontsize=8)

    return _panel_svg(title, draw)


def spread_svg(title: str, values: Mapping[str, Sequence[float]]) -> str:
    """Draws every value of each group as a dot, and their mean as a line.

    Args:
        title: above the panel.
        values: of each group, by its name; at least one group, each with at least one value, all finite.

    Returns:
        An <svg> element, as tall as its groups need.
    """

    def draw(axes: Any) -> None:
        for row, (colour, samples) in enumerate(zip(cycle(COLOURS), values.values(), strict=False)):
            mean = sum(samples) / len(samples)
            axes.plot(samples, [row] * len(samples), "o", color=colour, markersize=5, alpha=0.75)
            axes.plot([mean, mean], [row - 0.28, row + 0.28], color=colour, linewidth=2)
        axes.set_yticks(range(len(values)), [_shortened(name, MAX_LABEL_LENGTH) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.grid(axis="x", color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)

    return _panel_svg(title, draw, height=1.0 + 0.28 * len(values))


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

    return _panel_svg(title, draw)


def scatter_svg(title: str, points: Mapping[str, tuple[float, float]], *, x: str, y: str) -> str:
    """Draws one named point for each group.

    Args:
        title: above the panel.
        points: (x, y) of each group, by its name; at least one, all finite.
        x: name of the horizontal axis.
        y: name of the vertical axis.

    Returns:
        An <svg> element.
    """

    def draw(axes: Any) -> None:
        for look, (name, point) in zip(looks(), points.items(), strict=False):
            axes.plot(*point, **look, label=_shortened(name.lstrip("_") or "-", MAX_LABEL_LENGTH))
        axes.legend(frameon=False, fontsize=7)
        axes.margins(0.15)
        axes.grid(color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(y, fontsize=8)

    return _panel_svg(title, draw, height=3.2)


def looks() -> Iterator[dict[str, str]]:
    """Yields Matplotlib's settings of points, of as many groups as there are."""
    for marker, colour in cycle(product(MARKERS, COLOURS)):
        yield {"linestyle": "", "marker": marker, "color": colour}


Points = Mapping[str, tuple[float, float]]  # (x, y) of each group, by its name


def scatters_svg(rows: Sequence[tuple[str, Sequence[tuple[str, Points]]]]) -> str:
    """Draws several scatter plots in rows, as an image that stands alone; each group has its colour and marker.

    Args:
        rows: name of the vertical axis, and for each plot of the row the name of the horizontal one and its points.

    Returns:
        The text of an SVG file.
    """
    from matplotlib.figure import Figure

    columns = max(len(plots) for _, plots in rows)
    names = list(dict.fromkeys(name for _, plots in rows for _, points in plots for name in points))
    look = dict(zip(names, looks(), strict=False))
    with _standing_alone():
        figure = Figure(figsize=(3.4 * columns, 0.5 + 1.9 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), columns, squeeze=False, sharex="col", sharey="row")
        for places, (y, plots) in zip(grid, rows, strict=True):
            places[0].set_ylabel(y)
            for place, (_, points) in zip(places, plots, strict=False):
                for name, point in points.items():
                    place.plot(*point, **look[name], label=name)
                place.margins(0.15)
                place.grid(alpha=0.15, linewidth=0.6)
        for place, (x, _) in zip(grid[-1], rows[-1][1], strict=False):
            place.set_xlabel(x)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(names)), frameon=False)
        return _alone(figure)


class Cell(NamedTuple):
    """A task's figure after a stage."""

    text: str
    drop_percent: float | None  # since the task's own stage; None where there is nothing to compare


def heatmaps_svg(
    grids: Mapping[str, tuple[Sequence[str], Sequence[tuple[str, Sequence[Cell | None]]]]], *, limit_percent: float
) -> str:
    """Draws the stage x task matrix of several variants side by side, as an image that stands alone.

    Args:
        grids: by variant: tasks, and by stage a cell for each of them, None where a task was not evaluated.
        limit_percent: the drop from which a cell is red, strongest at twelve times that drop.

    Returns:
        The text of an SVG file.
    """
    from matplotlib.figure import Figure

    columns = min(len(grids), 4)
    lines = -(-len(grids) // columns)
    with _standing_alone():
        figure = Figure(figsize=(2.6 * columns, 0.5 + 1.45 * lines), layout="constrained")
        axes = list(figure.subplots(lines, columns, squeeze=False).flat)
        for place in axes:
            place.axis("off")
        for place, (variant, (tasks, rows)) in zip(axes, grids.items(), strict=False):
            colours = [[_shade(cell, limit_percent) for cell in cells] for _, cells in rows]
            table = place.table(
                [[cell.text if cell else "" for cell in cells] for _, cells in rows],
                cellColours=colours,
                rowLabels=[f"after {stage}" for stage, _ in rows],
                colLabels=list(tasks),
                cellLoc="center",
                loc="center",
            )
            table.scale(1.0, 1.5)
            for cell in table.get_celld().values():
                cell.set_edgecolor("white")
            place.set_title(_shortened(variant, MAX_TITLE_LENGTH), fontsize=9, fontweight="bold")
        return _alone(figure)


def _standing_alone() -> Any:
    from matplotlib import rc_context

    return rc_context(
        {"svg.hashsalt": "mtl_jax", "text.parse_math": False, "font.family": "sans-serif", "font.size": 8}
    )


def _alone(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor="white", metadata=dict.fromkeys(("Date", "Creator")))
    return buffer.getvalue()


def _shade(cell: Cell | None, limit_percent: float) -> tuple[float, float, float]:
    """White without a comparison, green up to the limit and stronger for a gain, red beyond it."""
    if cell is None or cell.drop_percent is None:
        return (1.0, 1.0, 1.0)
    broken = cell.drop_percent > limit_percent
    strength = min(1.0, abs(cell.drop_percent) / (12 * max(limit_percent, 1e-9)))
    strength = 0.2 + 0.6 * strength if broken else 0.15 + 0.5 * strength * (cell.drop_percent < 0)
    target = (0.84, 0.24, 0.24) if broken else (0.16, 0.63, 0.41)
    red, green, blue = (1 - strength + strength * channel for channel in target)
    return (red, green, blue)


def _panel_svg(title: str, draw: Callable[[Any], None], *, height: float = 2.7) -> str:
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
        axes.set_title(_shortened(title, MAX_TITLE_LENGTH), loc="left", fontsize=10, fontweight="bold", pad=14)
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
            label=_shortened(
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
            name = _shortened(span.name, MAX_SPAN_LENGTH)
            axes.text(middle, 1.02, name, transform=across, ha="center", fontsize=8, alpha=0.65)
    first, last = spans[0].first_step, max(span.last_step for span in spans)
    margin = 0.03 * max(last - first, 1.0)
    axes.set_xlim(first - margin, last + margin)


def _shortened(text: str, most: int) -> str:
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
