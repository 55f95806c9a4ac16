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
        placed_fields = {"boxes_xyxy": boxes, "label": fields["label"], "crowd": fields["crowd"], "area": area}
        return {**fields, **{name: value[visible] for name, value in placed_fields.items()}}

    def join(self, quarters: Sequence[Fields], corners: Sequence[tuple[int, int]]) -> Fields:
        """Moves the boxes of every image to its corner."""
        shifted_quarters = [
            {**quarter, "boxes_xyxy": quarter["boxes_xyxy"] + np.array([[left, top, left, top]], np.float32)}
            for quarter, (top, left) in zip(quarters, corners, strict=True)
        ]
        return {
            field: np.concatenate([quarter[field] for quarter in shifted_quarters]) for field in shifted_quarters[0]
        }

    def stack(self, labels: Sequence[Fields], max_boxes: int) -> Fields:
        """Returns as many boxes of every image, the largest where there are more."""
        padded = [pad_boxes(fields, max_boxes) for fields in labels]
        dropped_count = sum(count for _, count in padded)
        if dropped_count:
            _log.warning("%d boxes of a batch exceed max_boxes=%d: the smallest are left out", dropped_count, max_boxes)
        image_fields = [{name: value for name, value in fields.items() if name not in _OF_EACH} for fields in labels]
        return super().stack(
            [{**boxes, **image_label} for (boxes, _), image_label in zip(padded, image_fields, strict=True)], max_boxes
        )

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

    def restrict(self, fields: Fields, region: Bool[np.ndarray, "height width"]) -> Fields:
        """Adds a crowd over the whole image: its other objects are unlabelled."""
        height, width = region.shape
        crowd_fields = {
            "boxes_xyxy": np.array([[0, 0, width, height]], np.float32),
            "label": np.zeros(1, fields["label"].dtype),
            "crowd": np.ones(1, bool),
            "area": np.array([height * width], np.float32),
        }
        return {**fields, **{name: np.concatenate([fields[name], crowd_fields[name]]) for name in crowd_fields}}

    def classes_shown(self, fields: Label) -> set[int]:
        """Returns the classes of the boxes that are no crowds."""
        crowd = fields.get("crowd", np.zeros(np.shape(fields["label"]), dtype=bool))
        has_coordinates = np.isfinite(fields["boxes_xyxy"]).all(axis=-1)
        return set(fields["label"][has_coordinates & ~crowd].tolist())

    def caption(self, fields: Label, names: Names) -> str:
        """Returns the classes of all boxes, crowds included, since these are drawn too."""
        class_numbers = [int(index) for index in np.unique(fields["label"])]
        return ", ".join(names[index] for index in class_numbers if 0 <= index < len(names)) or "nothing"

    def draw(self, picture: np.ndarray, fields: Label, scale: float) -> np.ndarray:
        """Frames every box in the colour of its class."""
        canvas = np.ascontiguousarray(picture)
        for box, label in zip(fields["boxes_xyxy"], fields["label"], strict=True):
            if np.isfinite(box).all():
                left, top, right, bottom = (round(float(edge) * scale) for edge in box)
                cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour(int(label)), 2)
        return canvas

    def observe(self, fields: Label) -> Facts:
        """Returns the boxes of each class, and the crowds."""
        crowd = fields.get("crowd", np.zeros(len(fields["label"]), bool))
        boxes = Counter(fields["label"][~crowd].tolist())
        return {"boxes": {str(label): count for label, count in sorted(boxes.items())}, "crowds": int(crowd.sum())}

    def total(self, facts: Sequence[Facts], names: Names) -> Facts:
        """Returns the images and boxes of each class."""
        boxes: Counter[int] = Counter()
        images: Counter[int] = Counter()
        for image_facts in facts:
            for label, count in image_facts["boxes"].items():
                boxes[int(label)] += count
                images[int(label)] += 1
        return {
            "labelled": sum(boxes.values()),
            "unlabelled": sum(image_facts["crowds"] for image_facts in facts),
            "images_without": sum(not image_facts["boxes"] for image_facts in facts),
            "classes": {name: {"images": images[i], "boxes": boxes[i]} for i, name in enumerate(names)},
        }

    def is_empty(self, facts: Facts, names: Names) -> bool:
        """Whether there is neither a box nor a crowd."""
        del names
        return not facts["boxes"] and not facts["crowds"]

    def summary(self, figures: Mapping[str, Any]) -> str:
        """Returns how many boxes, crowds and images without boxes there are."""
        crowds, empty_images = figures["unlabelled"], figures["images_without"]
        text = counted(figures["labelled"], "boxes")
        text += f", {counted(crowds, 'crowds')}" if crowds else ""
        return text + (f", {counted(empty_images, 'images without boxes')}" if empty_images else "")


_OF_EACH = ("boxes_xyxy", "label", "crowd", "area", "valid")  # a row for every box
