"""Predictions of a trained network for images, as JSON and drawn over them.

mtl-jax predict --weights runs/seq --out predictions photo.jpg folder "more/*.png"
"""

from __future__ import annotations

import glob
import importlib
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree, UInt8

from mtl_jax import experiment
from mtl_jax.data import pipeline
from mtl_jax.data.files import SUFFIXES, is_image
from mtl_jax.data.images import decode_image
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluate
from mtl_jax.report import pictures
from mtl_jax.tasks.base import Geometry, Task
from mtl_jax.workdir import predicted_files, trained

BATCH_SIZE = 8  # images that pass the network together, in one compiled program


class Predicted(NamedTuple):
    """Outputs of all tasks for one image."""

    path: Path
    image: UInt8[np.ndarray, "height width 3"]  # RGB, upright
    outputs: dict[str, dict[str, Any]]  # task -> its output in JSON's terms, at the image's own resolution
    predictions: dict[str, Mapping[str, np.ndarray]]  # task -> decoded, for the network's input
    geometries: dict[str, Geometry]  # task -> where the image went in that input
    tasks: Mapping[str, Task]
    threshold: float | None

    @property
    def answers(self) -> dict[str, dict[str, Any]]:
        """The former name of `outputs`."""
        return self.outputs

    def overlay(self) -> bytes:
        """Returns a PNG file of the image with all outputs drawn over it."""
        return pictures.overlay(self.tasks, self.image, self.predictions, self.geometries, threshold=self.threshold)


def predict(
    weights: str | Path,
    images: Sequence[str | Path],
    *,
    tasks: str = "all",
    threshold: float | None = None,
    flip: bool = False,
    batch_size: int = BATCH_SIZE,
    on_error: Callable[[UserError], None] | None = None,
) -> Iterator[Predicted]:
    """Runs a trained network on images; each task sees them as in its validation: size and crop.

    Args:
        weights: a work directory (its last stage) or one stage's checkpoint.
        images: image files.
        tasks: "all" (that the stage had learnt), or names separated by commas.
        threshold: least score of a box or a tag; where None, that chosen for each class, or each kind's own (0.3 for
            boxes, 0.5 for tags).
        flip: also run the network on every mirrored image, and average both; not for classes that mirroring changes.
        batch_size: most images that pass the network together.
        on_error: is called for each image that cannot be read, which is then left out; None raises.

    Yields:
        One `Predicted` per image, in their order.

    Raises:
        UserError: an unknown task, or an image that cannot be read.
        CheckpointError: no checkpoint at `weights`.

    Examples:
        >>> for predicted in predict("runs/seq", ["photo.jpg"]):
        ...     print(predicted.outputs["det"]["label"], predicted.outputs["det"]["boxes_xyxy"])
    """
    check_threshold(threshold)
    network = trained.load(Path(weights), tasks=tasks)
    settings = {"threshold": threshold, "flip": flip, "batch_size": batch_size, "on_error": on_error}
    yield from by_network(network, images, **settings)


def by_network(
    network: trained.Trained,
    images: Sequence[str | Path],
    *,
    threshold: float | None,
    flip: bool = False,
    batch_size: int = BATCH_SIZE,
    on_error: Callable[[UserError], None] | None,
) -> Iterator[Predicted]:
    """Runs a network that is loaded already; as `predict`."""
    run = evaluate.make_predict(network.setup.model, network.tasks, flip=flip)
    views = by_view(network)
    batch_size = min(batch_size, len(images))
    bits = trained.grey_bits(network)
    decoded = _decode_images(images, on_error, None if bits is None else lambda: bits)
    while batch := list(itertools.islice(decoded, batch_size)):
        by_image: list[tuple[dict[str, Any], dict[str, Geometry]]] = [({}, {}) for _ in batch]
        photos = [image for _, image in batch]
        for view, names in views.items():
            results = run_batch(run, network.variables, photos, view, tuple(names), batch_size=batch_size)
            for (predictions, places), (image_predictions, geometry) in zip(by_image, results, strict=True):
                predictions |= image_predictions
                places |= dict.fromkeys(names, geometry)
        for (path, image), (predictions, places) in zip(batch, by_image, strict=True):
            outputs = {
                name: task.to_json(task.at_original(predictions[name], places[name]), threshold)
                for name, task in network.tasks.items()
            }
            yield Predicted(path, image, outputs, predictions, places, network.tasks, threshold)


def run_batch(
    run: evaluate.Predict,
    variables: PyTree,
    images: Sequence[np.ndarray],
    view: experiment.View,
    names: tuple[str, ...],
    *,
    batch_size: int,
) -> list[tuple[dict[str, dict[str, np.ndarray]], Geometry]]:
    """Runs a network on a batch of images.

    Args:
        run: from `evaluate.make_predict`.
        variables: of the network.
        images: RGB, at most `batch_size` of them.
        view: how they are shown.
        names: of the tasks whose outputs are computed.
        batch_size: that the program is compiled for.

    Returns:
        Of each image the predictions by task, and where it went.
    """
    (size, crop), count = view, len(images)
    pixels, geometries = pipeline.fitted(images, size=(size, size), batch_size=batch_size, crop=crop)
    outputs = jax.device_get(run(variables, pixels, names=names))
    return [
        ({name: evaluate.example(outputs[name], index) for name in names}, geometries[index]) for index in range(count)
    ]


def by_view(network: trained.Trained) -> dict[experiment.View, list[str]]:
    """Returns input view -> tasks, which share a forward pass."""
    views: dict[experiment.View, list[str]] = {}
    for name in network.names:
        views.setdefault(experiment.task_view(network.setup, name), []).append(name)
    return views


def check_threshold(threshold: float | None) -> None:
    """Checks a least score.

    Raises:
        UserError: it is not from 0 to 1.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"--threshold: expected a score from 0 to 1, found {threshold}")


def _decode_images(
    images: Iterable[str | Path],
    on_error: Callable[[UserError], None] | None,
    grey_bits: Callable[[], int] | None,
) -> Iterator[tuple[Path, np.ndarray]]:
    for path in map(Path, images):
        try:
            image = decode_image(path, grey_bits=grey_bits)
        except UserError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            yield path, image


def find_images(places: Iterable[str]) -> list[Path]:
    """Lists the images that files, folders and glob patterns name, each once.

    Args:
        places: a file is taken as it is, whether it is there or not; of a folder and of a pattern's matches the files
            with an image's suffix, sorted, but for pictures that earlier predictions wrote.

    Raises:
        UserError: a folder or a pattern without images.
    """
    by_real_path: dict[Path, Path] = {}
    for place in places:
        path = Path(place).expanduser()
        matches = [path]
        if path.is_dir():
            matches = _with_suffix(path.iterdir())
        elif not path.exists() and glob.has_magic(place):
            matches = _with_suffix(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise UserError(
                f"{place}: expected images ({', '.join(sorted(SUFFIXES))}), found none; name a file, a folder of "
                'images or a pattern like "photos/*.jpg"'
            )
        by_real_path |= {match.resolve(): match for match in matches if match.resolve() not in by_real_path}
    return list(by_real_path.values())


def _with_suffix(paths: Iterable[Path]) -> list[Path]:
    images = (path for path in paths if is_image(path) and path.is_file())
    return sorted(path for path in images if not predicted_files.is_prediction(path))


def write(predicted: Predicted, out: Path, name: str) -> Path:
    """Writes <name>.json, the overlay <name>.png, and <name>.<task>.<map>.png for every map in the outputs.

    Returns:
        The path of the JSON file.
    """
    return predicted_files.write(
        out,
        name,
        image=predicted.path,
        size=predicted.image.shape[:2],
        overlay=predicted.overlay(),
        outputs=predicted.outputs,
    )


class _Callable(types.ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Iterator[Predicted]:
        return predict(*arguments, **options)


sys.modules[__name__].__class__ = _Callable  # so that `mtl_jax.predict(...)` works as well as `mtl_jax.predict.predict`


if __name__ == "__main__":
    # `python -m mtl_jax.predict` is the program's command, which stands above the library.
    sys.exit(importlib.import_module("mtl_jax.cli.predict").main(sys.argv[1:]))
