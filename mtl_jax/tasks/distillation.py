"""What a student loses that answers otherwise than its teacher, where the answers are classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtl_jax.tasks.base import ImageSize


def softened_divergence(
    raw: Float[Array, "*cells classes"],
    teacher_raw: Float[Array, "*cells classes"],
    image_size: ImageSize,
    *,
    temperature: float,
) -> Float[Array, ""]:
    """KL(teacher || student) of every image, or of every cell of the head, averaged; both softened, times temperature².

    Args:
        raw: logits of the student.
        teacher_raw: those of the teacher.
        image_size: of the input, px; as every task's distillation is given it, and unused here.
        temperature: divides the logits.

    References:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    del image_size
    teacher = jax.nn.log_softmax(teacher_raw.astype(jnp.float32) / temperature)
    student = jax.nn.log_softmax(raw.astype(jnp.float32) / temperature)
    return temperature**2 * jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1))
