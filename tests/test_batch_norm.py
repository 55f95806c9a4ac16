"""Batch norm and activation against their definitions, compiled and in pure JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import batch_norm


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(cpu_kernels, "available", lambda: False)
    elif not cpu_kernels.available():
        pytest.skip("no C++ compiler: the plain form is tested alone")
    return request.param


def wide(channels, x):
    return channels.reshape((1,) * (x.ndim - 1) + (-1,))


def define(x, scale, bias, mean, variance, activation):
    scale, bias, mean, variance = (wide(entry, x) for entry in (scale, bias, mean, variance))
    z = (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias
    values = {
        "identity": z,
        "relu": jnp.maximum(z, 0),
        "hard_swish": z * jnp.clip(z + 3, 0, 6) / 6,
        "silu": z / (1 + jnp.exp(-z)),
    }
    return values[activation]


def arrays(shape):
    generator = np.random.default_rng(0)
    x = generator.normal(0.5, 2.0, size=shape)
    channels = [generator.uniform(0.5, 1.5, size=shape[-1]) for _ in range(4)]
    return tuple(jnp.asarray(array, jnp.float32) for array in (x, *channels))


@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_by_batch_is_its_definition_with_gradients(kernels, activation):
    x, scale, bias, *_ = arrays((3, 5, 7, 24))
    weight = jnp.cos(7 * x)  # the sum of squares of what is normalised would not depend on x
    settings = {"epsilon": 1e-3, "activation": activation}

    def found(x, scale, bias):
        y, mean, variance = batch_norm.by_batch(x, scale, bias, **settings)
        return jnp.sum(weight * y), (y, mean, variance)

    def expected(x, scale, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = define(x, scale, bias, mean, variance, activation)
        return jnp.sum(weight * y), (y, mean, variance)

    ((_, values), gradients), ((_, peers), other_gradients) = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1, 2), has_aux=True))(x, scale, bias)
        for function in (found, expected)
    )
    for a, b in zip((*values, *gradients), (*peers, *other_gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_by_statistics_is_its_definition_with_gradients(kernels, activation):
    x, *channels = arrays((2, 9, 16))

    def found(*arguments):
        return jnp.sum(batch_norm.by_statistics(*arguments, epsilon=1e-3, activation=activation) ** 2)

    def expected(*arguments):
        return jnp.sum(define(*arguments, activation) ** 2)

    gradients = (jax.jit(jax.grad(function, argnums=range(5)))(x, *channels) for function in (found, expected))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(np.abs(b).max()))


def test_per_example_gradients_by_vmap(kernels):
    x, *channels = arrays((3, 6, 8))

    def loss(scale, x):
        y = batch_norm.by_statistics(x[None], scale, *channels[1:], epsilon=1e-3, activation="relu")
        return jnp.sum(y**2)

    actual = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(channels[0], x)
    gradient = jax.jit(jax.grad(loss))
    expected = np.stack([gradient(channels[0], single) for single in np.asarray(x)])
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_statistics_are_of_the_whole_batch_when_it_is_split_over_devices(kernels):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, scale, bias, *_ = arrays((4, 6, 16))
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))

    def loss(x, scale):
        y, mean, variance = batch_norm.by_batch(x, scale, bias, epsilon=1e-3, activation="relu")
        return jnp.sum(y**3), (mean, variance)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    for a, b in zip(jax.tree.leaves(step(split, scale)), jax.tree.leaves(step(x, scale)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5 * float(np.abs(b).max()))


def test_bfloat16_stays_bfloat16_with_float32_statistics():
    x, scale, bias, *_ = arrays((2, 6, 16))
    y, mean, variance = batch_norm.by_batch(x.astype(jnp.bfloat16), scale, bias, epsilon=1e-3, activation="relu")
    assert (y.dtype, mean.dtype, variance.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)


@pytest.mark.parametrize("activation", batch_norm.ACTIVATIONS)
def test_what_is_not_a_number_stays_none(kernels, activation):
    x, *channels = arrays((2, 3, 3, 16))
    x = x.at[0, 0, 0, 0].set(jnp.nan)
    result = batch_norm.by_statistics(x, *channels, epsilon=1e-3, activation=activation)
    np.testing.assert_array_equal(jnp.isnan(result), jnp.isnan(x))
