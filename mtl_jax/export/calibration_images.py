"""Which images an exported file's ranges are taken from: training images, never those that figures are reported of."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.data.facts import image_digest
from mtl_jax.data.images import decode_image
from mtl_jax.errors import UserError
from mtl_jax.experiment import View
from mtl_jax.workdir import data_record
from mtl_jax.workdir.trained import Trained

IMAGES = 32  # each range is a mean over them


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
    parts, reported = network.setup, _reported(network)
    streams = [name for name in parts.used_streams if set(parts.streams[name].labels) & set(network.names)]
    found = []
    for stream in streams:
        try:
            data = experiment.source(parts, stream, training=True, held_out=bool(parts.held_out_percent))
        except UserError as error:
            raise UserError(
                f"--int8 is calibrated with the run's training images; {error}; or use --calibrate"
            ) from error
        most = -(-count // len(streams))
        images = (data[index]["image"] for index in spread(len(data), most))
        found.append([_fitted(image, view) for image in images if image_digest(image) not in reported])
    mixed = [each for row in itertools.zip_longest(*found) for each in row if each is not None]
    if not mixed:
        raise UserError(
            f"{network.path}: expected training images that are no validation images of the run, found none; name "
            "images with --calibrate"
        )
    return mixed


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
    found = set()
    for stream in network.setup.used_streams:
        with contextlib.suppress(UserError):
            found |= data_record.validation_images(network.setup, [stream], cache=data_record.cache_folder())
    return found


def _fitted(image: np.ndarray, view: View) -> np.ndarray:
    size = view.image_size, view.image_size
    return pipeline.fitted([image], size=size, batch_size=1, crop=view.crop)[0]
