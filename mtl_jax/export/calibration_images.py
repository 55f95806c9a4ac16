"""Calibration images for 8-bit export: training images of a run, never its validation images."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.data.facts import image_digest
from mtl_jax.data.images import decode_image
from mtl_jax.data.sources.base import Source
from mtl_jax.errors import UserError
from mtl_jax.experiment import View
from mtl_jax.workdir import data_record
from mtl_jax.workdir.trained import Trained

IMAGES = 32  # ranges are measured on them
NO_TRAINING_IMAGES = "expected training images that are no validation images of the run, found none"


def training_images(network: Trained, view: View, *, count: int = IMAGES) -> list[np.ndarray]:
    """Returns training images of a run, equally many of every stream; held-out ones where the run has them.

    An image that is also a validation image of the run is excluded.

    Args:
        network: network of the run.
        view: input size and crop.
        count: approximate number of images of all streams together; fewer if the datasets are smaller.

    Raises:
        UserError: a dataset is missing, or all of its training images are validation images.
    """
    excluded, by_stream = _validation_digests(network), []
    try:
        sources = _training_sources(network, held_out=bool(network.setup.held_out_percent))
    except UserError as error:
        raise UserError(f"--int8 is calibrated with the run's training images; {error}; or use --calibrate") from error
    limit = -(-count // len(sources))
    for source in sources:
        images = (source[index]["image"] for index in spread_indices(len(source), limit))
        by_stream.append([_fit(image, view) for image in images if image_digest(image) not in excluded])
    interleaved = [image for row in itertools.zip_longest(*by_stream) for image in row if image is not None]
    if not interleaved:
        raise UserError(f"{network.path}: {NO_TRAINING_IMAGES}; name images with --calibrate")
    return interleaved


def _training_sources(network: Trained, *, held_out: bool) -> list[Source]:
    """Training sources of every stream that labels a task of the network."""
    setup = network.setup
    streams = [name for name in setup.used_streams if set(setup.streams[name].labels) & set(network.names)]
    return [experiment.source(setup, stream, training=True, held_out=held_out) for stream in streams]


class TrainingBatches(Sequence[np.ndarray]):
    """Batches of random crops of a run's training images, equally many of every stream; deterministic by batch index.

    Images that are also validation images of the run are excluded.
    """

    def __init__(self, network: Trained, view: View, *, count: int, batch_size: int, crop: int) -> None:
        """Opens the datasets.

        Args:
            network: of the run.
            view: how images are shown.
            count: of batches.
            batch_size: images of each.
            crop: height and width of the windows, px; at limit those of the view.

        Raises:
            UserError: a dataset is not there.
        """
        try:
            self._sources = _training_sources(network, held_out=False)
        except UserError as error:
            raise UserError(f"--qat trains on the run's training images; {error}; or leave --qat out") from error
        self._view, self._count, self._batch_size = view, count, batch_size
        self._crop = min(crop, view.image_size)
        self._excluded, self._path = _validation_digests(network), network.path

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns f32[batch, height, width, 3] in 0..1."""
        number = range(self._count)[index]  # raises IndexError past the end
        generator = np.random.default_rng(number)
        positions = range(number * self._batch_size, (number + 1) * self._batch_size)
        return np.concatenate(
            [self._image(self._sources[position % len(self._sources)], generator) for position in positions]
        )

    def _image(self, source: Source, generator: np.random.Generator) -> np.ndarray:
        for index in generator.permutation(len(source)).tolist():
            image = source[index]["image"]
            if image_digest(image) not in self._excluded:
                row, column = generator.integers(0, self._view.image_size - self._crop, 2, endpoint=True)
                return _fit(image, self._view)[:, row : row + self._crop, column : column + self._crop]
        raise UserError(f"{self._path}: {NO_TRAINING_IMAGES}; leave --qat out")


def load_images(network: Trained, paths: Sequence[Path], view: View, *, count: int = IMAGES) -> list[np.ndarray]:
    """Loads image files, evenly spaced in the list of paths.

    Args:
        network: of the run.
        paths: of image files.
        view: how images are shown.
        count: at limit.

    Raises:
        UserError: some are validation images of the run.
    """
    excluded = _validation_digests(network)
    selected = [paths[index] for index in spread_indices(len(paths), count)]
    images = [decode_image(path) for path in selected]
    validation_paths = [path for path, image in zip(selected, images, strict=True) if image_digest(image) in excluded]
    if validation_paths:
        raise UserError(
            f"--calibrate: expected training images, found {len(validation_paths)} of the run's validation images, "
            f"such as {validation_paths[0]}, on which the file's metrics are reported; name other images, or leave "
            "--calibrate out to use training images of the run"
        )
    return [_fit(image, view) for image in images]


def spread_indices(length: int, limit: int) -> list[int]:
    """Returns at limit so many of the first numbers, at even distances."""
    count = min(length, limit)
    return [int((number + 0.5) * length / count) for number in range(count)]


def _validation_digests(network: Trained) -> set[str]:
    """Digests of the run's validation images, of the datasets that are present."""
    digests = set()
    for stream in network.setup.used_streams:
        with contextlib.suppress(UserError):
            digests |= data_record.validation_images(network.setup, [stream], cache=data_record.cache_folder())
    return digests


def _fit(image: np.ndarray, view: View) -> np.ndarray:
    size = view.image_size, view.image_size
    return pipeline.fitted([image], size=size, batch_size=1, crop=view.crop)[0]
