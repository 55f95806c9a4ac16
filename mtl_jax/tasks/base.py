"""Base class of task kinds: a frozen dataclass whose fields are its settings and whose methods are pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Key

from mtl_jax.config.checks import check_class_names
from mtl_jax.config.section import REQUIRED, Section, setting
from mtl_jax.errors import UserError

Labels = Mapping[str, Any]  # one task's labels of a batch (arrays) or, in a metric, of one example (numpy)
ImageSize = tuple[int, int]  # height, width, in pixels of the network's input
Prediction = Mapping[str, np.ndarray]  # of one example
Readout = Literal["dense", "cells", "pooled"]
# The least score that counts, one for all classes or one for each; None is the kind's own.
Thresholds = float | Float[np.ndarray, " classes"] | None
LossAndParts = tuple[Float[Array, ""], dict[str, Float[Array, ""]]]


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
    """Metric of the best constant output, the same for every image, on the data that a metric has seen."""

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

    def update(self, prediction: Prediction, target: Labels, geometry: Geometry) -> None:
        """Adds one example."""
        ...

    def compute(self) -> dict[str, float]:
        """Returns every figure by name; the task's `main_metric` is among them."""
        ...

    def constant(self) -> Constant:
        """Returns the metric of the best constant output: what a network has to beat."""
        ...


class Added(NamedTuple):
    """Classes that a task has got after it was learnt, which have rows of the readout of their own."""

    stage: str  # that teaches them
    classes: int
    channels: int  # of the rows


class Undecided(NamedTuple):
    """Every prediction of a task that a last step chooses from."""

    decode: Callable[[Array], dict[str, Array]]  # (outputs) -> the predictions, inside jit
    meanings: Mapping[str, str]  # of each


@dataclasses.dataclass(frozen=True)
class Task(Section):
    """One task of the network.

    A kind is a subclass: its fields are the settings that `config.tasks.<name>` takes, each with its type, default,
    unit and reason, and its methods are all that the rest of the library knows about it.

    `raw` is what the head emits for the task, by `readout`: "dense" f32[b, h / s, w / s, channels] with
    s = strides[0]; "cells" f32[b, cells, channels], the levels in the order of `strides`, each row-major;
    "pooled" f32[b, channels].
    """

    kind: ClassVar[str]
    readout: ClassVar[Readout]
    outputs: ClassVar[str] = "before it is decoded"  # what `finish` returns, for those who run an exported network
    main_metric: ClassVar[str]  # the figure that the contract judges
    higher_is_better: ClassVar[bool] = True
    titles: ClassVar[Mapping[str, str]] = {}  # what people read for a figure's name

    name: str
    classes: tuple[str, ...] = setting(REQUIRED, "names, in the order of the labels")
    strides: tuple[int, ...] = setting(REQUIRED, "of the neck levels that the head reads", unit="px", least=1)

    def __post_init__(self) -> None:
        """Checks every setting.

        Raises:
            UserError: names the setting, beginning with its own name.
        """
        if self.classes:
            check_class_names("classes", self.classes)
        if len(set(self.strides)) < len(self.strides):
            raise UserError(f"strides: expected each level once, found {self.strides}")
        super().__post_init__()

    @property
    def channels(self) -> int:
        """Channels of the task's slice of the head's last convolution; those of `additions` follow."""
        return len(self.classes)

    @property
    def levels(self) -> tuple[int, ...]:
        """The neck levels that the head reads, px of input per cell: only "cells" reads more than the first."""
        return self.strides if self.readout == "cells" else self.strides[:1]

    @property
    def void(self) -> int | None:
        """The value of pixels in the labels that count nowhere; None where pixels have no class."""
        return None

    # How the classes have changed since they were first learnt (`later`).

    @property
    def additions(self) -> tuple[Added, ...]:
        """The last of the classes, where they came later; their channels follow in `raw`."""
        return ()

    @property
    def renamings(self) -> Mapping[str, str]:
        """A dataset's name of a class -> the task's, where they differ."""
        return {}

    @property
    def output_classes(self) -> tuple[str, ...]:
        """The classes that it may predict."""
        return self.classes

    @property
    def first_classes(self) -> tuple[str, ...]:
        """The classes that the task was first learnt with."""
        return self.classes[: len(self.classes) - sum(addition.classes for addition in self.additions)]

    def classes_of(self, stage: str) -> tuple[str, ...]:
        """Returns the classes that a stage has added; none where it has added none."""
        start = len(self.first_classes)
        for addition in self.additions:
            if addition.stage == stage:
                return self.classes[start : start + addition.classes]
            start += addition.classes
        return ()

    @property
    def later_classes(self) -> dict[str, tuple[str, ...]]:
        """The classes that stages have added, by stage, as far as the task may predict them; no stage without any."""
        left, by_stage = set(self.output_classes), {}
        for added in self.additions:
            if classes := tuple(name for name in self.classes_of(added.stage) if name in left):
                by_stage[added.stage] = classes
        return by_stage

    def before(self, stage: str) -> Task:
        """Returns the task as it was before a stage, and those after it, added classes."""
        del stage
        return self

    @property
    def all_channels(self) -> int:
        """Channels of `raw`."""
        return self.channels + sum(addition.channels for addition in self.additions)

    def channels_after(self, stages: Collection[str]) -> int:
        """Returns the channels of `raw` that the classes have which were there after some stages."""
        return self.channels + sum(addition.channels for addition in self.additions if addition.stage in stages)

    # What a kind has to say.

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meaning of each prediction of `decode`, for users of an exported network."""
        raise NotImplementedError

    def loss(self, raw: Array, labels: Labels, image_size: ImageSize) -> LossAndParts:
        """Returns the loss, and its parts by name; a missing label adds no loss and no gradient."""
        raise NotImplementedError

    def sampled_loss(self, raw: Array, image_size: ImageSize, key: Key[Array, ""]) -> Float[Array, ""]:
        """Returns the -log-likelihood of labels drawn from the prediction itself, on the loss's scale."""
        raise NotImplementedError

    def distillation_loss(
        self, raw: Array, teacher_raw: Array, image_size: ImageSize, *, balanced: bool = False
    ) -> Float[Array, ""]:
        """Returns how far the student is from the teacher on the same images.

        Args:
            raw: of the student.
            teacher_raw: of the teacher.
            image_size: of the images, px.
            balanced: what the teacher rarely sees counts as much as what it often sees, where a kind knows how.
        """
        raise NotImplementedError

    def no_labels(self, batch_size: int, image_size: ImageSize) -> Labels:
        """Returns labels that say of every image that there are none."""
        raise NotImplementedError

    def finish(self, raw: Array, image_size: ImageSize) -> Array:
        """Returns the outputs as a user sees them, at input size and in pixels."""
        raise NotImplementedError

    def decode(self, outputs: Array) -> dict[str, Array]:
        """Returns predictions of fixed size, inside jit."""
        raise NotImplementedError

    def new_metric(self) -> Metric:
        """Returns a metric that has seen nothing."""
        raise NotImplementedError

    def metric_of(self, stage: str) -> Metric:
        """Returns the metric of the classes that a stage has added, of a kind whose classes may grow (`later`)."""
        raise NotImplementedError

    def measured_labels(self, target: Labels, stage: str = "") -> Labels:
        """Returns what of an image's labels is measured: of all classes, or of those that a stage has added."""
        del stage
        return target

    def to_json(self, prediction: Prediction, threshold: Thresholds = None) -> dict[str, Any]:
        """Returns one image's prediction in JSON's terms; a map [height, width] of u8 or u16 in it is for a file.

        Args:
            prediction: of one image, in its own pixels.
            threshold: least score; None for the kind's own.
        """
        raise NotImplementedError

    def draw(self, axes: Any, prediction: Prediction, threshold: Thresholds = None) -> None:
        """Draws a prediction onto matplotlib axes that show the image, in its pixels."""
        raise NotImplementedError

    # What most kinds share.

    def predictions(self, raw: Array, image_size: ImageSize) -> dict[str, Array]:
        """Returns what `decode` makes of the finished outputs; a kind may have a shorter way."""
        return self.decode(self.finish(raw, image_size))

    def at_original(self, prediction: Prediction, geometry: Geometry) -> Prediction:
        """Returns one example's prediction in the pixels of its image."""
        del geometry
        return prediction

    def lacks_classes(self, labels: Labels) -> bool:
        """Whether labels may be silent about a class, so that there is something to fill in."""
        return "labelled" in labels

    def fill_in(self, labels: Labels, teacher_raw: Array, image_size: ImageSize, threshold: float) -> Labels:
        """Returns labels with what another network is sure of, of classes that nobody looked for."""
        del teacher_raw, image_size, threshold
        return labels

    @property
    def log_probabilities(self) -> Callable[[Array], Float[Array, "batch outcomes"]] | None:
        """(raw) -> the log-probability of every outcome; None where there are too many to list."""
        return None

    @property
    def undecided(self) -> Undecided | None:
        """Predictions before a last step that depends on all of an image; None without such a step."""
        return None


def one_level(kind: str, strides: tuple[int, ...]) -> int:
    """Returns the stride of the one level that a kind reads.

    Raises:
        UserError: there are more or fewer.
    """
    if len(strides) != 1:
        raise UserError(f"strides: expected one stride for {kind}, found {strides}; name one level of the neck")
    return strides[0]


def enough_classes(classes: tuple[str, ...], least: int, todo: str) -> None:
    """Checks that there are so many classes.

    Raises:
        UserError: there are fewer.
    """
    if len(classes) < least:
        raise UserError(f"classes: expected at least {least} class{'es' * (least > 1)}, found {list(classes)}; {todo}")
