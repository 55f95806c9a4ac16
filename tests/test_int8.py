"""8-bit ONNX export: most layers are rounded, raw outputs are not, and they stay close to those of fp32."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import KINDS, save_checkpoint

from mtl_jax.cli import export as command
from mtl_jax.export import check, formats, network
from mtl_jax.models import quantisation
from mtl_jax.workdir import trained

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed: eight bits are not tested")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed: eight bits are not tested")

from mtl_jax.export import fine_tuning, int8, layer_ranges, rounding  # noqa: E402  (they need onnx)

SIZE = 64
FORM = network.Form("none", "nchw")


@pytest.fixture(scope="module")
def weights(tiny_backbone, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0-all", image_size=SIZE)


@pytest.fixture(scope="module")
def pixels():
    blotches = np.random.default_rng(0).random((4, SIZE // 8, SIZE // 8, 3), np.float32)
    return blotches.repeat(8, axis=1).repeat(8, axis=2)


def rounded(nodes) -> set[str]:
    return {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}


def test_outputs_of_an_8_bit_file_are_close_to_those_of_the_network(weights, pixels, tmp_path):
    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1)
    exported = formats.onnx(model, tmp_path, image, FORM)
    result = int8.quantised_network(model, image, FORM, [image[None] for image in pixels])
    in_8_bits = formats.save_onnx(result.converted, tmp_path / "model.int8.onnx", FORM)
    assert 0 < result.quantised_count <= result.candidate_count
    expected, outputs = exported.run(pixels), in_8_bits.run(pixels)
    assert set(outputs) == {f"{task}/outputs" for task in KINDS}
    for name, value in expected.items():
        difference = np.abs(outputs[name] - value).mean() / (value.std() + 1e-6)
        assert 0 < difference < int8.TOLERANCE, name


def test_raw_outputs_are_never_rounded(weights, pixels):
    separate, _, _ = formats.translate(trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1), FORM)
    names, output_names = rounding.quantisable_layers(separate)
    samples = int8.sample_inputs(separate, [np.ascontiguousarray(pixels.transpose(network.TO_NCHW))])
    ranges = {name: int8.quantisation_limits(of_input.values) for name, of_input in samples.items()}
    model = rounding.quantise(separate, ranges, names)
    assert output_names
    assert not set(output_names) & rounded(model.graph.node)
    kinds = {array.name: onnx.numpy_helper.to_array(array).dtype for array in model.graph.initializer}
    assert sum(kind == np.int8 for kind in kinds.values()) > 4
    assert not rounded(rounding.quantise(separate, ranges, []).graph.node)  # only kernels in 8 bits


def test_limits_are_where_rounding_and_cutting_off_change_least():
    even = np.linspace(-1.0, 2.0, 1000)
    assert int8.quantisation_limits(even) == (-1.0, 2.0)
    heavy = np.concatenate([np.random.default_rng(0).normal(size=100_000), [20.0]])
    low, high = int8.quantisation_limits(heavy)
    assert low == heavy.min()
    assert 10 < high < 20
    assert int8.quantisation_limits(np.zeros(4)) == (0.0, 0.0)


def convolution(name: str, source: str, kernel: np.ndarray, **attributes):
    arrays = {f"{name}/kernel": kernel, f"{name}/bias": np.arange(len(kernel), dtype=np.float32)}
    return onnx.helper.make_node("Conv", [source, *arrays], [name], name, **attributes), arrays


def model_of(nodes, arrays):
    """An ONNX model of one image and the output of its last node."""
    shapes = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("image", nodes[-1].output[0])]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = onnx.helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("before", "after", "by_channel"),
    [("HardSwish", "HardSwish", True), ("Relu", "HardSwish", False), ("HardSwish", "Relu", False)],
)
def test_depthwise_inputs_have_a_range_for_each_channel_where_runtimes_take_them(before, after, by_channel):
    generator, spread = np.random.default_rng(0), np.float32([1.0, 30.0, 0.1, 5.0]).reshape(4, 1, 1, 1)
    first = convolution("first", "image", spread * generator.normal(size=(4, 3, 1, 1)).astype(np.float32))
    each = convolution("each", "x", generator.normal(size=(4, 1, 3, 3)).astype(np.float32), group=4)
    last = convolution("last", "y", generator.normal(size=(2, 4, 1, 1)).astype(np.float32))
    activations = [
        onnx.helper.make_node(op, [source], [name], name)
        for op, source, name in ((before, "first", "x"), (after, "each", "y"))
    ]
    model = model_of([first[0], activations[0], each[0], activations[1], last[0]], first[1] | each[1] | last[1])
    assert rounding.channelwise_inputs(model) == ({"x"} if by_channel else set())
    image = generator.normal(size=(2, 3, 6, 6)).astype(np.float32)
    calibration = int8.calibrate(model, int8.sample_inputs(model, [image]))
    quantised = rounding.quantise(model, calibration.ranges, ["each", "last"], calibration.means)
    scales = {value.name: value.dims for value in quantised.graph.initializer if value.name.endswith("/scale")}
    assert scales["x/scale"] == ([4] if by_channel else [])
    run, expected_run = (formats.open_session(each.SerializeToString()) for each in (quantised, model))
    expected, outputs = expected_run(image)["last"], run(image)["last"]
    assert np.abs(outputs - expected).mean() < 0.02 * np.abs(expected).mean()


def test_single_layers_of_a_sensitive_group_are_quantised_again():
    names = [f"layer_{number}" for number in range(2 * int8.GROUPS)]  # two layers in each group
    costs = {name: np.array([0.001, 0.0]) for name in names} | {"layer_4": np.array([0.5, 0.0])}
    costs |= {"layer_20": np.array([0.0, 0.4])}
    runs = []

    def errors(layers):
        runs.append(layers)
        return sum((costs[name] for name in layers), np.zeros(2))

    selected, error = int8.select_within_tolerance(errors, names, tolerance=0.3)
    assert selected == [name for name in names if name not in ("layer_4", "layer_20")]  # not their neighbours
    assert error == pytest.approx(0.001 * len(selected))
    assert len(runs) <= 2 * int8.GROUPS
    assert int8.select_within_tolerance(errors, names[:4], tolerance=0.3) == (names[:4], pytest.approx(0.004))


def test_extremes_are_of_all_positions():
    first = convolution("first", "image", np.ones((1, 2, 1, 1), np.float32))
    last = convolution("last", "first", np.ones((1, 1, 1, 1), np.float32))
    image = np.zeros((1, 2, 128, 128), np.float32)  # of which a quarter of the positions are sampled
    image[0, 0, ::2, ::2], image[0, 1, 5, 7], image[0, 0, 3, 3] = 1, 40, -7
    samples = int8.sample_inputs(model_of([first[0], last[0]], first[1] | last[1]), [image, 0 * image])
    np.testing.assert_array_equal([samples["image"].low, samples["image"].high], [[-7, 0], [1, 40]])


@pytest.mark.parametrize("groups", [1, 4])
def test_biases_make_up_for_rounded_kernels_on_average(groups):
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(4, 4 // groups, 3, 3)).astype(np.float32)
    node, arrays = convolution("only", "image", kernel, group=groups)
    model, means = model_of([node], arrays), np.float32([100, -4, 0, 20])
    image = np.ones((1, 4, 6, 6), np.float32) * means.reshape(-1, 1, 1)
    wide = {"image": (-256.0, 254.0)}  # of which every whole even number is kept as it is
    runs = [
        formats.open_session(each.SerializeToString())
        for each in (
            model,
            rounding.quantise(model, wide, [], {"image": means}),
            rounding.quantise(model, wide, ["only"], {"image": means}),
            rounding.quantise(model, wide, ["only"]),
        )
    ]
    expected, untouched, corrected, plain = (run(image)["only"] for run in runs)
    np.testing.assert_array_equal(untouched, expected)
    differences = np.abs(corrected - expected).mean(), np.abs(plain - expected).mean()
    assert differences[0] < 0.3 * differences[1]


def test_convolutions_of_one_cell_stay_in_fp32_whatever_their_activation():
    generator = np.random.default_rng(0)
    kernels = {name: generator.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in ("map", "down", "up", "last")}
    convolutions = {
        name: convolution(name, source, kernels[name])
        for name, source in (("map", "image"), ("down", "mean"), ("up", "swish"), ("last", "scaled"))
    }
    operators = [
        ("GlobalAveragePool", ["map"], "mean"), ("Sigmoid", ["down"], "slope"), ("Mul", ["down", "slope"], "swish"),
        ("Sigmoid", ["up"], "gate"), ("Mul", ["map", "gate"], "scaled"),
    ]  # fmt: skip
    first, *others = [onnx.helper.make_node(op, names, [output], output) for op, names, output in operators]
    nodes = [convolutions["map"][0], first, convolutions["down"][0], *others[:2], convolutions["up"][0], *others[2:]]
    assert rounding.pooled_convolutions([*nodes, convolutions["last"][0]]) == {"down", "up"}


def test_kernels_that_differ_by_a_norm_are_held_once():
    draft = rounding._Draft({})
    kernel = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    for name, factor in (("one", 1.0), ("two", 1.7), ("other", -1.0)):
        draft.kernel(name, np.float32(factor) * kernel)
    kernels = [array for array in draft.arrays.values() if array.dtype == np.int8]
    assert len(kernels) == 2


def write_images(folder, pixels):
    for number, image in enumerate(pixels):
        Image.fromarray((255 * image).astype(np.uint8)).save(folder / f"{number}.png")


def test_the_command_says_what_eight_bits_keep(weights, tmp_path, capsys, pixels):
    write_images(tmp_path, pixels)
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--format", "onnx", "--tasks", "age", "--int8"]
    assert command.main([*flags, "--calibrate", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "onnx int8" in printed
    assert "of the size; " in printed
    assert (tmp_path / "out" / "model.int8.onnx").is_file()


def test_openvino_computes_the_8_bit_network_for_a_fixed_number_of_images(weights, pixels, tmp_path):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed: its eight bits are not tested")
    from mtl_jax.export import openvino

    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=2)
    converted = int8.quantised_network(model, image, FORM, [image[None] for image in pixels]).converted
    files = [
        formats.save_onnx(converted, tmp_path / "model.int8.onnx", FORM),
        openvino.save_ir(converted, tmp_path / "model.int8.xml", image, FORM),
    ]
    assert [file.any_batch for file in files] == [True, False]
    assert files[1].size == sum(path.stat().st_size for path in tmp_path.glob("model.int8.[xb]*"))
    expected, outputs = (file.check(pixels[:3]) for file in files)  # three images, in batches of two
    for name, value in expected.items():
        assert np.abs(outputs[name] - value).mean() < 0.05 * value.std() + 1e-6, name


def test_onnxruntime_computes_kernels_once_and_rounds_no_others(weights, pixels, tmp_path):
    onnxruntime = importlib.import_module("onnxruntime")
    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1)
    source = int8.quantised_network(model, image, FORM, [image[None] for image in pixels]).converted.run_model
    array = np.ascontiguousarray(pixels.transpose(network.TO_NCHW))

    def run(level) -> dict[str, np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        session = onnxruntime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {network.INPUT: array}), strict=True))

    expected = run(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    outputs = run(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    constants = {value.name for value in graph.initializer}
    assert [node.name for node in graph.node if set(node.input) <= constants] == []
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    for name, value in expected.items():  # it rounds kernels of floats between two roundings, coarsely
        assert np.abs(outputs[name] - value).mean() < 0.03 * value.std() + 1e-6, name


def test_openvino_computes_every_quantised_convolution_in_8_bits(weights, pixels):
    """It computes those in fp32 that read the kernel of another one, as layers do that several levels share."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed: its eight bits are not tested")
    from mtl_jax.export import openvino

    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1)
    separate, model, any_batch = formats.translate(model, image, FORM)
    images = [np.ascontiguousarray(pixels.transpose(network.TO_NCHW))]
    calibration = int8.calibrate(separate, int8.sample_inputs(separate, images))
    in_8_bits = rounding.quantise(separate, calibration.ranges, rounding.quantisable_layers(separate)[0])
    served = formats.served_onnx(in_8_bits, model, FORM, any_batch=any_batch).run_model
    kernels = [array.name for array in served.graph.initializer if array.data_type == onnx.TensorProto.INT8]
    readers = [name for node in served.graph.node for name in set(node.input)]
    assert {readers.count(name) for name in kernels} == {1}
    primitives = {}  # convolution -> the kernel that computes it
    for layer in openvino.compiled_model(openvino._parse(served, image, FORM)).get_runtime_model().get_ops():
        info = {key: str(layer.get_rt_info()[key].value) for key in ("originalLayersNames", "primitiveType")}
        primitives |= dict.fromkeys(info["originalLayersNames"].split(","), info["primitiveType"])
    names = rounding.quantised_convolutions(served)
    assert len(names) > 4
    assert {name: primitives[name] for name in names if not primitives[name].endswith("I8")} == {}


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (-1.0, "expected raw outputs near those of the network, found an error of 2."),
        (1.2, "expected the raw outputs that onnxruntime computes from the same 8-bit network, found"),
    ],
)
def test_a_runtime_that_computes_something_else_is_refused(
    factor, message, weights, pixels, tmp_path, capsys, monkeypatch
):
    write_images(tmp_path, pixels)
    save = formats.save_onnx

    def save_changed(*args, **kwargs):
        exported = save(*args, **kwargs)
        return exported._replace(check=lambda pixels: {name: factor * x for name, x in exported.check(pixels).items()})

    monkeypatch.setattr(formats, "save_onnx", save_changed)
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--format", "stablehlo", "--tasks", "seg"]
    assert command.main([*flags, "--int8", "--calibrate", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"onnx int8: {message}" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_network_that_needs_a_number_of_images_is_calibrated_in_batches(batch_size, weights, pixels, monkeypatch):
    from mtl_jax.export import onnx_model

    def convert_fixed(function, image, **settings):
        return onnx_model.convert(function, image, **settings), False

    monkeypatch.setattr(onnx_model, "convert_any_batch", convert_fixed)
    model, image = trained.load(weights, tasks="cls"), network.input_shape(image_size=SIZE, batch_size=batch_size)
    converted = int8.quantised_network(model, image, FORM, [image[None] for image in pixels]).converted
    assert not converted.any_batch
    outputs = formats.open_check_model(converted, FORM)(pixels)
    expected = check.reference(model, FORM)[1](pixels)
    assert outputs["cls/outputs"].shape == expected["cls/outputs"].shape
    assert check.relative_error(expected, outputs) < 0.3


def windows(count: int, size: int = 32) -> list[np.ndarray]:
    return [np.random.default_rng(seed).random((2, size, size, 3), np.float32) for seed in range(count)]


@pytest.fixture(scope="module")
def tuned(weights, pixels):
    """Three steps in eight bits, and the losses that were reported."""
    model, image = trained.load(weights, tasks="seg,det"), network.input_shape(image_size=SIZE, batch_size=1)
    losses = {}
    images = [image[None] for image in pixels]
    result = fine_tuning.tuned_network(model, image, FORM, images, windows(3), report=losses.__setitem__)
    return model, result, losses


def test_a_network_fine_tuned_in_eight_bits_is_written_as_it_was_trained(tuned, pixels, tmp_path):
    model, result, losses = tuned
    assert list(losses) == [1, 2, 3]
    assert losses[1] == pytest.approx(1, rel=1e-3)
    exported = formats.save_onnx(result.converted, tmp_path / "model.int8.qat.onnx", FORM)
    nodes = onnx.load(str(exported.path)).graph.node
    # Two tasks' last layers read one tensor, and the backbone's layers are Flax's own.
    assert len(rounded(nodes)) + 1 == result.quantised_count < result.candidate_count
    expected = check.reference(exported.network, FORM)[1](pixels[:1])  # rounds within JAX
    outputs = exported.check(pixels[:1])
    for name, value in expected.items():  # numbers that lie between two of 256 may go either way
        assert np.abs(outputs[name] - value).mean() < 1e-2 * np.abs(value).mean(), name
    before = jax.tree.leaves(model.variables["params"])
    after = jax.tree.leaves(exported.network.variables["params"])
    assert any((previous != tuned_array).any() for previous, tuned_array in zip(before, after, strict=True))


def test_ranges_are_of_all_levels_and_of_all_layers_that_read_a_tensor(weights, pixels):
    model, image = trained.load(weights, tasks="seg,det"), network.input_shape(image_size=SIZE, batch_size=1)
    ranges = layer_ranges.layer_ranges(model, image, FORM, [image[None] for image in pixels], tolerance=1e9)
    names = {"head/conv_0/all", "neck/lateral_8/all", "neck/lateral_16/all", "neck/lateral_32/all"}
    last = {"head/seg/all": "head/seg/all", "head/det/all": "head/seg/all"}
    assert ranges.range_of == {name: name for name in names} | last
    separate, _, _ = formats.translate(model, image, FORM)
    kernels = {array.name: array.dims for array in separate.graph.initializer}
    images = [image[None] for image in np.ascontiguousarray(pixels.transpose(network.TO_NCHW))]
    calibration = int8.calibrate(separate, int8.sample_inputs(separate, images))
    of_levels = [
        calibration.ranges[node.input[0]]
        for node in separate.graph.node
        if node.op_type == "Conv" and kernels[node.input[1]] == [16, 16, 3, 3]
    ]
    assert len(of_levels) == 2
    lows, highs = zip(*of_levels, strict=True)
    limits = ranges.by_layer(ranges.limits)["head"]["conv_0"]["all"]
    np.testing.assert_allclose(limits, [min(lows), max(highs)], rtol=1e-5)


def test_a_layer_that_a_task_reads_last_at_one_level_is_rounded_at_all(weights, pixels):
    model, image = trained.load(weights, tasks="seg,cls"), network.input_shape(image_size=SIZE, batch_size=1)
    ranges = layer_ranges.layer_ranges(model, image, FORM, [image[None] for image in pixels], tolerance=1e9)
    assert "head/conv_0/all" in ranges.range_of
    assert ranges.quantised_count < ranges.candidate_count


def test_layers_that_read_one_tensor_have_one_range():
    tensors = {"one": ["a"], "two": ["b", "c"], "three": ["d"], "four": ["c", "a"], "five": ["e"]}
    assert layer_ranges._connected(tensors) == {
        **dict.fromkeys(("one", "two", "four"), "one"),
        "three": "three",
        "five": "five",
    }
    by_channel = np.float32([-1, 0]), np.float32([2, 9])
    np.testing.assert_array_equal(
        layer_ranges._union([by_channel, (np.float32([0, -3]), np.float32([1, 1]))]), [[-1, -3], [2, 9]]
    )
    np.testing.assert_array_equal(layer_ranges._union([by_channel, (-0.5, 10.0)]), [-1, 10])


def test_rounding_passes_the_gradient_and_moves_the_limits():
    x, limits = jnp.array([-3.0, -0.11, 0.4, 5.0]), jnp.array([-1.0, 2.0])
    rounded_x = quantisation.rounded_values(x, limits)
    scale = 3 / 255
    np.testing.assert_allclose(
        rounded_x, np.array([-85, np.rint(-0.11 / scale), np.rint(0.4 / scale), 170]) * scale, rtol=1e-5
    )
    by_x, by_limits = jax.grad(lambda *inputs: quantisation.rounded_values(*inputs).sum(), argnums=(0, 1))(x, limits)
    np.testing.assert_allclose(by_x, [0, 1, 1, 0], atol=1e-6)
    assert by_limits[1] > 0.5  # what is cut off above wants it higher
    channels, limits = jnp.array([[-3.0, 0.26], [0.9, 0.4]]), jnp.array([[-1.0, 0.0], [0.0, 0.51]])
    np.testing.assert_allclose(quantisation.rounded_values(channels, limits), [[-1, 0.26], [0, 0.4]], atol=1e-6)
    by_limits = jax.grad(lambda limits: quantisation.rounded_values(jnp.zeros((3, 2)), limits).sum())(0 * limits)
    assert np.isfinite(by_limits).all()  # of channels that are 0 in all images
    kernel = jnp.array([[0.51, 100.0], [-1.0, 3.0]])
    np.testing.assert_allclose(quantisation.rounded_kernel(kernel), [[65 / 127, 100], [-1, 4 * 100 / 127]], rtol=1e-5)


def test_fine_tuning_without_the_run_s_data_is_one_line(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "onnx", lambda *_: pytest.fail("a file is made before the data is looked for"))
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--format", "onnx", "--tasks", "age", "--int8"]
    assert command.main([*flags, "--qat", "2"]) == 2  # the run's streams name no dataset that there is
    error = capsys.readouterr().err
    assert "--qat trains on the run's training images; " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
