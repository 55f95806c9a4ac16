"""Learning without forgetting: on new images, old tasks' outputs stay close to the old network's."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.errors import UserError
from mtl_jax.tasks.base import ImageSize, Task


def distillation(
    tasks: Mapping[str, Task],
    raw: Mapping[str, Array],
    teacher_raw: Mapping[str, Array],
    *,
    image_size: ImageSize,
    weights: Mapping[str, float],
    balance: str = "mean",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The distillation term over all tasks for which the teacher has outputs.

    Args:
        tasks: the tasks by name; those without teacher outputs are left out.
        raw: what the network in training emits, by task.
        teacher_raw: what the network from before the stage emits for the same images; no gradient flows into
            it.
        image_size: height and width of the images, px.
        weights: of each old task's term; entries for other tasks are ignored.
        balance: "mean": all cells of a task count alike; "classes": what the teacher rarely sees counts as much as what
            it often sees, where a kind of task knows how.

    Returns:
        The weighted sum, zero without old tasks, and each task's term before weighting.

    Raises:
        UserError: if an old task lacks a record, a weight or an output of the network in training.

    References:
        Li, Hoiem, "Learning without Forgetting", 2016.
    """
    for given, words in ((tasks, "a task record"), (weights, "a weight"), (raw, "an output of the network")):
        missing = sorted(set(teacher_raw) - set(given))
        if missing:
            raise UserError(
                f"expected {words} for every task of the teacher, found none for {', '.join(missing)}: "
                f"given are {', '.join(sorted(given)) or 'none'}"
            )
    parts: dict[str, Array] = {}
    for name, teacher_output in teacher_raw.items():
        balanced = tasks[name].balanced_distillation_loss if balance == "classes" else None
        term = balanced or tasks[name].distillation_loss
        parts[name] = term(raw[name], jax.lax.stop_gradient(teacher_output), image_size)
    total = sum((weights[name] * part for name, part in parts.items()), start=jnp.float32(0.0))
    return total, parts


def feature_distance(features: Mapping[str, Array], teacher_features: Mapping[str, Array]) -> Float[Array, ""]:
    """How far features have moved from the teacher's: the mean over their levels of |f - t|^2 / |t|^2.

    The norms are taken over a whole batch and level, so that the distance depends on neither the size of a level nor
    the scale of its features.

    Args:
        features: by name; of the network in training.
        teacher_features: of the same names and shapes; no gradient flows into them.

    References:
        Romero et al., "FitNets: Hints for Thin Deep Nets", 2015 (without the division).
    """

    def moved(name):
        teacher = jax.lax.stop_gradient(teacher_features[name]).astype(jnp.float32)
        way = features[name].astype(jnp.float32) - teacher
        return jnp.square(way).sum() / jnp.maximum(jnp.square(teacher).sum(), 1e-12)

    return jnp.stack([moved(name) for name in teacher_features]).mean()
