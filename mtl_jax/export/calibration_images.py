"""Which images an exported file's ranges are taken from: training images, never those that figures are reported of."""

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

IMAGES = 32  # each range is a mean over them
NONE_LEFT = "expected training images that are no validation images of the run, found none"


def of_run(network: Trained, view: View, *, count: int = IMAGES) -> list[np.ndarray]:
    """Returns training images of a run, of every stream of its tasks alike: where some are held out, these.

    An image that is a validation image of the run too is left out.

    Args:
        network: of the run.
        view: how images are shown.
        count: of all streams together, about; fewer where there are not so many.

    Raises:
        UserError: a dataset is not there, or all of its training images are validation images.
    """
    reported, by_stream = _reported(network), []
    try:
        sources = _training_sources(network, held_out=bool(network.setup.held_out_percent))
    except UserError as error:
        raise UserError(f"--int8 is calibrated with the run's training images; {error}; or use --calibrate") from error
    most = -(-count // len(sources))
    for source in sources:
        images = (source[index]["image"] for index in spread(len(source), most))
        by_stream.append([_fitted(image, view) for image in images if image_digest(image) not in reported])
    mixed = [image for row in itertools.zip_longest(*by_stream) for image in row if image is not None]
    if not mixed:
        raise UserError(f"{network.path}: {NONE_LEFT}; name images with --calibrate")
    return mixed


def _training_sources(network: Trained, *, held_out: bool) -> list[Source]:
    """The training images of every stream that labels a task of the network."""
    setup = network.setup
    streams = [name for name in setup.used_streams if set(setup.streams[name].labels) & set(network.names)]
    return [experiment.source(setup, stream, training=True, held_out=held_out) for stream in streams]


class TrainingBatches(Sequence[np.ndarray]):
    """Batches of windows of a run's training images, of every stream alike; which, depends on a batch's number alone.

    Images that are validation images of the run too are left out.
    """

    def __init__(self, network: Trained, view: View, *, count: int, batch_size: int, crop: int) -> None:
        """Opens the datasets.

        Args:
            network: of the run.
            view: how images are shown.
            count: of batches.
            batch_size: images of each.
            crop: height and width of the windows, px; at most those of the view.

        Raises:
            UserError: a dataset is not there.
        """
        try:
            self._sources = _training_sources(network, held_out=False)
        except UserError as error:
            raise UserError(f"--qat trains on the run's training images; {error}; or leave --qat out") from error
        self._view, self._count, self._batch_size = view, count, batch_size
        self._crop = min(crop, view.image_size)
        self._reported, self._path = _reported(network), network.path

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> np.ndarray:
        """Returns f32[batch, height, width, 3] in 0..1."""
        number = range(self._count)[index]  # raises IndexError past the end
        draw = np.random.default_rng(number)
        places = range(number * self._batch_size, (number + 1) * self._batch_size)
        return np.concatenate([self._image(self._sources[place % len(self._sources)], draw) for place in places])

    def _image(self, source: Source, draw: np.random.Generator) -> np.ndarray:
        for index in draw.permutation(len(source)).tolist():
            image = source[index]["image"]
            if image_digest(image) not in self._reported:
                row, column = draw.integers(0, self._view.image_size - self._crop, 2, endpoint=True)
                return _fitted(image, self._view)[:, row : row + self._crop, column : column + self._crop]
        raise UserError(f"{self._path}: {NONE_LEFT}; leave --qat out")


def named(network: Trained, paths: Sequence[Path], view: View, *, count: int = IMAGES) -> list[np.ndarray]:
    """Returns images of files, evenly spread.

    Args:
        network: of the run.
        paths: of image files.
        view: how images are shown.
        count: at most.

    Raises:
        UserError: some are validation images of the run.
    """
    reported = _reported(network)
    chosen = [paths[index] for index in spread(len(paths), count)]
    images = [decode_image(path) for path in chosen]
    seen = [path for path, image in zip(chosen, images, strict=True) if image_digest(image) in reported]
    if seen:
        raise UserError(
            f"--calibrate: expected training images, found {len(seen)} of the run's validation images, such as "
            f"{seen[0]}, on which the file's figures are reported; name others, or leave --calibrate out for those of "
            "the run"
        )
    return [_fitted(image, view) for image in images]


def spread(length: int, most: int) -> list[int]:
    """Returns at most so many of the first numbers, at even distances."""
    count = min(length, most)
    return [int((number + 0.5) * length / count) for number in range(count)]


def _reported(network: Trained) -> set[str]:
    """Digests of the run's validation images, as far as they are there: on others no figure is reported."""
    digests = set()
    for stream in network.setup.used_streams:
        with contextlib.suppress(UserError):
            digests |= data_record.validation_images(network.setup, [stream], cache=data_record.cache_folder())
    return digests


def _fitted(image: np.ndarray, view: View) -> np.ndarray:
    size = view.image_size, view.image_size
    return pipeline.fitted([image], size=size, batch_size=1, crop=view.crop)[0]
