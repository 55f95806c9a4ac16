"""The contract as a person reads it: plain text, Markdown, or coloured in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, SupportsFloat

from mtl_jax.tasks import title

if TYPE_CHECKING:
    from rich.table import Table

TASK_COLUMNS = ("task", "metric", "to beat", "baseline", "final", "drop", "verdict")
TASK_NUMBERS = (2, 3, 4, 5)  # the columns aligned to the right
BUDGET_COLUMNS = ("budget", "measured", "limit", "verdict")
BUDGET_NUMBERS = (1, 2)
BROKEN, NOT_LEARNT, NOT_MEASURED = NOT_PASSED = ("BROKEN", "not learnt", "not measured")


def headline(contract: Mapping[str, Any]) -> str:
    """The verdict in one line, with the mean gain over other runs where every task has one."""
    verdict = "PASSED" if contract["passed"] else "BROKEN"
    gain = contract.get("delta_m_percent")
    against = "" if gain is None else f"; delta_m {gain:+.2f} % against {compared_with(contract)}"
    idle = [task for task, entry in contract["tasks"].items() if entry.get("learnt") is False]
    idle_text = f"validation shows nothing learnt by {', '.join(idle)}; " if idle else ""
    return f"contract {verdict}: {idle_text}no task may lose more than {contract['max_drop_percent']:g} %{against}"


def compared_with(contract: Mapping[str, Any]) -> str:
    """What delta_m compares with: networks of one task each, or runs of several, such as the version before."""
    runs = {entry["baseline_from"] for entry in contract["tasks"].values()}
    return "single-task networks" if len(runs) == len(contract["tasks"]) else ", ".join(sorted(runs))


def task_rows(contract: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The texts under `TASK_COLUMNS`, a row for each task."""
    return [
        (
            task,
            title(entry["metric"]) + ("" if entry["higher_is_better"] else " (lower is better)"),
            figure(entry.get("to_beat")),
            figure(entry["baseline"]),
            figure(entry["final"]),
            percent(entry["drop_percent"]),
            _verdict(entry),
        )
        for task, entry in task_entries(contract).items()
    ]


def addition(task: str, stage: str) -> str:
    """Returns how figures of the classes that a stage has added to a task are called."""
    return f"{task}/{stage}"


def task_entries(contract: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of the tasks, and after each, by `addition`, those of classes that a stage has added to it."""
    entries = {}
    for task, entry in contract["tasks"].items():
        entries[task] = entry
        entries |= {addition(task, stage): added for stage, added in entry.get("added", {}).items()}
    return entries


def budget_rows(contract: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The texts under `BUDGET_COLUMNS`, a row for each budget."""
    return [
        (
            name + (f" at {entry['image_size']} px" if "image_size" in entry else ""),
            _measured(entry["value"]),
            "none" if entry["limit"] is None else figure(entry["limit"]),
            _verdict(entry),
        )
        for name, entry in contract["budgets"].items()
    ]


def figure(value: SupportsFloat | None) -> str:
    """A number for people: whole numbers with thousands separators, others to four digits; "-" for none."""
    number = math.nan if value is None else float(value)
    if not math.isfinite(number):
        return "-"
    is_integer = number == int(number) and abs(number) >= 1
    return f"{number:,.0f}" if is_integer or abs(number) >= 1000 else f"{number:.4g}"


def _measured(value: Any) -> str:
    """A budget's value for people: a figure, or several by name."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {figure(figures)}" for name, figures in value.items())
    return figure(value)


def percent(value: SupportsFloat | None) -> str:
    """A drop in percent to two decimals, so that 5.04 does not read as 5.0; "-" for none."""
    return "-" if value is None else f"{float(value):.2f} %"


def _verdict(entry: Mapping[str, Any]) -> str:
    """A word or two, which fit a column; `reasons` has the rest."""
    if entry["passed"]:
        return "passed"
    if entry.get("learnt") is False:
        return NOT_LEARNT
    return NOT_MEASURED if "reason" in entry else BROKEN


def reasons(contract: Mapping[str, Any]) -> list[str]:
    """Why a task or a budget has not passed, one line each, where its figures do not say so."""
    entries = {**task_entries(contract), **contract["budgets"]}
    return [
        _one_line(f"{name}: {entry['reason']}")
        for name, entry in entries.items()
        if "reason" in entry and entry["reason"] != _verdict(entry)
    ]


def _one_line(cell: str) -> str:
    return " ".join(cell.split())


def as_text(contract: Mapping[str, Any]) -> str:
    """The contract as aligned plain text, and below it why anything has not passed."""
    blocks = [headline(contract)]
    for columns, rows, numbers in _tables(contract):
        blocks.append("\n".join(line.rstrip() for line in _aligned([columns, *rows], numbers, "", "  ", "")))
    blocks += ["\n".join(reasons(contract))] if reasons(contract) else []
    return "\n\n".join(blocks) + "\n"


def as_markdown(contract: Mapping[str, Any]) -> str:
    """The contract as aligned Markdown tables, and below them why anything has not passed."""
    blocks = [f"**{headline(contract)}**"]
    for columns, rows, numbers in _tables(contract):
        escaped = [tuple(cell.replace("\\", "\\\\").replace("|", "\\|") for cell in row) for row in rows]
        head, *body = _aligned([columns, *escaped], numbers, "| ", " | ", " |")
        widths = [len(cell) for cell in head[2:-2].split(" | ")]
        rule = ["-" * (w + 1) + ":" if c in numbers else "-" * (w + 2) for c, w in enumerate(widths)]
        blocks.append("\n".join([head, "|" + "|".join(rule) + "|", *body]))
    blocks += ["\n".join(f"- {reason}" for reason in reasons(contract))] if reasons(contract) else []
    return "\n\n".join(blocks) + "\n"


def table(contract: Mapping[str, Any]) -> Table:
    """The contract as a table of rich, coloured in the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid()
    style = "bold green" if contract["passed"] else "bold red"
    grid.add_row(Text(headline(contract), style=style))
    for columns, rows, numbers in _tables(contract):
        section = Table(box=box.SIMPLE_HEAD)
        for index, column in enumerate(columns):
            section.add_column(column, justify="right" if index in numbers else "left")
        for row in rows:
            verdict = Text(row[-1], style="green" if row[-1].startswith("passed") else "bold red")
            section.add_row(*(Text(cell) for cell in row[:-1]), verdict)
        grid.add_row(section)
    for reason in reasons(contract):
        grid.add_row(Text(reason))
    return grid


def _tables(
    contract: Mapping[str, Any],
) -> list[tuple[tuple[str, ...], list[tuple[str, ...]], tuple[int, ...]]]:
    """Columns, rows, and which columns are numbers, of each table that has rows."""
    tables = [
        (TASK_COLUMNS, task_rows(contract), TASK_NUMBERS),
        (BUDGET_COLUMNS, budget_rows(contract), BUDGET_NUMBERS),
    ]
    return [(columns, rows, numbers) for columns, rows, numbers in tables if rows]


def _aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int], left: str, between: str, right: str) -> list[str]:
    cells = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        left
        + between.join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + right
        for row in cells
    ]
