"""Negatives: images of old classes join a stream of boxes, as images that show none of its classes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from mtl_jax.continual.method import StageView
from mtl_jax.data.sources.base import WHOLE_FIELDS, Fields, Sample, Source

BOXES = "detection"  # the kind of tasks that images without objects can teach


def labels_boxes_alone(stage: StageView, stream: str) -> bool:
    """Whether all tasks that a stream labels are of boxes."""
    return all(task.kind == BOXES for task in stage.stream_tasks(stream).values())


class WithNegatives:
    """A source of boxes, and after its images those of other sources, as images that show none of its classes."""

    def __init__(self, source: Source, others: Sequence[Source]) -> None:
        """Keeps the sources.

        Args:
            source: with labels, all of them boxes.
            others: images whose labels are not read.
        """
        self._source = source
        self._others = [(other, index) for other in others for index in range(len(other))]
        self.class_names = source.class_names
        self.labelled_classes = getattr(source, "labelled_classes", {})

    def __len__(self) -> int:
        return len(self._source) + len(self._others)

    def __getitem__(self, index: int) -> Sample:
        if index < len(self._source):
            return self._source[index]
        other, place = self._others[index - len(self._source)]
        sample = other[place]
        return {"image": sample["image"], "labels": self._no_boxes, "id": sample["id"]}

    @functools.cached_property
    def _no_boxes(self) -> dict[str, Fields]:
        labels = self._source[0]["labels"]
        return {
            name: {field: value if field in WHOLE_FIELDS else value[:0] for field, value in fields.items()}
            for name, fields in labels.items()
        }
