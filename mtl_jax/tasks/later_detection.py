"""Detectors whose classes were changed after training: added, renamed or removed."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mtl_jax.tasks import detection_cells
from mtl_jax.tasks.base import Added, ImageSize, Labels, LossAndParts, Task
from mtl_jax.tasks.detection import Detection
from mtl_jax.tasks.detection_cells import BOX_CHANNELS, Cells
from mtl_jax.tasks.detection_loss import UNLABELLED_LOGIT
from mtl_jax.tasks.later import Later, looked_for


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterDetection(Later, Detection):
    """The first classes and those of each addition have boxes and objectness of their own: as many cells more.

    `raw` has their channels one after another. Boxes of different classes suppress nothing of each other, and each
    addition has `candidates` and `max_detections` of its own, so that later classes take nothing from the first ones.
    """

    @property
    def additions(self) -> tuple[Added, ...]:
        """Classes that came later; each has a box and an objectness in addition to its rows."""
        return tuple(Added(stage, count, BOX_CHANNELS + 1 + count) for stage, count in self.added)

    def loss(self, raw: Cells, labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Returns the sum of the losses of each part on the boxes of its classes."""
        total, sums = jnp.zeros(()), {}
        for subtask, start, raw_rows in self._subtasks(raw):
            value, terms = subtask.loss(raw_rows, _of_part(labels, start, len(subtask.classes)), image_size)
            total += value
            sums = {name: sums.get(name, 0.0) + term for name, term in terms.items()}
        return total, sums

    def sampled_loss(self, raw: Cells, image_size: ImageSize, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the sum of the parts'."""
        return sum(
            (subtask.sampled_loss(raw_rows, image_size, key) for subtask, _, raw_rows in self._subtasks(raw)),
            jnp.zeros(()),
        )

    def distillation_loss(
        self, raw: Cells, teacher_raw: Cells, image_size: ImageSize, *, balanced: bool = False
    ) -> Float[Array, ""]:
        """Returns the sum of the parts'."""
        pairs = zip(self._subtasks(raw), self._subtasks(teacher_raw), strict=True)
        losses = (
            subtask.distillation_loss(raw_rows, teacher_rows, image_size, balanced=balanced)
            for (subtask, _, raw_rows), (_, _, teacher_rows) in pairs
        )
        return sum(losses, jnp.zeros(()))

    def fill_in(self, labels: Labels, teacher_raw: Cells, image_size: ImageSize, threshold: float) -> Labels:
        """Returns the labels as they are: where classes came later, those that were there are not learnt on."""
        del teacher_raw, image_size, threshold
        return labels

    def finish(self, raw: Cells, image_size: ImageSize) -> Float[Array, "batch all_cells all_channels"]:
        """Returns the cells of one part after those of another; a cell is never of another part's classes."""
        count = len(self.classes)
        cells = [
            _widened(subtask.finish(raw_rows, image_size), start, count)
            for subtask, start, raw_rows in self._subtasks(raw)
        ]
        return self._masked(jnp.concatenate(cells, axis=1), BOX_CHANNELS + 1, UNLABELLED_LOGIT)

    def decode(self, outputs: Float[Array, "batch all_cells all_channels"]) -> dict[str, Array]:
        """Returns the best boxes, best first: those of the first classes as if there were no others."""
        counts, start, columns = self._class_counts, 0, []
        parts = outputs.reshape(outputs.shape[0], len(counts), -1, outputs.shape[-1])
        for number, count in enumerate(counts):
            part, first = parts[:, number], BOX_CHANNELS + 1 + start
            columns += [part[..., : BOX_CHANNELS + 1], part[..., first : first + count]]
            start += count
        return detection_cells.decode_parts(jnp.concatenate(columns, axis=-1), self._selection, counts)

    def predictions(self, raw: Cells, image_size: ImageSize) -> dict[str, Array]:
        """Returns the same without columns of other parts' classes."""
        return super().predictions(self._without_removed(raw), image_size)

    def _without_removed(self, raw: Cells) -> Cells:
        """Raw outputs in which removed classes have no score."""
        if not self.removed:
            return raw
        removed_of_parts = np.split(self._removed_mask(), np.cumsum(self._class_counts)[:-1])
        is_removed = np.concatenate([np.pad(removed, (BOX_CHANNELS + 1, 0)) for removed in removed_of_parts])
        return jnp.where(is_removed[None, None], UNLABELLED_LOGIT, raw)

    def labels_of(self, target: Labels, classes: Bool[np.ndarray, " classes"]) -> Labels:
        """Returns an image's boxes of some classes."""
        return looked_for(target, classes)

    @property
    def _class_counts(self) -> tuple[int, ...]:
        return len(self.first_classes), *(count for _, count in self.added)

    def _subtasks(self, raw: Cells) -> list[tuple[Task, int, Array]]:
        """A detector of its classes alone for each part, the first of them among all, and its raw outputs."""
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(Detection) if field.init}
        subtasks, start, counts = [], 0, self._class_counts
        for count, raw_rows in zip(counts, detection_cells.split(raw, counts), strict=True):
            subtask = Detection(**{**settings, "classes": self.classes[start : start + count]})
            subtasks.append((subtask, start, raw_rows))
            start += count
        return subtasks


def _of_part(labels: Labels, start: int, count: int) -> Labels:
    """The boxes of a part's classes, in its numbering."""
    label = jnp.asarray(labels["label"]) - start
    is_own_label = (label >= 0) & (label < count)
    subtask_labels = {
        **labels,
        "label": jnp.clip(label, 0, count - 1),
        "valid": jnp.asarray(labels["valid"]) & is_own_label,
    }
    if "crowd" in labels:
        subtask_labels["crowd"] = jnp.asarray(labels["crowd"]) & is_own_label
    if "labelled" in labels:
        subtask_labels["labelled"] = jnp.asarray(labels["labelled"])[:, start : start + count]
    return subtask_labels


def _widened(outputs: Cells, start: int, count: int) -> Float[Array, "batch cells all_channels"]:
    """Outputs of a part with columns for all classes."""
    first = BOX_CHANNELS + 1
    after = count - start - (outputs.shape[-1] - first)
    classes = jnp.pad(outputs[..., first:], ((0, 0), (0, 0), (start, after)), constant_values=UNLABELLED_LOGIT)
    return jnp.concatenate([outputs[..., :first], classes], axis=-1)
