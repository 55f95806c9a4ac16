"""Exported files: outputs equal those of the network, they run without this package, and model.json describes them."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from tiny import KINDS, save_checkpoint

from mtl_jax.cli import export as command
from mtl_jax.errors import UserError
from mtl_jax.export import check, formats, litert, network, traced
from mtl_jax.kernels import cpu_kernels
from mtl_jax.models import depthwise
from mtl_jax.models.backbones.fast_scnn import adaptive_mean_pool
from mtl_jax.models.neck import upsample_2x
from mtl_jax.tasks.depth import Depth
from mtl_jax.workdir import trained

SIZE = 64
NAMES = {
    *("seg/mask", "det/boxes_xyxy", "det/score", "det/label", "det/valid", "det/accepted"),
    *("cls/probability", "tags/probability", "tags/accepted", "age/value", "depth/depth"),
}
SERVED_ALONE = """
import sys
sys.modules["mtl_jax"] = sys.modules["flax"] = None  # importing them raises
import jax, numpy
with open(sys.argv[1], "rb") as file:
    exported = jax.export.deserialize(bytearray(file.read()))
print(exported.platforms, *(str(aval) for aval in exported.in_avals))
found = exported.call(numpy.load(sys.argv[2]))
numpy.savez(sys.argv[3], **{name.replace("/", "|"): value for name, value in found.items()})
"""


@pytest.fixture(scope="module")
def weights(tiny_backbone, tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0-all", image_size=SIZE)


@pytest.fixture(scope="module")
def image() -> jax.ShapeDtypeStruct:
    return network.input_shape(image_size=SIZE, batch_size=2)


@pytest.fixture(scope="module")
def pixels(image) -> np.ndarray:
    return np.random.default_rng(0).random(image.shape, np.float32)


@pytest.fixture(scope="module")
def expected(weights, pixels) -> dict[str, np.ndarray]:
    return jax.device_get(jax.jit(network.output_function(trained.load(weights)))(pixels))


def require_onnx() -> None:
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed: ONNX is not tested")
    pytest.importorskip("onnx", reason="the extra `export` is not installed: ONNX is not tested")


def assert_outputs_equal(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(outputs) == set(expected) == NAMES
    for name, value in expected.items():
        assert outputs[name].dtype == value.dtype, name
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_stablehlo_runs_where_this_package_is_not(weights, image, pixels, expected, tmp_path):
    exported = formats.stablehlo(trained.load(weights), tmp_path, image)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-I", "-c", SERVED_ALONE, *(str(exported.path), str(tmp_path / "pixels.npy"))]
    process = subprocess.run([*command, str(tmp_path / "found.npz")], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split("\n")[0] == f"('cpu', 'cuda') float32[2,{SIZE},{SIZE},3]"
    with np.load(tmp_path / "found.npz") as outputs:
        assert_outputs_equal({name.replace("|", "/"): outputs[name] for name in outputs}, expected)


def test_onnx_outputs_equal_those_of_the_network(weights, image, pixels, expected, tmp_path):
    require_onnx()
    exported = formats.onnx(trained.load(weights), tmp_path, image)
    assert_outputs_equal(exported.run(pixels), expected)
    assert set(exported.check(pixels)) == NAMES | {f"{task}/outputs" for task in KINDS}


def test_onnx_takes_any_number_of_images(weights, image, pixels, tmp_path):
    require_onnx()
    exported = formats.onnx(trained.load(weights), tmp_path, image)
    assert exported.any_batch
    batch = exported.run(pixels)
    for number in range(len(pixels)):
        single = exported.run(pixels[number : number + 1])
        for name, value in single.items():
            np.testing.assert_allclose(value[0], batch[name][number], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.fixture
def symbols_are_lengths(monkeypatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a symbol of JAX passes for an int, and is none


@pytest.mark.usefixtures("symbols_are_lengths")
@pytest.mark.parametrize(("name", "form"), [("onnx", network.Form("all", "nchw")), ("stablehlo", network.Form())])
def test_files_take_images_of_any_size(weights, tmp_path, name, form):
    if name == "onnx":
        require_onnx()
    model, shape = trained.load(weights, tasks="det,seg,cls"), network.input_shape_of_any_size()
    exported = formats.FORMATS[name](model, tmp_path, shape, form)
    assert exported.any_batch
    pixels = [np.random.default_rng(0).random((*size, 3), np.float32) for size in ((1, 32, 32), (2, 96, 160))]
    reference = check.reference(model, form)[1]  # at 32 px there are fewer scores than candidates
    assert max(check.differences(model, reference, exported.check, pixels).values()) < 1e-4
    described = network.describe(model, shape, form)
    assert described["input"]["shape"][-2:] == (["height", "width"] if form.layout == "nchw" else ["width", 3])
    assert (described["input"]["size"], described["input"]["multiple_of"]) == ([SIZE, SIZE], 32)
    assert described["tasks"]["seg"]["outputs"]["seg/mask"]["shape"] == ["batch", "height", "width"]


@pytest.mark.usefixtures("symbols_are_lengths")
@pytest.mark.parametrize(
    "shape", [network.input_shape(image_size=SIZE, batch_size=2), network.input_shape_of_any_size()]
)
def test_files_find_later_classes_in_any_number_of_images(tiny_backbone, tmp_path, shape):
    require_onnx()
    grown = ("seg", "det", "tags")
    path = save_checkpoint(tmp_path / "checkpoints" / "0-all", image_size=SIZE, later=grown)
    model, form = trained.load(path, tasks=",".join(grown)), network.Form("all", "nchw")
    assert {name: task.added for name, task in model.tasks.items()} == dict.fromkeys(grown, (("all", 1),))
    exported = formats.onnx(model, tmp_path, shape, form)
    assert exported.any_batch
    pixels = [np.random.default_rng(0).random((count, SIZE, SIZE, 3), np.float32) for count in (1, 2)]
    reference = check.reference(model, form)[1]
    assert max(check.differences(model, reference, exported.check, pixels).values()) < 1e-4
    assert exported.check(pixels[1])["det/label"].shape == (2, 2 * 8)


@pytest.mark.usefixtures("symbols_are_lengths")
def test_a_network_that_needs_to_know_the_size_of_images_is_refused_in_one_line(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Depth, "decode", lambda self, outputs: {"depth": outputs * np.ones(outputs.shape[1:])})
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--tasks", "depth", "--image_size", "dynamic"]
    assert command.main([*flags, "--format", "stablehlo"]) == 2
    error = capsys.readouterr().err
    assert "--image_size: expected a number of px, as a part of this network is made for one size" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("symbols_are_lengths")
def test_the_script_checks_files_of_any_size_at_two(weights, tmp_path, capsys):
    flags = ["--weights", str(weights), "--out", str(tmp_path), "--format", "stablehlo", "--tasks", "age"]
    assert command.main([*flags, "--image_size", "dynamic"]) == 0
    assert "height and width may be any multiples of 32 px; tasks were validated at 64 px" in capsys.readouterr().out
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["batch_sizes"] == {"stablehlo": "any"}
    assert record["input"]["shape"] == ["batch", "height", "width", 3]


def require_format(name: str) -> None:
    for package in formats.PACKAGES[name]:
        pytest.importorskip(package, reason=f"the extra `{name}` is not installed: its files are not tested")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ImportWarning")  # of the converters themselves
@pytest.mark.parametrize("name", ["litert", "openvino"])
@pytest.mark.parametrize("decode", ["none", "boxes"])
def test_outputs_of_files_for_devices_equal_those_of_the_network(weights, image, pixels, tmp_path, name, decode):
    require_format(name)
    model, form = trained.load(weights), network.Form(decode)
    exported = formats.FORMATS[name](model, tmp_path, image, form)
    expected = jax.device_get(jax.jit(network.output_function(model, form))(pixels))
    outputs = exported.run(pixels)
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        assert outputs[key].dtype == value.dtype, key
        np.testing.assert_allclose(outputs[key], value, rtol=1e-3, atol=1e-3, err_msg=key)
    assert set(exported.check(pixels)) == set(expected) | {f"{task}/outputs" for task in KINDS}
    assert exported.size > 10_000


@pytest.mark.filterwarnings("ignore")  # of the other translator
def test_another_translator_of_jax_agrees_with_ours(weights, image, pixels):
    require_format("onnx")
    jax2onnx = pytest.importorskip("jax2onnx", reason="jax2onnx is not installed: ONNX has no second opinion")
    model, form = trained.load(weights, tasks="det,cls,tags,age"), network.Form("none")
    with cpu_kernels.left_out(), depthwise.traced_in("grouped"):
        theirs = jax2onnx.to_onnx(network.output_function(model, form), [image])
    ours = formats.convert_to_onnx(model, image, form).run_model
    expected, outputs = (formats.open_session(model.SerializeToString())(pixels) for model in (theirs, ours))
    for name, value in zip(sorted(outputs), expected.values(), strict=True):  # JAX sorts a dict's keys
        np.testing.assert_allclose(outputs[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
    assert len(ours.graph.node) < len(theirs.graph.node) / 2


def test_cells_are_repeated_without_arrays_of_six_axes():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    exported, _ = traced.export_function(lambda x: {"y": upsample_2x(x)}, jax.ShapeDtypeStruct(x.shape, x.dtype))
    np.testing.assert_array_equal(exported.call(x)[0], upsample_2x(x))
    ranks = [shape.count("x") for shape in re.findall(r"tensor<([0-9x]+)xf32>", exported.mlir_module())]
    assert ranks
    assert max(ranks) <= 4  # one fewer than axes


@pytest.mark.parametrize(("rows", "composites"), [(24, 1), (8, 1), (4, 0)])
def test_litert_gets_bilinear_upsampling_as_one_operation(rows, composites):
    x = np.random.default_rng(0).normal(size=(1, 8, 6, 3)).astype(np.float32)

    def resized(x):
        return {"y": jax.image.resize(x, (1, rows, 18, 3), "linear")}

    exported, _ = traced.export_function(resized, jax.ShapeDtypeStruct(x.shape, x.dtype), {"_resize": litert.resize})
    assert exported.mlir_module().count('stablehlo.composite "odml.upsample_bilinear2d"') == composites
    np.testing.assert_allclose(exported.call(x)[0], resized(x)["y"], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ImportWarning")  # of the converters themselves
@pytest.mark.parametrize("size", [1, 3])
def test_litert_means_over_windows(size):
    require_format("litert")
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32)

    def pooled(x):
        return {"y": adaptive_mean_pool(x, size)}

    run = litert.interpreter(litert.convert_function(pooled, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    np.testing.assert_allclose(run(x)["y"], pooled(jax.numpy.asarray(x))["y"], rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ImportWarning")  # of the converters themselves
def test_litert_computes_all_of_a_network_but_the_largest_class_in_fast_operators(weights, image, tmp_path):
    require_format("litert")
    path = litert.litert(trained.load(weights, tasks="seg,det"), tmp_path, image, network.Form("boxes")).path
    library = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = library.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    names = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert names.count("RESIZE_BILINEAR") == names.count("DELEGATE") == 1
    assert not {"BATCH_MATMUL", "BROADCAST_TO", "TRANSPOSE"} & set(names)


@pytest.mark.filterwarnings("ignore")  # of the converter itself
def test_a_package_for_core_ml_is_written_and_said_not_to_be_checked(weights, tmp_path, capsys):
    require_format("coreml")
    flags = [
        "--weights",
        str(weights),
        "--out",
        str(tmp_path),
        "--format",
        "coreml",
        "--decode",
        "none",
        "--tasks",
        "age,det",
    ]
    assert command.main(flags) == 0
    assert (tmp_path / "model.mlpackage" / "Manifest.json").is_file()
    assert "not checked: nothing here runs it" in capsys.readouterr().out
    assert json.loads((tmp_path / "model.json").read_text())["files"] == {"coreml": "model.mlpackage"}


@pytest.mark.parametrize(("layout", "turns"), [("nhwc", 1), ("nchw", 0)])
def test_convolutions_follow_each_other_in_one_layout(weights, image, pixels, expected, tmp_path, layout, turns):
    require_onnx()
    import onnx

    exported = formats.onnx(trained.load(weights), tmp_path, image, network.Form(layout=layout))
    assert_outputs_equal(exported.run(pixels), expected)
    nodes = onnx.load(str(exported.path)).graph.node
    kinds = {node.op_type for node in nodes}
    assert {"Conv", "Resize", "NonMaxSuppression", "GlobalAveragePool"} <= kinds
    assert not {"BatchNormalization", "Loop", "Identity"} & kinds
    first = next(index for index, node in enumerate(nodes) if node.op_type == "Conv")
    after_image: set[str] = {name for node in nodes[:first] for name in node.input}
    turned: set[str] = set()  # results of transpositions, and what is made of them
    for node in nodes:
        if node.op_type == "Transpose" and not after_image & set(node.input):
            turned |= set(node.output)
        elif turned & set(node.input):
            assert node.op_type != "Conv", node.name
            turned |= set(node.output)
    assert [node.op_type for node in nodes[:first]] == ["Sub", "Transpose"][: 1 + turns]


@pytest.mark.parametrize("name", ["stablehlo", "onnx"])
@pytest.mark.parametrize("form", [network.Form("none"), network.Form("boxes", "nchw")])
def test_files_decode_as_far_as_asked(weights, image, pixels, tmp_path, name, form):
    if name == "onnx":
        require_onnx()
    tasks = trained.load(weights, tasks="det,age,seg")
    exported = formats.FORMATS[name](tasks, tmp_path, image, form)
    described = network.describe(tasks, image, form)
    outputs = {field: output for task in described["tasks"].values() for field, output in task["outputs"].items()}
    decoded = {"det/boxes_xyxy", "det/score", "age/value", "seg/mask"}
    assert (
        set(exported.run(pixels))
        == set(outputs)
        == (decoded if form.decode == "boxes" else {"det/outputs", "age/outputs", "seg/outputs"})
    )
    assert described["input"]["shape"] == [2, *((3, SIZE, SIZE) if form.layout == "nchw" else (SIZE, SIZE, 3))]
    reference = check.reference(tasks, form)[1]
    errors = check.differences(tasks, reference, exported.check, [pixels], decode=form.decode)
    assert max(errors.values()) < 1e-4


def test_the_script_writes_checks_and_describes(weights, tmp_path, capsys):
    flags = ["--weights", str(weights), "--out", str(tmp_path), "--format", "stablehlo", "--tasks", "det,cls"]
    status = command.main(flags)
    printed = capsys.readouterr().out
    assert status == 0
    assert "stablehlo" in printed
    assert "cls was validated on the largest square at 32 px, the files take the whole image at 64 px" in printed
    record = json.loads((tmp_path / "model.json").read_text())
    assert record["files"] == {"stablehlo": "model.stablehlo"}
    assert record["input"]["shape"] == [1, SIZE, SIZE, 3]
    assert (record["tasks"]["det"]["classes"], record["tasks"]["det"]["removed"]) == (["cup", "ball"], [])
    assert record["tasks"]["det"]["outputs"]["det/boxes_xyxy"]["shape"] == [1, 8, 4]


def test_every_output_of_every_kind_is_explained(weights, image):
    described = network.describe(trained.load(weights), image)["tasks"]
    outputs = {name: output for task in described.values() for name, output in task["outputs"].items()}
    assert set(outputs) == NAMES
    assert all(output["meaning"] for output in outputs.values())


def test_a_file_takes_what_its_tasks_were_validated_on(weights):
    single, all_tasks = trained.load(weights, tasks="cls"), trained.load(weights)
    assert network.input_view(single) == (SIZE // 2, True)
    assert network.input_view(all_tasks) == (SIZE, False)
    shape = network.input_shape(image_size=SIZE // 2, batch_size=1)
    assert network.describe(single, shape)["input"]["placement"].startswith("scale = max(")


def test_a_file_that_differs_is_named_with_status_two(weights, tmp_path, capsys, monkeypatch):
    def wrong(model, folder, image, form):
        del image, form
        (folder / "model.wrong").write_text("")
        full = check.reference(model)[1]
        return formats.Exported(folder / "model.wrong", full, lambda pixels: full(pixels) | {"age/outputs": np.ones(1)})

    monkeypatch.setitem(formats.FORMATS, "wrong", wrong)
    flags = ["--weights", str(weights), "--out", str(tmp_path), "--format", "wrong", "--tasks", "age"]
    assert command.main(flags) == 2
    error = capsys.readouterr().err
    assert "wrong: age/outputs differs by" in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_failed_export_leaves_what_was_there_and_nothing_else(weights, tmp_path, monkeypatch):
    def failing(model, folder, image, form):
        del model, image, form
        (folder / "model.stablehlo").write_text("half a file")
        raise UserError("failed")

    (tmp_path / "model.stablehlo").write_text("an earlier one")
    monkeypatch.setitem(formats.FORMATS, "wrong", failing)
    for out in (tmp_path, tmp_path / "new"):
        assert command.main(["--weights", str(weights), "--out", str(out), "--format", "wrong"]) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.stablehlo": "an earlier one"}


def test_a_network_that_computes_in_bfloat16_is_exported(weights, tmp_path, capsys):
    half = trained.computing_in(trained.load(weights), "bfloat16")
    image = network.input_shape(image_size=SIZE, batch_size=1)
    (rows, wrong, runs) = command._write_files(["stablehlo"], half, tmp_path, image, [np.full((1, SIZE, SIZE, 3), 0.5)])
    assert (len(rows), wrong, list(runs)) == (1, "", ["the network in JAX", "stablehlo"])


def test_onnx_computes_in_float32_what_was_trained_in_bfloat16(weights, image, pixels, expected, tmp_path):
    require_onnx()
    half = trained.computing_in(trained.load(weights), "bfloat16")
    exported = formats.onnx(half, tmp_path, image)
    assert exported.network.config.model.compute_dtype == "float32"
    assert_outputs_equal(exported.run(pixels), expected)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--format", "tflite"), "--format: expected some of stablehlo, onnx"),
        (("--tasks", "pose"), "--tasks: expected some of"),
        (("--image_size", "70"), "multiples of 32"),
        (("--image_size", "-64"), "--image_size: expected a multiple of 32"),
        (("--batch_size", "0"), "--batch_size: expected 1 or more"),
        (("--image_size", "dynamic", "--format", "onnx,litert"), "--image_size: expected a number of px with --format"),
        (("--calibrate", "photos"), "--calibrate: expected to be given with --int8"),
        (("--qat", "3"), "--qat: expected to be given with --int8"),
        (("--int8", "--qat", "0"), "--qat: expected 1 step or more, found 0"),
        (
            ("--int8", "--qat", "3", "--format", "stablehlo"),
            "--qat: expected --format onnx or openvino, which it fine-tunes",
        ),
        (("--images", "nowhere/*.jpg"), "nowhere/*.jpg: expected images"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(weights, tmp_path, capsys, flags, words):
    assert command.main(["--weights", str(weights), "--out", str(tmp_path), *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_layout_that_litert_does_not_compute_in_is_refused(weights, image, tmp_path, monkeypatch):
    monkeypatch.setitem(formats.PACKAGES, "litert", ())
    with pytest.raises(UserError, match="litert: expected --layout nhwc, found nchw"):
        formats.FORMATS["litert"](trained.load(weights, tasks="age"), tmp_path, image, network.Form(layout="nchw"))


@pytest.mark.parametrize("name", ["litert", "openvino", "coreml"])
def test_a_format_whose_packages_are_missing_names_its_extra(name, monkeypatch):
    monkeypatch.setitem(formats.PACKAGES, name, ("a_package_of_nobody",))
    with pytest.raises(UserError, match=rf"needs a_package_of_nobody, .*pip install -e '\.\[{name}\]'"):
        formats.require_packages(name)


def test_openvino_is_imported_without_what_reports_on_its_users(monkeypatch):
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    monkeypatch.setitem(formats.PACKAGES, "openvino", ("json",))
    formats.require_packages("openvino")
    with pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")


def test_a_missing_extra_is_named(weights, image, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", sys)
    with pytest.raises(UserError, match=r"onnxruntime, which is not installed: pip install -e '\.\[export\]'"):
        formats.onnx(trained.load(weights, tasks="age"), tmp_path, image)
    monkeypatch.delitem(sys.modules, "flatbuffers", raising=False)
    (tmp_path / "flatbuffers.py").write_text('raise ImportError("an error that names no package")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"flatbuffers, which is not installed: pip install -e \.,"):
        formats.stablehlo(trained.load(weights, tasks="age"), tmp_path, image)
