"""The backbone's layer table, sizes and strides, and the layers that it is made of."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import layers
from mtl_jax.models.backbones.mobilenet_v3 import MobileNetV3Small, MobileNetV3SmallClassifier, layer_table


def shapes_of(module, size=64, **kwargs):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, **kwargs), image)


def size_of(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_features_have_927008_parameters():
    _, variables = shapes_of(MobileNetV3Small(), train_batch_norm=False)
    assert size_of(variables["params"]) == 927_008
    assert size_of(variables["batch_stats"]) == 12_112


def test_the_network_with_its_1000_classes_has_2542856_parameters():
    logits, variables = shapes_of(MobileNetV3SmallClassifier(), train=False)
    assert logits.shape == (1, 1000)
    assert size_of(variables["params"]) == 2_542_856


@pytest.mark.parametrize(
    ("output_stride", "channels"), [(32, {8: 24, 16: 48, 32: 576}), (16, {8: 24, 16: 576}), (8, {8: 576})]
)
def test_each_output_stride_gives_its_levels(output_stride, channels):
    features, variables = shapes_of(MobileNetV3Small(output_stride=output_stride), 96, train_batch_norm=False)
    assert {stride: x.shape for stride, x in features.items()} == {
        stride: (1, 96 // stride, 96 // stride, count) for stride, count in channels.items()
    }
    assert size_of(variables["params"]) == 927_008


def test_blocks_beyond_the_output_stride_are_dilated_instead():
    steps = {
        stride: [(block.stride, block.dilation) for block in layer_table(output_stride=stride)]
        for stride in (8, 16, 32)
    }
    assert steps[32] == [(s, 1) for s in (2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1)]
    assert steps[16] == [*steps[32][:8], (1, 2), (1, 2), (1, 2)]
    assert steps[8] == [*steps[32][:3], *[(1, 2)] * 5, *[(1, 4)] * 3]


def test_width_multiplier_scales_channels_in_multiples_of_8():
    table = layer_table(width_multiplier=0.5)
    assert [block.features for block in table] == [8, 16, 16, 24, 24, 24, 24, 24, 48, 48, 48]
    assert [block.expanded for block in table] == [8, 40, 48, 48, 120, 120, 64, 72, 144, 288, 288]
    features, _ = shapes_of(MobileNetV3Small(width_multiplier=0.5), train_batch_norm=False)
    assert features[32].shape[-1] == 288


@pytest.mark.parametrize(("channels", "expected"), [(3, 8), (4, 8), (12, 16), (18, 24), (19, 24), (60, 64), (100, 104)])
def test_make_divisible_never_falls_more_than_a_tenth_below(channels, expected):
    assert layers.make_divisible(channels) == expected


@pytest.mark.parametrize(("size", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (5, 1, 2), (1, 2, 1)])
def test_convolutions_equal_the_sum_that_defines_them(size, stride, dilation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 6, 8, 2)).astype(np.float32)
    conv = layers.Conv(3, size, stride, dilation)
    kernel = rng.normal(size=(2, 3) if size == stride == 1 else (size, size, 2, 3)).astype(np.float32)
    got = conv.apply({"params": {"kernel": jnp.asarray(kernel)}}, jnp.asarray(x)).outputs()
    reach = dilation * (size - 1) // 2
    padded = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    taps, expected = (
        np.reshape(kernel, (size, size, 2, 3)),
        np.zeros((1, -(-6 // stride), -(-8 // stride), 3)),
    )
    for row, column in np.ndindex(expected.shape[1:3]):
        top, left = row * stride, column * stride
        window = padded[0, top : top + 2 * reach + 1 : dilation, left : left + 2 * reach + 1 : dilation]
        expected[0, row, column] = np.einsum("hwi,hwio->o", window, taps)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.fixture(scope="module")
def block():
    """A block in bfloat16 with its variables, applied to the batch that it learns from."""
    module = layers.ConvNorm(4, "relu", momentum=0.9, epsilon=1e-3, dtype=jnp.dtype("bfloat16"))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 2, size=(4, 16, 16, 3)), jnp.float32)
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, train_batch_norm=False))(x)
    variables["params"]["conv"]["kernel"] = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)

    @jax.jit
    def train(variables):
        return module.apply(variables, x, train_batch_norm=True, mutable=["batch_stats"])

    return variables, x, *train(variables)


def test_batch_norm_in_bfloat16_keeps_float32_statistics_of_the_batch(block):
    variables, x, y, updated = block
    assert y.dtype == jnp.bfloat16
    product = np.einsum("bhwi,io->bhwo", x, variables["params"]["conv"]["kernel"])
    statistics = updated["batch_stats"]["norm"]
    assert statistics["mean"].dtype == statistics["var"].dtype == jnp.float32
    np.testing.assert_allclose(statistics["mean"], 0.1 * product.mean((0, 1, 2)), rtol=0.01, atol=0.01)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * product.var((0, 1, 2)), rtol=0.02)


def test_training_normalises_by_the_batch(block):
    variables, x, y, _ = block
    product = np.einsum("bhwi,io->bhwo", x, variables["params"]["conv"]["kernel"])
    normalised = (product - product.mean((0, 1, 2))) / np.sqrt(product.var((0, 1, 2)) + 1e-3)
    np.testing.assert_allclose(y.astype(jnp.float32), np.maximum(normalised, 0), atol=0.06)


def test_drawn_kernels_have_the_spread_that_their_layers_ask_for(key):
    params = {
        "a": {"kernel": jnp.full((64, 64), 0.5), "bias": jnp.zeros(64)},
        "b": {"kernel": jnp.full((64, 32), 2.0), "scale": jnp.ones(3)},
    }
    rendered = layers.draw_kernels(params, key=key)
    assert abs(rendered["a"]["kernel"].std() - 0.5) < 0.02
    assert abs(rendered["b"]["kernel"].std() - 2.0) < 0.1
    assert abs(np.corrcoef(rendered["a"]["kernel"].ravel()[:2048], rendered["b"]["kernel"].ravel())[0, 1]) < 0.1
    assert (rendered["a"]["bias"] == 0).all()
    assert (rendered["b"]["scale"] == 1).all()


def test_a_kernels_noise_is_its_own_whatever_lies_beside_it(key):
    kernel = {"kernel": jnp.ones((64, 40))}
    alone = layers.draw_kernels({"b": kernel}, key=key)["b"]["kernel"]
    adjacent = layers.draw_kernels({"a": {"kernel": jnp.ones((7, 100))}, "b": kernel, "c": kernel}, key=key)
    np.testing.assert_array_equal(adjacent["b"]["kernel"], alone)
    assert (adjacent["c"]["kernel"] != alone).all()
    blocks = alone.reshape(-1, layers.BLOCK)
    assert len(np.unique(blocks, axis=0)) == len(blocks)
