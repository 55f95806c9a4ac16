"""Synaptic intelligence against its closed form on a quadratic."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.continual import ewc, si


def descend(curvature, start, *, rate=1e-3, steps=4000):
    """Gradient descent on sum curvature / 2 * x^2; returns the path integral and the end."""
    x, path = jnp.asarray(start), jnp.zeros_like(jnp.asarray(start))
    for_each = jax.jit(lambda x, path: (y := x - rate * curvature * x, si.update_path(path, curvature * x, x, y)))
    for _ in range(steps):
        x, path = for_each(x, path)
    return path, x


def test_the_path_integral_sums_to_the_fall_of_the_loss():
    curvature, start = jnp.array([1.0, 4.0, 0.0]), jnp.array([1.0, -2.0, 3.0])
    path, end = descend(curvature, start)
    fall = 0.5 * curvature * (start**2 - end**2)
    np.testing.assert_allclose(path, fall, rtol=5e-3, atol=1e-6)


def test_the_importance_of_a_quadratic_is_half_its_curvature():
    # After a full descent the fall is c x0^2 / 2 and the way x0: the paper's surrogate, Omega * d^2, is the loss.
    curvature, start = jnp.array([1.0, 4.0]), jnp.array([1.0, -2.0])
    path, end = descend(curvature, start, steps=20000)
    importance = si.importance(path, start, end, damping=0.0)
    np.testing.assert_allclose(importance, curvature / 2, rtol=5e-3)
    surrogate = ewc.penalty({"x": start}, {"x": end}, {"x": importance}, 2.0)
    np.testing.assert_allclose(surrogate, 0.5 * (curvature * start**2).sum(), rtol=5e-3)


def test_what_made_the_loss_rise_or_never_moved_has_no_importance():
    path, start = jnp.array([-1.0, 0.0]), jnp.zeros(2)
    np.testing.assert_array_equal(si.importance(path, start, jnp.array([1.0, 0.0])), [0.0, 0.0])
