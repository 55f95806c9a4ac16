"""Gather and scatter of rows within each example, and non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl_jax.export import onnx_layout as layout
from mtl_jax.export.onnx_graph import Graph, Tensor, Value, shape_of, untranslated


def _row_indices(graph: Graph, index: Value) -> Value:
    """Row number of each index, i64[batch, rows, 1]."""
    return graph.cast(graph.slice(index, (0, 0, 0), (*index.shape[:2], 1), (1, 1, 1)), np.int64)


def gather(graph: Graph, equation: Any, x: Value, index: Value) -> Value:
    """Gathers rows of each example, or a slice at a constant index."""
    dimensions = equation.params["dimension_numbers"]
    if isinstance(index, np.ndarray) and index.ndim == 1 and not dimensions.operand_batching_dims:
        return _static_slice(graph, equation, x, index)
    is_row = (1, 1, *x.shape[2:]) == tuple(equation.params["slice_sizes"])
    rows = is_row and tuple(dimensions.collapsed_slice_dims) == (1,) and tuple(dimensions.operand_batching_dims) == (0,)
    if not rows or tuple(dimensions.start_index_map) != (1,):
        raise untranslated(equation, "of anything but rows")
    shape = (*index.shape[:2], *x.shape[2:])
    return graph.node("GatherND", x, _row_indices(graph, index), shape=shape, dtype=x.dtype, batch_dims=1)


def _static_slice(graph: Graph, equation: Any, x: Value, index: np.ndarray) -> Value:
    dimensions, sizes = equation.params["dimension_numbers"], layout.integer_shape(equation.params["slice_sizes"])
    starts = dict(zip(dimensions.start_index_map, index.tolist(), strict=True))
    bounds = [
        (0, length, 1)
        if size == length
        else (first := min(max(starts.get(axis, 0), 0), length - size), first + size, 1)
        for axis, (size, length) in enumerate(zip(sizes, x.shape, strict=True))
    ]
    removed = tuple(dimensions.collapsed_slice_dims)
    is_full = [bound == (0, length, 1) for bound, length in zip(bounds, x.shape, strict=True)]
    remaining_full = all(full for axis, full in enumerate(is_full) if axis not in removed)
    if len(removed) == 1 and isinstance(x, Tensor) and remaining_full:
        return graph.take_entry(x, removed[0], bounds[removed[0]][0])
    result = graph.slice(x, *zip(*bounds, strict=True))
    return graph.reshape(result, [length for axis, length in enumerate(result.shape) if axis not in removed])


def scatter(graph: Graph, equation: Any, x: Value, index: Value, updates: Value) -> Value:
    """Scatters rows into each example; rows past the end are dropped, through a spare last row that is cut off."""
    dimensions = equation.params["dimension_numbers"]
    rows = tuple(dimensions.inserted_window_dims) == (1,) and tuple(dimensions.operand_batching_dims) == (0,)
    if not rows or tuple(dimensions.scatter_dims_to_operand_dims) != (1,):
        raise untranslated(equation, "of anything but rows")
    index, updates = (
        graph.expand(value, shape_of(variable))
        for value, variable in zip((index, updates), equation.invars[1:], strict=True)
    )
    batch, count, *row_shape = shape_of(equation.invars[0])
    extended = _append_zero_row(graph, x, (batch, count, *row_shape))
    number = _row_indices(graph, index)
    number = graph.node("Min", number, np.array(count, np.int64), shape=number.shape, dtype=np.int64)
    number = graph.reshape(number, (*number.shape[:2], *[1] * len(row_shape)))
    if row_shape:
        target = np.array([1, 1, *row_shape], np.int64)
        number = graph.node("Expand", number, target, shape=(*number.shape[:2], *row_shape), dtype=np.int64)
    scattered = graph.node("ScatterElements", extended, number, updates, shape=extended.shape, dtype=x.dtype, axis=1)
    rank = len(extended.shape)
    return graph.slice(scattered, (0,) * rank, (batch, count, *row_shape), (1,) * rank)


def _append_zero_row(graph: Graph, x: Value, shape: layout.Shape) -> Value:
    """Appends a row of zeros to each example; axes of `x` may have length 1 before they are broadcast."""
    batch, count, *row_shape = shape
    extended_shape, spare = (batch, count + 1, *row_shape), np.zeros((1, 1, *row_shape), x.dtype)
    if isinstance(x, np.ndarray):
        rows = np.broadcast_to(x, (x.shape[0], *shape[1:]))
        return graph.expand(np.concatenate([rows, spare.repeat(len(rows), axis=0)], axis=1), extended_shape)
    x, spare = graph.expand(x, shape), graph.expand(spare, (batch, 1, *row_shape))
    return graph.node("Concat", x, spare, shape=extended_shape, dtype=x.dtype, axis=1)


def non_maximum_suppression(
    graph: Graph, equation: Any, boxes: Value, label: Value, valid: Value, threshold: Value
) -> Any:
    """Non-maximum suppression within each class; boxes are sorted by score, so that their rank replaces the score."""
    if len(boxes.shape) != 3 or not isinstance(threshold, np.ndarray) or isinstance(label, np.ndarray):
        return None
    boxes, label, valid = (
        graph.expand(value, shape_of(variable))
        for value, variable in zip((boxes, label, valid), equation.invars, strict=False)
    )
    (batch, count, _), integer_type = boxes.shape, np.dtype(np.int64)
    rank = np.arange(count, 0, -1, dtype=np.float32)[None] / count
    score = graph.node("Where", valid, rank, np.zeros((), np.float32), shape=(batch, count), dtype=np.float32)
    last_label = graph.node("ReduceMax", label, shape=(), dtype=label.dtype, keepdims=0)
    zero, one = (np.array(number, label.dtype) for number in (0, 1))
    end = graph.node("Add", last_label, one, shape=(), dtype=label.dtype)
    classes = graph.node("Range", zero, end, one, shape=(0,), dtype=label.dtype)
    classes = graph.node("Unsqueeze", classes, np.array([1]), shape=(0, 1), dtype=label.dtype)
    label_row, score_row = (graph.reshape(value, (batch, 1, count)) for value in (label, score))
    same_class = graph.node("Equal", label_row, classes, shape=(batch, 0, count), dtype=np.bool_)
    scores = graph.node(
        "Where", same_class, score_row, np.zeros((), np.float32), shape=(batch, 0, count), dtype=np.float32
    )
    limits = np.array(count), threshold.reshape(()).astype(np.float32), np.zeros((), np.float32)
    selected_boxes = graph.node("NonMaxSuppression", boxes, scores, *limits, shape=(0, 3), dtype=integer_type)
    position = graph.node("Gather", selected_boxes, np.array([0, 2]), shape=(0, 2), dtype=integer_type, axis=1)
    image_number = graph.node("Gather", selected_boxes, np.array(0), shape=(0,), dtype=integer_type, axis=1)
    is_selected = graph.node("GreaterOrEqual", image_number, np.array(0), shape=(0,), dtype=np.bool_)
    nothing_selected = graph.node("And", valid, np.zeros((), np.bool_), shape=(batch, count), dtype=np.bool_)
    return graph.node("ScatterND", nothing_selected, position, is_selected, shape=(batch, count), dtype=np.bool_)
