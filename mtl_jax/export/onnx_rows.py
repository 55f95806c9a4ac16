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
    dimensions = equation.params["dimension_numbers"]
    if isinstance(index, np.ndarray) and index.ndim == 1 and not dimensions.operand_batching_dims:
        return _range(graph, equation, x, index)
    is_row = (1, 1, *x.shape[2:]) == tuple(equation.params["slice_sizes"])
    rows = is_row and tuple(dimensions.collapsed_slice_dims) == (1,) and tuple(dimensions.operand_batching_dims) == (0,)
    if not rows or tuple(dimensions.start_index_map) != (1,):
        raise refuse(equation, "of anything but rows")
    shape = (*index.shape[:2], *x.shape[2:])
    return graph.node("GatherND", x, _numbers(graph, index), shape=shape, dtype=x.dtype, batch_dims=1)


def _range(graph: Graph, equation: Any, x: Value, index: np.ndarray) -> Value:
    dimensions, lengths = equation.params["dimension_numbers"], layout.sizes(equation.params["slice_sizes"])
    starts = dict(zip(dimensions.start_index_map, index.tolist(), strict=True))
    bounds = [
        (0, held, 1) if asked == held else (first := min(max(starts.get(axis, 0), 0), held - asked), first + asked, 1)
        for axis, (asked, held) in enumerate(zip(lengths, x.shape, strict=True))
    ]
    removed = tuple(dimensions.collapsed_slice_dims)
    is_whole = [part == (0, held, 1) for part, held in zip(bounds, x.shape, strict=True)]
    others_whole = all(whole for axis, whole in enumerate(is_whole) if axis not in removed)
    if len(removed) == 1 and isinstance(x, Tensor) and others_whole:
        return graph.entry(x, removed[0], bounds[removed[0]][0])
    part = graph.part(x, *zip(*bounds, strict=True))
    return graph.reshaped(part, [length for axis, length in enumerate(part.shape) if axis not in removed])


def scattered(graph: Graph, equation: Any, x: Value, index: Value, updates: Value) -> Value:
    """Rows of each example; those past the end are dropped, by a row that takes them and is cut off."""
    dimensions = equation.params["dimension_numbers"]
    rows = tuple(dimensions.inserted_window_dims) == (1,) and tuple(dimensions.operand_batching_dims) == (0,)
    if not rows or tuple(dimensions.scatter_dims_to_operand_dims) != (1,):
        raise refuse(equation, "of anything but rows")
    index, updates = (
        graph.full(value, shape_of(variable))
        for value, variable in zip((index, updates), equation.invars[1:], strict=True)
    )
    batch, count, *row_shape = shape_of(equation.invars[0])
    longer = _one_more(graph, x, (batch, count, *row_shape))
    number = _numbers(graph, index)
    number = graph.node("Min", number, np.array(count, np.int64), shape=number.shape, dtype=np.int64)
    number = graph.reshaped(number, (*number.shape[:2], *[1] * len(row_shape)))
    if row_shape:
        target = np.array([1, 1, *row_shape], np.int64)
        number = graph.node("Expand", number, target, shape=(*number.shape[:2], *row_shape), dtype=np.int64)
    placed = graph.node("ScatterElements", longer, number, updates, shape=longer.shape, dtype=x.dtype, axis=1)
    return graph.part(placed, (0,) * len(longer.shape), (batch, count, *row_shape), (1,) * len(longer.shape))


def _one_more(graph: Graph, x: Value, shape: layout.Shape) -> Value:
    """Adds a row of zeros to each example; `x` may stand for more by axes of 1."""
    batch, count, *row_shape = shape
    longer, spare = (batch, count + 1, *row_shape), np.zeros((1, 1, *row_shape), x.dtype)
    if isinstance(x, np.ndarray):
        rows = np.broadcast_to(x, (x.shape[0], *shape[1:]))
        return graph.full(np.concatenate([rows, spare.repeat(len(rows), axis=0)], axis=1), longer)
    x, spare = graph.full(x, shape), graph.full(spare, (batch, 1, *row_shape))
    return graph.node("Concat", x, spare, shape=longer, dtype=x.dtype, axis=1)


def suppressed(graph: Graph, equation: Any, boxes: Value, label: Value, valid: Value, threshold: Value) -> Any:
    """Non-maximum suppression within each class; the boxes come best first, so their places are their scores."""
    if len(boxes.shape) != 3 or not isinstance(threshold, np.ndarray) or isinstance(label, np.ndarray):
        return None
    boxes, label, valid = (
        graph.full(value, shape_of(variable))
        for value, variable in zip((boxes, label, valid), equation.invars, strict=False)
    )
    (batch, count, _), whole_numbers = boxes.shape, np.dtype(np.int64)
    rank = np.arange(count, 0, -1, dtype=np.float32)[None] / count
    score = graph.node("Where", valid, rank, np.zeros((), np.float32), shape=(batch, count), dtype=np.float32)
    label = graph.cast(label, whole_numbers)
    last_label = graph.node("ReduceMax", label, shape=(), dtype=whole_numbers, keepdims=0)
    end = graph.node("Add", last_label, np.array(1), shape=(), dtype=whole_numbers)
    classes = graph.node("Range", np.array(0), end, np.array(1), shape=(0,), dtype=whole_numbers)
    classes = graph.node("Unsqueeze", classes, np.array([1]), shape=(0, 1), dtype=whole_numbers)
    own_label, own_score = (graph.reshaped(value, (batch, 1, count)) for value in (label, score))
    same = graph.node("Equal", own_label, classes, shape=(batch, 0, count), dtype=np.bool_)
    scores = graph.node("Where", same, own_score, np.zeros((), np.float32), shape=(batch, 0, count), dtype=np.float32)
    limits = np.array(count), threshold.reshape(()).astype(np.float32), np.zeros((), np.float32)
    kept_boxes = graph.node("NonMaxSuppression", boxes, scores, *limits, shape=(0, 3), dtype=whole_numbers)
    place = graph.node("Gather", kept_boxes, np.array([0, 2]), shape=(0, 2), dtype=whole_numbers, axis=1)
    image_number = graph.node("Gather", kept_boxes, np.array(0), shape=(0,), dtype=whole_numbers, axis=1)
    is_kept = graph.node("GreaterOrEqual", image_number, np.array(0), shape=(0,), dtype=np.bool_)
    nothing_kept = graph.node("And", valid, np.zeros((), np.bool_), shape=(batch, count), dtype=np.bool_)
    return graph.node("ScatterND", nothing_kept, place, is_kept, shape=(batch, count), dtype=np.bool_)
