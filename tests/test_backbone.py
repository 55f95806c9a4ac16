"""Every backbone: its levels and size, and that its stages make up the whole, with gradients to each of its parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.backbones import efficientnet
from mtl_jax.models.layers import draw_kernels

IMAGE = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)


def abstract(module, x):
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train_batch_norm=False), x)


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [
        ("mobilenet_v3_small", (24, 48, 576), 927_008),
        ("mobilenet_v3_large", (40, 112, 960), 2_971_952),
        ("efficientnet_b0", (40, 112, 1280), 4_007_548),
        ("yolov8n", (64, 128, 256), 1_272_656),
        ("fast_scnn", (128, 64, 128), 1_099_248),
        ("plain_cnn", (64, 96, 128), 310_160),
    ],
)
def test_a_backbone_has_its_levels_and_parameters(name, channels, count):
    features, variables = abstract(multi_task.BACKBONES[name](), IMAGE)
    strides = (8, 16, 32)
    assert {stride: x.shape for stride, x in features.items()} == {
        stride: (2, 64 // stride, 96 // stride, width) for stride, width in zip(strides, channels, strict=True)
    }
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.slow  # published networks; those of this package are followed in test_network.py
@pytest.mark.parametrize(("name", "stride"), [("efficientnet_b0", 16), ("yolov8n", 8), ("fast_scnn", 8)])
def test_stages_make_up_the_whole_and_every_parameter_has_a_gradient(name, stride):
    make = multi_task.BACKBONES[name]
    full, lower, upper = (make(0.1, **section) for section in ({}, {"until": stride}, {"after": stride}))
    image = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.eval_shape(lambda: full.init(jax.random.key(0), image, train_batch_norm=False))

    @jax.jit
    def compare(key):
        params = draw_kernels(_fresh(variables["params"]), key=key)
        stats = _fresh(variables["batch_stats"])

        def run(module, params, x):
            return module.apply({"params": params, "batch_stats": stats}, x, train_batch_norm=False)

        def loss(params):
            below = run(lower, params, image)
            levels = below | run(upper, params, below[stride])
            return sum(jnp.sum(jnp.cos(3 * x) * x) for x in levels.values()), levels

        grads, levels = jax.grad(loss, has_aux=True)(params)
        return grads, levels, run(full, params, image)

    grads, levels, expected = compare(jax.random.key(1))  # with key 0 a pooled layer starts dead
    for level, features in expected.items():
        np.testing.assert_allclose(levels[level], features, rtol=1e-4, atol=1e-4)
    assert [path for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if not leaf.any()] == []


def _fresh(shapes):
    """Kernels by what they add up, scales and variances of one, and some bias."""

    def fill(path, leaf):
        values = {"kernel": 1 / math.sqrt(math.prod(leaf.shape[:-1])), "mean": 0.1, "bias": 0.1}
        return jnp.full(leaf.shape, values.get(path[-1].key, 1.0))

    return jax.tree_util.tree_map_with_path(fill, shapes)


def test_efficientnet_dilates_beyond_the_output_stride():
    steps = {
        stride: [(block.stride, block.dilation) for block in efficientnet.layer_table(output_stride=stride)]
        for stride in (8, 32)
    }
    assert steps[32] == [(s, 1) for s in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)]
    assert steps[8] == [*steps[32][:5], *[(1, 2)] * 6, *[(1, 4)] * 5]


@pytest.mark.parametrize("name", ["plain_cnn", "yolov8n", "fast_scnn"])
def test_a_backbone_that_cannot_dilate_says_so(name):
    with pytest.raises(UserError, match=f"expected 32 with backbone {name}, found 16; set 32"):
        abstract(multi_task.BACKBONES[name](output_stride=16), IMAGE)
