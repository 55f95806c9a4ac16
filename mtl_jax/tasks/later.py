"""Task kinds whose classes were changed after training: added, renamed or removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mtl_jax.config.checks import suggestion
from mtl_jax.config.section import setting
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Added, Geometry, ImageSize, Labels, LossAndParts, Metric, Prediction
from mtl_jax.tasks.classification import Classification
from mtl_jax.tasks.mean_iou import BACKGROUND
from mtl_jax.tasks.multi_label import MultiLabel
from mtl_jax.tasks.segmentation import Logits, Segmentation

NEVER = -1e9  # the logit of a class that is never predicted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later:
    """Base of the kinds below: the kinds of the same names, with three further settings."""

    added: tuple[Any, ...] = setting((), "stages, and how many of the last classes each has added: (('more', 3),)")
    renamed: tuple[Any, ...] = setting((), "names in datasets, and those in classes: (('tvmonitor', 'screen'),)")
    removed: tuple[Any, ...] = setting((), "classes that are never predicted; the readout keeps their rows")

    def check(self) -> None:
        """Checks the three settings, and the kind's own.

        Raises:
            UserError: they name no classes of the task, or leave it none.
        """
        task: Any = self
        fits = all(_is_pair(entry, str, int) and entry[1] >= 1 for entry in self.added)
        if not fits or sum(entry[1] for entry in self.added) >= len(task.classes):
            raise UserError(
                "added: expected stages and how many of the last classes each has added, as in "
                f'(("more", 3),), and a class that was there first, found {self.added!r}'
            )
        if not all(_is_pair(entry, str, str) for entry in self.renamed):
            example = '(("tvmonitor", "screen"),)'
            raise UserError(f"renamed: expected pairs of names, as in {example}, found {self.renamed!r}")
        changed_names = [*(entry[1] for entry in self.renamed), *self.removed]
        if unknown := [name for name in changed_names if name not in task.classes]:
            raise UserError(
                f"renamed, removed: expected classes, found {unknown[0]!r}; {suggestion(str(unknown[0]), task.classes)}"
            )
        if not set(task.first_classes) - set(self.removed):
            raise UserError(f"removed: expected one of the first classes to stay ({', '.join(task.first_classes)})")
        parent: Any = super()
        parent.check()

    @property
    def additions(self) -> tuple[Added, ...]:
        """Classes that came later; each has as many rows."""
        return tuple(Added(stage, count, count) for stage, count in self.added)

    @property
    def renamings(self) -> Mapping[str, str]:
        """A dataset's name -> the task's."""
        return dict(self.renamed)

    @property
    def output_classes(self) -> tuple[str, ...]:
        """The classes that are left."""
        task: Any = self
        return tuple(name for name in task.classes if name not in self.removed)

    @property
    def channels(self) -> int:
        """Channels of the first classes."""
        parent: Any = super()
        return parent.channels - sum(count for _, count in self.added)

    def before(self, stage: str) -> Any:
        """Returns the task as it was before a stage, and those after it, added classes."""
        task: Any = self
        stages = [name for name, _ in self.added]
        if stage not in stages:
            return task
        added = self.added[: stages.index(stage)]
        classes = task.classes[: len(task.first_classes) + sum(count for _, count in added)]
        changes: dict[str, Any] = {"added": added, "classes": classes, "renamed": (), "removed": ()}
        if getattr(task, "class_weights", None) is not None:
            changes["class_weights"] = task.class_weights[: len(classes)]
        return dataclasses.replace(task, **changes)

    def new_metric(self) -> Any:
        """Returns the kind's metric of the classes that are left."""
        return self._measuring("")

    def metric_of(self, stage: str) -> Any:
        """Returns the metric of the classes that a stage has added, as if datasets labelled no other."""
        return self._measuring(stage)

    def measured_labels(self, target: Labels, stage: str = "") -> Labels:
        """Returns an image's labels of the classes that are left, or of those that a stage has added."""
        task: Any = self
        if stage:
            target = task.labels_of(target, np.isin(task.classes, task.later_classes[stage]))
        return task.labels_of(target, ~self._removed_mask()) if self.removed else target

    def _measuring(self, stage: str) -> Any:
        parent: Any = super()
        return Changed(parent.new_metric(), lambda target: self.measured_labels(target, stage))

    def _removed_mask(self) -> Bool[np.ndarray, " classes"]:
        task: Any = self
        return np.array([name in self.removed for name in task.classes])

    def _masked(self, outputs: Float[Array, "*cells channels"], first: int = 0, never: float = NEVER) -> Array:
        """Outputs whose columns, from `first` on, are the classes, without those that are gone."""
        if not self.removed:
            return outputs
        removed_classes = np.concatenate([np.zeros(first, bool), self._removed_mask()])
        return jnp.where(removed_classes.reshape((1,) * (outputs.ndim - 1) + (-1,)), never, outputs)


def _is_pair(value: Any, *types: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) == 2
        and all(
            isinstance(element, kind) and not isinstance(element, bool)
            for element, kind in zip(value, types, strict=True)
        )
    )


class Changed:
    """A metric that sees changed labels."""

    def __init__(self, metric: Metric, change: Callable[[Labels], Labels]) -> None:
        self._metric, self._change = metric, change
        self.compute, self.constant = metric.compute, metric.constant

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one example."""
        self._metric.update(prediction, self._change(target), geometry)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterClassification(Later, Classification):
    """All classes compete in one softmax: an image of one class is of no other, whichever a dataset labels."""

    def loss(self, raw: Float[Array, "batch classes"], labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Returns the cross-entropy among all classes."""
        return super().loss(raw, _among_all(labels), image_size)

    def finish(self, raw: Float[Array, "batch classes"], image_size: ImageSize) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        return self._masked(super().finish(raw, image_size))

    def measured_labels(self, target: Labels, stage: str = "") -> Labels:
        """Returns the label, whichever classes the dataset labels."""
        return _among_all(super().measured_labels(target, stage))

    def labels_of(self, target: Labels, classes: Bool[np.ndarray, " classes"]) -> Labels:
        """Returns an image's label if it is one of some classes."""
        label = int(target["label"])
        return target if not 0 <= label < len(classes) or classes[label] else {**target, "label": np.int32(-1)}


def _among_all(labels: Labels) -> Labels:
    return {name: value for name, value in labels.items() if name != "labelled"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterMultiLabel(Later, MultiLabel):
    """Every class has a probability of its own, so that later ones do not compete with those that were there."""

    def finish(self, raw: Float[Array, "batch classes"], image_size: ImageSize) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        return self._masked(super().finish(raw, image_size))

    def labels_of(self, target: Labels, classes: Bool[np.ndarray, " classes"]) -> Labels:
        """Returns an image's labels of some classes."""
        return {**target, "label": np.where(classes, np.asarray(target["label"]), np.float32(np.nan))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterSegmentation(Later, Segmentation):
    """All classes compete in one softmax; what a dataset calls background may be of a class that it does not label.

    References:
        Cermelli et al., "Modeling the Background for Incremental Learning in Semantic Segmentation", 2020.
    """

    def loss(self, raw: Logits, labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Returns the kind's loss, in which unlabelled classes count as background, and nothing else as one of them."""
        if "labelled" not in labels:
            return super().loss(raw, labels, image_size)
        if BACKGROUND not in self.classes:
            return super().loss(raw, _among_all(labels), image_size)
        is_background = jnp.array([[name == BACKGROUND for name in self.classes]])
        labelled = jnp.asarray(labels["labelled"])
        may_be = (~labelled | is_background)[:, None, None]
        background = jax.nn.logsumexp(jnp.where(may_be, raw.astype(jnp.float32), -jnp.inf), axis=-1, keepdims=True)
        raw = jnp.where(is_background[:, None, None], background, raw)
        among = {name: value for name, value in labels.items() if name != "complete"}  # of background as above
        return super().loss(raw, {**among, "labelled": labelled | is_background}, image_size)

    def finish(self, raw: Logits, image_size: ImageSize) -> Float[Array, "batch height width classes"]:
        """Interpolates the logits to the size of the input image."""
        return super().finish(self._masked(raw), image_size)

    def predictions(self, raw: Logits, image_size: ImageSize) -> dict[str, Array]:
        """Returns the best class of each pixel of the input image."""
        return super().predictions(self._masked(raw), image_size)

    def labels_of(self, target: Labels, classes: Bool[np.ndarray, " classes"]) -> Labels:
        """Returns an image's labels of some classes; pixels of others are void."""
        return looked_for(target, classes)

    def measured_labels(self, target: Labels, stage: str = "") -> Labels:
        """Returns the labels, of a stage with the background, as if all else was that."""
        if not stage or BACKGROUND not in self.classes:
            return super().measured_labels(target, stage)
        mask, background = np.asarray(target["mask"]), self.classes.index(BACKGROUND)
        classes = np.isin(self.classes, (BACKGROUND, *self.later_classes[stage]))
        has_class = (mask != self.ignore_label) & (mask >= 0) & (mask < len(classes))
        is_other = has_class & ~classes[np.where(has_class, mask, background)]
        return looked_for({**target, "mask": np.where(is_other, mask.dtype.type(background), mask)}, classes)


def looked_for(target: Labels, classes: np.ndarray) -> Labels:
    return {**target, "labelled": np.asarray(target.get("labelled", np.ones(len(classes), bool))) & classes}


SETTINGS = tuple(field.name for field in dataclasses.fields(Later))
