"""Fast-SCNN's pooling, and where it may be divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.backbones.fast_scnn import FastSCNN, adaptive_mean_pool

CLASSES = tasks.build({"cls": {"kind": "classification", "classes": ("a", "b")}})


def test_pooling_means_over_windows_of_whole_cells():
    x = jnp.arange(10.0).reshape(1, 5, 2, 1)  # rows 0 1, 2 3, 4 5, 6 7, 8 9
    np.testing.assert_allclose(adaptive_mean_pool(x, 1)[0, ..., 0], [[4.5]])
    rows = [(0 + 2) / 2, (2 + 4 + 6) / 3, (6 + 8) / 2]  # of cells 0-1, 1-3 and 3-4
    np.testing.assert_allclose(adaptive_mean_pool(x, 3)[0, :, 0, 0], rows)
    np.testing.assert_allclose(adaptive_mean_pool(x, 3)[0, 0, :, 0], [1, 1.5, 2])


@pytest.mark.parametrize("section", [{"until": 16}, {"after": 16}])
def test_a_division_after_the_branches_part_is_refused(section):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UserError, match=r"expected at most 8 px with backbone fast_scnn.*, found 16 px"):
        jax.eval_shape(lambda x: FastSCNN(**section).init(jax.random.key(0), x, train_batch_norm=False), x)


def test_tasks_share_it_up_to_8_px_and_no_further():
    settings = {"backbone": "fast_scnn", "width_multiplier": 0.1, "neck_channels": 8, "head_channels": 8}
    model = multi_task.build(settings | {"share_until": 8}, CLASSES)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))["params"]
    assert set(shapes["backbone"]) == {"detail_1", "detail_2", "detail_3"}
    assert "fusion" in shapes["branch_cls"]["backbone"]
    with pytest.raises(UserError, match="backbone fast_scnn, which joins strides 8 and 32 px"):
        multi_task.build(settings | {"share_until": 16}, CLASSES)
