"""Decoding of a detector's grid: boxes, objectness and classes of the cells, and the choice of detections."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mtl_jax.kernels import cpu_kernels
from mtl_jax.tasks import boxes
from mtl_jax.tasks.base import ImageSize

OBJECTNESS_PRIOR = 0.01  # of an untrained head, whose biases are zero (Lin et al., "Focal Loss", 2017)
PRIOR_LOGIT = float(np.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR)))
BOX_CHANNELS, OBJECTNESS = 4, 4  # a cell's channels: 4 of the box, objectness, classes

Cells = Float[Array, "batch cells channels"]


class Selection(NamedTuple):
    """Which boxes are detections."""

    score_threshold: float  # those with a lower score are not valid
    nms_iou: float  # overlap above which the worse of two boxes of a class goes
    voting_iou: float  # overlap above which a box of the same class moves the one that stays (`boxes.vote`)
    candidates: int  # pairs of cell and class that are looked at, the best by score
    max_detections: int  # of an image


def finish(raw: Cells, image_size: ImageSize, strides: tuple[int, ...]) -> Cells:
    """Returns per cell cx, cy, w, h in px, the objectness logit and the class logits.

    Args:
        raw: as `boxes.decode` reads the box; the objectness is relative to its prior.
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Raises:
        ValueError: `raw` has another number of cells than the levels of such an image.
    """
    centres, cell_strides = _grid(raw, image_size, strides)
    raw = raw.astype(jnp.float32)
    box = boxes.decode(raw[..., :BOX_CHANNELS], centres, cell_strides)
    objectness = raw[..., OBJECTNESS : OBJECTNESS + 1] + PRIOR_LOGIT
    return jnp.concatenate([box, objectness, raw[..., OBJECTNESS + 1 :]], axis=-1)


def _grid(raw: Cells, image_size: ImageSize, strides: tuple[int, ...]) -> tuple[Any, Any]:
    """Centres and strides of the cells; checks their number."""
    centres, cell_strides = boxes.cell_grid(image_size, strides)
    if raw.shape[1] != centres.shape[0]:
        raise ValueError(
            f"expected {centres.shape[0]} cells for an image of {image_size} px at strides {strides}, found "
            f"{raw.shape[1]}; pass the image size that the head saw"
        )
    return centres, cell_strides


def decode(outputs: Cells, selection: Selection) -> dict[str, Array]:
    """Returns the best boxes after non-maximum suppression within each class, best first.

    The score is the geometric mean of objectness and class probability: both learn the IoU, so their mean
    estimates it, while their product, which ranks alike, would be its square. A cell may predict several
    classes.

    Args:
        outputs: of `finish`.
        selection: which boxes are detections; k = `max_detections`.

    Returns:
        "boxes_xyxy" f32[batch, k, 4] in px of the input, "score" f32[batch, k], "label" i32[batch, k] and
        "valid" bool[batch, k]; the entries that are not valid are 0.
    """
    return decode_parts(outputs, selection, (outputs.shape[-1] - OBJECTNESS - 1,))


def decode_parts(outputs: Cells, selection: Selection, class_counts: tuple[int, ...]) -> dict[str, Array]:
    """Returns the best boxes of several detectors, best first; what one finds does not depend on the others.

    Args:
        outputs: of `finish`, the columns of each detector one after another.
        selection: which boxes of each detector are detections.
        class_counts: classes of each detector.

    Returns:
        As `decode`, with k = `max_detections` of each detector; the classes of a detector come after those before.
    """
    if cpu_kernels.in_use():
        return _decode_compiled(outputs, np.zeros((0, 3), np.float32), selection, class_counts)
    function = functools.partial(_decode_parts_of_one, selection=selection, class_counts=class_counts)
    return jax.vmap(function)(outputs)


def predictions(
    raw: Cells,
    selection: Selection,
    class_counts: tuple[int, ...],
    *,
    image_size: ImageSize,
    strides: tuple[int, ...],
) -> dict[str, Array]:
    """Returns what `decode_parts` makes of the finished outputs of several detectors.

    The compiled kernel finishes the boxes of its candidates alone.

    Args:
        raw: as `finish` reads it, the columns of each detector one after another.
        selection: which boxes of each detector are detections.
        class_counts: classes of each detector.
        image_size: height and width of the network's input, px.
        strides: px per cell of each level.

    Raises:
        ValueError: `raw` has another number of cells than the levels of such an image.
    """
    if cpu_kernels.in_use():
        centres, cell_strides = _grid(raw, image_size, strides)
        grid = np.concatenate([centres, np.asarray(cell_strides)[:, None]], axis=-1)
        return _decode_compiled(raw.astype(jnp.float32), grid, selection, class_counts)
    parts = [finish(part, image_size, strides) for part in split(raw, class_counts)]
    return decode_parts(jnp.concatenate(parts, axis=-1), selection, class_counts)


def split(cells: Float[Array, "*cells channels"], class_counts: tuple[int, ...]) -> list[Array]:
    """Returns the columns of each detector.

    Args:
        cells: the columns of several detectors one after another.
        class_counts: classes of each detector.
    """
    ends = np.cumsum([OBJECTNESS + 1 + count for count in class_counts]).tolist()
    return [cells[..., start:end] for start, end in zip((0, *ends[:-1]), ends, strict=True)]


def _decode_compiled(
    cells: Cells, grid: Float[np.ndarray, "places 3"], selection: Selection, class_counts: tuple[int, ...]
) -> dict[str, Array]:
    limits = (("candidates", selection.candidates), ("detections", selection.max_detections))
    size = len(class_counts) * selection.max_detections, BOX_CHANNELS + 2
    kernel = cpu_kernels.Kernel("detections", size, (True, False, False, False), limits)
    thresholds = (selection.score_threshold, selection.nms_iou, selection.voting_iou)
    settings = (*thresholds, PRIOR_LOGIT, boxes.MAX_LOG_SIZE, boxes.PRIOR_SIZE_CELLS)
    constants = (jnp.asarray(np.asarray(values, np.float32)) for values in (grid, settings, class_counts))
    found = cpu_kernels.call(kernel, cells, *constants)
    box, score, number = found[..., :BOX_CHANNELS], found[..., BOX_CHANNELS], found[..., BOX_CHANNELS + 1]
    is_found = number > 0
    return {
        "boxes_xyxy": box,
        "score": score,
        "label": jnp.where(is_found, number - 1, 0).astype(jnp.int32),
        "valid": is_found,
    }


def _decode_parts_of_one(
    outputs: Float[Array, "cells channels"], selection: Selection, class_counts: tuple[int, ...]
) -> dict[str, Array]:
    results, first = [], 0
    for count, part in zip(class_counts, split(outputs, class_counts), strict=True):
        result = _decode_one(part, selection)
        results.append({**result, "label": jnp.where(result["valid"], result["label"] + first, 0)} if first else result)
        first += count
    if len(results) == 1:
        return results[0]
    merged = {name: jnp.concatenate([result[name] for result in results]) for name in results[0]}
    _, order = jax.lax.top_k(merged["score"], merged["score"].shape[0])
    return {
        name: values.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)
        for name, values in merged.items()
    }


def every_box(outputs: Cells) -> dict[str, Array]:
    """Returns the box of every cell and its score as each class, of which `decode` chooses.

    Args:
        outputs: of `finish`.

    Returns:
        "boxes_xyxy" f32[batch, cells, 4] in px of the input and "score" f32[batch, cells, classes].
    """
    return {"boxes_xyxy": boxes.to_corners(outputs[..., :BOX_CHANNELS]), "score": scores(outputs)}


def scores(outputs: Float[Array, "*cells channels"]) -> Float[Array, "*cells classes"]:
    """Returns the score of every box as each class, 0 to 1."""
    objectness = jax.nn.sigmoid(outputs[..., OBJECTNESS : OBJECTNESS + 1])
    return jnp.sqrt(objectness * jax.nn.sigmoid(outputs[..., OBJECTNESS + 1 :]))


def _best(score: Float[Array, " n"], count: int) -> tuple[Float[Array, " best"], Int[Array, " best"]]:
    """Returns the largest scores, and where they are.

    Of as many scores as a symbol says (`jax.export`), which may be fewer than `count`, always so many: those that are
    missing are of no detection.
    """
    if isinstance(score.shape[0], int):
        best, index = jax.lax.top_k(score, min(count, score.shape[0]))
        return best, index
    best, index = jax.lax.top_k(jnp.concatenate([score, jnp.full(count, -1.0)]), count)
    return best, jnp.minimum(index, score.shape[0] - 1)


def _decode_one(outputs: Float[Array, "cells channels"], selection: Selection) -> dict[str, Array]:
    score = scores(outputs)
    cell_count = score.shape[0]
    score, index = _best(score.T.reshape(-1), selection.candidates)
    label = jax.lax.div(index, cell_count)
    cells = outputs[:, :BOX_CHANNELS].at[jax.lax.rem(index, cell_count)]
    box = boxes.to_corners(cells.get(mode="promise_in_bounds", wrap_negative_indices=False))
    valid = score >= selection.score_threshold
    keep = boxes.suppress(box, label, valid, iou_threshold=selection.nms_iou)
    index, is_kept = _first(keep, selection.max_detections)

    def take(values: Array) -> Array:
        rows = values.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)
        return jnp.where(is_kept.reshape(-1, *[1] * (values.ndim - 1)), rows, jnp.zeros((), values.dtype))

    kept_boxes, kept_label = take(box), take(label)
    voted = boxes.vote(
        box, score, label, valid, iou_threshold=selection.voting_iou, shifted_boxes=(kept_boxes, kept_label)
    )
    return {"boxes_xyxy": voted, "score": take(score), "label": kept_label, "valid": is_kept}


def _first(keep: Bool[Array, " n"], count: int) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
    """Returns the places of the first `count` true entries, and which of them there are."""
    rank, missing = jnp.where(keep, jnp.arange(len(keep), 0, -1, dtype=jnp.float32), 0.0), count - len(keep)
    if missing <= 0:
        rank, index = jax.lax.top_k(rank, count)
        return index, rank > 0
    rank, index = jax.lax.top_k(jnp.pad(rank, (0, missing)), count)
    return jnp.minimum(index, len(keep) - 1), rank > 0
