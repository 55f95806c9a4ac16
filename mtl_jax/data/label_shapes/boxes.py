"""Bounding-box labels."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Integer

from mtl_jax.data.boxes import areas, clip_boxes, pad_boxes, place_boxes
from mtl_jax.data.label_shapes.colours import colour
from mtl_jax.data.label_shapes.shape import Facts, Label, LabelShape, Names
from mtl_jax.data.sources.base import Fields, counted
from mtl_jax.data.warp import Placement

_log = logging.getLogger(__name__)


class Boxes(LabelShape):
    """The objects of an image: {"boxes_xyxy": f32[n, 4], "label": i32[n], "crowd": bool[n], "area": f32[n]}.

    Boxes of NaN say that nobody looked for objects.
    """

    noun = "boxes"
    shows = "box"
    empty = "images without boxes"
    can_join = True

    def place(self, fields: Fields, placement: Placement, size: tuple[int, int], min_visible: float) -> Fields:
        """Moves and clips boxes, and drops those of which too little is left."""
        boxes = fields["boxes_xyxy"]
        if np.isnan(boxes).any():
            return dict(fields)
        boxes, visible = clip_boxes(place_boxes(boxes, placement), size=size, min_visible=min_visible)
        visible |= fields["crowd"] & (areas(boxes) > 0)  # a sliver of a crowd is still no background
        area = fields["area"] * np.float32(abs(placement.scale_x * placement.scale_y))
        moved = {"boxes_xyxy": boxes, "label": fields["label"], "crowd": fields["crowd"], "area": area}
        return {**fields, **{name: value[visible] for name, value in moved.items()}}

    def join(self, parts: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
        """Moves the boxes of every image to its corner."""
        shifted = [
            {**part, "boxes_xyxy": part["boxes_xyxy"] + np.array([[left, top, left, top]], np.float32)}
            for part, (top, left) in zip(parts, corners, strict=True)
        ]
        return {field: np.concatenate([part[field] for part in shifted]) for field in shifted[0]}

    def stack(self, labels: Sequence[Fields], max_boxes: int) -> Fields:
        """Returns as many boxes of every image, the largest where there are more."""
        padded = [pad_boxes(each, max_boxes) for each in labels]
        lost = sum(count for _, count in padded)
        if lost:
            _log.warning("%d boxes of a batch exceed max_boxes=%d: the smallest are left out", lost, max_boxes)
        whole = [{name: value for name, value in each.items() if name not in _OF_EACH} for each in labels]
        return super().stack([{**boxes, **rest} for (boxes, _), rest in zip(padded, whole, strict=True)], max_boxes)

    def renumbered(
        self, fields: Fields, numbers: Integer[np.ndarray, "own"], labelled: Bool[np.ndarray, "of"]
    ) -> Fields:
        """Renumbers boxes, and drops those of unlabelled classes."""
        if np.isnan(fields["boxes_xyxy"]).any():
            return fields
        label = numbers[fields["label"]].astype(np.int32)
        return {name: value[labelled[label]] for name, value in {**fields, "label": label}.items()}

    def outline(self, fields: Label, names: Names, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
        """Returns the pixels of all boxes that are no crowds."""
        del names
        outlined = np.zeros(size, bool)
        corners = np.nan_to_num(fields["boxes_xyxy"][~fields["crowd"]]).round().astype(int).clip(min=0)
        for left, top, right, bottom in corners:
            outlined[top:bottom, left:right] = True
        return outlined

    def alone(self, fields: Fields, there: Bool[np.ndarray, "height width"]) -> Fields:
        """Adds a crowd over the whole image: what it shows besides the objects is not labelled."""
        height, width = there.shape
        rest = {
            "boxes_xyxy": np.array([[0, 0, width, height]], np.float32),
            "label": np.zeros(1, fields["label"].dtype),
            "crowd": np.ones(1, bool),
            "area": np.array([height * width], np.float32),
        }
        return {**fields, **{name: np.concatenate([fields[name], rest[name]]) for name in rest}}

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the classes of the boxes that are no crowds."""
        crowd = fields.get("crowd", np.zeros(np.shape(fields["label"]), dtype=bool))
        known = np.isfinite(fields["boxes_xyxy"]).all(axis=-1)
        return set(fields["label"][known & ~crowd].tolist())

    def caption(self, fields: Label, names: Names) -> str:
        """Returns the classes of all boxes, crowds included, since these are drawn too."""
        shown = [int(index) for index in np.unique(fields["label"])]
        return ", ".join(names[index] for index in shown if 0 <= index < len(names)) or "nothing"

    def draw(self, picture: np.ndarray, fields: Label, scale: float) -> np.ndarray:
        """Frames every box in the colour of its class."""
        drawn = np.ascontiguousarray(picture)
        for box, label in zip(fields["boxes_xyxy"], fields["label"], strict=True):
            if np.isfinite(box).all():
                left, top, right, bottom = (round(float(edge) * scale) for edge in box)
                cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour(int(label)), 2)
        return drawn

    def observe(self, fields: Label) -> Facts:
        """Returns the boxes of each class, and the crowds."""
        crowd = fields.get("crowd", np.zeros(len(fields["label"]), bool))
        boxes = Counter(fields["label"][~crowd].tolist())
        return {"boxes": {str(label): count for label, count in sorted(boxes.items())}, "crowds": int(crowd.sum())}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the images and boxes of each class."""
        boxes: Counter[int] = Counter()
        images: Counter[int] = Counter()
        for each in facts:
            for label, count in each["boxes"].items():
                boxes[int(label)] += count
                images[int(label)] += 1
        return {
            "labelled": sum(boxes.values()),
            "unlabelled": sum(each["crowds"] for each in facts),
            "images_without": sum(not each["boxes"] for each in facts),
            "classes": {name: {"images": images[i], "boxes": boxes[i]} for i, name in enumerate(names)},
        }

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether there is neither a box nor a crowd."""
        del names
        return not facts["boxes"] and not facts["crowds"]

    def summary(self, figures: Mapping[str, Any]) -> str:
        """Returns how many boxes, crowds and images without boxes there are."""
        crowds, without = figures["unlabelled"], figures["images_without"]
        text = counted(figures["labelled"], "boxes")
        text += f", {counted(crowds, 'crowds')}" if crowds else ""
        return text + (f", {counted(without, 'images without boxes')}" if without else "")


_OF_EACH = ("boxes_xyxy", "label", "crowd", "area", "valid")  # a row for every box
