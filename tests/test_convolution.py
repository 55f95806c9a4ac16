"""Dense convolutions against XLA's own, in value and in gradients of first and second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import convolution
from mtl_jax.models.convolution import dense_conv, pointwise_conv


@pytest.fixture(params=["compiled", "plain"])
def kernels(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(cpu_kernels, "available", lambda: False)
    elif not cpu_kernels.available():
        pytest.skip("no C++ compiler: the plain forms are tested alone")
    return request.param


def plain(x, kernel, stride=1, dilation=1):
    pad = dilation * (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def arrays(x_shape, kernel_shape, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=x_shape)
    kernel = generator.normal(size=kernel_shape) / np.sqrt(np.prod(kernel_shape[:-1]))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def assert_same(actual, expected, *, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(np.abs(b).max()))


def value_and_gradients(convolve, x, kernel):
    @jax.jit
    def function(x, kernel):
        value, backward = jax.vjp(convolve, x, kernel)
        return value, *backward(arrays(value.shape, (1,), seed=1)[0])

    return function(x, kernel)


# Whole tiles and part of one, channels of 8 and of 16, fewer and more tiles than the 24 of a block.
@pytest.mark.parametrize("shape", [(2, 8, 8, 16, 32), (1, 5, 7, 24, 16), (2, 1, 3, 16, 24), (1, 22, 21, 16, 40)])
def test_3x3_agrees_with_the_plain_sum_in_value_and_gradients(kernels, shape):
    x, kernel = arrays(shape[:4], (3, 3, *shape[3:]))
    assert_same(value_and_gradients(dense_conv, x, kernel), value_and_gradients(plain, x, kernel))


def test_1x1_agrees_with_the_plain_sum_in_value_and_gradients(kernels, monkeypatch):
    monkeypatch.setattr(convolution, "POINTWISE_MIN_CELLS", 1)
    x, kernel = arrays((3, 13, 11, 24), (24, 40))
    expected = value_and_gradients(lambda x, k: plain(x, k[None, None]), x, kernel)
    assert_same(value_and_gradients(pointwise_conv, x, kernel), expected, tolerance=1e-5)


def test_second_derivatives_agree(kernels):
    x, kernel = arrays((1, 6, 6, 16), (3, 3, 16, 16))

    def penalty(convolve):
        return lambda x, k: jnp.sum(jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 3), argnums=1)(x, k) ** 2)

    result, expected = (jax.jit(jax.grad(penalty(form), argnums=(0, 1)))(x, kernel) for form in (dense_conv, plain))
    assert_same(result, expected, tolerance=1e-4)


def test_per_example_gradients_by_vmap(kernels):
    x, kernel = arrays((4, 6, 6, 16), (3, 3, 16, 16))

    def gradient(convolve):
        return jax.jit(jax.vmap(jax.grad(lambda k, x: jnp.sum(convolve(x[None], k) ** 2)), in_axes=(None, 0)))

    assert_same(gradient(dense_conv)(kernel, x), gradient(plain)(kernel, x))


def test_a_mapped_kernel_gives_each_element_its_own():
    x, _ = arrays((3, 2, 4, 4, 16), (1,))
    _, kernel = arrays((1,), (3, 3, 3, 16, 16))
    expected = jnp.stack([plain(*pair) for pair in zip(x, kernel, strict=True)])
    assert_same(jax.vmap(dense_conv)(x, kernel), expected)


def test_examples_split_over_devices_stay_there(kernels):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    x, kernel = arrays((4, 8, 8, 16), (3, 3, 16, 16))
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec("data")))
    full = jax.device_put(kernel, jax.sharding.NamedSharding(mesh, spec()))
    step = jax.jit(jax.value_and_grad(lambda k, x: jnp.sum(dense_conv(x, k) ** 2)))
    if kernels == "compiled":
        assert "all-gather" not in step.lower(full, split).compile().as_text()
    assert_same(step(full, split), jax.value_and_grad(lambda k: jnp.sum(plain(x, k) ** 2))(kernel))


@pytest.mark.parametrize(("stride", "dilation", "channels"), [(2, 1, 16), (1, 2, 16), (1, 1, 3)])
def test_other_geometries_are_plain_sums(stride, dilation, channels):
    x, kernel = arrays((1, 8, 8, channels), (3, 3, channels, 8))
    result = dense_conv(x, kernel, stride=stride, dilation=dilation)
    assert_same(result, plain(x, kernel, stride, dilation), tolerance=1e-5)
