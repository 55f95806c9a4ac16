"""The Task record: all that the rest of the library knows about one task, as pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float

Labels = Mapping[str, Any]  # one task's labels of a batch (arrays) or, in a metric, of one example (numpy)
ImageSize = tuple[int, int]  # height, width, in pixels of the network's input
Readout = Literal["dense", "cells", "pooled"]


class Geometry(NamedTuple):
    """How an original image was placed into the network's input: `input_px = original_px * scale + offset`.

    Coordinates are continuous: pixel `i` covers `[i, i + 1)`.
    """

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    height: int  # of the original image, px
    width: int


class Constant(NamedTuple):
    """What the best answer that is the same for every image reaches on the data that a metric has seen."""

    figure: float  # of the task's main metric; NaN where nothing is labelled
    standard_error: float  # of that figure, over other data of the same kind and size
    count: int  # of what is labelled
    counted: str  # what that is, e.g. "labelled image"


def share_error(share: float, count: int) -> float:
    """Returns the standard error of a share of `count` things, which is not 0 for a share of 0 or 1.

    References:
        Agresti and Coull, "Approximate is Better than Exact for Interval Estimation of Binomial Proportions", 1998.
    """
    smoothed = (share * count + 1) / (count + 2)
    return float(np.sqrt(smoothed * (1 - smoothed) / (count + 2)))


@runtime_checkable
class Metric(Protocol):
    """Accumulates over the examples of a dataset, at their original resolution."""

    def update(self, prediction: Mapping[str, np.ndarray], target: Labels, geometry: Geometry) -> None:
        """Adds one example."""
        ...

    def compute(self) -> dict[str, float]:
        """Returns every figure by name; the task's `main_metric` is among them."""
        ...

    def constant(self) -> Constant:
        """Returns what the best constant answer would have reached: what a network has to beat."""
        ...


class Candidates(NamedTuple):
    """Every prediction of a task that a last step chooses from."""

    decode: Callable[[Array], dict[str, Array]]  # (outputs) -> the predictions, inside jit
    meanings: Mapping[str, str]  # of each

    def __hash__(self) -> int:
        """Leaves the texts out, which have no hash."""
        return hash(self.decode)


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of the network.

    `raw` is what the head emits for the task, by `readout`: "dense" f32[b, h / s, w / s, channels] with
    s = strides[0]; "cells" f32[b, cells, channels], the levels in the order of `strides`, each row-major;
    "pooled" f32[b, channels].
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    channels: int  # of the task's slice of the head's last convolution
    readout: Readout
    strides: tuple[int, ...]  # px of input per cell, of the neck levels that the head reads
    main_metric: str  # the figure that the contract judges
    higher_is_better: bool
    # (raw, labels, image_size) -> loss f32[], its parts by name. A missing label adds no loss and no gradient.
    loss: Callable[[Array, Labels, ImageSize], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]
    # (raw, teacher_raw, image_size) -> f32[]: how far the student is from the teacher on the same images.
    distillation_loss: Callable[[Array, Array, ImageSize], Float[Array, ""]]
    # (raw, image_size, key) -> f32[]: -log-likelihood of labels drawn from the prediction itself, on the loss's scale.
    sampled_loss: Callable[[Array, ImageSize, Array], Float[Array, ""]]
    # (raw, image_size) -> outputs as a user sees them, at input size and in pixels.
    finish: Callable[[Array, ImageSize], Array]
    # (outputs) -> predictions of fixed size, inside jit.
    decode: Callable[[Array], dict[str, Array]]
    # (raw, image_size) -> `decode(finish(raw, image_size))` in fewer steps; None where there is no shorter way.
    decode_raw: Callable[[Array, ImageSize], dict[str, Array]] | None = dataclasses.field(default=None, kw_only=True)
    # What comes before a last step that depends on all predictions of an image; None where there is no such step.
    candidates: Candidates | None = dataclasses.field(default=None, kw_only=True)
    # What each of these predictions is, for those who run an exported network.
    meanings: Mapping[str, str] = dataclasses.field(hash=False)
    # (batch size, image_size) -> labels that say of every image that there are none.
    no_labels: Callable[[int, ImageSize], Labels]
    new_metric: Callable[[], Metric]
    # (one example's prediction at its image's own resolution, least score or None for the kind's own) -> the answer in
    # JSON's terms; a map [height, width] of u8 or u16 in it is for an image file.
    answer: Callable[[Mapping[str, np.ndarray], float | None], dict[str, Any]]
    # (matplotlib axes that show an image, the prediction in its pixels, least score or None) draws onto them.
    draw: Callable[..., None]
    # (one example's prediction, where its image went) -> the prediction in the pixels of the image.
    at_original: Callable[[Mapping[str, np.ndarray], Geometry], Mapping[str, np.ndarray]] = lambda prediction, _: (
        prediction
    )
    ignore_label: int | None = None  # of a mask: the value of void pixels in the labels
    # As `distillation_loss`, but what the teacher rarely sees counts as much as what it often sees; None: all is alike.
    balanced_distillation_loss: Callable[[Array, Array, ImageSize], Float[Array, ""]] | None = None
    # (labels, raw of another network, image_size, threshold) -> labels with what that network is sure of, of
    # classes that nobody looked for; None for tasks without classes.
    fill_in: Callable[[Labels, Array, ImageSize, float], Labels] | None = None
    # (raw) -> f32[b, answers], the log-probability of every answer; None where there are too many to list.
    log_probabilities: Callable[[Array], Float[Array, "batch answers"]] | None = None

    def predictions(self, raw: Array, image_size: ImageSize) -> dict[str, Array]:
        """Returns what `decode` makes of the finished outputs, inside jit."""
        if self.decode_raw is not None:
            return self.decode_raw(raw, image_size)
        return self.decode(self.finish(raw, image_size))

    @property
    def levels(self) -> tuple[int, ...]:
        """The neck levels that the head reads, px of input per cell: only "cells" reads more than the first."""
        return self.strides if self.readout == "cells" else self.strides[:1]
