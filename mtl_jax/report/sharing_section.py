"""The report's drawing of shared and task-specific parameters."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from mtl_jax.report import html_page

SHARED = "shared"  # the owner of what two tasks or more depend on
WIDTH, ROW, SHARED_WIDTH = 420.0, 44.0, 190.0  # px


def section(contract: Mapping[str, Any] | None) -> str:
    """Returns the section; nothing where the contract does not say whose the parameters are.

    Args:
        contract: the tree of `contract.json`.
    """
    counts = ((contract or {}).get("budgets", {}).get("params_by_owner") or {}).get("value")
    if not contract or not counts:
        return ""
    own_counts = {task: counts.get(task, 0) for task in contract["tasks"]}
    other_counts = {
        name: count for name, count in counts.items() if name != SHARED and name not in own_counts and count
    }
    body = f'<div class="drawing">{_drawing(counts.get(SHARED, 0), own_counts)}</div>\n'
    body += html_page.bar({name: count for name, count in counts.items() if count})
    lead = "Parameters, by whose outputs depend on them. Shared are those that two tasks or more depend on."
    if other_counts:
        lead += f" Some are shared by a few tasks only: {', '.join(other_counts)}."
    return html_page.section("What is shared", body, lead=lead)


def _drawing(shared: int, own_counts: Mapping[str, int]) -> str:
    """An <svg>: the image, what is shared, and from there a branch to each task."""
    height = max(ROW * len(own_counts), 2 * ROW)
    middle = height / 2
    shapes = [
        _box(0.0, middle - 18, 62.0, 36.0, "image", ""),
        _line(62.0, middle, 84.0, middle),
        _box(84.0, 4.0, SHARED_WIDTH - 64, height - 8, SHARED, f"{shared:,}", strong=True),
    ]
    for row, (task, count) in enumerate(own_counts.items()):
        y = (row + 0.5) * height / max(len(own_counts), 1)
        shapes.append(_line(SHARED_WIDTH + 20, y, SHARED_WIDTH + 44, y))
        text = task if len(task) <= 18 else task[:17] + "…"
        shapes.append(_box(SHARED_WIDTH + 44, y - 18, WIDTH - SHARED_WIDTH - 46, 36.0, text, f"{count:,}"))
    return (
        f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="what tasks share">{"".join(shapes)}</svg>'
    )


def _box(x: float, y: float, width: float, height: float, title: str, below: str, *, strong: bool = False) -> str:
    colour = "var(--good)" if strong else "currentColor"
    frame = (
        f'<rect x="{x + 1:.0f}" y="{y:.0f}" width="{width - 2:.0f}" height="{height:.0f}" rx="6" fill="{colour}" '
        f'fill-opacity="{0.18 if strong else 0.07}" stroke="{colour}" stroke-opacity="0.6"/>'
    )
    lines = [line for line in (title, below) if line]
    texts = "".join(
        f'<text x="{x + width / 2:.0f}" y="{y + height / 2 + 4.5 + 15 * (number - (len(lines) - 1) / 2):.1f}" '
        f'text-anchor="middle" font-size="13" fill="currentColor">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return frame + texts


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return (
        f'<line x1="{x0:.0f}" y1="{y0:.1f}" x2="{x1:.0f}" y2="{y1:.1f}" stroke="currentColor" stroke-opacity="0.6" '
        'stroke-width="1.5"/>'
    )
