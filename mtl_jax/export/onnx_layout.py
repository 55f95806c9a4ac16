"""Shapes and orders of axes: what a value's axes are called, and where they lie in the array that holds it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtl_jax.config.model_settings import IMAGE_STRIDE
from mtl_jax.errors import UserError

# Primes stand for the lengths that are known when the model runs: rows and columns are those of the coarsest cells. So
# lengths are multiplied, added and compared as numbers, division says what a length is made of, and no array of 64 bits
# holds one by mistake. Each is larger than any product of those before it.
BATCH, ROWS, COLUMNS = (2**exponent - 1 for exponent in (89, 521, 1279))
SYMBOLS = {"batch": BATCH, "rows": ROWS, "columns": COLUMNS}

Shape = tuple[int, ...]
Order = tuple[int, ...]  # axis i of the value is axis order[i] of the array


def sizes(shape: Sequence[object]) -> Shape:
    """Returns a shape of JAX as whole numbers, in which primes stand for JAX's symbols.

    Raises:
        UserError: a length is no sum of products of the symbols.
    """
    return tuple(int(length) if isinstance(length, int | np.integer) else _of_symbols(str(length)) for length in shape)


def _of_symbols(text: str) -> int:
    """Reads a length as JAX writes it, such as 21*rows*columns + 1."""
    total = 0
    for term in text.replace(" - ", " + -").split(" + "):
        factors = [SYMBOLS.get(factor, factor) for factor in term.lstrip("-").split("*")]
        if not all(isinstance(factor, int) or factor.isdecimal() for factor in factors):
            raise UserError(f"ONNX: expected axes whose lengths are products of {', '.join(SYMBOLS)}, found {text}")
        total += math.prod(map(int, factors)) * (-1 if term.startswith("-") else 1)
    return total


def known(*shape: int) -> bool:
    """Says whether lengths are numbers already."""
    return all(abs(length) < BATCH // 2 for length in shape)


def terms(length: int) -> list[tuple[int, tuple[str, ...]]]:
    """Returns what a length is the sum of: numbers, each with the names of the symbols that it is multiplied by."""
    if known(length):
        return [(length, ())] if length else []
    name, prime = max((item for item in SYMBOLS.items() if abs(length) > item[1] // 2), key=lambda item: item[1])
    times = (length + prime // 2) // prime
    return [(number, (*names, name)) for number, names in terms(times)] + terms(length - times * prime)


def least(length: int) -> int:
    """Returns the smallest that a length can be."""
    return sum(number for number, _ in terms(length))


def text(length: int) -> int | str:
    """Returns a length as a number, or in words."""
    if known(length):
        return length
    named = {IMAGE_STRIDE * ROWS: "height", IMAGE_STRIDE * COLUMNS: "width"}
    products = ["*".join([*([str(number)] if number != 1 else []), *names]) for number, names in terms(length)]
    return named.get(length) or " + ".join(product or "1" for product in products)


def broadcast(*shapes: Shape) -> Shape:
    """Returns the shape of elementwise arithmetic; a shape () repeats."""
    rank = max(map(len, shapes), default=0)
    full_shapes = [shape for shape in shapes if len(shape) == rank]
    return tuple(next((length for length in lengths if length != 1), 1) for lengths in zip(*full_shapes, strict=True))


def stored(shape: Sequence[int], order: Order) -> Shape:
    """Returns the shape of the array that holds a value."""
    return tuple(shape[axis] for axis in inverse(order))


def inverse(order: Order) -> Order:
    """Returns the order that undoes an order."""
    return tuple(np.argsort(order).tolist())


def without(order: Order, axes: Sequence[int]) -> Order:
    """Returns the order of the axes that are left when a value loses some of them."""
    places = [place for axis, place in enumerate(order) if axis not in axes]
    return tuple(sorted(places).index(place) for place in places)


def reshaped(shape: Shape, order: Order, target: Shape) -> tuple[Shape, Order] | None:
    """Says how an array is reshaped so that the value which it holds gets other axes, without moving a number.

    Args:
        shape: of the value.
        order: of its axes.
        target: what its shape becomes.

    Returns:
        The new shape of the array and the order of the value's new axes; None where numbers would have to move.
    """
    groups = _groups(shape, target)
    if groups is None:
        return None
    new_shape: list[int] = []
    new_order = [0] * len(target)
    axes = [axis for old, _ in groups for axis in old]

    def place(group: tuple[list[int], list[int]]) -> int:
        filled = [order[axis] for axis in group[0] if shape[axis] != 1]
        return min(filled or [order[axis] for axis in group[0]], default=len(order))

    for old, new in sorted(groups, key=place):
        moved = [order[axis] for axis in old if shape[axis] != 1]
        others = {order[axis] for axis in axes if axis not in old and shape[axis] != 1}
        is_split = moved and others.intersection(range(min(moved), max(moved)))
        if moved != sorted(moved) or is_split:
            return None
        for axis in new:
            new_order[axis] = len(new_shape)
            new_shape.append(target[axis])
    return tuple(new_shape), tuple(new_order)


def _groups(shape: Shape, target: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Pairs runs of axes of two shapes that hold the same numbers, each run as short as can be."""
    groups, first, second = [], 0, 0
    while first < len(shape) or second < len(target):
        old, new = [], []
        while (not old and not new) or _count(shape, old) != _count(target, new):
            shorter = abs(_count(shape, old)) <= abs(_count(target, new))
            if first < len(shape) and (not old or (new and shorter) or second == len(target)):
                old.append(first)
                first += 1
            elif second < len(target):
                new.append(second)
                second += 1
            else:
                return None
        groups.append((old, new))
    return groups


def _count(shape: Shape, axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def repeats(held: Shape, repeated: Shape, target: Shape) -> Shape | None:
    """Says how often each axis's entries are repeated where repeated axes of 1 are merged with the axes before them.

    Args:
        held: the shape of a value before it is repeated.
        repeated: the same, repeated.
        target: what `whole` is reshaped to.

    Returns:
        For each axis of `target` a factor; None where the reshaping does something else.
    """
    factors, axis = [], 0
    for length in target:
        if axis >= len(repeated) or held[axis] != repeated[axis]:
            return None
        factor = 1
        if repeated[axis] != length:
            axis += 1
            if axis >= len(repeated) or held[axis] != 1 or repeated[axis - 1] * repeated[axis] != length:
                return None
            factor = repeated[axis]
        factors.append(factor)
        axis += 1
    return tuple(factors) if axis == len(repeated) and any(factor != 1 for factor in factors) else None
