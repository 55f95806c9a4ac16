"""Distillation losses between class distributions of student and teacher."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LEAST_SHARE = 0.01  # that a class is counted to have, at least: bounds the weight of a few stray cells
BORDER_WEIGHT = 2.0  # of a cell next to one of another class, against one among its like


def softened_divergence(
    raw: Float[Array, "*cells classes"],
    teacher_raw: Float[Array, "*cells classes"],
    *,
    temperature: float,
    weigh: Callable[[Array], Array] | None = None,
) -> Float[Array, ""]:
    """KL(teacher || student) of every image, or of every cell of the head, averaged; both softened, times temperature².

    Args:
        raw: logits of the student.
        teacher_raw: those of the teacher.
        temperature: divides the logits.
        weigh: the teacher's logits -> weights of the cells, 1 in the mean; all 1 if None.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    teacher = jax.nn.log_softmax(teacher_raw.astype(jnp.float32) / temperature)
    student = jax.nn.log_softmax(raw.astype(jnp.float32) / temperature)
    divergence = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * jnp.mean(divergence if weigh is None else weigh(teacher_raw) * divergence)


def by_class(teacher_raw: Float[Array, "*cells classes"]) -> Float[Array, "*cells"]:
    """Weighs cells so that every class that the teacher predicts in the batch has equal weight.

    References:
        Eigen, Fergus, "Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture", 2015 (weights by inverse frequency, there over a dataset).
    """
    weight = rarity(teacher_raw.argmax(axis=-1), jnp.ones(teacher_raw.shape[:-1]), teacher_raw.shape[-1])
    return weight / weight.mean()


def by_class_and_border(teacher_raw: Float[Array, "batch rows columns classes"]) -> Float[Array, "batch rows columns"]:
    """As `by_class`, with more weight for the cells at the teacher's borders between classes.

    References:
        Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015 (weights of
        borders, there by distance).
    """
    label = teacher_raw.argmax(axis=-1)
    padded = jnp.pad(label, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows, columns = label.shape[1:]
    neighbours = [padded[:, i : i + rows, j : j + columns] for i, j in ((0, 1), (2, 1), (1, 0), (1, 2))]
    border = jnp.stack([label != neighbour for neighbour in neighbours]).any(axis=0)
    weight = by_class(teacher_raw) * jnp.where(border, BORDER_WEIGHT, 1.0)
    return weight / weight.mean()


def rarity(label: Int[Array, "*cells"], mass: Float[Array, "*cells"], class_count: int) -> Float[Array, "*cells"]:
    """The inverse of each cell's class's share of the mass, which is never counted below `LEAST_SHARE`."""
    of_class = jnp.zeros(class_count).at[label.ravel()].add(mass.ravel())
    share = of_class / jnp.maximum(of_class.sum(), jnp.finfo(jnp.float32).tiny)
    return 1 / jnp.maximum(share, LEAST_SHARE)[label]


def of_both_sides(
    cost: Float[Array, "*n"], probability: Float[Array, "*n"], axes: tuple[int, ...]
) -> Float[Array, "*_"]:
    """The mean cost where the teacher says yes and that where it says no, added: neither drowns the other.

    Args:
        cost: of yes/no outputs.
        probability: of yes, by the teacher.
        axes: over which the means are taken; a side is never counted to have less than `LEAST_SHARE` of them.

    References:
        Guo et al., "Distilling Object Detectors via Decoupled Features", 2021 (objects and background apart).
    """

    def mean(side: Array) -> Array:
        return (side * cost).mean(axes) / jnp.maximum(side.mean(axes), LEAST_SHARE)

    return mean(probability) + mean(1 - probability)
