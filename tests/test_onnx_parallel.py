"""Parallel chains of layers in ONNX: joined they compute what they did apart."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from mtl_jax.export import onnx_parallel  # noqa: E402  (needs onnx)
from mtl_jax.export.formats import open_session  # noqa: E402  (needs onnx)
from mtl_jax.export.onnx_parallel import parallel_convolutions, with_joined_passes  # noqa: E402
from mtl_jax.export.rounding import channelwise_inputs, quantise  # noqa: E402

CHANNELS = 4  # of the image
SIZE = 8  # px
QUANTISATION = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(autouse=True)
def _small_kernels_are_stored_once(monkeypatch):
    monkeypatch.setattr(onnx_parallel, "LARGEST_REPEATED", 0)


class Draft:
    """A network in the making."""

    def __init__(self) -> None:
        self.nodes, self.weights = [], {}
        self.generator = np.random.default_rng(0)

    def node(self, op: str, *inputs: str, **attributes) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], name, **attributes))
        return name

    def weight(self, *shape: int) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights[name] = self.generator.normal(size=shape).astype(np.float32)
        return name

    def convolution(self, x: str, *shape: int, weights: tuple[str, str] | None = None, **attributes) -> str:
        return self.node("Conv", x, *(weights or (self.weight(*shape), self.weight(shape[0]))), **attributes)

    def model(self, *outputs: str):
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        arrays = [onnx.numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        image = helper.make_tensor_value_info("image", kind, ["batch", CHANNELS, SIZE, SIZE])
        results = [helper.make_tensor_value_info(name, kind, ["batch", None, None, None]) for name in outputs]
        graph = helper.make_graph(self.nodes, "network", [image], results, arrays)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def block(draft: Draft, x: str, gate: tuple[tuple[str, str], ...], channels: int = 20) -> str:
    """An inverted residual with channel weights, whose kernels all blocks share, as a task's pass has it."""
    wide = draft.node("HardSwish", draft.convolution(x, channels, CHANNELS, 1, 1))
    deep = draft.node("HardSwish", draft.convolution(wide, channels, 1, 3, 3, group=channels, pads=[1, 1, 1, 1]))
    pooled = draft.node("GlobalAveragePool", deep)
    squeezed = draft.node("Relu", draft.node("Conv", pooled, *gate[0]))
    weights = draft.node("HardSigmoid", draft.node("Conv", squeezed, *gate[1]), alpha=1 / 6)
    narrow = draft.convolution(draft.node("Mul", deep, weights), 6, channels, 1, 1)
    return draft.node("Add", narrow, draft.convolution(deep, 6, channels, 1, 1))


def gate_of(draft: Draft, channels: int = 20) -> tuple[tuple[str, str], ...]:
    return (
        (draft.weight(8, channels, 1, 1), draft.weight(8)),
        (draft.weight(channels, 8, 1, 1), draft.weight(channels)),
    )


def counts(model) -> dict[str, int]:
    operators = [node.op_type for node in model.graph.node]
    return {op: operators.count(op) for op in set(operators)}


def assert_equal_outputs(model, joined, batch: int = 2) -> None:
    pixels = np.random.default_rng(1).normal(size=(batch, CHANNELS, SIZE, SIZE)).astype(np.float32)
    expected, outputs = (open_session(each.SerializeToString())(pixels) for each in (model, joined))
    assert list(expected) == list(outputs)
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_passes_of_tasks_become_one(tasks):
    draft = Draft()
    gate = gate_of(draft)
    stem = draft.node("Relu", draft.convolution("image", CHANNELS, CHANNELS, 1, 1))
    ends = [draft.convolution(block(draft, stem, gate), 3 + task, 6, 1, 1) for task in range(tasks)]
    model = draft.model(*ends)
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(model)["Conv"] == 1 + 7 * tasks
    assert counts(joined)["Conv"] == 1 + 7
    assert counts(joined)["Slice"] == tasks  # of the outputs, of which each task has another number
    attributes = [attribute for node in joined.graph.node for attribute in node.attribute]
    groups = max(attribute.i for attribute in attributes if attribute.name == "group")
    assert groups == tasks * 32  # depthwise, 20 channels of each task padded to 32
    sizes = {value.name: np.prod(value.dims) for value in joined.graph.initializer}
    shared = [node for node in joined.graph.node if node.op_type == "Concat"]
    assert [[sizes[name] for name in node.input] for node in shared] == [
        [16 * 32] * tasks
    ] * 2  # of the channel weights
    assert all(len(set(node.input)) == 1 for node in shared)  # what all share is held once


def test_a_pass_that_ends_early_leaves_the_others_together():
    draft = Draft()
    gate = gate_of(draft)
    features = [block(draft, "image", gate) for _ in range(3)]
    deeper = [draft.node("Relu", draft.convolution(x, 16, 6, 1, 1)) for x in features[1:]]
    model = draft.model(features[0], *(draft.convolution(x, 5, 16, 3, 3) for x in deeper))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Conv"] == 6 + 1 + 1


def test_passes_are_taken_apart_where_anything_but_a_convolution_reads_them():
    draft = Draft()
    gate = gate_of(draft)
    features = [block(draft, "image", gate) for _ in range(2)]
    ends = [draft.convolution(features[0], 5, 6, 1, 1), draft.node("Softmax", features[1], axis=1)]
    model = draft.model(*ends)
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Slice"] == 2


def test_a_kernel_of_several_passes_is_stored_once_where_one_has_a_bias():
    draft = Draft()
    gate, kernel = gate_of(draft), draft.weight(5, 6, 1, 1)
    features = [block(draft, "image", gate) for _ in range(2)]
    ends = [draft.node("Conv", features[0], kernel), draft.node("Conv", features[1], kernel, draft.weight(5))]
    model = draft.model(*ends)
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Concat"] == 3
    assert counts(joined)["Slice"] == 2


def test_small_kernels_that_passes_share_are_repeated(monkeypatch):
    monkeypatch.setattr(onnx_parallel, "LARGEST_REPEATED", 8 * 20)
    draft = Draft()
    gate = gate_of(draft)
    model = draft.model(*(block(draft, "image", gate) for _ in range(2)))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert "Concat" not in counts(joined)


def test_layers_of_very_different_widths_stay_apart():
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(3)]
    model = draft.model(*(draft.convolution(x, count, 6, 1, 1) for x, count in zip(features, (5, 100, 3), strict=True)))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Conv"] == 1 + 3
    near = draft.model(*(draft.convolution(x, count, 6, 1, 1) for x, count in zip(features, (5, 40, 30), strict=True)))
    joined = with_joined_passes(near)
    assert_equal_outputs(near, joined)
    assert counts(joined)["Conv"] == 1 + 1


def test_depthwise_layers_of_some_of_the_widths_are_joined():
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(3)]
    wide = [draft.convolution(x, count, 6, 1, 1) for x, count in zip(features, (40, 20, 20), strict=True)]
    ends = [draft.convolution(x, 20, 1, 3, 3, group=20, pads=[1, 1, 1, 1]) for x in wide[1:]]
    model = draft.model(wide[0], *(draft.convolution(x, 7, 20, 1, 1) for x in ends))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Conv"] == 1 + 1 + 1 + 1


def test_what_follows_layers_of_different_widths_is_joined_too():
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(2)]
    pairs = [[draft.convolution(x, 5 + 14 * at, 6, 1, 1) for _ in range(2)] for at, x in enumerate(features)]
    sums = [draft.node("Relu", draft.node("Add", *pair)) for pair in pairs]
    model = draft.model(*(draft.convolution(x, 4, 5 + 14 * at, 3, 3) for at, x in enumerate(sums)))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined)["Add"] == 1


def test_equal_layers_of_one_member_stay_in_chains_of_their_own():
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(2)]
    pairs = [[draft.convolution(x, 5, 6, 1, 1) for _ in range(2)] for x in features]
    model = draft.model(*(draft.node("Add", *pair) for pair in pairs))
    joined = with_joined_passes(model)
    assert_equal_outputs(model, joined)
    assert counts(joined) == {"Conv": 3, "Relu": 1, "Add": 1, "Slice": 2}


@pytest.mark.parametrize("members", [(0, 2), (1, 0)])
def test_tensors_that_do_not_follow_each_other_are_not_joined(members):
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(3)]
    sums = [draft.node("Add", features[member], features[1 - at]) for at, member in enumerate(members)]
    model = draft.model(*sums, draft.node("Sigmoid", features[1]))
    assert_equal_outputs(model, with_joined_passes(model), batch=1)


def test_what_has_no_parallel_layers_stays_as_it_is():
    draft = Draft()
    first = draft.convolution("image", 6, CHANNELS, 1, 1)
    other = draft.convolution("image", 6, CHANNELS, 1, 1)  # one layer each, and nothing joined behind them
    model = draft.model(draft.node("Exp", first), draft.node("Tanh", other))
    assert with_joined_passes(model) is model


def test_strides_and_paddings_tell_layers_apart():
    draft = Draft()
    halves = [
        draft.node("Relu", draft.convolution("image", 6, CHANNELS, 3, 3, strides=[stride] * 2)) for stride in (1, 2)
    ]
    model = draft.model(*(draft.node("GlobalAveragePool", x) for x in halves))
    assert with_joined_passes(model) is model


@pytest.mark.parametrize("activation", ["HardSwish", ""])
def test_quantised_passes_keep_their_ranges(activation):
    """Without an activation, onnxruntime makes one operator of a convolution between two quantisations."""
    draft = Draft()
    stem = draft.node("Relu", draft.convolution("image", CHANNELS, CHANNELS, 1, 1))
    kernels = [(draft.weight(20, CHANNELS, 1, 1), draft.weight(20)), (draft.weight(6, 20, 1, 1), draft.weight(6))]
    ends = []
    for task in range(3):
        x = draft.node("Conv", stem, *kernels[0])
        x = draft.node(activation, x) if activation else x
        scale = draft.weight(20, 1, 1)  # a norm of the task's own, between convolutions
        x = draft.convolution(x, 20, 1, 1, 1, group=20, weights=(scale_of(draft, scale), draft.weight(20)))
        x = draft.node(activation, x) if activation else x
        ends.append(draft.convolution(draft.node("Conv", x, *kernels[1]), 3 + task, 6, 1, 1))
    model = draft.model(*ends)
    names = [node.name for node in model.graph.node if node.op_type == "Conv" and node.name not in ends][1:]
    inputs = {node.input[0] for node in model.graph.node if node.op_type == "Conv"} - {"image"}
    ranges = {name: (-60.0 - place, 60.0 + 3 * place) for place, name in enumerate(sorted(inputs))}  # wide
    by_channel = channelwise_inputs(model)
    assert len(by_channel) == (3 if activation else 0)
    widths = np.linspace(1, 2, 20)
    ranges |= {name: (low * widths, high * widths) for name, (low, high) in ranges.items() if name in by_channel}
    quantised = quantise(model, ranges, names)
    joined = with_joined_passes(quantised)
    assert counts(joined)["Conv"] == 1 + 3 + 1
    assert counts(joined)["Concat"] >= 1  # a kernel that all share is stored once
    pixels = np.random.default_rng(1).normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    expected, outputs = (open_session(each.SerializeToString())(pixels) for each in (quantised, joined))
    for name, value in expected.items():
        assert np.abs(outputs[name] - value).mean() < (1e-5 if activation else 0.01) * np.abs(value).mean(), name


def test_a_part_of_quantised_passes_is_taken_out_before_it_is_dequantised():
    draft = Draft()
    features = [draft.node("HardSwish", draft.convolution("image", 20, CHANNELS, 1, 1)) for _ in range(3)]
    inner = [draft.convolution(x, 6, 20, 1, 1) for x in features[:2]]
    ends = [draft.convolution(x, 3, 6, 1, 1) for x in inner]
    model = draft.model(*ends, draft.convolution(features[2], 20, 20, 3, 3))
    in_8_bits = quantise(model, {name: (-9.0 - at, 9.0) for at, name in enumerate(features)}, inner)
    others = quantise(in_8_bits, {features[2]: (-11.0, 9.0)}, [model.graph.output[2].name])
    joined = with_joined_passes(others)
    makers = {name: node.op_type for node in joined.graph.node for name in node.output}
    taken_from = [makers[node.input[0]] for node in joined.graph.node if node.op_type == "Slice"]
    assert taken_from.count("QuantizeLinear") == 2
    assert "DequantizeLinear" not in taken_from
    assert_equal_outputs(others, joined)


@pytest.mark.parametrize("first", [0, 1])
def test_zero_points_differ_in_parts_of_passes_too(first):
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 96, CHANNELS, 1, 1)) for _ in range(3)]
    inner = [draft.convolution(x, 32, 96, 1, 1) for x in features[first : first + 2]]
    other = draft.convolution(features[2 - 2 * first], 7, 96, 3, 3)
    model = draft.model(*(draft.node("Sigmoid", x) for x in inner), other)
    in_8_bits = quantise(model, dict.fromkeys(features, (0.0, 6.0)), [*inner, other])
    joined = with_joined_passes(in_8_bits)
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in joined.graph.initializer}
    makers = {name: node for node in joined.graph.node for name in node.output}
    (grouped,) = [
        node for node in joined.graph.node if "group" in str(node.attribute) and node.name == f"{inner[0]}.x2"
    ]
    assert np.unique(arrays[makers[grouped.input[0]].input[2]]).tolist() == [0, 1]
    pixels = np.random.default_rng(1).normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    assert_near(openvino_outputs(joined, pixels), open_session(in_8_bits.SerializeToString())(pixels))


def scale_of(draft: Draft, name: str) -> str:
    """Gives a scale for each channel the shape of a depthwise kernel."""
    draft.weights[name] = draft.weights[name].reshape(-1, 1, 1, 1)
    return name


@pytest.mark.parametrize(
    ("activation", "limits"), [("Relu", (0, 6)), ("Relu", (-3, 3)), ("", (0, 6)), ("", (-3, 3)), ("", (-6, 0))]
)
def test_zero_points_of_equal_ranges_differ_where_passes_are_joined(activation, limits):
    """OpenVINO computes grouped convolutions of 96 channels wrongly on processors with AMX, if they are equal."""
    draft = Draft()
    features = [draft.convolution("image", 96, CHANNELS, 1, 1) for _ in range(2)]
    features = [draft.node("Relu", x) for x in features]
    depthwise = [draft.convolution(x, 96, 1, 3, 3, group=96, pads=[1, 1, 1, 1]) for x in features]
    inputs = [draft.node(activation, x) if activation else x for x in depthwise]
    kernels = [draft.convolution(x, 96, 96, 1, 1) for x in inputs]
    model = draft.model(*(draft.node("Sigmoid", x) for x in kernels))
    in_8_bits = quantise(model, dict.fromkeys([*features, *inputs], limits), [*depthwise, *kernels])
    joined = with_joined_passes(in_8_bits)
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in joined.graph.initializer}
    levels = [
        [arrays[name] for name in node.input[1:]] for node in joined.graph.node if node.op_type == "QuantizeLinear"
    ]
    assert len(levels) == 2
    for scale, zero in levels:
        zero = zero.astype(np.float32)
        assert len(set(zero)) == 2
        assert np.ptp(zero) == 1
        assert np.all(-zero * scale <= limits[0] + 0.013)  # half a level
        assert np.all((255 - zero) * scale >= limits[1] - 0.013)
        assert np.all(scale <= 6 / 253)
    pixels = np.random.default_rng(1).normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    expected = open_session(in_8_bits.SerializeToString())(pixels)
    assert_near(open_session(joined.SerializeToString())(pixels), expected)
    assert_near(openvino_outputs(joined, pixels), expected)


def test_zero_points_differ_in_what_quantised_passes_begin_with():
    """OpenVINO has faster kernels for them on processors with AMX."""
    draft = Draft()
    stem = draft.node("Relu", draft.convolution("image", 20, CHANNELS, 1, 1))
    first = [draft.convolution(stem, 16, 20, 1, 1) for _ in range(2)]
    wide = [draft.node("HardSwish", x) for x in first]
    depthwise = [draft.convolution(x, 16, 1, 3, 3, group=16, pads=[1, 1, 1, 1]) for x in wide]
    model = draft.model(*(draft.node("Sigmoid", x) for x in depthwise))
    widths = np.linspace(3, 6, 16)
    ranges = {stem: (0.0, 6.0), **dict.fromkeys(wide, (-0.375 * widths, widths))}
    in_8_bits = quantise(model, ranges, [*first, *depthwise])
    joined = with_joined_passes(in_8_bits)
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in joined.graph.initializer}
    (zero,) = {
        node.input[2] for node in joined.graph.node if node.op_type in QUANTISATION and node.name.startswith(stem)
    }
    assert arrays[zero].tolist() == [0] * 19 + [1]
    pixels = np.random.default_rng(1).normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    expected = open_session(in_8_bits.SerializeToString())(pixels)
    assert_near(open_session(joined.SerializeToString())(pixels), expected)
    assert_near(openvino_outputs(joined, pixels), expected)


def assert_near(outputs, expected) -> None:
    for name, value in expected.items():
        assert np.abs(outputs[name] - value).mean() < 0.03 * np.abs(value).mean(), name


def openvino_outputs(model, pixels):
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed: it computes nothing here")
    return openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU")(pixels)


def test_channel_weights_in_8_bits_are_the_same_in_every_runtime():
    draft = Draft()
    gate = gate_of(draft)
    features = [block(draft, "image", gate) for _ in range(2)]
    model = draft.model(*(draft.node("Relu", draft.convolution(x, 16, 6, 1, 1)) for x in features))
    in_8_bits = quantise(model, {}, [])  # kernels alone, of the channel weights
    joined = with_joined_passes(in_8_bits)
    assert_equal_outputs(in_8_bits, joined)
    sizes = [np.prod(value.dims) for value in joined.graph.initializer if value.data_type == onnx.TensorProto.INT8]
    assert sorted(sizes) == [16 * 32] * 2  # stored once
    pixels = np.random.default_rng(1).normal(size=(2, CHANNELS, SIZE, SIZE)).astype(np.float32)
    results = openvino_outputs(joined, pixels)
    for name, value in open_session(joined.SerializeToString())(pixels).items():
        np.testing.assert_allclose(results[name], value, rtol=0, atol=0.02 * np.abs(value).max(), err_msg=name)


def test_convolutions_that_are_computed_as_one_are_named_by_the_first():
    draft = Draft()
    features = [draft.node("Relu", draft.convolution("image", 6, CHANNELS, 1, 1)) for _ in range(2)]
    model = draft.model(*(draft.convolution(x, 5 + at, 6, 1, 1) for at, x in enumerate(features)))
    assert parallel_convolutions(model) == {
        "Conv_0": "Conv_0",
        "Conv_2": "Conv_0",
        "Conv_4": "Conv_4",
        "Conv_5": "Conv_4",
    }
