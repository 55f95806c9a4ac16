"""Derivatives of a bilinear sum: a convolution, whose two gradients are sums of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
from jaxtyping import Array

Pass = Literal["forward", "input_gradient", "kernel_gradient"]
Run = Callable[[Pass, Any, Array, Array], Array]


def bilinear(run: Run) -> Callable[[Any, Array, Array], Array]:
    """Makes a function that is differentiable any number of times in reverse mode.

    The three sums are bilinear and each is a derivative of the other two, so reverse-mode derivatives of every order
    come from three rules, whatever form computes them.

    Args:
        run: `(part, geometry, first, second)`; "forward" sums x and the kernel, "input_gradient" the cotangent and the
            kernel, "kernel_gradient" x and the cotangent.

    Returns:
        `(geometry, x, kernel) -> result`; the geometry is static and hashable.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def forward(geometry: Any, x: Array, kernel: Array) -> Array:
        return run("forward", geometry, x, kernel)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def input_gradient(geometry: Any, cotangent: Array, kernel: Array) -> Array:
        return run("input_gradient", geometry, cotangent, kernel)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def kernel_gradient(geometry: Any, x: Array, cotangent: Array) -> Array:
        return run("kernel_gradient", geometry, x, cotangent)

    forward.defvjp(
        lambda geometry, x, kernel: (forward(geometry, x, kernel), (x, kernel)),
        lambda geometry, residuals, g: (
            input_gradient(geometry, g, residuals[1]),
            kernel_gradient(geometry, residuals[0], g),
        ),
    )
    input_gradient.defvjp(
        lambda geometry, cotangent, kernel: (input_gradient(geometry, cotangent, kernel), (cotangent, kernel)),
        lambda geometry, residuals, g: (forward(geometry, g, residuals[1]), kernel_gradient(geometry, g, residuals[0])),
    )
    kernel_gradient.defvjp(
        lambda geometry, x, cotangent: (kernel_gradient(geometry, x, cotangent), (x, cotangent)),
        lambda geometry, residuals, g: (input_gradient(geometry, residuals[1], g), forward(geometry, residuals[0], g)),
    )
    differentiable: Any = forward  # custom_vjp is not typed
    return differentiable
