"""Mean average precision as COCO defines it, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Constant, Geometry, Labels, share_error

FIGURES = ("map_50_95", "map_50", "map_75", "map_small", "map_medium", "map_large")  # in COCOeval's order
CONSTANT_CLASSES = 8  # the most frequent ones, whose mean box is the constant output: the others would add little


class MeanAveragePrecision:
    """Collects detections in coordinates of the original images and lets COCOeval judge them.

    A figure is NaN where there is nothing to find: without any object, or without any of that size. Boxes of
    crowds neither count as objects nor make the detections on them wrong. Images without objects count: what
    is detected there is wrong. Images without labels (boxes all NaN) are left out, and of images in which only some
    classes are labelled all objects and detections of the others.
    """

    def __init__(self, *, name: str, classes: tuple[str, ...]) -> None:
        self._name, self._classes = name, classes
        self._images: list[dict[str, Any]] = []
        self._objects: list[dict[str, Any]] = []
        self._detections: list[dict[str, Any]] = []

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: a label is outside the table of classes.
        """
        truth = np.asarray(target["boxes_xyxy"], np.float64).reshape(-1, 4)
        if len(truth) and np.isnan(truth).all():
            return
        label = np.asarray(target["label"])
        if len(label) and not 0 <= label.min() <= label.max() < len(self._classes):
            raise UserError(
                f"task {self._name!r}: expected labels below {len(self._classes)}, found {label.max()}; list "
                "every class in the config"
            )
        looked_for = np.asarray(target.get("labelled", np.ones(len(self._classes), bool)))
        image_id = len(self._images) + 1  # COCOeval takes 0 for "none"
        self._images.append({"id": image_id, "height": geometry.height, "width": geometry.width})
        sides = truth[:, 2:] - truth[:, :2]
        area = np.asarray(target.get("area", sides[:, 0] * sides[:, 1]))
        crowd = np.asarray(target.get("crowd", np.zeros(len(truth), bool)))
        for index in np.flatnonzero(looked_for[label]) if len(truth) else ():
            entry = _annotation(len(self._objects) + 1, image_id, truth[index], int(label[index]))
            self._objects.append(entry | {"area": float(area[index]), "iscrowd": int(crowd[index])})

        valid = np.asarray(prediction["valid"]).astype(bool) & looked_for[np.asarray(prediction["label"], int)]
        boxes = to_original(np.asarray(prediction["boxes_xyxy"], np.float64)[valid], geometry)
        for box, score, kind in zip(
            boxes, np.asarray(prediction["score"])[valid], np.asarray(prediction["label"])[valid], strict=True
        ):
            entry = _annotation(len(self._detections) + 1, image_id, box, int(kind))
            area = float(entry["bbox"][2] * entry["bbox"][3])
            self._detections.append(entry | {"area": area, "iscrowd": 0, "score": float(score)})

    def compute(self) -> dict[str, float]:
        """Returns the precision over IoU 0.50 to 0.95, at 0.50, at 0.75, and by size of the objects."""
        return self._judged(self._detections)

    def constant(self) -> Constant:
        """Returns what the same boxes in every image reach: each class's median one, scored by its frequency."""
        sides = {image["id"]: np.array([image["width"], image["height"]] * 2) for image in self._images}
        relative: dict[int, list[np.ndarray]] = {}
        for entry in self._objects:
            if not entry["iscrowd"]:
                box = np.array(entry["bbox"]) / sides[entry["image_id"]]
                relative.setdefault(entry["category_id"], []).append(box)
        frequent = sorted(relative, key=lambda category: -len(relative[category]))[:CONSTANT_CLASSES]
        medians = {category: np.median(relative[category], axis=0) for category in frequent}
        detections = [
            {"id": number, "image_id": image, "category_id": category, "bbox": (medians[category] * size).tolist()}
            | {"area": float(np.prod((medians[category] * size)[2:])), "iscrowd": 0, "score": len(relative[category])}
            for number, ((image, size), category) in enumerate(itertools.product(sides.items(), frequent), 1)
        ]
        figure, count = self._judged(detections)[FIGURES[0]], sum(map(len, relative.values()))
        return Constant(figure, share_error(figure, count), count, "object")

    def _judged(self, detections: list[dict[str, Any]]) -> dict[str, float]:
        if not any(not entry["iscrowd"] for entry in self._objects):
            return dict.fromkeys(FIGURES, float("nan"))
        from pycocotools.cocoeval import COCOeval  # compiled, and needed for this metric alone

        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
            judge = COCOeval(self._dataset(self._objects), self._dataset(detections), "bbox")
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
        values = judge.stats[: len(FIGURES)]
        return {name: float("nan") if value < 0 else float(value) for name, value in zip(FIGURES, values, strict=True)}

    def _dataset(self, annotations: list[dict[str, Any]]) -> Any:
        from pycocotools.coco import COCO

        dataset: Any = COCO()
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(self._classes)]
        # COCOeval writes into the annotations, so that it gets copies.
        dataset.dataset = {
            "images": self._images,
            "annotations": [dict(entry) for entry in annotations],
            "categories": categories,
        }
        dataset.createIndex()
        return dataset


def to_original(boxes_xyxy: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Moves boxes from the network's input to the original image and cuts them at its border."""
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    offset = np.array([geometry.offset_x, geometry.offset_y] * 2)
    limit = np.array([geometry.width, geometry.height] * 2)
    return np.clip((boxes_xyxy - offset) / scale, 0, limit)


def _annotation(number: int, image_id: int, box_xyxy: np.ndarray, label: int) -> dict[str, Any]:
    x0, y0, x1, y1 = (float(value) for value in box_xyxy)
    return {"id": number, "image_id": image_id, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
