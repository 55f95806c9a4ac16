"""Shapes and axis orders of values and of the arrays that store them; integers stand for symbolic lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtl_jax.config.model_settings import IMAGE_STRIDE
from mtl_jax.errors import UserError

# Primes stand for dynamic lengths, which are known only when the model runs; rows and columns count the coarsest cells.
# Lengths can then be multiplied, added and compared as integers, and division recovers their factors. No 64-bit array
# can hold one by mistake. Each prime is larger than any product of the ones before it.
BATCH, ROWS, COLUMNS = (2**exponent - 1 for exponent in (89, 521, 1279))
SYMBOLS = {"batch": BATCH, "rows": ROWS, "columns": COLUMNS}

Shape = tuple[int, ...]
Order = tuple[int, ...]  # axis i of the value is axis order[i] of the array


def integer_shape(shape: Sequence[object]) -> Shape:
    """Returns a JAX shape as integers; primes stand for JAX's symbolic dimensions.

    Raises:
        UserError: a length is no sum of products of the symbols.
    """
    return tuple(
        int(length) if isinstance(length, int | np.integer) else _parse_length(str(length)) for length in shape
    )


def _parse_length(text: str) -> int:
    """Parses a symbolic length in JAX's notation, such as 21*rows*columns + 1."""
    total = 0
    for term in text.replace(" - ", " + -").split(" + "):
        factors = [SYMBOLS.get(factor, factor) for factor in term.lstrip("-").split("*")]
        if not all(isinstance(factor, int) or factor.isdecimal() for factor in factors):
            raise UserError(f"ONNX: expected axes whose lengths are products of {', '.join(SYMBOLS)}, found {text}")
        total += math.prod(map(int, factors)) * (-1 if term.startswith("-") else 1)
    return total


def is_static(*shape: int) -> bool:
    """Returns whether all lengths are static, i.e. known at export."""
    return all(abs(length) < BATCH // 2 for length in shape)


def terms(length: int) -> list[tuple[int, tuple[str, ...]]]:
    """Returns the terms of a length as a polynomial: coefficients, each with the names of its symbols."""
    if is_static(length):
        return [(length, ())] if length else []
    name, prime = max((item for item in SYMBOLS.items() if abs(length) > item[1] // 2), key=lambda item: item[1])
    times = (length + prime // 2) // prime
    return [(number, (*names, name)) for number, names in terms(times)] + terms(length - times * prime)


def minimum(length: int) -> int:
    """Returns the smallest value of a length, where every symbol is 1."""
    return sum(number for number, _ in terms(length))


def length_text(length: int) -> int | str:
    """Returns a length as an integer, or as an expression of symbol names."""
    if is_static(length):
        return length
    axis_names = {IMAGE_STRIDE * ROWS: "height", IMAGE_STRIDE * COLUMNS: "width"}
    products = ["*".join([*([str(number)] if number != 1 else []), *names]) for number, names in terms(length)]
    return axis_names.get(length) or " + ".join(product or "1" for product in products)


def broadcast_shape(*shapes: Shape) -> Shape:
    """Returns the result shape of elementwise arithmetic; a scalar broadcasts."""
    rank = max(map(len, shapes), default=0)
    ranked_shapes = [shape for shape in shapes if len(shape) == rank]
    return tuple(next((length for length in lengths if length != 1), 1) for lengths in zip(*ranked_shapes, strict=True))


def stored_shape(shape: Sequence[int], order: Order) -> Shape:
    """Returns the shape of the array that stores a value."""
    return tuple(shape[axis] for axis in inverse_order(order))


def inverse_order(order: Order) -> Order:
    """Returns the inverse permutation."""
    return tuple(np.argsort(order).tolist())


def remove_axes(order: Order, axes: Sequence[int]) -> Order:
    """Returns the order of the remaining axes after some axes of the value are removed."""
    stored_axes = [stored_axis for axis, stored_axis in enumerate(order) if axis not in axes]
    return tuple(sorted(stored_axes).index(stored_axis) for stored_axis in stored_axes)


def reshape_stored(shape: Shape, order: Order, target: Shape) -> tuple[Shape, Order] | None:
    """Returns the reshape of a stored array that gives its value a new shape without a transposition.

    Args:
        shape: shape of the value.
        order: its axis order.
        target: new shape of the value.

    Returns:
        The new shape of the array and the new axis order; None where a transposition would be needed.
    """
    groups = _axis_groups(shape, target)
    if groups is None:
        return None
    new_shape: list[int] = []
    new_order = [0] * len(target)
    axes = [axis for old, _ in groups for axis in old]

    def first_stored_axis(group: tuple[list[int], list[int]]) -> int:
        non_unit = [order[axis] for axis in group[0] if shape[axis] != 1]
        return min(non_unit or [order[axis] for axis in group[0]], default=len(order))

    for old, new in sorted(groups, key=first_stored_axis):
        moved = [order[axis] for axis in old if shape[axis] != 1]
        outside = {order[axis] for axis in axes if axis not in old and shape[axis] != 1}
        is_split = moved and outside.intersection(range(min(moved), max(moved)))
        if moved != sorted(moved) or is_split:
            return None
        for axis in new:
            new_order[axis] = len(new_shape)
            new_shape.append(target[axis])
    return tuple(new_shape), tuple(new_order)


def _axis_groups(shape: Shape, target: Shape) -> list[tuple[list[int], list[int]]] | None:
    """Pairs the shortest runs of axes of two shapes that have equal element counts."""
    groups, first, second = [], 0, 0
    while first < len(shape) or second < len(target):
        old, new = [], []
        while (not old and not new) or _element_count(shape, old) != _element_count(target, new):
            shorter = abs(_element_count(shape, old)) <= abs(_element_count(target, new))
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


def _element_count(shape: Shape, axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def repeat_factors(shape: Shape, repeated: Shape, target: Shape) -> Shape | None:
    """Returns the repeat factor of each axis where a broadcast followed by a reshape repeats entries (upsampling).

    Args:
        shape: shape before the broadcast.
        repeated: shape after it, with the same rank.
        target: the shape that the broadcast value is reshaped to.

    Returns:
        A factor for each axis of `target`; None where the reshape is no repetition.
    """
    factors, axis = [], 0
    for length in target:
        if axis >= len(repeated) or shape[axis] != repeated[axis]:
            return None
        factor = 1
        if repeated[axis] != length:
            axis += 1
            if axis >= len(repeated) or shape[axis] != 1 or repeated[axis - 1] * repeated[axis] != length:
                return None
            factor = repeated[axis]
        factors.append(factor)
        axis += 1
    return tuple(factors) if axis == len(repeated) and any(factor != 1 for factor in factors) else None
