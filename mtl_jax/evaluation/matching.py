"""Which scores of detections and tags are right: boxes are matched with objects, tags with labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mtl_jax.tasks.base import Geometry, Labels
from mtl_jax.tasks.mean_average_precision import to_original

MATCH_IOU = 0.5  # of a box with the object that it finds


class YesNo(NamedTuple):
    """Scores that are each right or wrong: of detections, or of tags."""

    score: Float[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]  # the class of each
    correct: Bool[np.ndarray, " n"]
    objects: Int[np.ndarray, " classes"]  # that there are to be found


def detections(prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry, count: int) -> YesNo | None:
    """Matches one image's detections, the best first, with its objects of the same class, each object once.

    What finds nothing but a crowd is neither right nor wrong.

    Args:
        prediction: of one image, for the network's input.
        target: its labels, in pixels of the image.
        geometry: where the image went in the input.
        count: of classes.

    Returns:
        What was found; None where nobody looked for objects.
    """
    paired = pairs(prediction, target, geometry, count)
    return None if paired is None else matched_objects(paired, count)


def matched_objects(pairs: Pairs, count: int) -> YesNo:
    """As `detections`, of boxes and objects whose overlaps are known.

    Args:
        pairs: of one image.
        count: of classes.
    """
    overlap, is_free = np.where(pairs.same_class, pairs.overlap, 0.0), ~pairs.crowd
    correct, is_counted = np.zeros(len(overlap), bool), np.ones(len(overlap), bool)
    for row, overlaps in enumerate(overlap):
        free_overlaps = np.where(is_free, overlaps, 0.0)
        if len(free_overlaps) and free_overlaps.max() >= MATCH_IOU:
            correct[row] = True
            is_free[free_overlaps.argmax()] = False
        else:
            is_counted[row] = not (pairs.crowd & (overlaps > 0)).any()
    objects = np.bincount(pairs.object_class[pairs.to_be_found], minlength=count)
    return YesNo(pairs.score[is_counted], pairs.label[is_counted], correct[is_counted], objects)


def confusion(pairs: Pairs, least: Float[np.ndarray, " classes"]) -> Int[np.ndarray, "truth predicted"]:
    """Counts one image's objects by the class of the box that finds them.

    Boxes find objects of their own class first, then what is left of any class, the best box first, each object once.

    Args:
        pairs: of one image.
        least: score of each class that a box must have.

    Returns:
        [classes + 1, classes + 1]: the last row holds boxes that find nothing (a crowd apart), the last column objects
        that no box finds.
    """
    counts = np.zeros((len(least) + 1,) * 2, np.int64)
    is_free, is_unused = pairs.to_be_found.copy(), pairs.score >= least[pairs.label]
    for allowed_pairs in (pairs.same_class, ~pairs.same_class):
        for row in np.flatnonzero(is_unused):
            free_overlaps = np.where(is_free & allowed_pairs[row], pairs.overlap[row], 0.0)
            if len(free_overlaps) and free_overlaps.max() >= MATCH_IOU:
                best = free_overlaps.argmax()
                counts[pairs.object_class[best], pairs.label[row]] += 1
                is_free[best], is_unused[row] = False, False
    on_crowd = (pairs.crowd & pairs.same_class & (pairs.overlap > 0)).any(axis=1)
    np.add.at(counts[-1], pairs.label[is_unused & ~on_crowd], 1)
    np.add.at(counts[:, -1], pairs.object_class[is_free], 1)
    return counts


class Pairs(NamedTuple):
    """One image's boxes of labelled classes, the best first, and its objects."""

    score: Float[np.ndarray, " boxes"]
    label: Int[np.ndarray, " boxes"]
    overlap: Float[np.ndarray, "boxes objects"]  # intersection over union
    same_class: Bool[np.ndarray, "boxes objects"]
    object_class: Int[np.ndarray, " objects"]
    crowd: Bool[np.ndarray, " objects"]
    to_be_found: Bool[np.ndarray, " objects"]  # of a labelled class, and no crowd


def pairs(prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry, count: int) -> Pairs | None:
    """Compares one image's boxes with its objects; the arguments are those of `detections`, and so is None."""
    objects = np.asarray(target["boxes_xyxy"], np.float64).reshape(-1, 4)
    if len(objects) and np.isnan(objects).all():
        return None
    object_class = np.asarray(target["label"]).astype(int).reshape(-1)
    labelled = np.broadcast_to(np.asarray(target.get("labelled", True)), count)
    crowd = np.asarray(target.get("crowd", np.zeros(len(objects), bool)))
    label = np.asarray(prediction["label"]).astype(int)
    order = np.flatnonzero(np.asarray(prediction["valid"]).astype(bool) & labelled[label])
    order = order[np.argsort(-np.asarray(prediction["score"])[order], kind="stable")]
    overlap = _iou(to_original(np.asarray(prediction["boxes_xyxy"], np.float64)[order], geometry), objects)
    return Pairs(
        np.asarray(prediction["score"], np.float64)[order],
        label[order],
        overlap,
        label[order][:, None] == object_class[None],
        object_class,
        crowd,
        ~crowd & labelled[object_class],
    )


def tags(prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry, count: int) -> YesNo:
    """Returns the probabilities of those classes of which it is known whether one image shows them."""
    del geometry
    label = np.asarray(target["label"], np.float64)
    labelled_tags = np.flatnonzero(np.isfinite(label))
    true = label[labelled_tags] == 1
    objects = np.bincount(labelled_tags[true], minlength=count)
    return YesNo(np.asarray(prediction["probability"], np.float64)[labelled_tags], labelled_tags, true, objects)


Match = Callable[[Mapping[str, np.ndarray], Labels, Geometry, int], YesNo | None]
MATCHES: dict[str, Match] = {"detection": detections, "multi_label": tags}


def _iou(boxes: Float[np.ndarray, "n 4"], other_boxes: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    corner, far = np.maximum(boxes[:, None, :2], other_boxes[:, :2]), np.minimum(boxes[:, None, 2:], other_boxes[:, 2:])
    common = np.prod(np.maximum(far - corner, 0.0), axis=2)
    first, second = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (boxes, other_boxes))
    return common / np.maximum(first[:, None] + second - common, 1e-9)
