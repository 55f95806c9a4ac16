"""The page and the pictures of a comparison of configurations: HTML and SVG."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from html import escape

from mtl_jax.evaluation.contract import relative_drop_percent
from mtl_jax.report import html_page
from mtl_jax.report.balance_section import Conflict
from mtl_jax.report.comparison import COSTS, Result, by_variant, columns, figures, heading, matrix, table
from mtl_jax.report.comparison_figures import Cell, scatter_svg, scatters_svg, spread_svg
from mtl_jax.report.comparison_figures import heatmaps_svg as draw_heatmaps
from mtl_jax.report.run_report import heat_cell


def as_html(title: str, results: Sequence[Result]) -> str:
    """The page: the table, a plot for every task, accuracy against cost, and the heatmaps.

    Args:
        title: of the page.
        results: at least one.
    """
    heads, rows = table(results)
    groups = by_variant(results)
    accuracies = [name for name in columns(results) if name not in COSTS and not name.endswith("_percent")]
    spreads = [spread_svg(heading(name), values) for name in accuracies if (values := _values_by_variant(groups, name))]
    scatters = [
        scatter_svg(f"{heading(name)} against {COSTS[cost]}", points, x=COSTS[cost], y=heading(name))
        for name in accuracies
        for cost in ("latency_ms", "params", "gigaflops", "step_ms", "peak_memory_mb")
        if (points := _points(groups, cost, name))
    ]
    return html_page.page(
        title,
        f"<h1>{escape(title)}</h1>\n"
        + html_page.section(
            "After the last stage",
            html_page.table(heads, rows, numbers=range(1, len(heads))),
            lead="Mean ± sample standard deviation over seeds. A drop is what was lost since the task's own stage.",
        )
        + html_page.section("Every run", html_page.panels(spreads), lead="A dot is a run, the line their mean.")
        + html_page.section("Every task after every stage", "".join(map(_heatmap, groups.values())))
        + _conflict_section(groups)
        + html_page.section("Accuracy against cost", html_page.panels(scatters)),
    )


def conflict_table(groups: Mapping[str, Sequence[Result]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: how often the gradients of each pair of tasks opposed, for the variants that logged it."""
    pairs = list(dict.fromkeys(pair for runs in groups.values() for run in runs for pair in run.conflicts))
    rows = []
    for variant, runs in groups.items():
        conflicts = [[run.conflicts[pair] for run in runs if pair in run.conflicts] for pair in pairs]
        if any(conflicts):
            rows.append([variant, *map(_conflict_cell, conflicts)])
    return ["variant", *(" and ".join(pair) for pair in pairs)], rows


def _conflict_cell(conflicts: Sequence[Conflict]) -> str:
    if not conflicts:
        return "-"
    share = statistics.fmean(conflict.opposed_share for conflict in conflicts)
    return f"{100 * share:.0f} %, mean cosine {statistics.fmean(conflict.mean_cosine for conflict in conflicts):+.3f}"


def _conflict_section(groups: Mapping[str, Sequence[Result]]) -> str:
    heads, rows = conflict_table(groups)
    lead = "Share of the logged steps in which the gradients of two tasks opposed each other."
    return html_page.section("Conflicts", html_page.table(heads, rows), lead=lead) if rows else ""


def _values_by_variant(groups: Mapping[str, Sequence[Result]], name: str) -> dict[str, list[float]]:
    values_by_variant = {}
    for variant, runs in groups.items():
        values = [value for run in runs if (value := figures(run).get(name)) is not None]
        if values:
            values_by_variant[variant] = values
    return values_by_variant


def _points(groups: Mapping[str, Sequence[Result]], x: str, y: str) -> dict[str, tuple[float, float]]:
    across, up = _values_by_variant(groups, x), _values_by_variant(groups, y)
    return {name: (statistics.fmean(across[name]), statistics.fmean(up[name])) for name in across if name in up}


def heatmaps_svg(results: Sequence[Result]) -> str:
    """The stage x task matrices of all variants in one image, for a page that takes no HTML.

    Args:
        results: at least one.
    """
    return draw_heatmaps(
        {variant: _cells(runs) for variant, runs in by_variant(results).items()},
        limit_percent=results[0].contract["max_drop_percent"],
    )


def tradeoffs_svg(results: Sequence[Result]) -> str:
    """Every task's figure, and the largest drop of any, against inference time and parameters, in one image.

    Args:
        results: at least one.
    """
    groups, costs = by_variant(results), ("latency_ms", "params")
    names = [name for name in columns(results) if name not in COSTS and not name.endswith("_percent")]
    rows = [(heading(name), [(COSTS[cost], _points(groups, cost, name)) for cost in costs]) for name in names]
    return scatters_svg([*rows, ("largest drop, %", [(COSTS[cost], _largest_drops(groups, cost)) for cost in costs])])


def _largest_drops(groups: Mapping[str, Sequence[Result]], cost: str) -> dict[str, tuple[float, float]]:
    """By variant, its mean cost and the largest drop of any task and seed."""
    points = {}
    for variant, costs in _values_by_variant(groups, cost).items():
        drops = itertools.chain.from_iterable(_drops(run) for run in groups[variant])
        points[variant] = statistics.fmean(costs), max(drops)
    return points


def _drops(run: Result) -> list[float]:
    return [entry["drop_percent"] or 0.0 for entry in run.contract["tasks"].values()]


def _cells(runs: Sequence[Result]) -> tuple[list[str], list[tuple[str, list[Cell | None]]]]:
    tasks, rows = matrix(runs)
    signs = [entry["higher_is_better"] for entry in runs[0].contract["tasks"].values()]
    first = _first_figures(tasks, rows)

    def cell(value: float | None, baseline: float | None, higher_is_better: bool) -> Cell | None:
        if value is None:
            return None
        return Cell(f"{value:.3f}", relative_drop_percent(baseline, value, higher_is_better))

    return tasks, [(stage, list(map(cell, values, first.values(), signs))) for stage, values in rows]


def _first_figures(tasks: Sequence[str], rows: Sequence[tuple[str, Sequence[float | None]]]) -> dict[str, float | None]:
    """Each task's figure after the first stage that evaluated it."""
    return {task: next((row[i] for _, row in rows if row[i] is not None), None) for i, task in enumerate(tasks)}


def _heatmap(runs: Sequence[Result]) -> str:
    tasks, rows = matrix(runs)
    limit = runs[0].contract["max_drop_percent"]
    first = _first_figures(tasks, rows)
    signs = {task: entry["higher_is_better"] for task, entry in runs[0].contract["tasks"].items()}
    body = ""
    for index, (stage, values) in enumerate(rows):
        cells = "".join(
            heat_cell(
                value,
                {"baseline": first[task], "higher_is_better": signs[task]},
                limit,
                is_baseline=all(row[column] is None for _, row in rows[:index]),
            )
            for column, (task, value) in enumerate(zip(tasks, values, strict=True))
        )
        body += f"<tr><th>after {escape(stage)}</th>{cells}</tr>\n"
    head = "".join(f"<th>{escape(task)}</th>" for task in tasks)
    grid = f'<table class="heat"><thead><tr><th></th>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return f'<h3>{escape(runs[0].variant)}</h3>\n<div class="wide">{grid}</div>\n'
