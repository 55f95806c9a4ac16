"""Convolution, batch norm and activation in one pass against the three one after another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import batch_norm
from mtl_jax.models.backbones.inverted_residual import SqueezeExcite
from mtl_jax.models.inference import Convolution, Excitation, Gated, dense, excitation_supports

pytestmark = pytest.mark.skipif(not cpu_kernels.available(), reason="no C++ compiler: there is one way alone")
DENSE = [((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((1, 1), 2)]
DEPTHWISE = [(3, 1, 1), (3, 2, 1), (5, 1, 2), (5, 2, 1)]


def with_activations(*choices):
    """Every combination of the choices, each with one activation; each choice meets them all."""
    activations = itertools.cycle(batch_norm.ACTIVATIONS)
    cases = [(*case, next(activations)) for case in itertools.product(*choices)]
    assert {case[-1] for case in cases} == set(batch_norm.ACTIVATIONS)
    return cases


def drawn(*shapes):
    generator = np.random.default_rng(0)
    return tuple(jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes)


def both(function, *arrays):
    """Value and gradients, with the compiled kernels and without."""

    def run(*arrays):
        value = function(*arrays)
        return value, jax.grad(lambda *arrays: jnp.sum(jnp.cos(function(*arrays))), tuple(range(len(arrays))))(*arrays)

    result = jax.jit(run)(*arrays)
    with cpu_kernels.left_out():
        return result, jax.jit(lambda *arrays: run(*arrays))(*arrays)


def assert_same(actual, expected, tolerance=3e-5):
    for leave, second in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leave, second, atol=tolerance * max(1.0, float(np.abs(second).max())))


@pytest.mark.parametrize(("channels", "geometry", "activation"), with_activations([3, 16], DENSE))
def test_dense_convolutions_are_one_pass_of_the_same_result(channels, geometry, activation):
    size, stride = geometry
    x, kernel, factor, shift = drawn((2, 9, 11, channels), (*size, channels, 40), (40,), (40,))
    kernel = kernel[0, 0] if size == (1, 1) and stride == 1 else kernel

    def normalised(x, kernel, factor, shift):
        return Convolution(x, kernel, stride).normalised(factor, shift, activation=activation)

    winograd = (size, stride) == ((3, 3), 1) and channels == 16  # whose sums round otherwise
    assert_same(*both(normalised, x, kernel, factor, shift), tolerance=1e-4 if winograd else 3e-5)
    text = str(jax.make_jaxpr(normalised)(x, kernel, factor, shift))
    assert ("winograd_norm" if winograd else "convolution_norm") in text
    assert "norm_apply" not in text


@pytest.mark.parametrize(("geometry", "channels", "activation"), with_activations(DEPTHWISE, [8, 32]))
def test_depthwise_convolutions_are_one_pass_of_the_same_result(geometry, channels, activation):
    size, stride, dilation = geometry
    x, kernel, factor, shift = drawn((2, 13, 19, channels), (size, size, 1, channels), (channels,), (channels,))

    def normalised(x, kernel, factor, shift):
        convolution = Convolution(x, kernel, stride, dilation, depthwise=True)
        return convolution.normalised(factor, shift, activation=activation)

    assert_same(*both(normalised, x, kernel, factor, shift))
    assert "depthwise_norm" in str(jax.make_jaxpr(normalised)(x, kernel, factor, shift))


def test_a_gate_and_a_residual_belong_to_the_pass():
    arrays = drawn((3, 7, 5, 24), (3, 1, 1, 24), (24, 16), (16,), (16,), (3, 7, 5, 16))

    def normalised(x, weights, kernel, factor, shift, residual):
        convolution = Convolution(Gated(x, weights), kernel)
        return convolution.normalised(factor, shift, activation="identity", residual=residual)

    assert_same(*both(normalised, *arrays))


def test_a_mapped_factor_gives_each_element_its_own():
    x, kernel, factor, shift = drawn((2, 4, 4, 8), (8, 8), (3, 8), (3, 8))

    def normalised(factor, shift):
        return Convolution(x, kernel).normalised(factor, shift, activation="relu")

    expected = [normalised(*entry) for entry in zip(factor, shift, strict=True)]
    assert_same(jax.vmap(normalised)(factor, shift), jnp.stack(expected))


@pytest.mark.parametrize(("features", "kernel_size", "dilation"), [(12, 1, 1), (16, 3, 2)])
def test_what_no_kernel_takes_is_computed_in_turn(features, kernel_size, dilation):
    x, kernel, factor = drawn((1, 8, 8, 16), (kernel_size, kernel_size, 16, features), (features,))

    def normalised(x):
        return Convolution(x, kernel, 1, dilation).normalised(factor, factor, activation="relu")

    assert "convolution_norm" not in str(jax.make_jaxpr(normalised)(x))
    assert_same(*both(normalised, x))


@pytest.mark.parametrize(
    "settings",
    [Excitation("relu", jax.nn.hard_sigmoid), Excitation("silu", jax.nn.sigmoid)],
    ids=["MobileNetV3", "EfficientNet"],
)
def test_channel_weights_are_those_of_the_layers(settings):
    x, *layers = drawn((2, 5, 7, 24), (24, 8), (8,), (8, 24), (24,))
    module = SqueezeExcite(8, settings)
    params = {"reduce": dict(zip(("kernel", "bias"), layers[:2], strict=True))}
    params |= {"expand": dict(zip(("kernel", "bias"), layers[2:], strict=True))}
    assert excitation_supports(settings, x, ((layers[0], layers[1]), (layers[2], layers[3])))

    def weights(x, params):
        return module.apply({"params": params}, x).weights

    assert_same(*both(weights, x, params))
    assert "mtl_jax_excitation" in str(jax.make_jaxpr(weights)(x, params))


@pytest.mark.parametrize(("features", "residual"), [(16, False), (16, True), (21, False)])
def test_a_layer_with_bias_is_one_pass_over_a_map(features, residual):
    x, kernel, bias, added = drawn((2, 5, 3, 12), (12, features), (features,), (2, 5, 3, features))

    def layer(x, kernel, bias):
        return dense(x, kernel, bias, added if residual else None, output_dtype=jnp.dtype("float32"))

    assert_same(*both(layer, x, kernel, bias))
    assert "convolution_norm" in str(jax.make_jaxpr(layer)(x, kernel, bias))


def test_a_layer_of_vectors_is_a_plain_product():
    x, kernel, bias = drawn((3, 12), (12, 16), (16,))
    plain = jax.make_jaxpr(lambda x: dense(x, kernel, bias, None, output_dtype=jnp.dtype("float32")))(x)
    assert "convolution_norm" not in str(plain)
