"""Assignment of boxes to cells of the head's grid: SimOTA over the cells near each box's centre."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mtl_jax.tasks import boxes
from mtl_jax.tasks.base import ImageSize

WINDOW_CELLS = 5  # candidates: a window of 5 x 5 cells around the box's centre on each level (YOLOX: radius 2.5)
MAX_CELLS_PER_BOX = 10  # YOLOX's q: the IoUs of this many candidates add up to a box's number of cells
IOU_COST = 3.0  # weight of -log(IoU) against the class's cross-entropy (YOLOX)
OUTSIDE_COST = 1e4  # of a candidate whose centre is outside its box: above any other cost, still exact to 1e-3
LOG_FLOOR = 1e-8


def window_candidates(
    boxes_xyxy: Float[Array, "n 4"], image_size: ImageSize, strides: tuple[int, ...]
) -> tuple[Int[Array, "n m"], Bool[Array, "n m"]]:
    """Lists the cells around each box's centre on every level, so that the smallest box has candidates too.

    Args:
        boxes_xyxy: finite boxes, px.
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Returns:
        Index of each candidate among all cells, and whether it lies on the grid.
    """
    centre = boxes.to_centre_size(boxes_xyxy)[:, :2]
    dy, dx = np.mgrid[:WINDOW_CELLS, :WINDOW_CELLS].reshape(2, -1) - WINDOW_CELLS // 2
    cells, on_grid, first = [], [], 0
    for stride, (rows, columns) in zip(strides, boxes.level_shapes(image_size, strides), strict=True):
        home = jnp.floor(centre / stride).astype(jnp.int32)
        x, y = home[:, :1] + jnp.asarray(dx)[None, :], home[:, 1:] + jnp.asarray(dy)[None, :]
        is_inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
        cells.append(jnp.where(is_inside, first + y * columns + x, 0))
        on_grid.append(is_inside)
        first += rows * columns
    return jnp.concatenate(cells, axis=1), jnp.concatenate(on_grid, axis=1)


def sim_ota(
    predicted_xyxy: Float[Array, "cells 4"],
    objectness: Float[Array, " cells"],
    class_logits: Float[Array, "cells classes"],
    boxes_xyxy: Float[Array, "n 4"],
    label: Int[Array, " n"],
    valid: Bool[Array, " n"],
    *,
    image_size: ImageSize,
    strides: tuple[int, ...],
) -> Int[Array, " cells"]:
    """Gives each box its cheapest candidates, as many as their IoUs add up to.

    A cell that several boxes choose goes to the one it costs least. Only the candidates' costs are computed,
    75 cells per box at three levels instead of every cell. A box that loses all of its cells to others is
    then given its cheapest candidate that nobody needs, so every valid box near the image learns, unless
    there are more boxes than cells around it.

    Args:
        predicted_xyxy: what the cells predict at present, px.
        objectness: logit of each cell.
        class_logits: of each cell.
        boxes_xyxy: finite boxes of one image, px.
        label: their classes.
        valid: which of them count.
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Returns:
        The box of each cell, or n for none.

    References:
        Ge et al., "YOLOX: Exceeding YOLO Series in 2021", 2021.
    """
    centres, _ = boxes.cell_grid(image_size, strides)
    cells, candidate = window_candidates(boxes_xyxy, image_size, strides)
    candidate &= valid[:, None]
    shape = (*cells.shape, 4)
    overlap = boxes.iou(predicted_xyxy[cells], jnp.broadcast_to(boxes_xyxy[:, None], shape))
    overlap = jnp.where(candidate, overlap, 0.0)
    position = jnp.asarray(centres)[cells]
    is_inside = jnp.all((position > boxes_xyxy[:, None, :2]) & (position < boxes_xyxy[:, None, 2:]), axis=-1)
    cost = (
        _class_cost(objectness, class_logits)[cells, label[:, None]]
        - IOU_COST * jnp.log(overlap + LOG_FLOOR)
        + jnp.where(is_inside, 0.0, OUTSIDE_COST)
    )
    cost = jnp.where(candidate, cost, jnp.inf)

    count = min(MAX_CELLS_PER_BOX, cells.shape[1])
    match_counts = jnp.clip(jax.lax.top_k(overlap, count)[0].sum(axis=1).astype(jnp.int32), 1)
    negative_cost, best = jax.lax.top_k(-cost, count)
    is_match = (jnp.arange(count)[None, :] < match_counts[:, None]) & jnp.isfinite(negative_cost)
    best_cells = jnp.take_along_axis(cells, best, axis=1)
    owner = _cheapest_owner(best_cells, -negative_cost, is_match, cells=len(objectness))
    return _serve_the_empty_handed(owner, cells, cost)


def _class_cost(
    objectness: Float[Array, " cells"], class_logits: Float[Array, "cells classes"]
) -> Float[Array, "cells classes"]:
    """Cross-entropy of each cell's class scores, were its box of that class."""
    log_score = 0.5 * (jax.nn.log_sigmoid(objectness)[:, None] + jax.nn.log_sigmoid(class_logits))
    log_rest = jnp.log(-jnp.expm1(jnp.minimum(log_score, -LOG_FLOOR)))
    return -log_rest.sum(axis=1, keepdims=True) + log_rest - log_score


def _cheapest_owner(
    match_counts: Int[Array, "n k"], cost: Float[Array, "n k"], is_match: Bool[Array, "n k"], *, cells: int
) -> Int[Array, " cells"]:
    """Returns the box of each cell, n for none; of several boxes the one that it costs least."""
    n = match_counts.shape[0]
    target = jnp.where(is_match, match_counts, cells)  # an index past the end is dropped
    lowest = jnp.full(cells, jnp.inf).at[target].min(cost, mode="drop")
    winner = is_match & (cost <= lowest[match_counts])
    box = jnp.broadcast_to(jnp.arange(n)[:, None], match_counts.shape)
    return jnp.full(cells, n).at[jnp.where(winner, match_counts, cells)].min(box, mode="drop")


def _serve_the_empty_handed(
    owner: Int[Array, " cells"], candidates: Int[Array, "n m"], cost: Float[Array, "n m"]
) -> Int[Array, " cells"]:
    """Gives each box without a cell its cheapest candidate that is free, or that its owner can spare."""
    n = candidates.shape[0]
    has_candidate = jnp.isfinite(cost).any(axis=1)

    def owned(owner: Array) -> Array:
        return jnp.zeros(n + 1, jnp.int32).at[owner].add(1)

    def in_need(owner: Array, given_up: Array) -> Array:
        return has_candidate & (owned(owner)[:n] == 0) & ~given_up

    def serve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        owner, given_up = state
        box = jnp.argmax(in_need(owner, given_up))
        holder = owner[candidates[box]]
        spare = (holder == n) | (owned(owner)[holder] > 1)
        price = jnp.where(spare, cost[box], jnp.inf)
        pick = jnp.argmin(price)
        possible = jnp.isfinite(price[pick])
        cell = candidates[box, pick]
        owner = owner.at[cell].set(jnp.where(possible, box, owner[cell]))
        return owner, given_up.at[box].set(~possible)

    start = (owner, jnp.zeros(n, bool))
    return jax.lax.while_loop(lambda state: in_need(*state).any(), serve, start)[0]
