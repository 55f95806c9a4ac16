"""The function that is exported, with the weights inside, and what a user of the file has to know about it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

import mtl_jax
from mtl_jax import experiment
from mtl_jax.config.model_settings import IMAGE_STRIDE
from mtl_jax.data.warp import PADDING_GREY
from mtl_jax.errors import UserError
from mtl_jax.experiment import View
from mtl_jax.export import onnx_layout
from mtl_jax.models import multi_task
from mtl_jax.tasks import calibration
from mtl_jax.tasks.base import Task
from mtl_jax.workdir import trained
from mtl_jax.workdir.trained import Trained

INPUT = "image"
OUTPUTS = "outputs"  # what a task says before it is decoded
DECODE = {  # how far a file goes
    "none": "the file does not decode: it says what each task's outputs are",
    "boxes": "the file decodes, but for non-maximum suppression: it gives every box with the scores of each class",
    "all": "the file decodes: non-maximum suppression, softmax and the like are part of it",
}
LAYOUTS = {"nhwc": ("batch", "height", "width", "RGB"), "nchw": ("batch", "RGB", "height", "width")}
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
PLACEMENT = (
    "scale = {}(height / image_height, width / image_width); the image is resized by scale (bilinear; averaged down "
    "first where scale < 0.5) and centred: offset_x = (width - image_width * scale) / 2, offset_y likewise; {}. "
    "Back to the image: image_x = (x - offset_x) / scale; pixel i covers [i, i + 1)."
)
LETTERBOX = PLACEMENT.format("min", f"the rest is grey, {PADDING_GREY} / 255")
CROP = PLACEMENT.format("max", "what stands out is left away")

Answers = Callable[[Float[Array, "batch height width 3"]], dict[str, Array]]


class Form(NamedTuple):
    """What a file takes and gives."""

    decode: str = "all"  # one of `DECODE`
    layout: str = "nhwc"  # one of `LAYOUTS`: of images, and of maps that it gives


def answers(network: Trained, form: Form | None = None, *, with_outputs: bool = False) -> Answers:
    """Returns image -> {"<task>/<prediction>": array}, with the channels last, whatever the form's layout.

    Args:
        network: whose tasks answer, from its own weights.
        form: how far they are decoded; all the way if None.
        with_outputs: also return "<task>/outputs", which the rest is decoded from.
    """
    decode = (form or Form()).decode
    return answers_of(network.setup.model, network.tasks, network.variables, decode, with_outputs=with_outputs)


def answers_of(
    model: Any, tasks: Mapping[str, Task], variables: PyTree, decode: str = "all", *, with_outputs: bool = False
) -> Answers:
    """As `answers`, of a network that no checkpoint holds; what is decoded to "none" are the outputs alone."""
    variables = jax.tree.map(jnp.asarray, variables)

    def answer(image: Float[Array, "batch height width 3"]) -> dict[str, Array]:
        outputs = multi_task.apply_eval(model, variables, image, tasks=tuple(tasks))
        is_kept = with_outputs or decode == "none"
        values = {f"{name}/{OUTPUTS}": value for name, value in outputs.items()} if is_kept else {}
        return values | decoded(tasks, outputs, decode)

    return answer


def in_layout(function: Answers, layout: str) -> Answers:
    """Returns a function of images with the channels last as one of images, and maps, in one of `LAYOUTS`."""
    if layout == "nhwc":
        return function

    def turned(image: Float[Array, "batch 3 height width"]) -> dict[str, Array]:
        outputs = function(image.transpose(TO_NHWC))
        return {name: value.transpose(TO_NCHW) if value.ndim == 4 else value for name, value in outputs.items()}

    return turned


def decoded(tasks: Mapping[str, Task], outputs: dict[str, Array], decode: str = "all") -> dict[str, Array]:
    """Returns {"<task>/<prediction>": array} of {task: outputs}, decoded as far as one of `DECODE` says."""
    if decode == "none":
        return {}
    decoders = {name: _decoding(tasks[name], decode)[0] for name in outputs}
    return {f"{name}/{field}": value for name, raw in outputs.items() for field, value in decoders[name](raw).items()}


def _decoding(task: Task, decode: str) -> tuple[Callable[[Array], dict[str, Array]], Mapping[str, str]]:
    """Returns how a task's outputs are decoded, and what the predictions mean."""
    if decode == "none":
        return (lambda outputs: {OUTPUTS: outputs}), {OUTPUTS: task.outputs}
    if decode == "boxes" and task.undecided is not None:
        return task.undecided
    return task.decode, task.meanings


def input_view(network: Trained) -> View:
    """Returns how images are shown to the exported function: as the tasks were validated, where they agree."""
    views = {experiment.task_view(network.setup, name) for name in network.names}
    return views.pop() if len(views) == 1 else View(network.setup.image_size, crop=False)


def input_shape(*, image_size: int, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns what the exported function takes."""
    return jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)


def input_shape_of_any_size() -> jax.ShapeDtypeStruct:
    """Returns what the exported function takes, where that is any number of images of any size that has whole cells."""
    lengths = jax.export.symbolic_shape(f"batch, {IMAGE_STRIDE}*rows, {IMAGE_STRIDE}*columns")
    return jax.ShapeDtypeStruct((*lengths, 3), jnp.float32)


def has_any_size(image: jax.ShapeDtypeStruct) -> bool:
    """Says whether height and width are known when a file runs."""
    return not all(isinstance(length, int) for length in image.shape[1:])


@contextlib.contextmanager
def size_checked(image: jax.ShapeDtypeStruct) -> Iterator[None]:
    """Reports what goes wrong inside as a network that needs to know the size of its images, where that is any.

    Raises:
        UserError: in place of the error.
    """
    try:
        yield
    except Exception as error:
        if not has_any_size(image):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--image_size: expected a number of px, as a part of this network is made for one size ({reason}), found "
            "dynamic; give the number"
        ) from error


def describe(network: Trained, image: jax.ShapeDtypeStruct, form: Form | None = None) -> dict[str, Any]:
    """Returns what stands in model.json: enough to run the file without this package.

    Args:
        network: the exported one.
        image: from `input_shape`.
        form: what the files take and give.
    """
    form = form or Form()
    turned = image if form.layout == "nhwc" else _turned(image)
    with size_checked(image):
        shapes = jax.eval_shape(in_layout(answers(network, form), form.layout), turned)
    size = [input_view(network).image_size] * 2 if has_any_size(image) else list(image.shape[1:3])
    return {
        "input": {
            "name": INPUT,
            "shape": lengths(turned.shape),
            "size": size,  # px, height and width that images are placed in; one of many where "shape" names no numbers
            "multiple_of": IMAGE_STRIDE,  # px
            "axes": list(LAYOUTS[form.layout]),
            "dtype": str(image.dtype),
            "range": [0.0, 1.0],
            "grey_bits": trained.grey_bits(network),  # of 16-bit greyscale, whose largest level is 1.0; None is 8-bit
            "crop": input_view(network).crop,
            "placement": CROP if input_view(network).crop else LETTERBOX,
        },
        "decoded": DECODE[form.decode],
        "tasks": {name: _described(network, name, shapes, form.decode) for name in network.tasks},
        "checkpoint": str(network.path),
        "stage": network.stage,
        "config": network.config.name,
        "versions": {"mtl_jax": mtl_jax.__version__, "jax": jax.__version__},
    }


def lengths(shape: Sequence[Any]) -> list[int | str]:
    """Returns a shape as it stands in model.json: rows and columns are a 32nd of height and width."""
    return [onnx_layout.length_text(length) for length in onnx_layout.integer_shape(shape)]


def _turned(image: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct([image.shape[axis] for axis in TO_NCHW], image.dtype)


def _described(network: Trained, name: str, shapes: Mapping[str, Any], decode: str) -> dict[str, Any]:
    task, described = network.tasks[name], {}
    for field, meaning in _decoding(task, decode)[1].items():
        shape = shapes[f"{name}/{field}"]
        described[f"{name}/{field}"] = {"shape": lengths(shape.shape), "dtype": str(shape.dtype), "meaning": meaning}
    return {
        "kind": task.kind,
        "classes": list(task.classes),
        **calibration.to_tree({name: network.calibration.get(name, calibration.Calibration())})[name],
        "validated_on": str(experiment.task_view(network.setup, name)),
        "outputs": described,
    }
