"""Depth: the distance of every pixel in metres, from one channel of the head on one level of the neck."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from mtl_jax.config.section import setting
from mtl_jax.errors import UserError
from mtl_jax.tasks import caption, dense
from mtl_jax.tasks.base import Constant, Geometry, ImageSize, Labels, LossAndParts, Prediction, Task

BERHU_SHARE = 0.2  # of the largest error, above which the cost is quadratic (Laina et al., 2016)
SCALE_INVARIANCE = 0.5  # lambda: 0 compares depths as they are, 1 only within an image (Eigen et al., 2014)
FIGURES = ("abs_error", "rel_error", "rmse", "delta_1", "delta_2", "delta_3")
BINS = 512  # of the histogram from which the best constant depth is found
DELTA = 1.25  # delta_k counts the pixels whose depth is off by a factor below its k-th power
OVERLAY_OPACITY = 0.8
MAX_MILLIMETRES = 65535  # what 16 bits hold

Map = Float[Array, "batch rows columns"]
Valid = Bool[Array, "batch rows columns"]


def l1(depth: Map, target: Map, valid: Valid) -> Float[Array, ""]:
    """The mean absolute error of the valid pixels, metres."""
    return _mean(jnp.abs(depth - target), valid)


def berhu(depth: Map, target: Map, valid: Valid) -> Float[Array, ""]:
    """The reverse Huber loss: |x| up to c, (x² + c²) / 2c above; c follows the batch's largest error.

    References:
        Laina, Rupprecht, Belagiannis, Tombari, Navab, "Deeper Depth Prediction with Fully Convolutional Residual
        Networks", 2016, equation 1.
    """
    error = jnp.where(valid, jnp.abs(depth - target), 0.0)
    threshold = jax.lax.stop_gradient(jnp.maximum(BERHU_SHARE * error.max(), 1e-6))
    quadratic = (jnp.square(error) + threshold**2) / (2 * threshold)
    return _mean(jnp.where(error > threshold, quadratic, error), valid)


def log(depth: Map, target: Map, valid: Valid) -> Float[Array, ""]:
    """The scale-invariant squared error of log depth, averaged over the images with a valid pixel.

    References:
        Eigen, Puhrsch, Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network", 2014,
        equation 4.
    """
    error = jnp.where(valid, jnp.log(depth) - jnp.log(target), 0.0)
    pixels = jnp.maximum(valid.sum((1, 2)), 1)
    costs = jnp.square(error).sum((1, 2)) / pixels - SCALE_INVARIANCE * jnp.square(error.sum((1, 2)) / pixels)
    return costs.sum() / jnp.maximum(valid.any((1, 2)).sum(), 1)


def _mean(costs: Map, valid: Valid) -> Float[Array, ""]:
    return jnp.where(valid, costs, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def _metres(raw: Float[Array, "batch rows columns 1"], center: float) -> Map:
    return center * jnp.exp(raw[..., 0])


# Of depth, labels and where they are valid; and depths drawn around a prediction with the noise that the cost assumes.
COSTS: dict[str, Callable[[Map, Map, Valid], Float[Array, ""]]] = {"l1": l1, "berhu": berhu, "log": log}
DRAWS: dict[str, Callable[[Array, Map], Map]] = {
    "l1": lambda key, depth: depth + jax.random.laplace(key, depth.shape),
    "berhu": lambda key, depth: depth + jax.random.laplace(key, depth.shape),
    "log": lambda key, depth: depth * jnp.exp(jnp.sqrt(0.5) * jax.random.normal(key, depth.shape)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth(Task):
    """The distance of every pixel.

    The head emits the logarithm of depth over `center`, so that every output is a positive depth, and near and far
    ones, whose errors are alike in proportion, are equally far from being right, whatever the cost.
    """

    kind = "depth"
    readout = "dense"
    outputs = "of each pixel of the input, metres"
    main_metric = "abs_error"
    higher_is_better = False
    titles: ClassVar[Mapping[str, str]] = {
        "abs_error": "absolute error, m",
        "rel_error": "relative error",
        "rmse": "RMSE",
        "delta_1": "delta 1",
        "delta_2": "delta 2",
        "delta_3": "delta 3",
    }

    classes: tuple[str, ...] = dataclasses.field(init=False, default=())
    strides: tuple[int, ...] = setting((8,), "of the one level that the head reads", unit="px", least=1)
    cost: str = setting(
        "l1",
        "the absolute error in metres; the same, but quadratic where it is large; or the scale-invariant squared error "
        "of the logarithm",
        choices=tuple(COSTS),
    )
    center: float = setting(2.5, "of the labels: what an untrained network says", unit="m")
    min_depth: float = setting(0.1, "labels below it count as missing, and no output is below it", unit="m")
    max_depth: float = setting(10.0, "labels above it count as missing, and no output is above it", unit="m")
    loss_stride: int = setting(
        4,
        "between the pixels that the loss compares; the cost falls with its square; divides the level's stride",
        unit="px",
        least=1,
    )

    def check(self) -> None:
        """Checks the level and the range of depths.

        Raises:
            UserError: names the setting that does not fit.
        """
        dense.check_strides(self.kind, self.strides, self.loss_stride)
        if not 0 < self.min_depth < self.center < self.max_depth:
            range_text = f"{self.min_depth}, {self.center}, {self.max_depth}"
            raise UserError(
                f"center: expected 0 < min_depth < center < max_depth, found {range_text}; give the labels' range in "
                "metres"
            )

    @property
    def channels(self) -> int:
        """The one number of each cell."""
        return 1

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction."""
        return {"depth": "of each pixel of the input, metres"}

    def loss(self, raw: Float[Array, "batch rows columns 1"], labels: Labels, image_size: ImageSize) -> LossAndParts:
        """The cost over the labelled pixels of the batch; NaN is a missing label.

        What the head emits is interpolated to one pixel in `loss_stride` each way and compared with the depth there.
        """
        del image_size
        stride = self.strides[0]
        covered_size = (raw.shape[1] * stride, raw.shape[2] * stride)
        target = dense.every_nth(labels["depth"], covered_size, self.loss_stride, missing=np.nan)
        valid = (target >= self.min_depth) & (target <= self.max_depth)  # False for NaN
        depth = _metres(dense.enlarge(raw.astype(jnp.float32), stride // self.loss_stride), self.center)
        value = COSTS[self.cost](depth, jnp.where(valid, target, self.center), valid)
        return value, {self.cost: value}

    def sampled_loss(
        self, raw: Float[Array, "batch rows columns 1"], image_size: ImageSize, key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """The cost towards depths drawn around every cell's: Laplace's noise, or for "log" Gauss's on log depth."""
        del image_size
        depth = _metres(raw.astype(jnp.float32), self.center)
        sampled = jax.lax.stop_gradient(DRAWS[self.cost](key, depth))
        return COSTS[self.cost](depth, sampled, jnp.ones(depth.shape, bool))

    def distillation_loss(
        self,
        raw: Float[Array, "batch rows columns 1"],
        teacher_raw: Float[Array, "batch rows columns 1"],
        image_size: ImageSize,
        *,
        balanced: bool = False,
    ) -> Float[Array, ""]:
        """The mean squared distance from the teacher's log depth."""
        del image_size, balanced
        return jnp.mean(jnp.square(raw.astype(jnp.float32) - teacher_raw.astype(jnp.float32)))

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns NaN for every pixel."""
        return {"depth": jnp.full((batch_size, *image_size), jnp.nan)}

    def finish(
        self, raw: Float[Array, "batch rows columns 1"], image_size: ImageSize
    ) -> Float[Array, "batch height width"]:
        """Returns the depth of every pixel of the input, in metres, within the range of valid labels."""
        depth = _metres(dense.enlarge(raw.astype(jnp.float32), self.strides[0]), self.center)
        return jnp.clip(depth[:, : image_size[0], : image_size[1]], self.min_depth, self.max_depth)

    def decode(self, outputs: Float[Array, "batch height width"]) -> dict[str, Array]:
        """Returns the depths."""
        return {"depth": outputs}

    def at_original(self, prediction: Prediction, geometry: Geometry) -> Prediction:
        """Looks the depths up for the pixels of the original."""
        return dense.fields_at_original(prediction, geometry)

    def new_metric(self) -> DepthErrors:
        """Returns the errors, of nothing so far."""
        return DepthErrors(name=self.name, min_depth=self.min_depth, max_depth=self.max_depth)

    def to_json(self, prediction: Prediction, threshold: float | None = None) -> dict[str, Any]:
        """Returns "depth_mm", the depth of each pixel in whole millimetres, and "min_m", "median_m" and "max_m"."""
        del threshold
        depth = np.asarray(prediction["depth"], np.float64)
        figures = {"min_m": depth.min(), "median_m": np.median(depth), "max_m": depth.max()}
        millimetres = np.clip(np.rint(1000 * depth), 0, MAX_MILLIMETRES).astype(np.uint16)
        return {name: round(float(value), 4) for name, value in figures.items()} | {"depth_mm": millimetres}

    def draw(self, axes: Any, prediction: Prediction, threshold: float | None = None) -> None:
        """Lays the depth over the image, from nearest to farthest, and writes these two into the corner."""
        del threshold
        depth = np.asarray(prediction["depth"])
        axes.imshow(depth, cmap="viridis", alpha=OVERLAY_OPACITY)
        caption.write(axes, f"{self.name} {depth.min():.2g} m (dark) to {depth.max():.2g} m (bright)")


class DepthErrors:
    """Errors over all pixels at the labels' original size; without any labelled pixel every figure is NaN.

    "abs_error" and "rmse" are in metres, "rel_error" is the mean of |d - d*| / d*, and "delta_k" is the share of
    pixels whose depth is wrong by a factor below 1.25 to the power of k.

    References:
        Eigen, Puhrsch, Fergus, "Depth Map Prediction from a Single Image using a Multi-Scale Deep Network", 2014,
        section 4.3.
    """

    def __init__(self, *, name: str, min_depth: float, max_depth: float) -> None:
        self._name, self._min_depth, self._max_depth = name, min_depth, max_depth
        self._pixels, self._sums = 0, np.zeros(len(FIGURES))
        self._edges = np.linspace(min_depth, max_depth, BINS + 1)
        self._histograms: list[np.ndarray] = []  # of each image's depths

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one image.

        Raises:
            UserError: the labels have another size than the image.
        """
        truth = np.asarray(target["depth"], np.float64)
        dense.check_size(self._name, "depth map", truth, geometry)
        valid = (truth >= self._min_depth) & (truth <= self._max_depth)
        depth = dense.at_original(np.asarray(prediction["depth"]), geometry)[valid].astype(np.float64)
        truth = truth[valid]
        error, factor = np.abs(depth - truth), np.maximum(depth / truth, truth / depth)
        of_pixels = (error, error / truth, np.square(error), *(factor < DELTA**power for power in (1, 2, 3)))
        self._pixels += truth.size
        self._sums += [pixel_values.sum() for pixel_values in of_pixels]
        if truth.size:
            self._histograms.append(np.histogram(truth, self._edges)[0])

    def compute(self) -> dict[str, float]:
        """Returns each of `FIGURES`."""
        means = self._sums / (self._pixels or np.nan)
        figures = dict(zip(FIGURES, means.tolist(), strict=True))
        return figures | {"rmse": figures["rmse"] ** 0.5}

    def constant(self) -> Constant:
        """Returns what the median depth reaches, to half a bin of the histogram."""
        images, unit = len(self._histograms), "image with a labelled pixel"
        if not images:
            return Constant(float("nan"), float("nan"), 0, unit)
        pixels, centres = np.array(self._histograms), (self._edges[1:] + self._edges[:-1]) / 2
        totals = pixels.sum(axis=0)
        errors = np.abs(centres - centres[np.searchsorted(np.cumsum(totals), totals.sum() / 2)])
        of_images = pixels @ errors / pixels.sum(axis=1)
        return Constant(float(totals @ errors / totals.sum()), float(of_images.std() / np.sqrt(images)), images, unit)
