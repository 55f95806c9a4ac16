"""Pictures of predictions: next to the labels in a report, and over the whole image for a user."""

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, PyTree, UInt8

from mtl_jax.data.warp import stretch, warp
from mtl_jax.evaluation.details import DETAILS, ByClass, Details, Judged
from mtl_jax.evaluation.evaluate import Predict, example
from mtl_jax.report import truth
from mtl_jax.tasks import caption
from mtl_jax.tasks.base import Geometry, Labels, Task
from mtl_jax.tasks.calibration import calibration_of, tempered

FIGURE_INCHES, DPI = 4.0, 100.0  # of the longer side of a picture in the report
WEBP = {"format": "webp", "pil_kwargs": {"quality": 82}}  # a quarter of a PNG's bytes
OVERLAY_PX = (640, 1600)  # least and most of an overlay's longer side: smaller ones leave no room for words
OVERLAY_INCHES = 5.0  # what that side measures, so that words take the same share of every overlay
LEGEND_COLUMNS = (3, 2, 1)  # the first that is no wider than the picture
MOST_IMAGES = 500  # that the worst are chosen among
UNLABELLED = (0.5, 0.5, 0.5, 0.6)  # colour over pixels without a label


class Picture(NamedTuple):
    """An image with something drawn over it, and what is to be written next to it."""

    webp: bytes
    legend: tuple[tuple[str, str], ...]  # colour, name
    words: str


class Shown(NamedTuple):
    """One validation image."""

    predicted: Picture
    truth: Picture | None  # None where words say it all
    judgement: str


class Looked(NamedTuple):
    """Pictures and figures of a task on validation images."""

    first: list[Shown]
    worst: list[Shown]  # of the others, the worst first
    by_class: ByClass | None
    classes: tuple[str, ...]


class _Record(NamedTuple):
    image: Float[np.ndarray, "h w 3"]
    prediction: Mapping[str, np.ndarray]
    target: Labels
    geometry: Geometry
    judged: Judged | None


def look(
    predict: Predict,
    variables: PyTree,
    batches: Iterable[Any],
    tasks: Mapping[str, Task],
    *,
    count: int,
    stage: str = "",
) -> dict[str, Looked]:
    """Looks at the predictions for a validation stream: the first, the worst, and the figures of every class.

    Args:
        predict: from `evaluate.make_predict`.
        variables: of the network.
        batches: `data.pipeline.EvalBatch`es, of which `MOST_IMAGES` images are looked at.
        tasks: those that the stream labels, `calibrated` where something was chosen for them.
        count: pictures of the first images, and as many of the worst; with 0 nothing is looked at.
        stage: judges only the classes that this stage has added to the tasks.
    """
    if not count or not tasks:
        return {}
    details: dict[str, Details] = {
        name: DETAILS[task.kind](task) for name, task in tasks.items() if task.kind in DETAILS
    }
    first: dict[str, list[_Record]] = {name: [] for name in tasks}
    worst_records: dict[str, list[_Record]] = {name: [] for name in tasks}
    examples = _examples(predict, variables, batches, tasks)
    for image, predictions, targets, geometry in itertools.islice(examples, MOST_IMAGES):
        for name in tasks:
            labels = tasks[name].measured_labels(targets[name], stage)
            judged = details[name].update(predictions[name], labels, geometry) if name in details else None
            record = _Record(image, predictions[name], targets[name], geometry, judged)
            if len(first[name]) < count:
                first[name].append(record)
            elif judged is not None:
                worst_records[name] = sorted([*worst_records[name], record], key=_quality)[:count]
    return {
        name: Looked(
            [_example_of(task, record) for record in first[name]],
            [_example_of(task, record) for record in worst_records[name]],
            details[name].by_class() if name in details else None,
            task.classes,
        )
        for name, task in tasks.items()
    }


def _quality(record: _Record) -> float:
    return record.judged.quality if record.judged else np.inf


def _examples(
    predict: Predict, variables: PyTree, batches: Iterable[Any], tasks: Mapping[str, Task]
) -> Iterator[tuple[np.ndarray, dict[str, dict[str, np.ndarray]], Mapping[str, Labels], Geometry]]:
    for batch in batches:
        raw = jax.device_get(predict(variables, batch.image, names=tuple(tasks)))
        predictions = {name: tempered(task, raw[name], calibration_of(task)) for name, task in tasks.items()}
        for index in range(len(batch.ids)):
            by_task = {name: example(predictions[name], index) for name in tasks}
            yield np.asarray(batch.image[index]), by_task, batch.targets[index], batch.geometries[index]


def _example_of(task: Task, record: _Record) -> Shown:
    image, geometry = record.image, record.geometry
    predicted = picture(task, image, geometry, task.at_original(record.prediction, geometry))
    judgement = record.judged.words if record.judged else ""
    labels = truth.of(task, task.measured_labels(record.target))
    if labels is None or labels.prediction is None:
        label_words = f"labelled {labels.words}" if labels else ""
        return Shown(predicted, None, "; ".join(filter(None, (label_words, judgement))))
    labelled = picture(task, image, geometry, labels.prediction, unlabelled=labels.unlabelled)
    return Shown(predicted, labelled._replace(words=labels.words or labelled.words), judgement)


def picture(
    task: Task,
    image: Float[np.ndarray, "h w 3"],
    geometry: Geometry,
    prediction: Mapping[str, np.ndarray],
    *,
    unlabelled: Bool[np.ndarray, "height width"] | None = None,
) -> Picture:
    """Draws a task's prediction, or its labels in the same form, over an image.

    Args:
        task: whose prediction it is.
        image: the network's input; the padding around the image is cut off.
        geometry: where the image went in it.
        prediction: in the pixels of the original image.
        unlabelled: pixels of the original to be greyed.
    """
    from matplotlib.colors import to_hex

    rows, top, bottom = _visible(image.shape[0], geometry.scale_y, geometry.offset_y, geometry.height)
    columns, left, right = _visible(image.shape[1], geometry.scale_x, geometry.offset_x, geometry.width)
    notes: dict[str, Any] = {"legend": (), "words": ""}

    def panel(axes: Any) -> None:
        axes.imshow(np.clip(image[rows, columns], 0.0, 1.0), extent=(left, right, bottom, top), aspect="auto")
        axes.set(xlim=(left, right), ylim=(bottom, top))
        task.draw(axes, prediction)
        if unlabelled is not None and unlabelled.any():
            axes.imshow(unlabelled[..., None] * np.array(UNLABELLED))
        axes.set(xlim=(left, right), ylim=(bottom, top), aspect="auto")
        if legend := axes.get_legend():
            handles, texts = legend.legend_handles, legend.get_texts()
            pairs = zip(handles, texts, strict=True)
            notes["legend"] = tuple((to_hex(handle.get_facecolor()), text.get_text()) for handle, text in pairs)
            legend.remove()
        if words := caption.take(axes):
            notes["words"] = words

    size = np.array([right - left, bottom - top])
    inches = FIGURE_INCHES * size / size.max()
    webp = _render([panel], inches=(float(inches[0]), float(inches[1])), dpi=DPI, **WEBP)
    return Picture(webp, notes["legend"], notes["words"])


def _visible(length: int, scale: float, offset: float, original: int) -> tuple[slice, float, float]:
    """The span of one axis of the input that shows the image, and its begin and end in pixels of the original."""
    first, last = max(offset, 0.0), min(offset + original * scale, length)
    return (
        slice(round(first), max(round(last), round(first) + 1)),
        (first - offset) / scale - 0.5,
        (last - offset) / scale - 0.5,
    )


def overlay(
    tasks: Mapping[str, Task],
    image: UInt8[np.ndarray, "height width 3"],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    geometries: Mapping[str, Geometry],
    *,
    threshold: float | None = None,
) -> bytes:
    """Returns an original image with what several tasks predict drawn over it, as a PNG file of about its size.

    Of several tasks with an output for every pixel, the first shares a panel with all else, and each of the others
    has its own next to it.

    Args:
        tasks: by name.
        image: RGB.
        predictions: of each task, for the network's input.
        geometries: where the image went in that input.
        threshold: least score of what is drawn; each kind's own where None.
    """
    height, width = image.shape[:2]
    scale = float(np.clip(max(height, width), *OVERLAY_PX)) / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = warp(image, stretch(height, width, size=size), size=size)

    def panel(axes: Any, names: Iterable[str]) -> None:
        axes.imshow(canvas)
        axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
        for name in names:
            prediction = tasks[name].at_original(predictions[name], _resized(geometries[name], size))
            tasks[name].draw(axes, prediction, threshold)
        axes.set_aspect("auto")  # a panel has the image's shape, but for a fraction of a pixel

    dense_tasks = [name for name, task in tasks.items() if task.readout == "dense"][1:]
    groups = [[name for name in tasks if name not in dense_tasks], *([name] for name in dense_tasks)]
    dpi = max(size) / OVERLAY_INCHES
    panels = [functools.partial(panel, names=names) for names in groups]
    return _render(panels, inches=(size[1] / dpi, size[0] / dpi), dpi=dpi, below=True, format="png")


def _resized(geometry: Geometry, size: tuple[int, int]) -> Geometry:
    """Placement of an image, for a copy of it of another size."""
    x, y = geometry.width / size[1], geometry.height / size[0]
    return geometry._replace(scale_x=geometry.scale_x * x, scale_y=geometry.scale_y * y, height=size[0], width=size[1])


def _render(
    panels: Sequence[Callable[[Any], None]],
    *,
    inches: tuple[float, float],
    dpi: float,
    below: bool = False,
    **options: Any,
) -> bytes:
    """Draws panels side by side, each of a size, and with `below` what they say in words under them."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # slow to import, and of no use to a training step

    with rc_context({"text.parse_math": False}):  # a name with a dollar sign is a name
        figure = Figure(figsize=(inches[0] * len(panels), inches[1]), dpi=dpi)
        has_caption = False
        for column, panel in enumerate(panels):
            axes = figure.add_axes((column / len(panels), 0.0, 1 / len(panels), 1.0))
            axes.axis("off")
            panel(axes)
            has_caption |= below and _move_below(axes)
        if has_caption:
            options |= {"bbox_inches": "tight", "pad_inches": 0.0}
        buffer = io.BytesIO()
        figure.savefig(buffer, **options)
        return buffer.getvalue()


def _move_below(axes: Any) -> bool:
    """Moves the legend and the caption of a panel under it; whether there are any."""
    words, legend, floor = caption.take(axes), axes.get_legend(), 0.0
    if legend:
        style = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.0), "frameon": False, "fontsize": "x-small"}
        for columns in LEGEND_COLUMNS:
            legend_below = axes.legend(handles=legend.legend_handles, ncols=columns, **style)
            axes.figure.draw_without_rendering()
            place = axes.transAxes.inverted().transform(legend_below.get_window_extent())
            floor = place[0, 1]
            if place[1, 0] <= 1.0:
                break
    if words:
        axes.text(0.01, floor - 0.01, words, transform=axes.transAxes, va="top", fontsize="small")
    return bool(legend or words)
