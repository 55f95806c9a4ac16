"""Settings of a stream, one dataset: `config.streams.<name>`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl_jax.config.checks import check_class_names
from mtl_jax.config.section import Section, setting
from mtl_jax.errors import UserError

MAX_SIZE = 16384  # px; beyond, no machine holds a batch


@dataclasses.dataclass(frozen=True)
class StreamSettings(Section):
    """A dataset: where it is, what it labels, and how its images are shown."""

    source: str = setting("", "a key of mtl_jax.data.sources.SOURCES")
    options: Mapping[str, Any] = setting({}, "keyword arguments of the source")
    val_options: Mapping[str, Any] = setting({}, "keyword arguments of the source for val_split, over options")
    labels: Mapping[str, str] = setting({}, "task name -> the source's name for the label")
    labelled_classes: Mapping[str, Any] = setting(
        {},
        "task name -> those of its classes that the dataset labels; of a task that is left out, the data decides. The "
        "others are neither background nor learnt from it",
    )
    train_parts: int = setting(1, "equal parts of the training images, of which one is trained on", least=1)
    train_part: int = setting(0, "which of train_parts, from 0", least=0)
    train_split: str = setting("train", "that is trained on")
    val_split: str = setting("val", "that is measured on")
    image_size: int = setting(0, "0 means config.image_size", unit="px", least=0, most=MAX_SIZE)
    train_image_size: int = setting(
        0, "0 means image_size. Smaller crops make a step cheaper", unit="px", least=0, most=MAX_SIZE
    )
    crop: bool = setting(
        False,
        "True shows an image's largest square, False the whole image between grey bars; True is usual for classes, and "
        "only for labels of whole images",
    )
    batch_size: int = setting(8, "images of a step", least=1)
    eval_batch_size: int = setting(4, "images of a step of evaluation", least=1)
    max_boxes: int = setting(64, "per image; the largest are kept", least=1)
    augment: Mapping[str, Any] = setting({}, "keyword arguments of mtl_jax.data.transforms.Augment")

    def check(self) -> None:
        """Checks that the stream labels something, and which classes and part of the images it names.

        Raises:
            UserError: it does not, or names none that there are.
        """
        if self.train_part >= self.train_parts:
            raise UserError(f"train_part: expected less than train_parts, {self.train_parts}, found {self.train_part}")
        for task, names in self.labelled_classes.items():
            check_class_names(f"labelled_classes.{task}", names)
        if not self.labels and self.source:  # the defaults name neither
            raise UserError("labels: expected task -> label name, e.g. {'seg': 'segmentation'}, found none")
