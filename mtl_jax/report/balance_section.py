"""The report's section on balance: how often and how strongly the tasks' gradients oppose, and the tasks' weights."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from mtl_jax.report import html_page
from mtl_jax.report.svg_figures import Curve, Span, curves_by, panel_svg

COSINE, WEIGHT, NORM, RESIDUAL = (
    "cosine/",
    "task_weight",
    "gradient_norm",
    "balance_residual",
)  # names of events, as the step logs them

Events = Sequence[Mapping[str, Any]]


class Conflict(NamedTuple):
    """How the gradients of two tasks stood to each other over the logged steps."""

    opposed_share: float  # of the steps, with a negative cosine
    mean_cosine: float
    mean_opposed_cosine: float | None  # over those steps; None where there are none
    steps: int


def is_about_balance(event: Mapping[str, Any]) -> bool:
    """Whether the section shows an event, so that no other has to."""
    of_a_task = event["name"] in (WEIGHT, NORM) and event["task"] is not None
    return event["split"] == "train" and (of_a_task or _is_cosine(event) or event["name"] == RESIDUAL)


def _is_cosine(event: Mapping[str, Any]) -> bool:
    """Whether an event is a cosine of two tasks, and not of a stream of that name."""
    name = event["name"]
    return event["task"] is None and name.startswith(COSINE) and name.count("/") == COSINE.count("/") + 1


def conflicts(events: Events) -> dict[tuple[str, str], Conflict]:
    """Sums up the cosines of each pair of tasks.

    Args:
        events: of a run, with finite values.

    Returns:
        By pair, in the order of the tasks.
    """
    cosines: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event["split"] == "train" and _is_cosine(event):
            first, second = event["name"].removeprefix(COSINE).split("/")
            cosines.setdefault((first, second), []).append(event["value"])
    by_pair = {}
    for pair, values in cosines.items():
        opposed = [value for value in values if value < 0]
        mean_opposed = statistics.fmean(opposed) if opposed else None
        by_pair[pair] = Conflict(len(opposed) / len(values), statistics.fmean(values), mean_opposed, len(values))
    return by_pair


def section(events: Events, spans: Sequence[Span]) -> str:
    """The section, or nothing for a run that logged no weights and no cosines.

    Args:
        events: of a run, with finite values.
        spans: the stages.
    """
    balance_events = [event for event in events if is_about_balance(event)]
    if not balance_events:
        return ""
    weights = curves_by([event for event in balance_events if event["name"] == WEIGHT], lambda event: event["task"])
    norms = curves_by([event for event in balance_events if event["name"] == NORM], lambda event: event["task"])
    curves = curves_by([e for e in balance_events if e["name"] not in (WEIGHT, NORM)], lambda event: event["name"])
    residuals = [curve for curve in curves if curve.name == RESIDUAL]
    cosines = [curve for curve in curves if curve.name != RESIDUAL]
    figures = [panel_svg(f"cosine of {_pair(curve.name)}", [curve], spans, baseline=0.0) for curve in cosines]
    figures += [panel_svg("weights of the tasks", weights, spans, log_scale=True)] if weights else []
    figures += [panel_svg("lengths of the tasks' gradients", norms, spans, log_scale=True)] if norms else []
    # The sum, and whatever needs no solver, leaves nothing over.
    figures += [panel_svg("what the solver left over", residuals, spans)] if any(map(_moves, residuals)) else []
    lead = "Of the gradients of two tasks: how often they opposed (a negative cosine), and how strongly."
    conflicts_by_pair = conflicts(balance_events)
    body = (_heatmap(conflicts_by_pair) if conflicts_by_pair else "") + html_page.panels(figures)
    return html_page.section("Balance between the tasks", body, lead=lead if conflicts_by_pair else "")


def _pair(name: str) -> str:
    return " and ".join(name.removeprefix(COSINE).split("/"))


def _moves(curve: Curve) -> bool:
    return any(curve.values)


def _heatmap(conflicts_by_pair: Mapping[tuple[str, str], Conflict]) -> str:
    """Tasks by tasks: redder where the two opposed more often."""
    tasks = list(dict.fromkeys(task for pair in conflicts_by_pair for task in pair))
    rows = ""
    for row in tasks:
        cells = "".join(
            _cell(conflicts_by_pair.get((row, column)) or conflicts_by_pair.get((column, row))) for column in tasks
        )
        rows += f"<tr><th>{escape(row)}</th>{cells}</tr>\n"
    head = "".join(f"<th>{escape(task)}</th>" for task in tasks)
    grid = f'<table class="heat"><thead><tr><th></th>{head}</tr></thead>\n<tbody>{rows}</tbody></table>'
    return f'<div class="wide">{grid}</div>\n'


def _cell(conflict: Conflict | None) -> str:
    if conflict is None:
        return '<td class="none">·</td>'
    strength = f"{conflict.mean_opposed_cosine:.3f}" if conflict.mean_opposed_cosine is not None else "never"
    small = f"mean cosine {conflict.mean_cosine:+.3f}<br>where opposed {strength}"
    shade = f"background: rgba(214, 60, 60, {0.5 * conflict.opposed_share:.2f})"
    return f'<td style="{shade}">opposed in {100 * conflict.opposed_share:.0f} %<small>{small}</small></td>'
