"""The function that is exported, with the weights inside, and what a user of the file has to know about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

import mtl_jax
from mtl_jax import experiment
from mtl_jax.data.warp import PADDING_GREY
from mtl_jax.experiment import View
from mtl_jax.models import multi_task
from mtl_jax.workdir import trained
from mtl_jax.workdir.trained import Trained

INPUT = "image"
OUTPUTS = "outputs"  # what a task says before it is decoded; only the check asks for it
PLACEMENT = (
    "scale = {}(height / image_height, width / image_width); the image is resized by scale (bilinear; averaged down "
    "first where scale < 0.5) and centred: offset_x = (width - image_width * scale) / 2, offset_y likewise; {}. "
    "Back to the image: image_x = (x - offset_x) / scale; pixel i covers [i, i + 1)."
)
LETTERBOX = PLACEMENT.format("min", f"the rest is grey, {PADDING_GREY} / 255")
CROP = PLACEMENT.format("max", "what stands out is left away")

Answers = Callable[[Float[Array, "batch height width 3"]], dict[str, Array]]


def answers(network: Trained, *, with_outputs: bool = False) -> Answers:
    """Returns image -> {"<task>/<prediction>": array}, decoded.

    Args:
        network: whose tasks answer, from its own weights.
        with_outputs: also return "<task>/outputs", which the rest is decoded from.
    """

    variables = jax.tree.map(jnp.asarray, network.variables)

    def answer(image: Float[Array, "batch height width 3"]) -> dict[str, Array]:
        outputs = multi_task.apply_eval(network.parts.model, variables, image, tasks=network.names)
        found = {f"{name}/{OUTPUTS}": value for name, value in outputs.items()} if with_outputs else {}
        return found | decoded(network, outputs)

    return answer


def decoded(network: Trained, outputs: dict[str, Array]) -> dict[str, Array]:
    """Returns {"<task>/<prediction>": array} of {task: outputs}."""
    return {
        f"{name}/{field}": value
        for name, each in outputs.items()
        for field, value in network.tasks[name].decode(each).items()
    }


def input_view(network: Trained) -> View:
    """Returns how images are shown to the exported function: as the tasks were validated, where they agree."""
    views = {experiment.task_view(network.parts, name) for name in network.names}
    return views.pop() if len(views) == 1 else View(network.parts.image_size, crop=False)


def input_shape(*, image_size: int, batch_size: int) -> jax.ShapeDtypeStruct:
    """Returns what the exported function takes."""
    return jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), jnp.float32)


def describe(network: Trained, image: jax.ShapeDtypeStruct) -> dict[str, Any]:
    """Returns what stands in model.json: enough to run the file without this package.

    Args:
        network: the exported one.
        image: from `input_shape`.
    """
    shapes = jax.eval_shape(answers(network), image)
    views = {name: experiment.task_view(network.parts, name) for name in network.tasks}
    tasks = {
        name: {
            "kind": task.kind,
            "classes": list(task.classes),
            "validated_on": str(views[name]),
            "outputs": {
                f"{name}/{field}": {
                    "shape": list(shapes[f"{name}/{field}"].shape),
                    "dtype": str(shapes[f"{name}/{field}"].dtype),
                    "meaning": meaning,
                }
                for field, meaning in task.meanings.items()
            },
        }
        for name, task in network.tasks.items()
    }
    return {
        "input": {
            "name": INPUT,
            "shape": list(image.shape),
            "axes": ["batch", "height", "width", "RGB"],
            "dtype": str(image.dtype),
            "range": [0.0, 1.0],
            "grey_bits": trained.grey_bits(network),  # of 16-bit greyscale, whose largest level is 1.0; None is 8-bit
            "placement": CROP if input_view(network).crop else LETTERBOX,
        },
        "decoded": "the file decodes: non-maximum suppression, softmax and the like are part of it",
        "tasks": tasks,
        "checkpoint": str(network.path),
        "stage": network.stage,
        "config": network.config.name,
        "versions": {"mtl_jax": mtl_jax.__version__, "jax": jax.__version__},
    }
