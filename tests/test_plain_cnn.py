"""The plain backbone has the promised levels, and refuses what it cannot do."""

import jax
import jax.numpy as jnp
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.plain_cnn import PlainCNN


def features(**settings):
    backbone = PlainCNN(**settings)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x, train_batch_norm=False), image)
    taps = jax.eval_shape(lambda v, x: backbone.apply(v, x, train_batch_norm=False), variables, image)
    return {stride: tap.shape for stride, tap in taps.items()}, variables["params"]


def test_features_have_strides_8_16_and_32():
    shapes, _ = features()
    assert shapes == {8: (2, 8, 12, 64), 16: (2, 4, 6, 96), 32: (2, 2, 3, 128)}


def test_width_multiplies_channels():
    shapes, params = features(width_multiplier=0.5)
    assert shapes[32][-1] == 64
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 100_000


def test_the_parameter_count_is_as_documented():
    _, params = features()
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == pytest.approx(310_000, rel=0.02)


def test_another_output_stride_is_refused():
    with pytest.raises(UserError, match="expected 32 with backbone plain_cnn, found 16"):
        features(output_stride=16)
