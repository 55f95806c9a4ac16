"""The forms of the depthwise convolution agree with a sum over taps in NumPy, under every transformation used."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mtl_jax.errors import UserError
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise_cpu
from mtl_jax.models.depthwise import FORMS, depthwise_conv
from mtl_jax.models.depthwise_forms import Window

# kernel size, stride, dilation, batch, height, width, channels: odd sizes, inputs smaller than the window, channels
# that do not fill a vector, more channels than one unit of work
GEOMETRIES = [
    (3, 1, 1, 2, 9, 7, 5),
    (3, 2, 1, 1, 17, 20, 24),
    (3, 1, 2, 2, 6, 19, 16),
    (3, 2, 2, 1, 9, 8, 8),
    (5, 1, 1, 3, 16, 16, 13),
    (5, 2, 1, 2, 33, 7, 40),
    (5, 1, 2, 1, 11, 26, 8),
    (5, 2, 1, 1, 2, 1, 3),
]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch) -> str:
    if request.param == "compiled" and not cpu_kernels.available():
        pytest.skip("no C++ compiler here: the compiled depthwise form is not tested")
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", request.param)
    return request.param


def random_arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


def reference(x, kernel, cotangent, stride, dilation):
    """Value, input gradient and kernel gradient, by the definition and in float64."""
    size, (_, height, width, _) = kernel.shape[0], cotangent.shape
    padding = dilation * (size - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    value, dx, dk = np.zeros(cotangent.shape), np.zeros_like(padded), np.zeros(kernel.shape)
    for i in range(size):
        for j in range(size):
            rows = slice(i * dilation, i * dilation + (height - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (width - 1) * stride + 1, stride)
            value += padded[:, rows, columns] * kernel[i, j, 0]
            dx[:, rows, columns] += cotangent * kernel[i, j, 0]
            dk[i, j, 0] = (padded[:, rows, columns] * cotangent).sum(axis=(0, 1, 2))
    return value, dx[:, padding : padding + x.shape[1], padding : padding + x.shape[2]], dk


def value_and_gradients(x, kernel, cotangent, **options):
    def run(x, kernel, cotangent):
        value, pull = jax.vjp(lambda x, kernel: depthwise_conv(x, kernel, **options), x, kernel)
        return value, *pull(cotangent)

    return jax.jit(run)(x, kernel, cotangent)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_value_and_both_gradients_are_the_sum_over_taps(form, geometry):
    size, stride, dilation, batch, height, width, channels = geometry
    outputs = -(-height // stride), -(-width // stride)
    x, kernel, cotangent = random_arrays(
        (batch, height, width, channels), (size, size, 1, channels), (batch, *outputs, channels)
    )
    actual = value_and_gradients(x, kernel, cotangent, stride=stride, dilation=dilation)
    expected = reference(x, kernel, cotangent, stride, dilation)
    for a, b in zip(actual, expected, strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale)


def test_padding_is_symmetric_where_same_padding_is_not(form):
    x = jnp.arange(1.0, 17.0).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # picks the pixel above and to the left
    result = depthwise_conv(x, kernel, stride=2)
    np.testing.assert_array_equal(result[0, :, :, 0], [[0.0, 0.0], [0.0, 6.0]])


def test_bfloat16_stays_bfloat16_and_is_accurate(form):
    x, kernel, cotangent = random_arrays((2, 32, 32, 8), (3, 3, 1, 8), (2, 32, 32, 8))
    low = [jnp.asarray(array, jnp.bfloat16) for array in (x, kernel, cotangent)]
    actual = value_and_gradients(*low)
    x, kernel, cotangent = (np.asarray(array, np.float32) for array in low)
    expected = reference(x, kernel, cotangent, 1, 1)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        # bfloat16 has 8 significant bits; a form that adds in bfloat16 itself is off by several of the last
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-6, atol=2**-6 * np.abs(b).max())


def test_per_example_gradients_by_vmap_are_those_of_each_example(form):
    x, kernel = random_arrays((3, 1, 8, 9, 8), (5, 5, 1, 8))

    def loss(kernel, x):
        return jnp.sum(depthwise_conv(x, kernel, stride=2) ** 2)

    actual = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(kernel, x)
    expected = jnp.stack([jax.jit(jax.grad(loss))(kernel, example) for example in x])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


def test_vmap_over_kernels_is_a_loop_over_kernels(form):
    x, kernels, cotangent = random_arrays((2, 6, 6, 8), (3, 3, 3, 1, 8), (2, 6, 6, 8))
    result = jax.jit(jax.vmap(value_and_gradients, in_axes=(None, 0, None)))(x, kernels, cotangent)
    for n, kernel in enumerate(kernels):
        for a, b in zip(result, reference(x, kernel, cotangent, 1, 1), strict=True):
            np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-4)


def test_second_derivatives_agree_with_a_secant(form):
    x, kernel, direction = random_arrays((1, 5, 6, 8), (3, 3, 1, 8), (3, 3, 1, 8))

    def norm(kernel):
        return jnp.sum(jax.grad(lambda x: jnp.sum(depthwise_conv(x, kernel, stride=2) ** 3))(x) ** 2)

    norm = jax.jit(norm)
    slope = jnp.vdot(jax.jit(jax.grad(norm))(kernel), direction)
    step = 1e-2
    secant = (norm(kernel + step * direction) - norm(kernel - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, secant, rtol=2e-2)


def test_a_checkpointed_layer_has_the_same_gradient(form):
    x, kernel = map(jnp.asarray, random_arrays((1, 6, 6, 8), (3, 3, 1, 8)))

    def loss(kernel):
        return jnp.sum(jnp.sin(depthwise_conv(x, kernel)))

    result = jax.jit(jax.grad(jax.checkpoint(loss)))(kernel)
    np.testing.assert_allclose(result, jax.jit(jax.grad(loss))(kernel), rtol=1e-6)


def test_a_sharded_batch_stays_sharded_and_gives_the_unsharded_result(form):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel, cotangent = random_arrays((4, 9, 8, 16), (5, 5, 1, 16), (4, 5, 4, 16))
    expected = value_and_gradients(x, kernel, cotangent, stride=2)

    by_example, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x, cotangent = jax.device_put((x, cotangent), by_example)
    actual = value_and_gradients(x, jax.device_put(kernel, everywhere), cotangent, stride=2)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    if form != "grouped":  # XLA's partitioner may gather the batch of a grouped convolution's gradient
        assert actual[0].sharding.is_equivalent_to(by_example, 4)
        assert actual[1].sharding.is_equivalent_to(by_example, 4)


def test_the_compiled_form_keeps_each_device_to_its_share_of_the_batch(monkeypatch):
    if not cpu_kernels.available():
        pytest.skip("no C++ compiler here: the compiled depthwise form is not tested")
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", "compiled")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    x, kernel = random_arrays((4, 8, 8, 8), (3, 3, 1, 8))
    gradient = jax.jit(jax.grad(lambda kernel, x: jnp.sum(depthwise_conv(x, kernel) ** 2)))
    program = gradient.lower(kernel, jax.device_put(x, sharding)).compile().as_text() or ""
    calls = [line for line in program.splitlines() if "custom-call(" in line and "mtl_jax_depthwise" in line]
    assert calls
    assert all("f32[2,8,8,8]" in line for line in calls)
    assert "all-gather" not in program
    assert "all-reduce" in program


def test_the_compiled_form_gives_the_same_bits_every_time(monkeypatch):
    if not cpu_kernels.available():
        pytest.skip("no C++ compiler here: the compiled depthwise form is not tested")
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", "compiled")
    arrays = random_arrays((2, 33, 40, 24), (5, 5, 1, 24), (2, 33, 40, 24))
    first = value_and_gradients(*arrays)
    for _ in range(5):
        for a, b in zip(value_and_gradients(*arrays), first, strict=True):
            np.testing.assert_array_equal(a, b)
    # An example's result does not depend on the other examples, either.
    alone = value_and_gradients(arrays[0][:1], arrays[1], arrays[2][:1])
    np.testing.assert_array_equal(alone[0], first[0][:1])
    np.testing.assert_array_equal(alone[1], first[1][:1])


def test_a_window_that_was_not_compiled_falls_back_to_shifted_sums(form):
    assert not depthwise_cpu.supports(Window((8, 8), (7, 7), 1, 1), jnp.dtype(jnp.float32))
    x, kernel, cotangent = random_arrays((1, 8, 8, 3), (7, 7, 1, 3), (1, 8, 8, 3))
    for a, b in zip(value_and_gradients(x, kernel, cotangent), reference(x, kernel, cotangent, 1, 1), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_an_unknown_form_is_a_readable_error(monkeypatch):
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", "fast")
    with pytest.raises(UserError, match=r"auto, grouped, shifted, compiled, found 'fast'"):
        depthwise_conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))


def test_without_a_compiler_one_log_line_and_the_shifted_sums(no_compiler, monkeypatch, caplog):
    monkeypatch.delenv("MTL_JAX_DEPTHWISE", raising=False)
    x, kernel, cotangent = random_arrays((1, 4, 4, 8), (3, 3, 1, 8), (1, 4, 4, 8))
    with caplog.at_level(logging.INFO, logger=cpu_kernels.__name__):
        result = value_and_gradients(x, kernel, cotangent)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "found no g++, c++ or clang++" in caplog.text
    np.testing.assert_allclose(result[0], reference(x, kernel, cotangent, 1, 1)[0], rtol=1e-5, atol=1e-5)


def test_the_compiled_form_forced_without_a_compiler_is_a_readable_error(no_compiler, monkeypatch):
    monkeypatch.setenv("MTL_JAX_DEPTHWISE", "compiled")
    with pytest.raises(UserError, match=r"MTL_JAX_DEPTHWISE=compiled: expected .* install g\+\+"):
        depthwise_conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)))
