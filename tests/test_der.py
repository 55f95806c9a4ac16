"""Dark experience replay: the distance, its gradient, and the label that holds stored outputs."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.continual import der


def test_the_distance_is_the_mean_square_and_pulls_towards_what_was_stored():
    raw, stored = jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]])
    value, gradient = jax.value_and_grad(der.distance)(raw, stored)
    np.testing.assert_allclose(value, (1 + 4) / 2)
    np.testing.assert_allclose(gradient, [[1.0, -2.0]])
    assert not jax.grad(der.distance, argnums=1)(raw, stored).any()


def test_each_task_has_a_label_of_its_own():
    assert der.label_name("seg") == "seg/outputs"
