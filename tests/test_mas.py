"""Memory aware synapses against the closed form of a linear network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.continual import ewc, mas
from mtl_jax.errors import UserError

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
PARAMS = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}


def outputs(params, x):
    return x @ params["kernel"]


def batches(size):
    return [jnp.asarray(X[first : first + size]) for first in range(0, len(X), size)]


def test_it_is_the_mean_size_of_the_gradient_of_the_outputs_norm():
    actual = mas.importance(outputs, PARAMS, batches(8))
    kernel = np.asarray(PARAMS["kernel"])
    expected = np.mean([np.abs(2 * np.outer(x, x @ kernel)) for x in X], axis=0)
    np.testing.assert_allclose(actual["kernel"], expected, rtol=1e-5)


def test_it_does_not_depend_on_the_batches():
    small, large = (mas.importance(outputs, PARAMS, batches(size)) for size in (4, 32))
    np.testing.assert_allclose(small["kernel"], large["kernel"], rtol=1e-5)


def test_it_holds_a_parameter_that_the_outputs_depend_on_and_no_other():
    params = PARAMS | {"idle": jnp.ones(2)}
    importance = mas.importance(outputs, params, batches(8))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    pull = jax.grad(ewc.penalty)(moved, params, importance, 2.0)
    np.testing.assert_allclose(pull["kernel"], 2.0 * importance["kernel"] * 0.1, rtol=1e-4)
    assert not pull["idle"].any()


def test_no_examples_are_refused():
    with pytest.raises(UserError, match="expected examples for the parameters' importance, found none"):
        mas.importance(outputs, PARAMS, [])
