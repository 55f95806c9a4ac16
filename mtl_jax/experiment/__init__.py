"""From a config (or the one saved in a checkpoint) to the parts it names: tasks, network, sources, streams."""

from mtl_jax.experiment.measured import (
    View,
    eval_batches,
    labelling_streams,
    measured_streams,
    measuring_streams,
    stream_tasks,
    streams_of_addition,
    task_view,
    unmeasured_streams,
    validation_data,
    view,
)
from mtl_jax.experiment.parts import (
    Experiment,
    build,
    check_crops,
    classes_of,
    ignore_labels,
    source,
)
from mtl_jax.experiment.training_batches import (
    augmentation,
    examples,
    train_batches,
    train_image_size,
)
from mtl_jax.experiment.weights import (
    abstract_variables,
    backbone_stages,
    check_weights,
    init_variables,
)

__all__ = [
    "Experiment",
    "View",
    "abstract_variables",
    "augmentation",
    "backbone_stages",
    "build",
    "check_crops",
    "check_weights",
    "classes_of",
    "eval_batches",
    "examples",
    "ignore_labels",
    "init_variables",
    "labelling_streams",
    "measured_streams",
    "measuring_streams",
    "source",
    "stream_tasks",
    "streams_of_addition",
    "task_view",
    "train_batches",
    "train_image_size",
    "unmeasured_streams",
    "validation_data",
    "view",
]
