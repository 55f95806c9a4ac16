"""Regression: one number per image, from the mean of the head's features on one level of the neck."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mtl_jax.errors import UserError
from mtl_jax.tasks import caption
from mtl_jax.tasks.base import Constant, Geometry, ImageSize, Labels, Task

TITLES = {"mae": "mean absolute error", "rmse": "RMSE"}

# How far a prediction is from its label, both in units of `scale`, and noise under which that is a -log-likelihood.
COSTS: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "l2": jnp.square}
NOISES: dict[str, Callable[..., Array]] = {
    "l1": jax.random.laplace,
    "l2": lambda key, shape: jnp.sqrt(0.5) * jax.random.normal(key, shape),
}


def make(
    name: str,
    *,
    cost: str = "l1",
    center: float = 0.0,
    scale: float = 1.0,
    unit: str = "",
    strides: Sequence[int] = (32,),
) -> Task:
    """Builds a regression task.

    Args:
        name: of the task.
        cost: "l1", the absolute error, or "l2", the squared error.
        center: of the labels, in their unit: what an untrained network says.
        scale: of the labels, in their unit: the loss is in units of it, and so beside other tasks' losses.
        unit: of the labels, for captions.
        strides: px per cell of the one level that the head reads.

    Raises:
        UserError: a setting is outside its range.
    """
    strides, where = tuple(strides), f"task {name!r}: expected "
    if cost not in COSTS:
        raise UserError(where + f"a cost among {', '.join(COSTS)}, found {cost!r}; correct tasks.{name}")
    if not scale > 0:
        raise UserError(where + f"a scale above 0, found {scale}; give the spread of the labels")
    if len(strides) != 1:
        raise UserError(where + f"one stride for regression, found {strides}; name one level of the neck")
    return Task(
        name=name,
        kind="regression",
        classes=(),
        channels=1,
        readout="pooled",
        strides=strides,
        main_metric="mae",
        higher_is_better=False,
        loss=functools.partial(loss, cost=cost, center=center, scale=scale),
        distillation_loss=distillation_loss,
        sampled_loss=functools.partial(sampled_loss, cost=cost),
        finish=functools.partial(finish, center=center, scale=scale),
        decode=decode,
        meanings={"value": f"the number{unit and f', {unit}'}"},
        no_labels=no_labels,
        new_metric=Errors,
        answer=functools.partial(answer, unit=unit),
        draw=functools.partial(draw, name=name, unit=unit),
    )


def loss(
    raw: Float[Array, "batch 1"], labels: Labels, image_size: ImageSize, *, cost: str, center: float, scale: float
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean cost over the labelled images of the batch, in units of `scale`; NaN is a missing label."""
    del image_size
    labelled = jnp.isfinite(labels["value"])
    target = jnp.where(labelled, (labels["value"] - center) / scale, 0.0)
    costs = jnp.where(labelled, COSTS[cost](raw[:, 0].astype(jnp.float32) - target), 0.0)
    value = costs.sum() / jnp.maximum(labelled.sum(), 1)
    return value, {cost: value}


def no_labels(batch_size: int, image_size: ImageSize) -> Labels:
    """Returns NaN for every image."""
    del image_size
    return {"value": jnp.full(batch_size, jnp.nan)}


def distillation_loss(
    raw: Float[Array, "batch 1"], teacher_raw: Float[Array, "batch 1"], image_size: ImageSize
) -> Float[Array, ""]:
    """The mean squared distance from the teacher, in units of `scale`."""
    del image_size
    return jnp.mean(jnp.square(raw.astype(jnp.float32) - teacher_raw.astype(jnp.float32)))


def sampled_loss(
    raw: Float[Array, "batch 1"], image_size: ImageSize, key: Key[Array, ""], *, cost: str
) -> Float[Array, ""]:
    """The mean cost towards labels drawn around the prediction: Laplace's noise for "l1", Gauss's for "l2"."""
    del image_size
    value = raw.astype(jnp.float32)
    return COSTS[cost](value - jax.lax.stop_gradient(value + NOISES[cost](key, value.shape))).mean()


def finish(
    raw: Float[Array, "batch 1"], image_size: ImageSize, *, center: float, scale: float
) -> Float[Array, "batch"]:
    """Returns the values in the labels' unit."""
    del image_size
    return center + scale * raw[:, 0].astype(jnp.float32)


def decode(outputs: Float[Array, "batch"]) -> dict[str, Array]:
    """Returns the values."""
    return {"value": outputs}


class Errors:
    """Mean absolute error ("mae") and root mean square error ("rmse"), in the labels' unit.

    Images without a label are left out; without any the figures are NaN.
    """

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._values: list[float] = []  # the labels

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> None:
        """Adds one image."""
        del geometry
        error = float(prediction["value"]) - float(target["value"])
        if not np.isnan(float(target["value"])):
            self._errors.append(error)
            self._values.append(float(target["value"]))

    def compute(self) -> dict[str, float]:
        """Returns "mae" and "rmse"."""
        errors = np.array(self._errors or [np.nan])
        return {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean()))}

    def constant(self) -> Constant:
        """Returns what the median reaches, which no other value beats in the mean absolute error."""
        values = np.array(self._values or [np.nan])
        errors = np.abs(values - np.median(values))
        return Constant(
            float(errors.mean()), float(errors.std() / np.sqrt(len(errors))), len(self._values), "labelled image"
        )


def answer(prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, unit: str) -> dict[str, Any]:
    """Returns "value" and its "unit"."""
    del threshold
    return {"value": float(prediction["value"]), "unit": unit}


def draw(
    axes: Any, prediction: Mapping[str, np.ndarray], threshold: float | None = None, *, name: str, unit: str
) -> None:
    """Writes the value into the image's corner."""
    del threshold
    caption.write(axes, f"{name} {float(prediction['value']):.4g} {unit}".rstrip())
