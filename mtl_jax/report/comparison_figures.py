"""Figures that compare runs, as SVG: spreads and scatter plots, and images that stand alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from typing import Any, NamedTuple

from mtl_jax.report.svg_figures import (
    COLOURS,
    MAX_LABEL_LENGTH,
    MAX_TITLE_LENGTH,
    TEXT_COLOUR,
    figure_svg,
    shortened,
)

MARKERS = "osD^v"  # the next where all colours are taken


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
        axes.set_yticks(range(len(values)), [shortened(name, MAX_LABEL_LENGTH) for name in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.grid(axis="x", color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)

    return figure_svg(title, draw, height=1.0 + 0.28 * len(values))


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
            axes.plot(*point, **look, label=shortened(name.lstrip("_") or "-", MAX_LABEL_LENGTH))
        axes.legend(frameon=False, fontsize=7)
        axes.margins(0.15)
        axes.grid(color=TEXT_COLOUR, alpha=0.12, linewidth=0.6)
        axes.set_xlabel(x, fontsize=8)
        axes.set_ylabel(y, fontsize=8)

    return figure_svg(title, draw, height=3.2)


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
            place.set_title(shortened(variant, MAX_TITLE_LENGTH), fontsize=9, fontweight="bold")
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
