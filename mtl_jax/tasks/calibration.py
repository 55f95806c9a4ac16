"""Calibration of scores: a temperature for each task, and a score threshold for each class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mtl_jax.tasks import detection, multi_label
from mtl_jax.tasks.base import ImageSize, Prediction, Task, Thresholds, Undecided

FLOOR = 1e-7  # of a probability, before its logarithm
ACCEPTED = "accepted"  # the prediction that says which scores count


class Calibration(NamedTuple):
    """Calibration of one task, chosen after its network is trained."""

    temperature: float = 1.0  # divides the logarithms of its odds: above 1 it is less sure
    thresholds: Mapping[str, float] = {}  # class -> least score, after the temperature; the kind's own where empty


def from_tree(tree: Mapping[str, Any]) -> dict[str, Calibration]:
    """Reads what `to_tree` made; a checkpoint of earlier versions holds nothing."""
    return {
        task: Calibration(float(fields["temperature"]), {name: float(x) for name, x in fields["thresholds"].items()})
        for task, fields in tree.items()
    }


def to_tree(calibrations: Mapping[str, Calibration]) -> dict[str, Any]:
    """Returns JSON."""
    return {
        task: {"temperature": calibration.temperature, "thresholds": dict(calibration.thresholds)}
        for task, calibration in calibrations.items()
    }


def of_yes_and_no(probability: Float[Any, "*n"], temperature: float) -> Float[Any, "*n"]:
    """Divides the logit of each probability by a temperature; 0 stays 0, and 1 stays 1."""
    xp, _, sigmoid = _functions(probability)
    clipped = xp.clip(probability, FLOOR, 1 - FLOOR)
    logit = xp.log(clipped) - xp.log1p(-clipped)
    return xp.where((probability > 0) & (probability < 1), sigmoid(logit / temperature), probability)


def of_one_class(probability: Float[Any, "*n classes"], temperature: float) -> Float[Any, "*n classes"]:
    """Divides the logits behind a softmax by a temperature."""
    xp, softmax, _ = _functions(probability)
    return softmax(xp.log(xp.maximum(probability, FLOOR)) / temperature)


def _functions(array: Any) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """NumPy, a softmax and a sigmoid for its own arrays, for which JAX would compile every operation; else JAX's."""
    return (np, _softmax, _sigmoid) if isinstance(array, np.ndarray) else (jnp, jax.nn.softmax, jax.nn.sigmoid)


def _softmax(logits: np.ndarray) -> np.ndarray:
    likelihood = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return likelihood / likelihood.sum(axis=-1, keepdims=True)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logit))  # overflows nowhere


class Scores(NamedTuple):
    """How the scores of a kind of task are read."""

    field: str  # of its predictions
    temper: Callable[[Any, float], Any]
    least: float | None = (
        None  # that counts where nothing was chosen; None of a kind that predicts the class of the best score
    )
    meaning: str = ""  # of what is accepted


SCORES: dict[str, Scores] = {
    "classification": Scores("probability", of_one_class),
    "multi_label": Scores("probability", of_yes_and_no, multi_label.THRESHOLD, "whether each class is said to be true"),
    "detection": Scores(
        "score", of_yes_and_no, detection.MIN_SCORE, "whether each detection's score is one that counts for its class"
    ),
}


class _Calibrated(Task):
    """Predictions of a kind with scores at a temperature, and outputs of those above the least score."""

    calibration: ClassVar[Calibration]

    @property
    def _plain(self) -> Task:
        """The task without calibration, with the settings that this one has."""
        return _retyped(self, _kind_of(self))

    @property
    def _least(self) -> Any:
        """The least score that counts: a number, one for each class, or None of a kind that predicts the best."""
        least = SCORES[self.kind].least
        if least is None or not self.calibration.thresholds:
            return least
        return least_scores(self).astype(np.float32)

    @property
    def meanings(self) -> Mapping[str, str]:
        meaning = SCORES[self.kind].meaning
        return {**super().meanings, ACCEPTED: meaning} if meaning else super().meanings

    @property
    def undecided(self) -> Undecided | None:
        shares = super().undecided
        if shares is None:
            return None
        return Undecided(lambda outputs: tempered(self, shares.decode(outputs), self.calibration), shares.meanings)

    def predictions(self, raw: Array, image_size: ImageSize) -> dict[str, Array]:
        return self._read(self._plain.predictions(raw, image_size))

    def decode(self, outputs: Array) -> dict[str, Array]:
        return self._read(self._plain.decode(outputs))

    def _read(self, predictions: Mapping[str, Any]) -> dict[str, Any]:
        return accepted(self, tempered(self, predictions, self.calibration), self._least)

    def to_json(self, prediction: Prediction, threshold: Thresholds = None) -> dict[str, Any]:
        return super().to_json(prediction, self._least if threshold is None else threshold)

    def draw(self, axes: Any, prediction: Prediction, threshold: Thresholds = None) -> None:
        super().draw(axes, prediction, self._least if threshold is None else threshold)


def calibrated(task: Task, calibration: Calibration | None = None) -> Task:
    """Returns a task whose scores are tempered, and whose predictions and outputs follow the calibrated least scores.

    Args:
        task: of any kind; one without scores stays as it is.
        calibration: what was chosen for it; the defaults of its kind if None.
    """
    if task.kind not in SCORES:
        return task
    kind = _kind_of(task)  # the new one overrides it, and has the task's settings
    namespace = {"calibration": calibration or Calibration()}
    return _retyped(task, type(f"Calibrated{kind.__name__}", (_Calibrated, kind), namespace))


def _kind_of(task: Task) -> type[Task]:
    """The class of a task, without calibration."""
    return type(task).__bases__[1] if isinstance(task, _Calibrated) else type(task)


def _retyped(task: Task, kind: type[Task]) -> Task:
    """A task of another class, with the same settings."""
    retyped_task = object.__new__(kind)
    vars(retyped_task).update(vars(task))
    return retyped_task


def calibration_of(task: Task) -> Calibration:
    """Returns what was chosen for a task from `calibrated`; of another one, what changes nothing."""
    return task.calibration if isinstance(task, _Calibrated) else Calibration()


def least_scores(task: Task) -> Float[np.ndarray, " classes"]:
    """Returns the least score that counts for each class of a task whose scores are each right or wrong.

    That chosen for the class, and where there is none that of the kind: 0.3 of a box, 0.5 of a tag.
    """
    default, thresholds = SCORES[task.kind].least, calibration_of(task).thresholds
    return np.array([thresholds.get(name, default) for name in task.classes], np.float64)


def tempered(task: Task, predictions: Mapping[str, Any], calibration: Calibration) -> dict[str, Any]:
    """Returns predictions with their scores at a temperature."""
    scores = SCORES.get(task.kind)
    if scores is None or calibration.temperature == 1.0:
        return dict(predictions)
    return {**predictions, scores.field: scores.temper(predictions[scores.field], calibration.temperature)}


def accepted(task: Task, predictions: Mapping[str, Any], least: Any) -> dict[str, Any]:
    """Adds which scores reach the least that counts, where the kind has such."""
    if least is None:
        return dict(predictions)
    if task.kind == "detection":
        is_accepted = predictions["score"] >= (least if np.ndim(least) == 0 else _of_label(least, predictions["label"]))
        return {**predictions, ACCEPTED: is_accepted & predictions["valid"]}
    return {**predictions, ACCEPTED: predictions["probability"] > jnp.asarray(least, jnp.float32).reshape((1, -1))}


def _of_label(least: np.ndarray, label: Int[Array, "batch n"]) -> Float[Array, "batch n"]:
    """Looks the level of each class up, by comparing: fewer runtimes gather."""
    is_label = label[..., None] == jnp.arange(len(least), dtype=label.dtype)[None, None]
    return jnp.where(is_label, jnp.asarray(least, jnp.float32)[None, None], 0.0).sum(axis=-1)
