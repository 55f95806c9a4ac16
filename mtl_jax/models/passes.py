"""Passes through the network: in training, with dropout and statistics of the batch, and in evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Key

from mtl_jax.config.model_settings import IMAGE_STRIDE
from mtl_jax.errors import UserError
from mtl_jax.models.layers import ByBatch
from mtl_jax.models.sharing.network import FEATURES, OFFSETS, SHARED
from mtl_jax.models.sharing.wiring import Network

Variables = Mapping[str, Any]


# By "stride_8" (px per cell) and so on: between neck and head, or the last of the shared stages of a branched network,
# whose branches add their own as "branch_<task>/stride_8"; where each task's pass is its own, as "<task>_stride_8".
Features = dict[str, Float[Array, "batch _ _ _"]]


def apply_train(
    model: Network,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    image: Float[Array, "batch height width 3"],
    *,
    tasks: Sequence[str],
    key: Key[Array, ""],
    train_batch_norm: ByBatch = True,
) -> tuple[dict[str, Float[Array, "batch ..."]], Mapping[str, Any]]:
    """Applies the network with dropout, to learn from.

    Args:
        model: The network.
        params: Parameters.
        batch_stats: Running statistics of batch norm.
        image: RGB in 0..1; height and width are multiples of 32.
        tasks: Names of the tasks to compute; nothing is spent on the others.
        key: Source of the dropout.
        train_batch_norm: Normalise by the batch and update the running statistics; given a function, only in the
            layers whose path it accepts; otherwise the running statistics are used and returned as they are.

    Returns:
        {task: outputs}, in the order of `tasks`, and the running statistics after this batch.

    Raises:
        UserError: An unknown task is requested, or the image's size is not a multiple of 32.
    """
    train_output = train_raw(model, params, batch_stats, image, tasks=tasks, key=key, train_batch_norm=train_batch_norm)
    return _finish_outputs(model, train_output.raw, image), train_output.batch_stats


class TrainOutputs(NamedTuple):
    """Result of a training pass through the network."""

    raw: dict[str, Float[Array, "batch ..."]]  # what the head emits for each task
    batch_stats: Mapping[str, Any]  # after the batch
    features: Features
    # The deepest features that all tasks share, by "stride_8" and so on: all that follows is some task's own.
    # Empty where tasks share no features.
    shared: Features


def train_raw(
    model: Network,
    params: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
    image: Float[Array, "batch height width 3"],
    *,
    tasks: Sequence[str],
    key: Key[Array, ""],
    train_batch_norm: ByBatch = True,
    offsets: Features | None = None,
) -> TrainOutputs:
    """As `apply_train`, but returns what the head emits, and the features on the way.

    `offsets` are added to the deepest shared features: a loss's gradient in them is that at the features.
    """
    check_image_size(*image.shape[1:3])
    names = _checked_names(model, tasks)
    raw, updated = model.apply(
        {"params": params, "batch_stats": batch_stats, OFFSETS: offsets or {}},
        image,
        tasks=names,
        train=True,
        train_batch_norm=train_batch_norm,
        rngs={"dropout": key},
        mutable=["intermediates", *(["batch_stats"] if train_batch_norm else [])],
    )
    intermediates: Any = updated["intermediates"]
    batch_stats = updated["batch_stats"] if train_batch_norm else batch_stats
    return TrainOutputs(raw, batch_stats, _features(intermediates), intermediates.get(SHARED, {}))


def apply_eval(
    model: Network,
    variables: Variables,
    image: Float[Array, "batch height width 3"],
    *,
    tasks: Sequence[str],
) -> dict[str, Float[Array, "batch ..."]]:
    """Applies the network without dropout, with the running statistics of batch norm.

    Args:
        model: The network.
        variables: {"params", "batch_stats"}.
        image: RGB in 0..1; height and width are multiples of 32.
        tasks: Names of the tasks to compute; nothing is spent on the others.

    Returns:
        {task: outputs}, in the order of `tasks`.

    Raises:
        UserError: An unknown task is requested, or the image's size is not a multiple of 32.
    """
    return _finish_outputs(model, eval_raw(model, variables, image, tasks=tasks)[0], image)


def eval_raw(
    model: Network,
    variables: Variables,
    image: Float[Array, "batch height width 3"],
    *,
    tasks: Sequence[str],
) -> tuple[dict[str, Float[Array, "batch ..."]], Features]:
    """As `apply_eval`, but returns what the head emits, and also the features that it reads."""
    check_image_size(*image.shape[1:3])
    names = _checked_names(model, tasks)
    raw, intermediates = model.apply(
        variables, image, tasks=names, train=False, train_batch_norm=False, mutable=["intermediates"]
    )
    return raw, _features(intermediates["intermediates"])


def _features(intermediates: Mapping[str, Any]) -> Features:
    branches = {name: branch[FEATURES] for name, branch in intermediates.items() if name not in (FEATURES, SHARED)}
    below = {f"{name}/{level}": x for name, levels in branches.items() for level, x in levels.items()}
    return dict(intermediates.get(FEATURES, {})) | below


def _finish_outputs(model: Network, raw: Mapping[str, Array], image: Array) -> dict[str, Array]:
    records = {task.name: task for task in model.tasks}
    height, width = image.shape[1:3]
    return {name: records[name].finish(value, (height, width)) for name, value in raw.items()}


def _checked_names(model: Network, names: Sequence[str]) -> tuple[str, ...]:
    known_names = tuple(task.name for task in model.tasks)
    if isinstance(names, str) or not names or any(name not in known_names for name in names):
        raise UserError(f"tasks: expected one or more of {', '.join(known_names)}, found {names!r}; ask for those")
    return tuple(names)


def check_image_size(height: int, width: int) -> None:
    """Checks that the network can take images of a size.

    Raises:
        UserError: it cannot.
    """
    if height % IMAGE_STRIDE or width % IMAGE_STRIDE or not height * width:
        raise UserError(
            f"image: expected height and width that are multiples of {IMAGE_STRIDE} px, found "
            f"{height} x {width}; resize or pad it"
        )
