"""Geometry of boxes: cells of the head's grid, overlaps, and non-maximum suppression of fixed size."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mtl_jax.tasks.base import ImageSize

PRIOR_SIZE_CELLS = 4.0  # width and height of a box whose log-size is 0, in cells: 32, 64, 128 px at strides 8, 16, 32
MAX_LOG_SIZE = 4.0  # of a box against the prior: 1/55 to 55 times, so 0.6 px to 7,000 px
EPSILON = 1e-7  # px² or px, keeps divisions by the area of an empty box finite


def level_shapes(image_size: ImageSize, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """Returns the rows and columns of each level's grid; a partial cell at the border counts."""
    height, width = image_size
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def cell_grid(
    image_size: ImageSize, strides: tuple[int, ...]
) -> tuple[Float[Array | np.ndarray, "cells 2"], Float[Array | np.ndarray, " cells"]]:
    """Lists the cells of all levels, level by level, each row-major.

    Args:
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Returns:
        The cells' centres (x, y) and strides, px.
    """
    # Of a size that is a symbol (`jax.export`), the exported program computes the grid.
    library: Any = np if all(isinstance(length, int | np.integer) for length in image_size) else jnp
    centres, cell_strides = [], []
    for stride, (rows, columns) in zip(strides, level_shapes(image_size, strides), strict=True):
        ranges = (library.arange(length, dtype=np.float32) for length in (rows, columns))
        y, x = library.meshgrid(*ranges, indexing="ij")
        centres.append((library.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride)
        cell_strides.append(library.full(rows * columns, stride, np.float32))
    return library.concatenate(centres).astype(np.float32), library.concatenate(cell_strides)


def decode(
    offsets: Float[Array, "*batch cells 4"],
    centres: Float[Array | np.ndarray, "cells 2"],
    strides: Float[Array | np.ndarray, " cells"],
) -> Float[Array, "*batch cells 4"]:
    """Turns what the head emits into boxes (cx, cy, w, h) in px.

    Args:
        offsets: (x, y) from the cell's centre in cells, then log-width and log-height against the prior.
        centres: of the cells, px.
        strides: of the cells, px.
    """
    lead = (1,) * (offsets.ndim - 2)
    stride = jnp.asarray(strides).reshape(*lead, -1, 1)
    xy = jnp.asarray(centres).reshape(*lead, -1, 2) + offsets[..., :2] * stride
    log_size = jnp.clip(offsets[..., 2:], -MAX_LOG_SIZE, MAX_LOG_SIZE)
    return jnp.concatenate([xy, PRIOR_SIZE_CELLS * stride * jnp.exp(log_size)], axis=-1)


def encode(
    boxes_cxcywh: Float[Array, "*batch cells 4"],
    centres: Float[Array | np.ndarray, "cells 2"],
    strides: Float[Array | np.ndarray, " cells"],
) -> Float[Array, "*batch cells 4"]:
    """Inverts `decode` for boxes of positive size within its range."""
    lead = (1,) * (boxes_cxcywh.ndim - 2)
    stride = jnp.asarray(strides).reshape(*lead, -1, 1)
    xy = (boxes_cxcywh[..., :2] - jnp.asarray(centres).reshape(*lead, -1, 2)) / stride
    return jnp.concatenate([xy, jnp.log(boxes_cxcywh[..., 2:] / (PRIOR_SIZE_CELLS * stride))], axis=-1)


TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], np.float32)


def to_corners(boxes_cxcywh: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(cx, cy, w, h) -> (x0, y0, x1, y1)."""
    return jnp.matmul(boxes_cxcywh, TO_CORNERS, precision="highest")  # exact: all factors are 1, 1/2 or 0


def to_centre_size(boxes_xyxy: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """(x0, y0, x1, y1) -> (cx, cy, w, h)."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def _overlap(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the areas of the intersection and of the union."""
    # One coordinate after the other: computed together, they would be rows of two numbers, which are slow to run along.
    sides = []
    for low, high in ((0, 2), (1, 3)):
        common = jnp.minimum(a[..., high], b[..., high]) - jnp.maximum(a[..., low], b[..., low])
        sides.append((jnp.maximum(common, 0.0), a[..., high] - a[..., low], b[..., high] - b[..., low]))
    intersection, area_a, area_b = (width * height for width, height in zip(*sides, strict=True))
    return intersection, area_a + area_b - intersection


def iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Intersection over union of boxes (x0, y0, x1, y1), pair by pair; 0 where both are empty."""
    intersection, union = _overlap(a, b)
    return intersection / jnp.maximum(union, EPSILON)


def iou_matrix(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Intersection over union of every box of `a` with every box of `b`, both (x0, y0, x1, y1)."""
    shape = (a.shape[0], b.shape[0], 4)
    return iou(jnp.broadcast_to(a[:, None], shape), jnp.broadcast_to(b[None], shape))


def generalised_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """IoU less the share of the enclosing box that neither box fills: -1 to 1, pair by pair.

    References:
        Rezatofighi et al., "Generalized Intersection over Union: A Metric and a Loss for Bounding Box
        Regression", 2019.
    """
    intersection, union = _overlap(a, b)
    enclosing = jnp.maximum(a[..., 2:], b[..., 2:]) - jnp.minimum(a[..., :2], b[..., :2])
    hull = jnp.maximum(enclosing[..., 0] * enclosing[..., 1], EPSILON)
    return intersection / jnp.maximum(union, EPSILON) - (hull - union) / hull


def complete_iou(predicted: Float[Array, "*n 4"], target: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """IoU less the distance of the centres and the difference of the aspect ratios, pair by pair.

    The trade-off factor alpha is held constant in the gradient, as the authors do.

    References:
        Zheng et al., "Distance-IoU Loss: Faster and Better Learning for Bounding Box Regression", 2020.
    """
    overlap = iou(predicted, target)
    enclosing = jnp.maximum(predicted[..., 2:], target[..., 2:]) - jnp.minimum(predicted[..., :2], target[..., :2])
    diagonal = jnp.maximum(jnp.sum(enclosing**2, axis=-1), EPSILON)
    a, b = to_centre_size(predicted), to_centre_size(target)
    distance = jnp.sum((a[..., :2] - b[..., :2]) ** 2, axis=-1)
    angle_a = jnp.arctan(a[..., 2] / jnp.maximum(a[..., 3], EPSILON))
    angle_b = jnp.arctan(b[..., 2] / jnp.maximum(b[..., 3], EPSILON))
    aspect = (4 / np.pi**2) * (angle_a - angle_b) ** 2
    alpha = jax.lax.stop_gradient(aspect / jnp.maximum(1 - overlap + aspect, EPSILON))
    return overlap - distance / diagonal - alpha * aspect


def vote(
    boxes_xyxy: Float[Array, "n 4"],
    score: Float[Array, " n"],
    label: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float,
    shifted_boxes: tuple[Float[Array, "m 4"], Int[Array, " m"]] | None = None,
) -> Float[Array, "m 4"]:
    """Replaces each box by the mean, weighted by score, of the boxes of its class that overlap it.

    Suppression keeps one box of many that found the same object; their mean lies nearer to it than any of them.

    Args:
        boxes_xyxy: corners, px.
        score: of each box, above 0 where valid.
        label: class of each box.
        valid: boxes that take part; the others do not vote.
        iou_threshold: overlap above which a box counts for another.
        shifted_boxes: corners and classes of the boxes that are replaced; all if None. One that no box overlaps stays.

    References:
        Gidaris, Komodakis, "Object detection via a multi-region & semantic segmentation-aware CNN model", 2015.
    """
    corners, classes = (boxes_xyxy, label) if shifted_boxes is None else shifted_boxes
    voting_label = jnp.where(valid, label, -1)
    near = (classes[:, None] == voting_label[None, :]) & (iou_matrix(corners, boxes_xyxy) > iou_threshold)
    weight = jnp.where(near, score[None, :], 0.0)
    total = weight.sum(axis=1, keepdims=True)
    return jnp.where(total > 0, weight @ boxes_xyxy / jnp.where(total > 0, total, 1.0), corners)


def suppress(
    boxes_xyxy: Float[Array, "n 4"],
    label: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    iou_threshold: float,
) -> Bool[Array, " n"]:
    """Greedy non-maximum suppression within each class, for boxes sorted by falling score.

    A box stays when no better box that stays overlaps it. Starting from "all stay" and applying that rule to
    all boxes at once settles one link of every chain of overlaps per round, so the fixed point is the greedy
    result, after as many rounds as the longest chain (a handful) instead of one per box.

    Args:
        boxes_xyxy: best first.
        label: class of each box; boxes of different classes do not compete.
        valid: boxes that take part; the others do not stay.
        iou_threshold: overlap above which the worse box goes.

    Returns:
        Which boxes stay.
    """
    return greedy_suppression(boxes_xyxy, label, valid, jnp.float32(iou_threshold))


@jax.jit  # under a name by which exported files know it: they have an operator for it
def greedy_suppression(
    boxes_xyxy: Float[Array, "n 4"], label: Int[Array, " n"], valid: Bool[Array, " n"], iou_threshold: Float[Array, ""]
) -> Bool[Array, " n"]:
    """Says which boxes stay; arguments as in `suppress`."""
    # A row says which boxes one box may suppress: XLA's CPU code combines rows in vectors, and columns one by one.
    scores_higher = jnp.arange(len(label))[:, None] < jnp.arange(len(label))[None, :]
    rivals = scores_higher & (label[:, None] == label[None, :]) & (iou_matrix(boxes_xyxy, boxes_xyxy) > iou_threshold)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, keep = state
        return keep, valid & ~jnp.any(rivals & keep[:, None], axis=0)

    start = (jnp.zeros_like(valid), valid)
    return jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), settle, start)[1]
