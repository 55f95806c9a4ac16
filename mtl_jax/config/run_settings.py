"""Settings of a whole run, read from a page or a saved run, and what its sections must be to each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mtl_jax.config import former
from mtl_jax.config.checks import check_names, require_names
from mtl_jax.config.contract_settings import ContractSettings
from mtl_jax.config.model_settings import IMAGE_STRIDE, ModelSettings
from mtl_jax.config.section import Section, plain, read, setting
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.config.stream_settings import MAX_SIZE, StreamSettings
from mtl_jax.errors import UserError

MAX_SEED = 2**32 - 1  # what every generator takes
# No names of tasks: "all" asks for every task, the others are layers of the head and parts of a batch norm.
RESERVED = ("all", "attention", "bias", "mean", "scale", "shared", "var")
RESERVED_BEGINNINGS = ("branch_", "conv_", "norm_")


@dataclasses.dataclass(frozen=True)
class RunSettings(Section):
    """All settings of a run."""

    name: str = setting("experiment", "of the run")
    seed: int = setting(0, "of initialisation, data order, augmentation and dropout", least=0, most=MAX_SEED)
    data_root: str = setting("", 'folder of datasets; "" means $MTL_JAX_DATA, or else ./data')
    image_size: int = setting(
        512,
        "side of the network's square input where a stream does not say otherwise",
        unit="px",
        least=1,
        most=MAX_SIZE,
    )
    resume: bool = setting(True, "False refuses a work directory that holds a run already")
    smoke: bool = setting(False, "two steps a stage on a handful of images, every file still written")
    pretrained: str = setting(
        "",
        'a .npz or .pth of backbone features in torchvision\'s layout; or "mobilenet_v3_small", "mobilenet_v3_large" '
        'or "efficientnet_b0", which downloads the published file once; "" starts from random weights',
    )
    offline: bool = setting(False, "True downloads nothing")
    cache_gb: float = setting(
        2.0, "decoded training images kept in memory, over all streams of a stage", unit="GB", least=0.0
    )
    loader_threads: int = setting(2, "that decode and augment", least=0)
    loader_processes: int = setting(
        0, "that decode and augment in the place of this one, each with its threads and its cache", least=0
    )
    survey_images: int = setting(
        0, "of each split that are decoded before the first step, to find what is wrong; 0 means all", least=0
    )
    tolerated_leakage_percent: float = setting(
        0.0, "of the validation images that may be training images too", unit="%", least=0.0, most=100.0
    )
    held_out_percent: float = setting(
        0.0,
        "of each stream's training images that no step sees: thresholds and temperatures are chosen on them",
        unit="%",
        least=0.0,
        most=50.0,
    )
    log_every_steps: int = setting(10, "between two lines of the log", unit="steps", least=1)
    checkpoint_every_seconds: float = setting(
        120.0, "at most this much training is lost when a run is killed", unit="s", least=0.0, most=math.inf
    )
    keep_checkpoints: int = setting(
        2, "of the stage in training; the older one serves where the newer is damaged", least=1
    )
    on_nan: str = setting(
        "stop",
        'at a step whose loss or gradient is not finite; "skip" leaves it out and counts it',
        choices=("stop", "skip"),
    )
    forward_transfer: bool = setting(
        False, "also evaluates every task before the first stage and right before its own, for the forward transfer"
    )
    example_images: int = setting(4, "predictions per task shown in report.html", least=0)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    contract: ContractSettings = dataclasses.field(default_factory=ContractSettings)
    tasks: Mapping[str, Mapping[str, Any]] = setting({}, "name -> kind, and settings of that kind")
    streams: Mapping[str, StreamSettings] = dataclasses.field(default_factory=dict)
    stages: Mapping[str, StageSettings] = dataclasses.field(default_factory=dict)
    order: tuple[str, ...] = setting((), "stage names in the order in which they are trained")

    @classmethod
    def sections(cls, values_given: Any) -> dict[str, Any]:
        """Reads the sections below, each by its class."""
        values = dict(values_given.items())
        for name, section in (("model", ModelSettings), ("contract", ContractSettings)):
            if name in values:
                values[name] = read(section, values[name], name)
        for name in ("tasks", "streams", "stages"):
            if not hasattr(values.get(name, {}), "items"):
                raise UserError(f"{name}: expected a table of settings, found {values[name]!r}")
            check_names(name, values.get(name, {}))
        for table, section in (("streams", StreamSettings), ("stages", StageSettings)):
            if table in values:
                values[table] = {
                    name: read(section, subsection, f"{table}.{name}") for name, subsection in values[table].items()
                }
        return values

    def tasks_of(self, *stages: str) -> tuple[str, ...]:
        """Returns the tasks that the streams of some stages label, in their order."""
        streams = [stream for stage in stages for stream in self.stages[stage].streams]
        return tuple(dict.fromkeys(task for stream in streams for task in self.streams[stream].labels))

    def stages_before(self, stage: str) -> tuple[str, ...]:
        """Returns the stages that are trained before one; all that there are for one that is not in the order."""
        return self.order[: self.order.index(stage)] if stage in self.order else tuple(self.stages)


def read_settings(values_given: Any) -> RunSettings:
    """Reads settings whose sections need not name each other yet: of a page, or of a run that was saved.

    Args:
        values_given: a ConfigDict, or plain values; names of earlier versions are read too.

    Raises:
        UserError: a setting that is unknown, of another type, or out of its range.
    """
    return (
        values_given
        if isinstance(values_given, RunSettings)
        else read(RunSettings, former.renamed(plain(values_given)), "config")
    )


def check(settings: RunSettings) -> None:
    """Checks that the sections name each other, and that the network can take every image size.

    Raises:
        UserError: the first that does not fit, with what was expected.
    """
    _check_tasks(settings)
    for name, stream in settings.streams.items():
        location = f"config.streams.{name}"
        require_names(f"{location}.labels", stream.labels, "config.tasks", settings.tasks)
        require_names(f"{location}.labelled_classes", stream.labelled_classes, f"{location}.labels", stream.labels)
    _check_order(settings)
    for name, stage in settings.stages.items():
        _check_stage(settings, name, stage)
    require_names("config.contract.baseline_from", settings.contract.baseline_from, "config.tasks", settings.tasks)
    _check_sizes(settings)


def _check_tasks(settings: RunSettings) -> None:
    for name, task in settings.tasks.items():
        if name in RESERVED or name.startswith(RESERVED_BEGINNINGS):
            raise UserError(
                f"config.tasks: expected names other than {', '.join(RESERVED)} and what begins with "
                f"{', '.join(RESERVED_BEGINNINGS)}, which have a meaning of their own, found {name!r}; call the task "
                "something else"
            )
        if not isinstance(kind := task.get("kind", ""), str):
            raise UserError(f"config.tasks.{name}.kind: expected text, found {kind!r}")


def _check_order(settings: RunSettings) -> None:
    if not settings.order:
        raise UserError("config.order: expected the names of the stages to train, e.g. ('seg', 'det'), found none")
    require_names("config.order", settings.order, "config.stages", settings.stages)
    _refuse_twice("config.order", settings.order, "stage")


def _check_stage(settings: RunSettings, name: str, stage: StageSettings) -> None:
    location = f"config.stages.{name}"
    if not stage.streams:
        raise UserError(f"{location}.streams: expected names of config.streams, found none")
    require_names(f"{location}.streams", stage.streams, "config.streams", settings.streams)
    _refuse_twice(f"{location}.streams", stage.streams, "stream")
    require_names(f"{location}.loss_weights", stage.loss_weights, "config.tasks", settings.tasks)
    if stage.warm_start:
        require_names(f"{location}.warm_start", (stage.warm_start,), "config.tasks", settings.tasks)


def _refuse_twice(location: str, names: tuple[str, ...], noun: str) -> None:
    if repeated := dict.fromkeys(name for name in names if names.count(name) > 1):
        raise UserError(f"{location}: expected each {noun} once, found {', '.join(repeated)} twice")


def _check_sizes(settings: RunSettings) -> None:
    sizes = {"image_size": settings.image_size, "contract.latency_image_size": settings.contract.latency_image_size}
    for name, stream in settings.streams.items():
        sizes |= {f"streams.{name}.{field}": getattr(stream, field) for field in ("image_size", "train_image_size")}
    for location, size in sizes.items():
        if size % IMAGE_STRIDE:
            nearest = max(1, round(size / IMAGE_STRIDE)) * IMAGE_STRIDE
            raise UserError(
                f"config.{location}: expected a multiple of {IMAGE_STRIDE} px, as the network halves an image five "
                f"times, found {size}; set {nearest}"
            )
