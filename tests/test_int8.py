"""Files in eight bits: most of the network is rounded, what tasks put out is not, and the answers stay near."""

import numpy as np
import pytest
from tiny import KINDS, save_checkpoint

from mtl_jax.cli import export as command
from mtl_jax.export import formats, network
from mtl_jax.workdir import trained

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed: eight bits are not tested")
pytest.importorskip("onnxruntime", reason="the extra `export` is not installed: eight bits are not tested")

from mtl_jax.export import int8  # noqa: E402  (needs onnx)

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


def test_a_file_in_eight_bits_answers_nearly_as_the_network_does(weights, pixels, tmp_path):
    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1)
    whole = formats.onnx(model, tmp_path, image, FORM)
    made = int8.int8(model, tmp_path, image, FORM, [each[None] for each in pixels])
    assert made.exported.path.name == "model.int8.onnx"
    assert 0 < made.chosen <= made.whole
    assert made.error <= int8.TOLERANCE
    expected, found = whole.run(pixels), made.exported.run(pixels)
    assert set(found) == {f"{task}/outputs" for task in KINDS}
    for name, value in expected.items():
        apart = np.abs(found[name] - value).mean() / (value.std() + 1e-6)
        assert 0 < apart < int8.TOLERANCE, name


def test_what_a_task_puts_out_is_never_rounded(weights, pixels):
    made = formats.as_onnx(trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1), FORM)
    names, last = int8.layers(made.whole)
    turned = [np.ascontiguousarray(each[None].transpose(network.TO_NCHW)) for each in pixels]
    found = int8.ranges(made.whole, turned)
    few = int8.quantised(made.whole, found, names)
    assert last
    assert not set(last) & rounded(few.graph.node)
    kinds = {each.name: onnx.numpy_helper.to_array(each).dtype for each in few.graph.initializer}
    assert sum(kind == np.int8 for kind in kinds.values()) > 4
    assert int8.quantised(made.whole, found, []).graph.node == made.whole.graph.node


def test_no_number_is_spent_where_a_gate_is_constant():
    nodes = [onnx.helper.make_node(op, ["x"], [op], op) for op in ("HardSwish",)]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "gates", [], []))
    assert int8._cut(model, {"x": (-20.0, 5.0), "HardSwish": (0.0, 5.0)}) == {"x": (-3.0, 5.0)}
    both = [*nodes, onnx.helper.make_node("Relu", ["x"], ["y"])]
    assert int8._cut(onnx.helper.make_model(onnx.helper.make_graph(both, "two", [], [])), {"x": (-20.0, 5.0)}) == {}


def test_kernels_that_differ_by_a_norm_are_held_once():
    draft, kernel = (
        int8._Draft({"x": (0.0, 1.0)}),
        np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32),
    )
    draft.round("x")
    for name, factor in (("one", 1.0), ("two", 1.7), ("other", -1.0)):
        node = onnx.helper.make_node("Conv", [draft.read["x"], name], [f"{name}/y"], name)
        draft.fold(node, [np.float32(factor) * kernel])
    held = [each for each in draft.arrays.values() if each.dtype == np.int8]
    assert len(held) == 2


def test_the_command_says_what_eight_bits_keep(weights, tmp_path, capsys, pixels):
    from PIL import Image

    for number, each in enumerate(pixels):
        Image.fromarray((255 * each).astype(np.uint8)).save(tmp_path / f"{number}.png")
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--format", "onnx", "--tasks", "age", "--int8"]
    assert command.main([*flags, "--calibrate", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "onnx int8" in said
    assert "of the spread" in said
    assert (tmp_path / "out" / "model.int8.onnx").is_file()
