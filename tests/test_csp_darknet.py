"""The maximum over 5 x 5 cells against its definition, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.backbones.csp_darknet import max_pool_5x5


def test_each_cell_has_the_largest_value_around_it_and_sends_its_gradient_there():
    rng = np.random.default_rng(0)
    x = rng.permutation(6 * 7 * 2).reshape(1, 6, 7, 2).astype(np.float32) - 50  # no two alike, most below zero
    g = rng.normal(size=x.shape).astype(np.float32)
    expected, sent = np.zeros_like(x), np.zeros_like(x)
    for row, column, channel in np.ndindex(6, 7, 2):
        top, left = max(0, row - 2), max(0, column - 2)
        window = x[0, top : row + 3, left : column + 3, channel]
        expected[0, row, column, channel] = window.max()
        at = np.unravel_index(window.argmax(), window.shape)
        sent[0, top + at[0], left + at[1], channel] += g[0, row, column, channel]
    actual, back = jax.jit(lambda x, g: (max_pool_5x5(x), jax.vjp(max_pool_5x5, x)[1](g)[0]))(x, g)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(back, sent, atol=1e-5)


def test_equal_values_share_the_gradient_and_bfloat16_stays():
    x = jnp.zeros((1, 3, 3, 1), jnp.bfloat16)
    pooled, grads = jax.jit(lambda x: (max_pool_5x5(x), jax.grad(lambda x: max_pool_5x5(x).sum())(x)))(x)
    assert pooled.dtype == jnp.bfloat16
    assert float(grads.astype(jnp.float32).sum()) == pytest.approx(9, rel=0.02)
    assert float(grads.max()) < 9
