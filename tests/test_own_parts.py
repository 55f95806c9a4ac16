"""One backbone, neck and head learnt one task after another: what is frozen, kept, resumed and exported."""

import json
import shutil

import jax
import numpy as np
import pytest
from test_train import tiny_config
from tiny import spare_report

from mtl_jax import config as config_lib
from mtl_jax.export import formats, network
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import matches, path_of
from mtl_jax.training import train_loop
from mtl_jax.workdir import checkpoints, trained

FROZEN = ("backbone/until_8", "backbone/kernels", "neck/kernels", "head/kernels")
TASKS = ("seg", "cls")


def config():
    settings = tiny_config()
    settings.forward_transfer = False
    settings.image_size = 32
    settings.model.update(
        {
            "norms_from": 8,
            "patches": {"neck": 2, "head": 2},
            "depthwise_patches": {"head": True},
            "head_convolution": "separable",
            "head_kernel": 5,
        }
    )
    settings.stages.seg = config_lib.stage(("masks",), epochs=2.0, freeze=("backbone/until_8",))
    settings.stages.cls = config_lib.stage(("single",), epochs=2.0, freeze=FROZEN, warm_start="seg")
    return settings


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, kept_programs):
    """A work directory after both stages."""
    workdir = tmp_path_factory.mktemp("run") / "shared"
    with pytest.MonkeyPatch.context() as patched:
        spare_report(patched)
        train_loop.train_and_evaluate(config(), workdir)
    return workdir


@pytest.fixture(autouse=True)
def _tiny(tiny_backbone): ...


def variables(workdir, stage):
    tree = checkpoints.load(workdir / "checkpoints" / stage, {"variables": None})["variables"]
    return {path_of(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def owner(path):
    return owner_of(tuple(path.split("/")), TASKS)


def test_a_stage_that_freezes_the_kernels_changes_its_own_task_alone(learnt):
    before, after = variables(learnt, "0-seg"), variables(learnt, "1-cls")
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert {owner(path) for path in changed} == {"cls"}
    assert any(matches(path.partition("/")[2], ("patches",)) for path in changed)
    stages = json.loads((learnt / "contract.json").read_text())["stages"]
    assert stages[0]["metrics"]["seg"] == stages[1]["metrics"]["seg"]


def test_the_first_stage_moves_neck_and_head_and_its_own_patches_and_no_frozen_stage(learnt):
    learnt_kernel = variables(learnt, "0-seg")["params/head/conv_0/pointwise/patch_seg/up/kernel"]
    assert np.any(learnt_kernel)  # which was zero
    statistics = variables(learnt, "0-seg")
    assert not np.any(statistics["batch_stats/backbone/norm_8/mean"])
    assert np.any(statistics["batch_stats/backbone/norm_16/seg/mean"])


@pytest.mark.usefixtures("no_report")
def test_norms_and_patches_start_from_the_earlier_task_s(learnt, tmp_path):
    copy = shutil.copytree(learnt, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / "1-cls")
    settings = config()
    settings.stages.cls.update({"learning_rate": 0.0, "warmup_fraction": 0.0, "train_batch_norm": "nowhere"})
    train_loop.train_and_evaluate(settings, copy)
    after = variables(copy, "1-cls")
    for path in ("neck/lateral_32/patch_{}/up/kernel", "backbone/norm_32/{}/bias"):
        np.testing.assert_array_equal(*(after[f"params/{path.format(task)}"] for task in TASKS))
    assert np.any(after["params/neck/lateral_32/patch_cls/up/kernel"])
    np.testing.assert_array_equal(*(after[f"batch_stats/backbone/norm_32/{task}/var"] for task in TASKS))


@pytest.mark.usefixtures("no_report")
def test_a_run_that_was_cut_between_its_stages_ends_alike(learnt, tmp_path):
    copy = shutil.copytree(learnt, tmp_path / "copy")
    (copy / "checkpoints" / "1-cls" / checkpoints.DIGESTS).unlink()  # as good as none
    train_loop.train_and_evaluate(config(), copy)
    jax.tree.map(np.testing.assert_array_equal, variables(copy, "1-cls"), variables(learnt, "1-cls"))


def test_an_exported_network_answers_alike(learnt, tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: StableHLO files are not tested")
    assert_exported_alike(formats.stablehlo, learnt, tmp_path)


def test_onnx_files_compute_the_passes_of_all_tasks_as_one(learnt, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: ONNX files are not tested")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: ONNX files are not tested")
    assert_exported_alike(formats.onnx, learnt, tmp_path)
    convolutions = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]
    assert any(len(TASKS) == attribute.i for node in convolutions for attribute in node.attribute)  # groups


def assert_exported_alike(make, learnt, folder) -> None:
    ready = trained.load(learnt)
    image = network.input_shape(image_size=64, batch_size=1)
    pixels = np.random.default_rng(0).random(image.shape, np.float32)
    expected = jax.device_get(jax.jit(network.output_function(ready, with_outputs=True))(pixels))
    for name, value in make(ready, folder, image).check(pixels).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
