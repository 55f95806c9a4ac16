"""A-GEM's projection: exact, and idle where nothing opposes."""

import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.continual import agem


def tree(*values):
    return {"a": jnp.array(values[:2]), "b": {"c": jnp.array(values[2:])}}


def flat(gradient):
    return [*gradient["a"].tolist(), *gradient["b"]["c"].tolist()]


def test_an_opposing_gradient_becomes_orthogonal_to_the_reference():
    gradient, reference = tree(1.0, 0.0, -3.0), tree(1.0, 2.0, 2.0)
    projected = agem.project(gradient, reference)
    np.testing.assert_allclose(optax.tree.vdot(projected, reference), 0.0, atol=1e-6)
    np.testing.assert_allclose(flat(projected), [1 + 5 / 9, 10 / 9, -3 + 10 / 9], rtol=1e-6)


def test_a_gradient_that_agrees_stays_as_it_is():
    assert flat(agem.project(tree(1.0, 1.0, 1.0), tree(1.0, 2.0, 3.0))) == [1.0, 1.0, 1.0]


def test_without_a_reference_nothing_changes():
    assert flat(agem.project(tree(1.0, -1.0, 2.0), tree(0.0, 0.0, 0.0))) == [1.0, -1.0, 2.0]
