"""Settings of a stream, one dataset: `config.streams.<name>`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mtl_jax.config.section import Section, setting
from mtl_jax.errors import UserError

MAX_SIZE = 16384  # px; beyond, no machine holds a batch


@dataclasses.dataclass(frozen=True)
class StreamSettings(Section):
    """A dataset: where it is, what it labels, and how its images are shown."""

    source: str = setting("", "a key of mtl_jax.data.sources.SOURCES")
    options: Mapping[str, Any] = setting({}, "keyword arguments of the source")
    labels: Mapping[str, str] = setting({}, "task name -> the source's name for the label")
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
        """Checks that the stream labels something.

        Raises:
            UserError: it does not.
        """
        if not self.labels and self.source:  # the defaults name neither
            raise UserError("labels is empty; expected task -> label name, e.g. {'seg': 'segmentation'}")
