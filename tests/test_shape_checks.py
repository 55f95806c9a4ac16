"""Shapes are checked where annotations name some, under their own name or another, and nothing else is."""

import jax.numpy as jnp
import pytest
import shape_checks
from jaxtyping import TypeCheckError

from mtl_jax.models import batch_norm
from mtl_jax.tasks import boxes
from mtl_jax.training import optimizer


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="boxes"):
        boxes.to_corners(jnp.ones((3, 5)))


def test_a_wrong_shape_is_refused_where_another_name_stands_for_it():
    three, two = jnp.ones(3), jnp.ones(2)
    assert batch_norm.coefficients(three, three, three, three, epsilon=1e-3)[0].shape == (3,)
    with pytest.raises(TypeCheckError, match="batch_norm"):
        batch_norm.coefficients(three, two, three, three, epsilon=1e-3)


def test_functions_that_name_no_shape_are_called_as_they_are():
    assert not hasattr(optimizer.build, "__wrapped__")
    assert hasattr(optimizer.pack, "__wrapped__")
    assert not shape_checks.names_shapes(optimizer.unpack)
