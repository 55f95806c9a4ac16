"""The exported function, which holds the weights, and the description of its input and outputs for model.json."""

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
OUTPUTS = "outputs"  # raw outputs of a task, before decoding
DECODE = {  # which steps of the decoding a file includes
    "none": "the file does not decode: it returns the raw outputs of each task",
    "boxes": "the file decodes without non-maximum suppression: it returns every box with the scores of each class",
    "all": "the file decodes: non-maximum suppression, softmax and the like are part of it",
}
LAYOUTS = {"nhwc": ("batch", "height", "width", "RGB"), "nchw": ("batch", "RGB", "height", "width")}
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
PLACEMENT = (
    "scale = {}(height / image_height, width / image_width); the image is resized by scale (bilinear; averaged down "
    "first where scale < 0.5) and centred: offset_x = (width - image_width * scale) / 2, offset_y = (height - "
    "image_height * scale) / 2; {}. Back to the image: image_x = (x - offset_x) / scale; pixel i covers [i, i + 1)."
)
LETTERBOX = PLACEMENT.format("min", f"the margins are grey, {PADDING_GREY} / 255")
CROP = PLACEMENT.format("max", "what exceeds the square is cropped")

OutputFunction = Callable[[Float[Array, "batch height width 3"]], dict[str, Array]]


class Form(NamedTuple):
    """Decoding and layout of a file's input and outputs."""

    decode: str = "all"  # one of `DECODE`
    layout: str = "nhwc"  # one of `LAYOUTS`, of images and output maps


def output_function(network: Trained, form: Form | None = None, *, with_outputs: bool = False) -> OutputFunction:
    """Returns the function image -> {"<task>/<prediction>": array} of a network, with the channels last.

    Args:
        network: trained network with its weights.
        form: its `decode` is used; None decodes fully.
        with_outputs: also return the raw outputs "<task>/outputs".
    """
    decode = (form or Form()).decode
    return model_output_function(
        network.setup.model, network.tasks, network.variables, decode, with_outputs=with_outputs
    )


def model_output_function(
    model: Any, tasks: Mapping[str, Task], variables: PyTree, decode: str = "all", *, with_outputs: bool = False
) -> OutputFunction:
    """As `output_function`, for a model and variables without a checkpoint; "none" returns the raw outputs alone."""
    variables = jax.tree.map(jnp.asarray, variables)

    def compute(image: Float[Array, "batch height width 3"]) -> dict[str, Array]:
        outputs = multi_task.apply_eval(model, variables, image, tasks=tuple(tasks))
        includes_raw = with_outputs or decode == "none"
        values = {f"{name}/{OUTPUTS}": value for name, value in outputs.items()} if includes_raw else {}
        return values | decode_outputs(tasks, outputs, decode)

    return compute


def convert_layout(function: OutputFunction, layout: str) -> OutputFunction:
    """Converts a function with the channels last to one with images and maps in one of `LAYOUTS`."""
    if layout == "nhwc":
        return function

    def transposed(image: Float[Array, "batch 3 height width"]) -> dict[str, Array]:
        outputs = function(image.transpose(TO_NHWC))
        return {name: value.transpose(TO_NCHW) if value.ndim == 4 else value for name, value in outputs.items()}

    return transposed


def decode_outputs(tasks: Mapping[str, Task], outputs: dict[str, Array], decode: str = "all") -> dict[str, Array]:
    """Decodes {task: outputs} to {"<task>/<prediction>": array}, as one of `DECODE` says."""
    if decode == "none":
        return {}
    decoders = {name: _decoder(tasks[name], decode)[0] for name in outputs}
    return {f"{name}/{field}": value for name, raw in outputs.items() for field, value in decoders[name](raw).items()}


def _decoder(task: Task, decode: str) -> tuple[Callable[[Array], dict[str, Array]], Mapping[str, str]]:
    """Returns a task's decoder and the meanings of its predictions."""
    if decode == "none":
        return (lambda outputs: {OUTPUTS: outputs}), {OUTPUTS: task.outputs}
    if decode == "boxes" and task.undecided is not None:
        return task.undecided
    return task.decode, task.meanings


def input_view(network: Trained) -> View:
    """Returns the input size and crop of the exported function: those of the validation, where all tasks agree."""
    views = {experiment.task_view(network.setup, name) for name in network.names}
    return views.pop() if len(views) == 1 else View(network.setup.image_size, crop=False)


def input_shape(*, image_size: int, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns shape and type of the exported function's input."""
    return jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)


def input_shape_of_any_size() -> jax.ShapeDtypeStruct:
    """Returns the input shape for any batch size, height and width; height and width are multiples of the stride."""
    lengths = jax.export.symbolic_shape(f"batch, {IMAGE_STRIDE}*rows, {IMAGE_STRIDE}*columns")
    return jax.ShapeDtypeStruct((*lengths, 3), jnp.float32)


def has_any_size(image: jax.ShapeDtypeStruct) -> bool:
    """Returns whether height and width are dynamic."""
    return not all(isinstance(length, int) for length in image.shape[1:])


@contextlib.contextmanager
def report_fixed_size(image: jax.ShapeDtypeStruct) -> Iterator[None]:
    """Replaces an error of the traced code by one line that asks for a fixed image size, if the size is dynamic.

    Raises:
        UserError: replaces any error where the image size is dynamic.
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
    """Returns the content of model.json: all that is needed to run the file without this package.

    Args:
        network: exported network.
        image: from `input_shape`.
        form: decoding and layout of the files.
    """
    form = form or Form()
    file_image = image if form.layout == "nhwc" else _to_nchw(image)
    with report_fixed_size(image):
        shapes = jax.eval_shape(convert_layout(output_function(network, form), form.layout), file_image)
    size = [input_view(network).image_size] * 2 if has_any_size(image) else list(image.shape[1:3])
    return {
        "input": {
            "name": INPUT,
            "shape": shape_text(file_image.shape),
            "size": size,  # px, height and width of the padded image; an example where "shape" is symbolic
            "multiple_of": IMAGE_STRIDE,  # px
            "axes": list(LAYOUTS[form.layout]),
            "dtype": str(image.dtype),
            "range": [0.0, 1.0],
            "grey_bits": trained.grey_bits(
                network
            ),  # bits of 16-bit greyscale images, whose maximum becomes 1.0; None is 8-bit
            "crop": input_view(network).crop,
            "placement": CROP if input_view(network).crop else LETTERBOX,
        },
        "decoded": DECODE[form.decode],
        "tasks": {name: _describe_task(network, name, shapes, form.decode) for name in network.tasks},
        "checkpoint": str(network.path),
        "stage": network.stage,
        "config": network.config.name,
        "versions": {"mtl_jax": mtl_jax.__version__, "jax": jax.__version__},
    }


def shape_text(shape: Sequence[Any]) -> list[int | str]:
    """Returns a shape for model.json; dynamic lengths are expressions of batch, height, width, rows, columns."""
    return [onnx_layout.length_text(length) for length in onnx_layout.integer_shape(shape)]


def _to_nchw(image: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct([image.shape[axis] for axis in TO_NCHW], image.dtype)


def _describe_task(network: Trained, name: str, shapes: Mapping[str, Any], decode: str) -> dict[str, Any]:
    task, outputs = network.tasks[name], {}
    for field, meaning in _decoder(task, decode)[1].items():
        shape = shapes[f"{name}/{field}"]
        outputs[f"{name}/{field}"] = {"shape": shape_text(shape.shape), "dtype": str(shape.dtype), "meaning": meaning}
    return {
        "kind": task.kind,
        "classes": list(task.classes),
        "removed": [name for name in task.classes if name not in task.output_classes],
        **calibration.to_tree({name: network.calibration.get(name, calibration.Calibration())})[name],
        "validated_on": str(experiment.task_view(network.setup, name)),
        "outputs": outputs,
    }
