"""Python literals as a person would write them, for the pages that are written to be edited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH = 110  # characters of a line


class Expression(str):
    """An expression of Python, which is written without quotes."""

    __slots__ = ()


def literal(value: Any, *, indent: int = 0) -> str:
    """Formats a value as a Python literal, on several lines if it is long.

    Args:
        value: strings, numbers, tables and tuples, and an `Expression` in any place.
        indent: number of spaces before the line that it is written on.
    """
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, str):
        text = repr(value)
        return text if '"' in text else f'"{text[1:-1]}"'
    if isinstance(value, dict):
        items = [f"{literal(key)}: {literal(element, indent=indent + 4)}" for key, element in value.items()]
        opening, closing = "{", "}"
    elif isinstance(value, tuple):
        items = [literal(element, indent=indent + 4) for element in value]
        opening, closing = "(", ",)" if len(items) == 1 else ")"
    else:
        return repr(value)
    line = f"{opening}{', '.join(items)}{closing}"
    if len(line) + indent <= WIDTH and "\n" not in line:
        return line
    inner, outer = "\n" + " " * (indent + 4), "\n" + " " * indent
    lines = [f"{item}," for item in items] if opening == "{" else _wrap_items(items, WIDTH - indent)
    return opening + "".join(inner + line for line in lines) + outer + closing[-1]


def _wrap_items(items: Sequence[str], width: int) -> list[str]:
    """Joins items with trailing commas into lines of a limited width."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= width:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{item},")
    return lines
