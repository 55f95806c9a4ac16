"""Calibration of scores: their calibration error, the best temperature, and the thresholds of the best F1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mtl_jax.evaluation.matching import MATCHES, YesNo
from mtl_jax.tasks.base import Geometry, Labels
from mtl_jax.tasks.calibration import FLOOR, SCORES

LEAST_SCORE = 0.05  # of a detection whose calibration counts: nobody is shown the tail below
BINS = 15  # of confidence, in the calibration error
TEMPERATURES = np.exp(np.linspace(np.log(0.1), np.log(10.0), 461))  # 1 % apart
LEVELS = np.round(np.arange(0.01, 1.0, 0.01), 2)  # of thresholds
LEAST_PREDICTIONS, LEAST_OBJECTS = 50, 20  # to choose a temperature, and thresholds: fewer say too little
SHARED_OBJECTS = 10.0  # that all classes together add to the counts of each: a class with few follows the others


class OneOf(NamedTuple):
    """Probabilities of classes of which one is true: of images, or of pixels."""

    probability: Float[np.ndarray, "n classes"]
    label: Int[np.ndarray, " n"]


Observed = YesNo | OneOf


def of_class(prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry, count: int) -> OneOf | None:
    """Returns the probabilities of one image's classes, among those that its labels distinguish; None without label."""
    del geometry
    label, labelled_classes = int(target["label"]), np.asarray(target.get("labelled", np.ones(count, bool)))
    if label < 0 or not labelled_classes[label]:
        return None
    probability = np.where(labelled_classes, np.asarray(prediction["probability"], np.float64), 0.0)
    return OneOf((probability / max(probability.sum(), FLOOR))[None], np.array([label]))


def of_pixels(prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry, count: int) -> OneOf:
    """Returns the probabilities of the head's cells whose centres lie on labelled pixels of the image."""
    probability, mask = np.asarray(prediction["cells"], np.float64), np.asarray(target["mask"]).astype(int)
    rows, columns = (
        np.floor(((np.arange(cells) + 0.5) * int(prediction["stride"]) - offset) / scale).astype(int)
        for cells, offset, scale in zip(probability.shape, geometry[2:4][::-1], geometry[:2][::-1], strict=False)
    )
    y, x = (
        np.flatnonzero((rows >= 0) & (rows < geometry.height)),
        np.flatnonzero((columns >= 0) & (columns < geometry.width)),
    )
    label = mask[np.ix_(rows[y], columns[x])].ravel()
    labelled_classes = np.asarray(target.get("labelled", np.ones(count, bool)))
    is_labelled = (label >= 0) & (label < count)
    is_labelled[is_labelled] = labelled_classes[label[is_labelled]]
    of_cells = np.where(labelled_classes, probability[np.ix_(y, x)].reshape(-1, count)[is_labelled], 0.0)
    return OneOf(of_cells / np.maximum(of_cells.sum(axis=1, keepdims=True), FLOOR), label[is_labelled])


OBSERVE = {**MATCHES, "classification": of_class, "segmentation": of_pixels}


def joined(observed: Sequence[Observed | None]) -> Observed | None:
    """Puts what was seen of several images together; None where that is nothing."""
    nonempty: list[Any] = [observation for observation in observed if observation is not None and len(observation[0])]
    if not nonempty:
        return None
    if isinstance(nonempty[0], OneOf):
        return OneOf(*(np.concatenate(field) for field in zip(*nonempty, strict=True)))
    observations: list[Any] = [observation for observation in observed if observation is not None]
    score, label, correct = (np.concatenate([observation[field] for observation in observations]) for field in range(3))
    return YesNo(score, label, correct, np.sum([observation.objects for observation in observations], axis=0))


def at_temperature(observed: Observed, temperature: float) -> Observed:
    """Returns what was seen with other scores."""
    if isinstance(observed, OneOf):
        scores = SCORES["classification"].temper(observed.probability, temperature)
        return observed._replace(probability=np.asarray(scores, np.float64))
    return observed._replace(score=np.asarray(SCORES["detection"].temper(observed.score, temperature), np.float64))


def temperature(observed: Observed) -> float:
    """Returns the temperature at which what was seen is most likely; 1 of too few, or where all is right, or all wrong.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    confidence, correct = confidences(observed)
    if len(correct) < LEAST_PREDICTIONS or correct.all() or not correct.any():
        return 1.0
    if isinstance(observed, OneOf):
        logits = np.log(np.maximum(observed.probability, FLOOR)).T  # a row for each class, as sums over rows are fast
        below_top = logits - logits.max(axis=0)
        of_label = float(below_top[observed.label, np.arange(len(observed.label))].mean())

        def cost(temperature: float) -> float:
            return float(np.log(np.exp(below_top / temperature).sum(axis=0)).mean()) - of_label / temperature
    else:
        clipped = np.clip(confidence, FLOOR, 1 - FLOOR)
        logit = np.where(correct, 1, -1) * (np.log(clipped) - np.log1p(-clipped))

        def cost(temperature: float) -> float:
            return float(np.logaddexp(0, -logit / temperature).mean())

    return round(float(TEMPERATURES[_least(cost)]), 4)


def _least(cost: Callable[[float], float]) -> int:
    """The index of the temperature with the least cost, by bisection: costs are convex in its inverse."""
    low, high = 0, len(TEMPERATURES) - 1
    while low < high:
        middle = (low + high) // 2
        if cost(TEMPERATURES[middle]) <= cost(TEMPERATURES[middle + 1]):
            high = middle
        else:
            low = middle + 1
    return low


def confidences(observed: Observed) -> tuple[Float[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns the confidence of each prediction, and whether it is right."""
    if isinstance(observed, OneOf):
        return observed.probability.max(axis=1), observed.probability.argmax(axis=1) == observed.label
    is_shown = observed.score >= LEAST_SCORE
    return observed.score[is_shown], observed.correct[is_shown]


def calibration_error(observed: Observed) -> float | None:
    """Returns the expected calibration error: how far confidence is from the share that is right; None of nothing.

    References:
        Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015.
    """
    confidence, correct = confidences(observed)
    if not len(correct):
        return None
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=BINS)
    return float(np.abs(gaps).sum() / len(correct))


def thresholds(observed: YesNo) -> Float[np.ndarray, " classes"]:
    """Returns, for each class, the least score of the best F1: the middle of the range of levels that reach it.

    Each class's counts are its own and, as so many objects, those of all classes together.
    """
    level_counts = [_counts(observed, observed.label == kind) for kind in range(len(observed.objects))]
    right, predicted_counts = (np.array(values) for values in zip(*level_counts, strict=True))  # [classes, levels]
    total = max(observed.objects.sum(), 1)
    shared = SHARED_OBJECTS / total
    right, predicted_counts = (
        right + shared * right.sum(axis=0),
        predicted_counts + shared * predicted_counts.sum(axis=0),
    )
    f1 = 2 * right / np.maximum(predicted_counts + observed.objects[:, None] + shared * observed.objects.sum(), FLOOR)
    best = f1 >= f1.max(axis=1, keepdims=True) - 1e-9
    return np.array([LEVELS[_middle(values)] for values in best])


def _counts(observed: YesNo, is_class: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many scores reach each level, the right ones and all."""
    right, predicted_scores = np.sort(observed.score[is_class & observed.correct]), np.sort(observed.score[is_class])
    return tuple(
        len(sorted_scores) - np.searchsorted(sorted_scores, LEVELS) for sorted_scores in (right, predicted_scores)
    )  # pyright: ignore[reportReturnType]


def _middle(best: Bool[np.ndarray, " levels"]) -> int:
    """The middle of the first run of levels that are best."""
    first = int(best.argmax())
    ends = np.flatnonzero(~best[first:])
    return first + (int(ends[0]) - 1 if len(ends) else len(best) - first - 1) // 2


def f1(observed: YesNo, least: Float[np.ndarray, " classes"]) -> float | None:
    """Returns the F1 score of all classes together, each at its own least score; None where there is nothing."""
    is_predicted = observed.score >= least[observed.label]
    total = is_predicted.sum() + observed.objects.sum()
    return float(2 * (is_predicted & observed.correct).sum() / total) if total else None
