"""Training data of a stream: endless augmented batches, and plain examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.config.checks import check_arguments
from mtl_jax.config.stream_settings import StreamSettings
from mtl_jax.data import pipeline, transforms
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError
from mtl_jax.experiment.parts import Experiment, classes_of, ignore_labels
from mtl_jax.runtime import devices


def train_batches(
    experiment: Experiment,
    stream: str,
    data: registry.Source,
    *,
    seed: int,
    augmented: bool = True,
    batch_size: int | None = None,
    shared: bool = False,
    extra_labels: Mapping[str, str] | None = None,
) -> Any:
    """Returns the endless batches of a stream, from its own training source or from exemplars of it.

    Args:
        experiment: from `build`.
        stream: its name.
        data: what to draw from.
        seed: of order and augmentation.
        augmented: apply the stream's augmentation.
        batch_size: instead of the stream's own.
        shared: with the other processes of the run, of which each prepares its part of every batch.
        extra_labels: key in the batch -> name of a label that `data` has in addition to those of the stream.
    """
    settings = experiment.streams[stream]
    count: int = batch_size or settings.batch_size
    augment = transforms.Augment(crop=settings.crop)
    if augmented:
        augment = augmentation(f"config.streams.{stream}", settings)
    return pipeline.train_batches(
        data,
        labels=dict(settings.labels) | dict(extra_labels or {}),
        image_size=train_image_size(experiment, stream),
        batch_size=count,
        share=devices.share(count) if shared else (0, 1),
        augment=augment,
        seed=seed,
        max_boxes=settings.max_boxes,
        cache_bytes=experiment.cache_bytes,
        ignore_labels=ignore_labels(experiment, stream),
        classes=classes_of(experiment, stream, data),
    )


def augmentation(location: str, settings: StreamSettings) -> transforms.Augment:
    """Returns how a stream changes its training images.

    Args:
        location: the settings, for the error.
        settings: of the stream.

    Raises:
        UserError: an unknown change, or a value that does not fit.
    """
    check_arguments(f"{location}.augment", settings.augment, transforms.Augment, reserved=("crop",))
    try:
        return transforms.Augment(**settings.augment, crop=settings.crop)
    except UserError as error:
        raise UserError(f"{location}.{error}") from error


def examples(experiment: Experiment, stream: str, data: registry.Source) -> Iterator[Any]:
    """Yields the examples of a source one by one, in its order, as training would see them without augmentation.

    Args:
        experiment: from `build`.
        stream: its name.
        data: what to read.
    """
    settings = experiment.streams[stream]
    return pipeline.examples(
        data,
        labels=dict(settings.labels),
        image_size=train_image_size(experiment, stream),
        max_boxes=settings.max_boxes,
        crop=settings.crop,
        ignore_labels=ignore_labels(experiment, stream),
        classes=classes_of(experiment, stream, data),
    )


def train_image_size(experiment: Experiment, stream: str) -> int:
    """Returns the side of a stream's training images, px."""
    settings = experiment.streams[stream]
    return settings.train_image_size or settings.image_size or experiment.image_size
