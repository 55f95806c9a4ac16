"""Regression: one number per image, from the mean of the head's features on one level of the neck."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from mtl_jax.config.section import setting
from mtl_jax.tasks import caption
from mtl_jax.tasks.base import Constant, Geometry, ImageSize, Labels, LossAndParts, Prediction, Task, one_level

# How far a prediction is from its label, both in units of `scale`, and noise under which that is a -log-likelihood.
COSTS: dict[str, Callable[[Array], Array]] = {"l1": jnp.abs, "l2": jnp.square}
NOISES: dict[str, Callable[..., Array]] = {
    "l1": jax.random.laplace,
    "l2": lambda key, shape: jnp.sqrt(0.5) * jax.random.normal(key, shape),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """One number per image."""

    kind = "regression"
    readout = "pooled"
    outputs = "the value"
    main_metric = "mae"
    higher_is_better = False
    titles: ClassVar[Mapping[str, str]] = {"mae": "mean absolute error", "rmse": "RMSE"}

    classes: tuple[str, ...] = dataclasses.field(init=False, default=())
    strides: tuple[int, ...] = setting((32,), "of the one level that the head reads", unit="px", least=1)
    cost: str = setting("l1", "the absolute error, or the squared error", choices=tuple(COSTS))
    center: float = setting(0.0, "of the labels, in their unit: what an untrained network says")
    scale: float = setting(
        1.0,
        "of the labels, in their unit: the loss is in units of it, and so comparable with other tasks' losses",
        above=0.0,
    )
    unit: str = setting("", "of the labels, for captions")

    def check(self) -> None:
        """Checks that there is one level.

        Raises:
            UserError: there is not.
        """
        one_level(self.kind, self.strides)

    @property
    def channels(self) -> int:
        """The one number."""
        return 1

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return {"value": f"the number{self.unit and f', {self.unit}'}"}

    def loss(self, raw: Float[Array, "batch 1"], labels: Labels, image_size: ImageSize) -> LossAndParts:
        """The mean cost over the labelled images of the batch, in units of `scale`; NaN is a missing label."""
        del image_size
        labelled = jnp.isfinite(labels["value"])
        target = jnp.where(labelled, (labels["value"] - self.center) / self.scale, 0.0)
        costs = jnp.where(labelled, COSTS[self.cost](raw[:, 0].astype(jnp.float32) - target), 0.0)
        value = costs.sum() / jnp.maximum(labelled.sum(), 1)
        return value, {self.cost: value}

    def sampled_loss(
        self, raw: Float[Array, "batch 1"], image_size: ImageSize, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """The mean cost towards labels drawn around the prediction: Laplace's noise for "l1", Gauss's for "l2"."""
        del image_size
        value = raw.astype(jnp.float32)
        sampled = jax.lax.stop_gradient(value + NOISES[self.cost](key, value.shape))
        return COSTS[self.cost](value - sampled).mean()

    def distillation_loss(
        self,
        raw: Float[Array, "batch 1"],
        teacher_raw: Float[Array, "batch 1"],
        image_size: ImageSize,
        *,
        balanced: bool = False,
    ) -> Float[Array, ""]:
        """The mean squared distance from the teacher, in units of `scale`."""
        del image_size, balanced
        return jnp.mean(jnp.square(raw.astype(jnp.float32) - teacher_raw.astype(jnp.float32)))

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns NaN for every image."""
        del image_size
        return {"value": jnp.full(batch_size, jnp.nan)}

    def finish(self, raw: Float[Array, "batch 1"], image_size: ImageSize) -> Float[Array, "batch"]:
        """Returns the values in the labels' unit."""
        del image_size
        return self.center + self.scale * raw[:, 0].astype(jnp.float32)

    def decode(self, outputs: Float[Array, "batch"]) -> dict[str, Array]:
        """Returns the values."""
        return {"value": outputs}

    def new_metric(self) -> Errors:
        """Returns the errors, of nothing so far."""
        return Errors()

    def to_json(self, prediction: Prediction, threshold: float | None = None) -> dict[str, Any]:
        """Returns "value" and its "unit"."""
        del threshold
        return {"value": float(prediction["value"]), "unit": self.unit}

    def draw(self, axes: Any, prediction: Prediction, threshold: float | None = None) -> None:
        """Writes the value into the image's corner."""
        del threshold
        caption.write(axes, f"{self.name} {float(prediction['value']):.4g} {self.unit}".rstrip())


class Errors:
    """Mean absolute error ("mae") and root mean square error ("rmse"), in the labels' unit.

    Images without a label are left out; without any the figures are NaN.
    """

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._values: list[float] = []  # the labels

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
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
