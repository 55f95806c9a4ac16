"""The neck's levels and what flows into each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.neck import NECKS, Fpn, TwoConv, upsample_2x

CHANNELS = {8: 3, 16: 4, 32: 5}


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    return {
        stride: jnp.asarray(rng.normal(size=(2, 64 // stride, 96 // stride, count)), jnp.float32)
        for stride, count in CHANNELS.items()
    }


@pytest.fixture(scope="module")
def laterals():
    rng = np.random.default_rng(1)
    return {
        f"lateral_{stride}": {
            "kernel": jnp.asarray(rng.normal(size=(count, 6)), jnp.float32),
            "bias": jnp.arange(6.0),
        }
        for stride, count in CHANNELS.items()
    } | {"context": {"kernel": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32), "bias": jnp.ones(6)}}


def test_upsampling_repeats_every_cell():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(upsample_2x(x), np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))


def test_every_pyramid_level_is_its_lateral_plus_the_coarser_levels_and_the_coarsest_s_mean(features, laterals):
    levels = Fpn(6).apply({"params": laterals}, features, train_batch_norm=False)
    assert set(levels) == {8, 16, 32}
    kernel, bias = (np.asarray(laterals["context"][name]) for name in ("kernel", "bias"))
    expected = (np.asarray(features[32]).mean(axis=(1, 2)) @ kernel + bias)[:, None, None, :]
    for stride in (32, 16, 8):
        lateral = laterals[f"lateral_{stride}"]
        if stride != 32:
            expected = np.repeat(np.repeat(expected, 2, axis=1), 2, axis=2)
        expected = expected + np.einsum("bhwi,io->bhwo", features[stride], lateral["kernel"])
        expected = expected + np.asarray(lateral["bias"])[None, None, None, :]
        np.testing.assert_allclose(levels[stride], expected, atol=1e-4)


def test_the_coarsest_level_does_not_see_the_finer_ones(features, laterals):
    def total(features):
        return Fpn(6).apply({"params": laterals}, features, train_batch_norm=False)[32].sum()

    gradient = jax.grad(total)(features)
    assert not gradient[8].any()
    assert not gradient[16].any()
    assert gradient[32].any()


def test_two_convolutions_keep_the_coarsest_level_alone(features):
    module = TwoConv(6)
    levels, variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, train_batch_norm=True), features
    )
    assert {stride: level.shape for stride, level in levels.items()} == {32: (2, 2, 3, 6)}
    assert variables["params"]["conv_0"]["conv"]["kernel"].shape == (3, 3, 5, 6)
    assert variables["params"]["conv_1"]["conv"]["kernel"].shape == (3, 3, 6, 6)


@pytest.mark.parametrize(("name", "output_stride"), [(n, s) for n in NECKS for s in (8, 16, 32)])
def test_the_announced_strides_are_those_given(name, output_stride, features):
    neck = NECKS[name]
    inputs = {stride: x for stride, x in features.items() if stride <= output_stride}
    levels, _ = jax.eval_shape(lambda x: neck(6).init_with_output(jax.random.key(0), x, train_batch_norm=False), inputs)
    assert set(levels) == set(neck.strides(output_stride))


def test_bfloat16_levels_stay_bfloat16(features):
    levels, variables = jax.eval_shape(
        lambda x: Fpn(6, jnp.dtype("bfloat16")).init_with_output(jax.random.key(0), x, train_batch_norm=False),
        features,
    )
    assert {level.dtype for level in levels.values()} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
