"""JAX functions as ONNX: every operation is translated exactly, and what runtimes have an operator for becomes it."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import batch_norm, convolution, quantisation
from mtl_jax.models.neck import upsample_2x
from mtl_jax.tasks import boxes


def require_onnx() -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed: ONNX is not tested")
    pytest.importorskip("onnx", reason="the extra `export` is not installed: ONNX is not tested")


def test_a_norm_and_a_bias_are_part_of_the_convolution_before_them():
    require_onnx()
    import onnxruntime

    from mtl_jax.export import onnx_model
    from mtl_jax.kernels import cpu_kernels

    kernel, pixels = (jax.random.normal(jax.random.key(0), shape) for shape in ((3, 3, 3, 4), (2, 8, 8, 3)))
    scale, bias, mean = (jnp.linspace(start, 2.0, 4) for start in (0.5, -1.0, 0.0))

    def function(image):
        y = convolution.dense_conv(image, kernel, stride=2)
        y = batch_norm.by_statistics(y, scale, bias, mean, 3 * scale, epsilon=1e-3, activation="relu")
        unread = y * jnp.ones((2, 4, 4, 1))
        return {"y": y + jnp.arange(4.0).reshape(1, 1, 1, 4), "z": unread[..., :1]}

    with cpu_kernels.left_out():
        model = onnx_model.convert(function, jax.ShapeDtypeStruct(pixels.shape, jnp.float32), input_name="image")
        expected = jax.jit(function)(pixels)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Conv") == 1
    assert kinds.count("Add") == 1  # behind the activation
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, value in zip(("y", "z"), session.run(["y", "z"], {"image": np.asarray(pixels)}), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def converted(function, *shape: int, dtype=jnp.float32, kinds: list[str] | None = None):
    """Runs a function through ONNX on numbers from -3 to 3, for any batch; appends what the file's nodes are."""
    require_onnx()
    import onnxruntime

    from mtl_jax.export import onnx_model

    inputs = jax.ShapeDtypeStruct(shape, dtype)
    model, _ = onnx_model.convert_any_batch(lambda x: {"y": function(x)}, inputs, input_name="x")
    if kinds is not None:
        kinds.extend(node.op_type for node in model.graph.node)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).uniform(-3, 3, shape).astype(dtype)
    return session.run(["y"], {"x": x})[0], np.asarray(function(jnp.asarray(x)))


@pytest.mark.parametrize(
    "function",
    [
        jax.nn.hard_swish,
        jax.nn.silu,
        jax.nn.log_sigmoid,
        jnp.tanh,
        lambda x: jax.nn.softmax(x, axis=-1),
        lambda x: jnp.where(x > 0, jax.lax.rsqrt(jnp.abs(x) + 1), x / 3),
        lambda x: jnp.cumsum(x > 0, axis=1).astype(jnp.float32),
        lambda x: jax.lax.top_k(x, 3)[1],
        lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32) % 2,
        lambda x: jnp.stack([x[:, ::2], x[:, 1::2]], axis=2),
        lambda x: jax.image.resize(x.reshape(-1, 2, 3, 1), (x.shape[0], 8, 12, 1), "linear"),
        lambda x: jax.lax.while_loop(lambda y: jnp.any(y < 9), lambda y: y + 1, x),
        jax.vmap(lambda row: jax.lax.while_loop(lambda y: jnp.any(y < 9), lambda y: 2 * y + 7, row)),
        jax.vmap(lambda row: jnp.zeros(4).at[jax.lax.top_k(row, 3)[1]].set(row[:3], mode="drop")),
        jax.vmap(lambda row: row.reshape(3, 2)[jax.lax.top_k(row, 3)[1] // 2]),
    ],
)
def test_operations_are_translated_exactly(function):
    actual, expected = converted(function, 2, 6)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


MAP = (2, 4, 6, 3)
ROUNDING = ["QuantizeLinear", "DequantizeLinear"]
LIMITS = jnp.array([-1.0, 2.0])
CHANNEL_LIMITS = jnp.array([[-1.0, -2.5, 0.0], [2.0, 0.5, 0.0]])  # the last channel is 0 in all images


@pytest.mark.parametrize(
    ("function", "shape", "kinds"),
    [
        (jax.nn.hard_swish, (2, 6), ["HardSwish"]),
        (jax.nn.hard_sigmoid, (2, 6), ["HardSigmoid"]),
        (jax.nn.relu, (2, 6), ["Relu"]),
        (jax.nn.softplus, (2, 6), ["Softplus"]),
        (jax.jit(jax.nn.softmax), (2, 6), ["Softmax"]),
        (lambda x: jnp.clip(x, -1.0, 2.0), (2, 6), ["Clip"]),
        (lambda x: jnp.mean(x, axis=(1, 2), keepdims=True), MAP, ["Transpose", "GlobalAveragePool", "Reshape"]),
        (lambda x: jnp.mean(x, axis=1), (2, 6), ["ReduceMean", "Reshape"]),
        (upsample_2x, MAP, ["Transpose", "Resize", "Transpose"]),
        (lambda x: x.reshape(x.shape[0], 24, 3).sum(axis=1), MAP, ["Transpose", "Reshape", "ReduceSum"]),
        (lambda x: x.astype(jnp.int32) % 3, (2, 6), ["Cast", "Mod"]),
        (lambda x: x.astype(jnp.int32) // 3, (2, 6), ["Cast", "Mod", "Sub", "Div"]),
        (lambda x: x + x.transpose(0, 2, 1).transpose(0, 2, 1), (2, 3, 4), ["Add"]),
        (lambda x: jnp.tanh(x) + jnp.tanh(x), (2, 6), ["Tanh", "Add"]),  # once
        (lambda x: quantisation.rounded_values(x, LIMITS), MAP, ["Transpose", *ROUNDING, "Transpose"]),
        (lambda x: quantisation.rounded_values(x, CHANNEL_LIMITS), MAP, ["Transpose", *ROUNDING, "Transpose"]),
    ],
)
def test_what_runtimes_have_an_operator_for_becomes_it(function, shape, kinds):
    nodes = []
    actual, expected = converted(function, *shape, kinds=nodes)
    assert nodes == kinds
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_factors_of_channels_before_and_behind_a_convolution_become_part_of_it():
    factors, kernel = jnp.array([0.5, 2.0, 3.0]), jax.random.normal(jax.random.key(0), (3, 3, 3, 4))
    channels = jnp.arange(1.0, 5.0)

    def function(x):
        y = convolution.dense_conv(x / factors[None, None, None], kernel)
        return 2.0 * (y * channels[None, None, None]) + 1.0

    nodes = []
    actual, expected = converted(function, *MAP, kinds=nodes)
    assert nodes == ["Transpose", "Conv", "Transpose"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("centred", "kinds"),
    [
        (lambda x, mean: x - mean, ["Sub"]),
        (lambda x, mean: mean - x, ["Sub"]),
        (lambda x, mean: jax.nn.relu(x - mean), ["Sub", "Transpose", "Relu"]),
        (lambda x, mean: (x - mean) * x, ["Transpose", "Sub", "Mul"]),  # the image is read twice
    ],
)
def test_the_image_is_transposed_behind_arithmetic_with_constants(centred, kinds):
    mean, kernel = jnp.float32([[[[0.5, 2.0, 3.0]]]]), jax.random.normal(jax.random.key(0), (3, 3, 3, 4))
    nodes = []
    actual, expected = converted(lambda x: convolution.dense_conv(centred(x, mean), kernel), *MAP, kinds=nodes)
    assert nodes == [*kinds, *(["Transpose"] if "Transpose" not in kinds else []), "Conv", "Transpose"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def _best_of_enlarged(rows, columns):
    """A function of cells: the best of five classes, of which the last map shows one, at another size."""
    bias = jnp.array([0.0, -20.0, 0.5, -20.0, -0.5]).reshape(1, 1, 1, 5)  # two classes are nowhere best

    def function(x):
        cells = x + bias + jnp.arange(2.0).reshape(2, 1, 1, 1) * 9 * (bias == 0.5)
        return jnp.argmax(jax.image.resize(cells, (x.shape[0], rows, columns, 5), "linear"), axis=-1).astype(jnp.int32)

    return function


@pytest.mark.parametrize(
    ("shape", "size"), [((12, 5), (96, 40)), ((3, 7), (12, 21)), ((4, 4), (20, 4)), ((1, 6), (8, 12)), ((6, 1), (9, 7))]
)
def test_the_best_class_of_each_pixel_is_that_of_the_enlarged_map(shape, size):
    nodes, function = [], _best_of_enlarged(*size)
    actual, expected = converted(function, 2, *shape, 5, kinds=nodes)
    whole = size[0] % shape[0] == 0
    assert ("NonZero" in nodes) == whole  # only squares with several classes are enlarged
    np.testing.assert_array_equal(actual, expected)
    assert set(np.unique(expected)) == {0, 2, 4}
    np.testing.assert_array_equal(*converted(lambda x: function(0 * x), 2, *shape, 5))  # equals


def test_more_classes_than_fit_in_a_byte_are_told_apart():
    def function(x):
        return jnp.argmax(jax.image.resize(x, (x.shape[0], 8, 8, 300), "linear"), axis=-1).astype(jnp.int32)

    actual, expected = converted(function, 1, 4, 4, 300)
    np.testing.assert_array_equal(actual, expected)
    assert expected.max() > 255


def test_a_class_that_is_best_between_cells_only_is_found():
    cells = jnp.zeros((1, 1, 2, 3)).at[0, 0].set(jnp.array([[1.0, 0.0, 0.9], [0.0, 1.0, 0.9]]))

    def function(x):
        larger = jax.image.resize(cells + 0 * x, (x.shape[0], 8, 16, 3), "linear")
        return jnp.argmax(larger, axis=-1).astype(jnp.int32)

    actual, expected = converted(function, 1, 1, 2, 3)
    np.testing.assert_array_equal(actual, expected)
    assert set(np.unique(expected)) == {0, 1, 2}


def test_indices_are_not_cast_back():
    def best_rows(x):
        _, order = jax.lax.top_k(x[:, 0], 3)
        return x.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)

    nodes = []
    actual, expected = converted(jax.vmap(best_rows), 2, 7, 4, kinds=nodes)
    assert "TopK" in nodes
    assert "Cast" not in nodes
    np.testing.assert_array_equal(actual, expected)


def test_non_maximum_suppression_keeps_the_boxes_that_the_network_keeps():
    def function(x):
        corner = 2 * x[..., :2]
        box = jnp.concatenate([corner, corner + 6 + x[..., 2:4]], axis=-1)
        label, valid = jnp.floor(x[..., 4]).astype(jnp.int32) % 3, x[..., 5] > -2
        return jax.vmap(lambda *entry: boxes.suppress(*entry, iou_threshold=0.3))(box, label, valid)

    nodes = []
    actual, expected = converted(function, 3, 60, 6, kinds=nodes)
    assert "NonMaxSuppression" in nodes
    assert "Loop" not in nodes
    np.testing.assert_array_equal(actual, expected)
    assert 0.1 < expected.mean() < 0.7


def test_a_part_that_needs_to_know_the_number_of_images_gets_it():
    require_onnx()
    from mtl_jax.export import onnx_model

    def function(x):
        return {"y": x * jnp.arange(1.0, 1.0 + int(x.shape[0]))[:, None]}

    model, any_batch = onnx_model.convert_any_batch(function, jax.ShapeDtypeStruct((2, 3), jnp.float32), input_name="x")
    assert not any_batch
    assert [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3]


def _counted(x):
    """Rows, columns and their products are part of the result."""
    y, columns = jnp.arange(x.shape[1], dtype=jnp.float32), jnp.arange(x.shape[2], dtype=jnp.float32)
    grid = jnp.stack(jnp.meshgrid(y, columns, indexing="ij"), axis=-1).reshape(1, -1, 2)
    return jnp.concatenate([x[..., :2].reshape(x.shape[0], -1, 2), grid + jnp.zeros((x.shape[0], 1, 1))], axis=1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jnp.mean(x, axis=(1, 2)),
        lambda x: x.sum(axis=(1, 2)) / (x.shape[1] * x.shape[2] + 1),
        lambda x: jnp.argmax(jax.image.resize(x, (x.shape[0], 4 * x.shape[1], 4 * x.shape[2], 3), "linear"), axis=-1),
        lambda x: jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], 3), "linear"),
        lambda x: upsample_2x(x)[:, : x.shape[1] + 1],
        lambda x: jnp.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)))[:, 1 : x.shape[1] + 1],
        lambda x: x.reshape(x.shape[0], -1, 3)[:, :5] * jnp.ones((x.shape[1], 1)).sum(),
        _counted,
    ],
)
def test_images_may_have_any_size(function, monkeypatch):
    require_onnx()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a symbol of JAX passes for an int, and is none
    import onnxruntime

    from mtl_jax.export import network, onnx_model

    image = network.input_shape_of_any_size()
    model = onnx_model.convert(lambda x: {"y": function(x)}, image, input_name="x")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for shape in ((2, 32, 64, 3), (1, 96, 32, 3)):
        x = np.random.default_rng(0).uniform(-3, 3, shape).astype(np.float32)
        actual, expected = session.run(["y"], {"x": x})[0], np.asarray(function(jnp.asarray(x)))
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_what_is_not_translated_is_refused():
    with pytest.raises(UserError, match="the network computes sin, which is not translated; export it as stablehlo"):
        converted(jnp.sin, 2)


def test_a_range_of_what_was_sliced_or_concatenated_is_taken_from_there():
    def function(x):
        left = x[:, 1:7]
        joined = jnp.concatenate([jnp.exp(left), jnp.tanh(x[:, :2])], axis=1)
        return joined[:, 6:8] + left[:, 2:4] + joined[:, 1:3]

    kinds: list[str] = []
    result, expected = converted(function, 3, 8, kinds=kinds)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert kinds.count("Concat") == 0
    assert kinds.count("Slice") == 4  # of 1:7, 3:5, :2 and of the exponentials


def test_rows_of_what_was_concatenated_are_not_taken_from_a_part_of_unknown_length():
    result, expected = converted(lambda x: jnp.concatenate([x, jnp.ones((2, 3))])[:2], 1, 3)
    np.testing.assert_array_equal(result, expected)


def test_a_product_with_a_bias_is_one_operator():
    matrix = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
    kinds: list[str] = []
    result, expected = converted(lambda x: x @ matrix + jnp.arange(3.0)[None], 5, 4, kinds=kinds)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert kinds == ["Gemm"]


@pytest.mark.parametrize(
    ("edges", "splits"), [([(0, 2), (2, 5), (5, 6)], 1), ([(0, 2), (2, 5)], 0), ([(0, 3), (2, 6)], 0), ([(0, 6)], 0)]
)
def test_slices_that_divide_an_axis_become_one_split(edges, splits):
    require_onnx()
    from mtl_jax.export import onnx_folding, onnx_model
    from mtl_jax.export.formats import open_session

    def function(x):
        y = jnp.exp(x)
        return {f"y{at}": jnp.tanh(y[:, start:stop]) for at, (start, stop) in enumerate(edges)}

    model = onnx_model.convert(function, jax.ShapeDtypeStruct((2, 6), jnp.float32), input_name="x")
    split = onnx_folding.with_splits(model)
    kinds = [node.op_type for node in split.graph.node]
    assert kinds.count("Split") == splits
    x = np.random.default_rng(0).uniform(-3, 3, (2, 6)).astype(np.float32)
    outputs = open_session(split.SerializeToString())(x)
    for name, value in function(x).items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, err_msg=name)
