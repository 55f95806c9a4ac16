"""What kernels read: the patches are exactly those of the convolutions, in the order of the kernels' rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from mtl_jax import tasks
from mtl_jax.models import kernel_inputs, multi_task
from mtl_jax.models.layers import Conv

TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": ("a", "b")},
        "cls": {"kind": "classification", "classes": ("a", "b")},
    }
)


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (5, 2, 2)]
)
def test_patches_times_the_kernel_are_the_convolution(key, depthwise, size, stride, dilation):
    x = jax.random.normal(key, (2, 7, 10, 4))
    layer = Conv(None if depthwise else 6, size, stride, dilation)
    kernel = jax.random.normal(key, jax.eval_shape(layer.init, key, x)["params"]["kernel"].shape)

    @jax.jit
    def convolved(x, kernel):
        expected = layer.apply({"params": {"kernel": kernel}}, x).outputs()
        rows = kernel_inputs.rows(x, size, stride=stride, dilation=dilation, depthwise=depthwise)
        matrices = kernel_inputs.by_group(kernel, rows.shape[0])
        actual = jnp.einsum("gni,gio->ngo", rows, matrices).reshape(expected.shape)
        return actual, expected, kernel_inputs.from_groups(matrices, kernel.shape)

    actual, expected, joined = convolved(x, kernel)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(joined, kernel)


def test_a_pass_tells_what_its_tasks_read_of_the_chosen_parameters(tiny_backbone, key):
    model = multi_task.build(MODEL, TASKS)
    variables = multi_task.init_variables(model, key=key, image_size=32)
    image = jax.random.uniform(key, (3, 32, 64, 3))

    def chosen(path):
        return not path.startswith(("head/seg", "head/cls"))

    def read(*names):
        return kernel_inputs.covariances(model, variables, image, tasks=names, selects=chosen)

    result = read("seg")
    assert "head/norm_0_stride_8/scale" in result.other_params
    assert "head/norm_0_stride_32/scale" not in result.other_params
    assert "backbone/conv_8/kernel" in result.other_params  # a convolution of Flax's own
    assert set(result.covariances) == {
        f"neck/{name}/kernel" for name in ("context", "lateral_8", "lateral_16", "lateral_32")
    } | {"head/conv_0/kernel"}
    assert result.covariances["head/conv_0/kernel"].shape == (1, 1, 9 * 16, 9 * 16)
    # Each level is a use of the kernel by itself.
    assert read("seg", "cls").covariances["head/conv_0/kernel"].shape[0] == 2
    features = jax.jit(lambda: multi_task.eval_raw(model, variables, image, tasks=("seg",)))()[1]["stride_8"]
    rows = np.asarray(kernel_inputs.rows(features, 3))[0]
    np.testing.assert_allclose(result.covariances["head/conv_0/kernel"][0, 0], rows.T @ rows, rtol=1e-4, atol=1e-4)
