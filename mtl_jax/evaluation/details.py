"""Errors on validation images, image by image and class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from mtl_jax.evaluation import matching
from mtl_jax.tasks.base import Geometry, Labels, Task
from mtl_jax.tasks.calibration import least_scores
from mtl_jax.tasks.mean_iou import BACKGROUND

Curve = tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]  # recall, precision


class Judged(NamedTuple):
    """How good the prediction for one image is."""

    quality: float  # larger is better; comparable within a task
    words: str


class ByClass(NamedTuple):
    """The figures of every class."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    confusion: Int[np.ndarray, "truth predicted"] | None = None  # counts; of boxes, "nothing" is the last
    curve: Curve | None = None  # of all classes together


class Details(Protocol):
    """Accumulates over the images of a dataset."""

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> Judged | None:
        """Adds one image; None where it has no label."""
        ...

    def by_class(self) -> ByClass | None:
        """Returns the figures by class; None for tasks without classes."""
        ...


class MaskDetails:
    """Intersection over union of every class, over all labelled pixels.

    Where only some classes are labelled, background that is predicted as another class is left out, as of the metric.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counts = np.zeros((len(task.classes),) * 2, np.int64)
        self._labelled = np.zeros(len(task.classes), bool)  # in some image

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> Judged | None:
        """Adds one image, judged by the mean intersection over union of the classes that it shows."""
        count = len(self._task.classes)
        truth = np.asarray(target["mask"]).astype(np.int64)
        predicted = np.asarray(self._task.at_original(prediction, geometry)["mask"]).astype(np.int64)
        labelled = np.broadcast_to(np.asarray(target.get("labelled", True)), count)
        is_class = (truth >= 0) & (truth < count)
        is_background = np.array([name == BACKGROUND for name in self._task.classes])[np.where(is_class, truth, 0)]
        is_class &= labelled[np.where(is_class, truth, 0)] & ~(is_background & ~labelled[predicted])
        if not is_class.any():
            return None
        self._labelled |= labelled
        pairs = np.bincount(truth[is_class] * count + predicted[is_class], minlength=count**2).reshape(count, count)
        self._counts += pairs
        quality = float(_iou(pairs)[pairs.sum(axis=1) > 0].mean())
        return Judged(quality, f"IoU {quality:.2f}")

    def by_class(self) -> ByClass:
        """Returns share of pixels, IoU, precision and recall of every class."""
        counts, right = self._counts, np.diag(self._counts)
        figures = (
            _quotient(counts.sum(axis=1), np.full(len(counts), counts.sum())),
            _iou(counts),
            _quotient(right, counts.sum(axis=0)),
            _quotient(right, counts.sum(axis=1)),
        )
        columns = ("class", "share of pixels", "IoU", "precision", "recall")
        shown = [np.where(self._labelled, values, np.nan) for values in figures]  # of no class that nobody labelled
        return ByClass(columns, _rows(self._task.classes, *shown), counts)


class ClassDetails:
    """Precision and recall of the most probable class; images that label some classes are left out."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._counts = np.zeros((len(task.classes),) * 2, np.int64)

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> Judged | None:
        """Adds one image, judged by the probability of its label."""
        del geometry
        truth, probability = int(target["label"]), np.asarray(prediction["probability"], np.float64)
        if truth < 0 or not np.all(target.get("labelled", True)):
            return None
        self._counts[truth, int(probability.argmax())] += 1
        return Judged(float(probability[truth]), f"probability of the label {probability[truth]:.2f}")

    def by_class(self) -> ByClass:
        """Returns images, precision and recall of every class."""
        right, totals = np.diag(self._counts), self._counts.sum(axis=1)
        figures = totals, _quotient(right, self._counts.sum(axis=0)), _quotient(right, totals)
        return ByClass(("class", "images", "precision", "recall"), _rows(self._task.classes, *figures), self._counts)


class TagDetails:
    """Precision, recall and average precision of scores that are each right or wrong.

    What counts as shown reaches the least score of its class: that chosen for a calibrated task, else its kind's.
    """

    columns = ("class", "images", "precision", "recall", "AP")

    def __init__(self, task: Task) -> None:
        self._task = task
        self._least = least_scores(task)
        self._matches: list[matching.YesNo] = []

    def _matched(
        self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry
    ) -> matching.YesNo | None:
        return matching.tags(prediction, target, geometry, len(self._task.classes))

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> Judged | None:
        """Adds one image, judged by the F1 score of what is shown."""
        matched = self._matched(prediction, target, geometry)
        if matched is None:
            return None
        self._matches.append(matched)
        is_predicted = matched.score >= self._least[matched.label]
        total = int(is_predicted.sum() + matched.objects.sum())
        if not total:
            return None
        f1 = 2 * int((is_predicted & matched.correct).sum()) / total
        return Judged(f1, f"F1 {f1:.2f}")

    def by_class(self) -> ByClass | None:
        """Returns images (or objects), precision and recall of what is shown, and AP of each class."""
        if not self._matches:
            return None
        score, label, correct = (
            np.concatenate([getattr(matches, name) for matches in self._matches]) for name in _FIELDS
        )
        objects = np.sum([matches.objects for matches in self._matches], axis=0)
        is_predicted, count = score >= self._least[label], len(objects)
        right = np.bincount(label[is_predicted & correct], minlength=count)
        average = [
            average_precision(
                precision_recall(score[label == class_index], correct[label == class_index], int(objects[class_index]))
            )
            for class_index in range(count)
        ]
        figures = (
            objects,
            _quotient(right, np.bincount(label[is_predicted], minlength=count)),
            _quotient(right, objects),
        )
        rows = _rows(self._task.classes, *figures, np.array(average))
        return ByClass(self.columns, rows, curve=precision_recall(score, correct, int(objects.sum())))


class BoxDetails(TagDetails):
    """The same of boxes that are matched with objects, and which classes are taken for which."""

    columns = ("class", "objects", "precision", "recall", "AP 50")

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._confusion = np.zeros((len(task.classes) + 1,) * 2, np.int64)

    def _matched(
        self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry
    ) -> matching.YesNo | None:
        count = len(self._task.classes)
        pairs = matching.pairs(prediction, target, geometry, count)
        if pairs is None:
            return None
        self._confusion += matching.confusion(pairs, self._least)
        return matching.matched_objects(pairs, count)

    def by_class(self) -> ByClass | None:
        """Returns as for tags, with the confusion of classes; the last is "nothing"."""
        figures = super().by_class()
        return None if figures is None else figures._replace(confusion=self._confusion)


class ErrorDetails:
    """Sizes of errors, for tasks without classes."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> Judged | None:
        """Adds one image, judged by its (mean) absolute error."""
        field = "depth" if self._task.kind == "depth" else "value"
        error = np.abs(
            np.asarray(self._task.at_original(prediction, geometry)[field], np.float64)
            - np.asarray(target[field], np.float64)
        )
        if np.isnan(error).all():
            return None
        mean = float(np.nanmean(error))
        return Judged(-mean, f"off by {mean:.3g}")

    def by_class(self) -> None:
        """Returns nothing."""


DETAILS: dict[str, Any] = {
    "segmentation": MaskDetails,
    "detection": BoxDetails,
    "classification": ClassDetails,
    "multi_label": TagDetails,
    "regression": ErrorDetails,
    "depth": ErrorDetails,
}
_FIELDS = ("score", "label", "correct")


def precision_recall(score: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], objects: int) -> Curve:
    """Returns recall and precision at every score, the largest first; precision is the best at that recall or more."""
    right = np.cumsum(correct[np.argsort(-score, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    return right / max(objects, 1), np.maximum.accumulate(precision[::-1])[::-1]


def average_precision(curve: Curve) -> float:
    """Returns the area under a curve from `precision_recall`."""
    recall, precision = curve
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _iou(counts: Int[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    right = np.diag(counts)
    return _quotient(right, counts.sum(axis=0) + counts.sum(axis=1) - right)


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> Float[np.ndarray, " n"]:
    """NaN where there is nothing to divide by."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)


def _rows(classes: Sequence[str], *figures: np.ndarray) -> list[tuple[str, ...]]:
    return [
        (name, *(_text(values[index]) for values in figures))
        for index, name in enumerate(classes)
        if not all(np.isnan(float(values[index])) or values[index] == 0 for values in figures)
    ]


def _text(value: Any) -> str:
    if isinstance(value, np.integer):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.3f}"
