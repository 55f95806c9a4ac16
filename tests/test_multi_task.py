"""The whole network: what it is built from, what it refuses, and what training and evaluation return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from stub_task import stub

from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.sharing import wiring

TASKS = {
    "seg": stub("seg", "dense", 21, (8,)),
    "det": stub("det", "cells", 15, (8, 16, 32)),
    "cls": stub("cls", "pooled", 10, (32,)),
}
SMALL = {
    "backbone": "plain_cnn",
    "width_multiplier": 0.25,
    "neck_channels": 8,
    "head_channels": 8,
    "head_layers": 2,
    "dropout_rate": 0.5,
}
IMAGE = jax.random.uniform(jax.random.key(1), (2, 32, 64, 3))


@pytest.fixture(scope="module")
def model():
    return multi_task.build(SMALL, TASKS)


@pytest.fixture(scope="module")
def variables(model):
    return multi_task.init_variables(model, key=jax.random.key(0), image_size=96)


@pytest.fixture(scope="module")
def trained(model, variables):
    """Outputs and statistics of one training step for two tasks, as a function of the key."""

    @jax.jit
    def apply(key):
        return multi_task.apply_train(
            model,
            variables["params"],
            variables["batch_stats"],
            IMAGE,
            tasks=("cls", "seg"),
            key=key,
        )

    return apply


@pytest.fixture(scope="module")
def evaluated(model, variables):
    """Raw and finished outputs, compiled once."""

    @jax.jit
    def apply(image):
        raw = multi_task.eval_raw(model, variables, image, tasks=("seg", "det", "cls"))[0]
        return raw, multi_task.apply_eval(model, variables, image, tasks=("seg", "det", "cls"))

    return apply(IMAGE)


def test_parts_have_the_counted_parameters():
    shapes = jax.eval_shape(lambda: multi_task.init_variables(multi_task.build({}, TASKS), key=jax.random.key(0)))
    hidden = 2 * (9 * 96 * 96 + 3 * 2 * 96)
    assert multi_task.parameter_count(shapes["params"]) == {
        "backbone": 927_008,
        "neck": (24 + 48 + 576 + 3) * 96 + 577 * 96,  # laterals, and the image's mean
        "head": hidden + (21 + 15 + 10) * 97,
    }


def test_a_network_above_its_budget_is_refused_part_by_part():
    with pytest.raises(UserError, match=r"at most 1,000,000 .*backbone 927,008, .*head \d+,\d+"):
        multi_task.build({"max_params": 1_000_000}, TASKS)


def test_a_config_dict_builds_the_same_network_as_a_dict(model):
    assert multi_task.build(ConfigDict(SMALL), TASKS) == model
    assert hash(model) == hash(multi_task.build(SMALL, TASKS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bakcbone": 1, "colour": 2}, "has no setting bakcbone; did you mean backbone"),
        ({"backbone": "resnet"}, "backbone: expected one of mobilenet_v3_small, .*plain_cnn"),
        ({"neck": "bifpn"}, "neck: expected one of fpn, two_conv, found 'bifpn'; did you mean fpn"),
        ({"output_stride": 4}, "output_stride: expected one of 8, 16, 32"),
        ({"compute_dtype": "float16"}, "compute_dtype: expected one of float32, bfloat16"),
        ({"width_multiplier": 0}, "width_multiplier: expected at least 0.1 and at most 10"),
        ({"dropout_rate": 1.0}, "dropout_rate: expected at least 0 and at most 0.99"),
        ({"head_layers": 0}, "head_layers: expected at least 1"),
        ({"neck_channels": "many"}, "neck_channels: expected a whole number"),
        ({"neck": "two_conv"}, r"tasks.seg.strides: expected some of \(32,\).*'two_conv'.*found \(8,\)"),
        ({"output_stride": 16}, r"tasks.det.strides: expected some of \(8, 16\).*found \(8, 16, 32\)"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        multi_task.build(change, TASKS)


@pytest.mark.parametrize(
    "tasks",
    [
        {},
        {"seg": TASKS["det"]},
        {"conv_0": stub("conv_0", "dense", 2, (8,))},
        {"a": stub("a", "cells", 2, ())},
    ],
)
def test_tasks_that_no_network_can_hold_are_refused(tasks):
    with pytest.raises(UserError, match="tasks"):
        multi_task.build({}, tasks)


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (1, 64, 33, 3), (1, 0, 32, 3)])
def test_images_of_other_sizes_than_multiples_of_32_are_refused(model, variables, shape):
    with pytest.raises(UserError, match=f"multiples of 32 px, found {shape[1]} x {shape[2]}"):
        multi_task.apply_eval(model, variables, jnp.zeros(shape), tasks=("seg",))
    with pytest.raises(UserError, match="multiples of 32 px"):
        multi_task.init_variables(model, key=jax.random.key(0), image_size=33)


@pytest.mark.parametrize("names", [("seg", "depth"), (), "seg"])
def test_unknown_tasks_are_refused(model, variables, names):
    with pytest.raises(UserError, match="expected one or more of seg, det, cls"):
        multi_task.apply_eval(model, variables, IMAGE, tasks=names)


def test_fresh_weights_depend_on_the_key_alone(model, variables):
    again, second = (multi_task.init_variables(model, key=jax.random.key(n), image_size=512) for n in (0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables, again))
    rendered = [
        [
            leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree["params"]["backbone"])
            if path[-1].key == "kernel"
        ]
        for tree in (variables, second)
    ]
    assert all((first != another).all() for first, another in zip(*rendered, strict=True))


def test_another_task_changes_no_other_parameters_start(variables):
    fewer = multi_task.build(SMALL, {name: TASKS[name] for name in ("det", "seg")})
    alone = jax.tree_util.tree_leaves_with_path(multi_task.init_variables(fewer, key=jax.random.key(0)))
    together = dict(jax.tree_util.tree_leaves_with_path(variables))
    assert len(alone) < len(together)
    for path, leaf in alone:
        np.testing.assert_array_equal(leaf, together[path], err_msg=jax.tree_util.keystr(path))


def test_outputs_are_finished_at_the_images_size(evaluated):
    raw, finished = evaluated
    assert {name: value.shape for name, value in raw.items()} == {
        "seg": (2, 4, 8, 21),
        "det": (2, 32 + 8 + 2, 15),
        "cls": (2, 10),
    }
    for name, value in raw.items():
        assert value.dtype == jnp.float32
        assert np.isfinite(value).all()
        assert value.std() > 1e-6
        np.testing.assert_array_equal(finished[name], value + 32_064)


def test_training_moves_the_statistics_of_what_it_ran(trained, variables):
    outputs, stats = trained(jax.random.key(0))
    assert list(outputs) == ["cls", "seg"]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert jax.tree.all(changed["backbone"])
    moved = {name for name, section in changed["head"].items() if section["mean"]}
    assert moved == {"norm_0_stride_8", "norm_0_stride_32"}


def test_dropout_follows_the_key(trained):
    first, again, another = trained(jax.random.key(0)), trained(jax.random.key(0)), trained(jax.random.key(1))
    np.testing.assert_array_equal(first[0]["seg"], again[0]["seg"])
    assert (first[0]["seg"] != another[0]["seg"]).any()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first[1], another[1]))


def test_frozen_batch_norm_trains_on_the_running_statistics(variables, evaluated):
    """Without dropout it is what evaluation computes, and the statistics come back as they went in."""
    model = multi_task.build(SMALL | {"dropout_rate": 0.0}, TASKS)

    @jax.jit
    def apply(params, batch_stats):
        return multi_task.apply_train(
            model,
            params,
            batch_stats,
            IMAGE,
            tasks=("seg", "det", "cls"),
            key=jax.random.key(0),
            train_batch_norm=False,
        )

    outputs, stats = apply(variables["params"], variables["batch_stats"])
    for name, value in evaluated[1].items():
        np.testing.assert_allclose(outputs[name], value, atol=1e-2)  # 32,064 was added: float32 keeps 1/256
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), stats, variables["batch_stats"]))


@pytest.mark.parametrize("name", TASKS)
def test_the_other_tasks_parameters_are_not_needed(model, variables, name):
    params = variables["params"] | {
        "head": {
            section: tree
            for section, tree in variables["params"]["head"].items()
            if section not in TASKS or section == name
        }
    }
    outputs = jax.eval_shape(lambda: multi_task.apply_eval(model, variables | {"params": params}, IMAGE, tasks=(name,)))
    assert list(outputs) == [name]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_bfloat16_and_every_output_stride_give_float32_outputs(output_stride):
    tasks = {"seg": stub("seg", "dense", 2, (output_stride,))}
    config = SMALL | {"compute_dtype": "bfloat16", "neck": "two_conv", "output_stride": output_stride}
    config["backbone"] = "mobilenet_v3_small"
    model = multi_task.build(config, tasks)

    def step():
        variables = multi_task.init_variables(model, key=jax.random.key(0))
        return variables, multi_task.apply_train(
            model, variables["params"], variables["batch_stats"], IMAGE, tasks=("seg",), key=jax.random.key(0)
        )

    variables, (outputs, stats) = jax.eval_shape(step)
    assert outputs["seg"].shape == (2, 32 // output_stride, 64 // output_stride, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs, stats))} == {jnp.dtype("float32")}


def test_batch_norms_by_task_leave_the_other_tasks_statistics_and_scales_alone():
    small = {"backbone": "plain_cnn", "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8}
    network = multi_task.build(small | {"norms_from": 1}, TASKS)
    start = multi_task.init_variables(network, key=jax.random.key(0))

    @jax.jit
    def step(params):
        outputs, stats = multi_task.apply_train(
            network, params, start["batch_stats"], IMAGE, tasks=("cls",), key=jax.random.key(0)
        )
        return jnp.square(outputs["cls"]).sum(), stats

    grads, stats = jax.grad(step, has_aux=True)(start["params"])
    norms = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(grads) if "norm" in str(path)]
    touched = {path[-2].key for path, leaf in norms if leaf.any()}
    assert touched == {"cls"}
    moved = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool((a != b).any()), stats, start["batch_stats"])
    )
    assert {path[-2].key for path, changed in moved if changed} == {"cls"}
    assert {path[-2].key for path, _ in moved} == {"seg", "det", "cls"}


def test_batch_norms_by_task_and_branches_exclude_each_other():
    with pytest.raises(UserError, match="batch norms of their own"):
        multi_task.build({"norms_from": 1, "share_until": 8}, TASKS)


@pytest.mark.parametrize("settings", [{"share_until": 8}, *({"sharing": way} for way in wiring.WAYS)], ids=str)
def test_networks_of_equal_settings_are_equal_and_so_traced_once(settings):
    first, second = (multi_task.build({**SMALL, **settings}, {"cls": TASKS["cls"]}) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_branches_of_other_settings_make_another_network():
    settings = [{"branches": {"cls": {"head_channels": channels}}} for channels in (8, 16)]
    networks = [multi_task.build({**SMALL, "share_until": 8, **entry}, TASKS) for entry in settings]
    assert networks[0] != networks[1]
