"""What tasks with an output for every pixel share: enlarging, and the best class of a pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.kernels import cpu_kernels
from mtl_jax.tasks import dense

pytestmark = pytest.mark.skipif(not cpu_kernels.available(), reason="no C++ compiler: there is one way alone")


@pytest.mark.parametrize(("channels", "factor"), [(21, 8), (1, 4), (8, 2)])
def test_logits_are_enlarged_and_differentiated_alike_with_and_without_the_kernel(channels, factor):
    cells = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, channels)), jnp.float32)

    def run(cells):
        value, backward = jax.vjp(lambda cells: dense.enlarge(cells, factor), cells)
        return dense.enlarge(cells, factor), backward(jnp.cos(value))[0]

    actual = jax.jit(run)(cells)
    with cpu_kernels.left_out():
        expected = jax.jit(lambda cells: run(cells))(cells)
    for first, second in zip(actual, expected, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(("shape", "factor"), [((2, 7, 5, 21), 8), ((1, 3, 4, 2), 16)])
@pytest.mark.parametrize("kind", ["noise", "smooth", "equal"])
def test_the_best_class_of_a_pixel_is_that_of_the_enlarged_logits(shape, factor, kind):
    cells = np.random.default_rng(0).normal(size=shape)
    cells = {"noise": cells, "smooth": cells.cumsum(1).cumsum(2), "equal": cells.round()}[kind]
    cells = jnp.asarray(cells, jnp.float32)
    actual = dense.enlarged_argmax(cells, factor)
    with cpu_kernels.left_out():
        expected = jax.jit(lambda cells: dense.enlarged_argmax(cells, factor))(cells)
    np.testing.assert_array_equal(actual, expected)
