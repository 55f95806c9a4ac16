"""Moves, clips and pads the boxes of a sample."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from mtl_jax.data.sources.base import Fields
from mtl_jax.data.warp import Placement


def place_boxes(boxes_xyxy: Float[np.ndarray, "boxes 4"], placement: Placement) -> Float[np.ndarray, "boxes 4"]:
    """Moves boxes, without clipping."""
    scale = np.array([[placement.scale_x, placement.scale_y]], np.float32)
    offset = np.array([[placement.offset_x, placement.offset_y]], np.float32)
    corners = np.stack([boxes_xyxy[:, :2] * scale + offset, boxes_xyxy[:, 2:] * scale + offset])
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1).astype(np.float32)


def clip_boxes(
    boxes_xyxy: Float[np.ndarray, "boxes 4"], *, size: tuple[int, int], min_visible: float
) -> tuple[Float[np.ndarray, "boxes 4"], Bool[np.ndarray, "boxes"]]:
    """Clips boxes to `size`; returns them, and which keep some area, at least a share of `min_visible`."""
    limit = np.array([[size[1], size[0], size[1], size[0]]], np.float32)
    clipped = np.clip(boxes_xyxy, 0, limit)
    area, visible = areas(boxes_xyxy), areas(clipped)
    return clipped, (visible > 0) & (visible >= min_visible * area)


def pad_boxes(fields: Fields, max_boxes: int) -> tuple[Fields, int]:
    """Brings a detection label to a fixed number of boxes.

    Args:
        fields: boxes_xyxy, label, crowd; boxes that are NaN say that nobody looked for objects.
        max_boxes: rows of the result. Where there are more boxes, the largest stay, objects before crowds.

    Returns:
        boxes_xyxy, label, valid (False for crowds and padding) and crowd, each of `max_boxes` rows, padded by
        zeros, or all NaN boxes where the label is missing; and how many boxes did not fit.
    """
    boxes, crowd = fields["boxes_xyxy"], fields["crowd"]
    padded = {
        "boxes_xyxy": np.zeros((max_boxes, 4), np.float32),
        "label": np.zeros(max_boxes, np.int32),
        "valid": np.zeros(max_boxes, bool),
        "crowd": np.zeros(max_boxes, bool),
    }
    if np.isnan(boxes).any():
        padded["boxes_xyxy"][:] = np.nan
        return padded, 0
    indices = np.arange(len(boxes))
    if len(boxes) > max_boxes:
        indices = np.sort(np.lexsort((-areas(boxes), crowd))[:max_boxes])
    padded["boxes_xyxy"][: len(indices)] = boxes[indices]
    padded["label"][: len(indices)] = fields["label"][indices]
    padded["valid"][: len(indices)] = ~crowd[indices]
    padded["crowd"][: len(indices)] = crowd[indices]
    return padded, len(boxes) - len(indices)


def areas(boxes_xyxy: Float[np.ndarray, "boxes 4"]) -> Float[np.ndarray, "boxes"]:
    """Returns the boxes' areas, px²."""
    return (boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])
