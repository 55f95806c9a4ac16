"""Rows that are gathered and scattered, example by example, and non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, refuse, shape_of


def _numbers(graph: Graph, index: Value) -> Value:
    """The first number of each index, i64[batch, rows, 1]."""
    return graph.cast(graph.part(index, (0, 0, 0), (*index.shape[:2], 1), (1, 1, 1)), np.int64)


def gathered(graph: Graph, equation: Any, x: Value, index: Value) -> Value:
    """Rows of each example; or one range of every axis, of a known place."""
    given = equation.params["dimension_numbers"]
    if isinstance(index, np.ndarray) and index.ndim == 1 and not given.operand_batching_dims:
        return _range(graph, equation, x, index)
    whole = (1, 1, *x.shape[2:]) == tuple(equation.params["slice_sizes"])
    rows = whole and tuple(given.collapsed_slice_dims) == (1,) and tuple(given.operand_batching_dims) == (0,)
    if not rows or tuple(given.start_index_map) != (1,):
        raise refuse(equation, "of anything but rows")
    shape = (*index.shape[:2], *x.shape[2:])
    return graph.node("GatherND", x, _numbers(graph, index), shape=shape, dtype=x.dtype, batch_dims=1)


def _range(graph: Graph, equation: Any, x: Value, index: np.ndarray) -> Value:
    given, lengths = equation.params["dimension_numbers"], layout.sizes(equation.params["slice_sizes"])
    starts = dict(zip(given.start_index_map, index.tolist(), strict=True))
    parts = [
        (0, own, 1) if length == own else (first := min(max(starts.get(axis, 0), 0), own - length), first + length, 1)
        for axis, (length, own) in enumerate(zip(lengths, x.shape, strict=True))
    ]
    gone = tuple(given.collapsed_slice_dims)
    whole = [part == (0, own, 1) for part, own in zip(parts, x.shape, strict=True)]
    if len(gone) == 1 and isinstance(x, Tensor) and all(kept for axis, kept in enumerate(whole) if axis != gone[0]):
        return graph.entry(x, gone[0], parts[gone[0]][0])
    part = graph.part(x, *zip(*parts, strict=True))
    return graph.reshaped(part, [length for axis, length in enumerate(part.shape) if axis not in gone])


def scattered(graph: Graph, equation: Any, x: Value, index: Value, updates: Value) -> Value:
    """Rows of each example; those past the end are dropped, by a row that takes them and is cut off."""
    given = equation.params["dimension_numbers"]
    rows = tuple(given.inserted_window_dims) == (1,) and tuple(given.operand_batching_dims) == (0,)
    if not rows or tuple(given.scatter_dims_to_operand_dims) != (1,):
        raise refuse(equation, "of anything but rows")
    index, updates = (
        graph.full(each, shape_of(variable))
        for each, variable in zip((index, updates), equation.invars[1:], strict=True)
    )
    batch, count, *rest = shape_of(equation.invars[0])
    longer = _one_more(graph, x, (batch, count, *rest))
    number = _numbers(graph, index)
    number = graph.node("Min", number, np.array(count, np.int64), shape=number.shape, dtype=np.int64)
    number = graph.reshaped(number, (*number.shape[:2], *[1] * len(rest)))
    if rest:
        target = np.array([1, 1, *rest], np.int64)
        number = graph.node("Expand", number, target, shape=(*number.shape[:2], *rest), dtype=np.int64)
    placed = graph.node("ScatterElements", longer, number, updates, shape=longer.shape, dtype=x.dtype, axis=1)
    return graph.part(placed, (0,) * len(longer.shape), (batch, count, *rest), (1,) * len(longer.shape))


def _one_more(graph: Graph, x: Value, shape: layout.Shape) -> Value:
    """Adds a row of zeros to each example; `x` may stand for more by axes of 1."""
    batch, count, *rest = shape
    longer, spare = (batch, count + 1, *rest), np.zeros((1, 1, *rest), x.dtype)
    if isinstance(x, np.ndarray):
        rows = np.broadcast_to(x, (x.shape[0], *shape[1:]))
        return graph.full(np.concatenate([rows, spare.repeat(len(rows), axis=0)], axis=1), longer)
    x, spare = graph.full(x, shape), graph.full(spare, (batch, 1, *rest))
    return graph.node("Concat", x, spare, shape=longer, dtype=x.dtype, axis=1)


def suppressed(graph: Graph, equation: Any, boxes: Value, label: Value, valid: Value, threshold: Value) -> Any:
    """Non-maximum suppression within each class; the boxes come best first, so their places are their scores."""
    if len(boxes.shape) != 3 or not isinstance(threshold, np.ndarray) or isinstance(label, np.ndarray):
        return None
    boxes, label, valid = (
        graph.full(each, shape_of(variable))
        for each, variable in zip((boxes, label, valid), equation.invars, strict=False)
    )
    (batch, count, _), wide = boxes.shape, np.dtype(np.int64)
    rank = np.arange(count, 0, -1, dtype=np.float32)[None] / count
    score = graph.node("Where", valid, rank, np.zeros((), np.float32), shape=(batch, count), dtype=np.float32)
    label = graph.cast(label, wide)
    last = graph.node("ReduceMax", label, shape=(), dtype=wide, keepdims=0)
    end = graph.node("Add", last, np.array(1), shape=(), dtype=wide)
    classes = graph.node("Range", np.array(0), end, np.array(1), shape=(0,), dtype=wide)
    classes = graph.node("Unsqueeze", classes, np.array([1]), shape=(0, 1), dtype=wide)
    mine, own = (graph.reshaped(each, (batch, 1, count)) for each in (label, score))
    same = graph.node("Equal", mine, classes, shape=(batch, 0, count), dtype=np.bool_)
    scores = graph.node("Where", same, own, np.zeros((), np.float32), shape=(batch, 0, count), dtype=np.float32)
    limits = np.array(count), threshold.reshape(()).astype(np.float32), np.zeros((), np.float32)
    found = graph.node("NonMaxSuppression", boxes, scores, *limits, shape=(0, 3), dtype=wide)
    place = graph.node("Gather", found, np.array([0, 2]), shape=(0, 2), dtype=wide, axis=1)
    first = graph.node("Gather", found, np.array(0), shape=(0,), dtype=wide, axis=1)
    true = graph.node("GreaterOrEqual", first, np.array(0), shape=(0,), dtype=np.bool_)
    none = graph.node("And", valid, np.zeros((), np.bool_), shape=(batch, count), dtype=np.bool_)
    return graph.node("ScatterND", none, place, true, shape=(batch, count), dtype=np.bool_)
