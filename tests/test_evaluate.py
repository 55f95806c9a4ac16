"""What a network costs: operations counted by XLA, of the operations that the kernels stand for."""

import jax
import pytest

from mtl_jax import tasks
from mtl_jax.evaluation import evaluate
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import multi_task


def test_operations_are_those_of_the_published_network_and_grow_with_the_image():
    """MobileNetV3-Small is published with 56 million multiply-adds at 224 px; neck and head of one level add little."""
    records = tasks.build({"cls": {"kind": "classification", "classes": ("a", "b")}})
    model = multi_task.build({"neck_channels": 8, "head_channels": 8, "head_layers": 1}, records)
    variables = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    result = {size: evaluate.gigaflops(model, variables, ("cls",), image_size=size) for size in (224, 448)}
    assert result[224] == pytest.approx(2 * 0.056, rel=0.15)
    assert result[448] == pytest.approx(4 * result[224], rel=0.02)


def test_kernels_are_left_out_for_as_long_as_asked():
    before = cpu_kernels.in_use()
    with cpu_kernels.left_out():
        assert not cpu_kernels.in_use()
    assert cpu_kernels.in_use() == before
