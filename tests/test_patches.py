"""What tasks have of their own in layers that all share: batch norms above a stride, and patches of kernels."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import by_owner, counterpart, owner_of
from mtl_jax.models.patterns import change_where, expanded, matches, path_of

CLASSES = ("a", "b", "c")
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": CLASSES},
        "cls": {"kind": "classification", "classes": CLASSES},
    }
)
NAMES, SIZE = tuple(TASKS), 64
PATCHES = {
    "patches": {"backbone": 2, "neck": 2, "head": 2},
    "depthwise_patches": {"head": True},
}
SETTINGS = {
    "backbone": "plain_cnn", "width_multiplier": 0.1, "neck_channels": 8, "head_channels": 8, "head_layers": 2,
    "dropout_rate": 0.0, "norms_from": 8, "head_convolution": "separable", "head_kernel": 5,
}  # fmt: skip


@functools.cache
def build(**changes):
    settings = SETTINGS | (PATCHES if changes.pop("patched", False) else {}) | changes
    model = multi_task.build(settings, TASKS)
    return model, multi_task.init_variables(model, key=jax.random.key(0), image_size=SIZE)


@functools.cache
def patched():
    """A network whose patches are not zero, its variables, and both tasks' outputs as a function of them."""
    model, variables = build(patched=True)
    loud = jax.tree.map(lambda leaf: leaf + 0.05, variables["params"])
    variables = {**variables, "params": loud}
    return model, variables, jax.jit(lambda variables: multi_task.apply_eval(model, variables, IMAGE, tasks=NAMES))


IMAGE = jax.random.uniform(jax.random.key(1), (2, SIZE, SIZE, 3))


def where(predicate, change, tree):
    return jax.tree_util.tree_map_with_path(lambda path, x: change(x) if predicate(path_of(path)) else x, tree)


def test_fresh_patches_change_nothing():
    model, variables = build(patched=True)
    plain, peers = build()
    flat = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])}
    shared = jax.tree_util.tree_map_with_path(lambda path, _: flat[path_of(path)], peers["params"])
    assert sum(matches(path, ("patches",)) for path in flat) > 10
    run = functools.partial(multi_task.apply_eval, image=IMAGE, tasks=NAMES)
    with_patches = jax.jit(lambda variables: run(model, variables))(variables)
    without = jax.jit(lambda variables: run(plain, variables))({**peers, "params": shared})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), with_patches, without)


def test_what_is_one_task_s_own_changes_its_outputs_alone_and_bit_for_bit():
    _, variables, outputs = patched()
    before = outputs(variables)
    for kind in ("patches", "norms"):
        changed = where(
            lambda path, kind=kind: matches(path, (kind,)) and owner_of(tuple(path.split("/")), NAMES) == "cls",
            lambda leaf: 1.5 * leaf,
            variables,
        )
        after = outputs(changed)
        np.testing.assert_array_equal(before["seg"], after["seg"])
        assert not np.allclose(before["cls"], after["cls"])


@functools.cache
def trained():
    """The gradient of one task's loss, and the statistics after its pass."""
    model, variables, _ = patched()

    def loss(params):
        passed = multi_task.train_raw(
            model, params, variables["batch_stats"], IMAGE, tasks=("cls",), key=jax.random.key(2)
        )
        return jnp.square(passed.raw["cls"]).mean(), passed.batch_stats

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def test_norms_are_shared_up_to_the_stride_and_a_task_s_own_above_it():
    _, variables, _ = patched()
    moved = jax.tree.map(lambda old, new: bool(np.any(old != new)), variables["batch_stats"], trained()[1])
    owners = by_owner(moved, NAMES)
    stages = multi_task.backbone_stages(build(patched=True)[0])
    below = {layer for stride in (2, 4, 8) for layer in stages[f"stride_{stride}"]}
    assert set(owners["shared"]["backbone"]) == below
    assert all(jax.tree.leaves(owners["shared"]))
    assert not any(jax.tree.leaves(owners["seg"]))
    assert all(jax.tree.leaves(owners["cls"]))
    assert not set(owners["cls"]["backbone"]) & below


def test_every_patch_and_norm_of_a_task_learns_from_it_and_from_no_other():
    owners = by_owner(trained()[0], NAMES)
    silent = [path_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(owners["cls"]) if not np.any(leaf)]
    assert not [path for path in silent if "patch_cls/up" in path or "whole" in path], silent
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(owners["seg"]))


def test_a_task_patches_no_level_that_it_does_not_read():
    neck = build(patched=True)[1]["params"]["neck"]
    assert "patch_cls" in neck["lateral_32"]
    assert "patch_cls" not in neck["lateral_8"]
    assert "patch_seg" in neck["lateral_8"]


def test_shared_stages_are_passed_once_for_all_tasks():
    model, variables, _ = patched()
    passes: dict[str, int] = {}

    def count(call, args, kwargs, context):
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            passes[path] = passes.get(path, 0) + 1
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(lambda variables: multi_task.eval_raw(model, variables, IMAGE, tasks=NAMES), variables)
    stages = multi_task.backbone_stages(model)
    for stride in (2, 4, 8, 16, 32):
        for layer in stages[f"stride_{stride}"]:
            assert passes[f"backbone/{layer}"] == (1 if stride <= 8 else len(NAMES))


def test_what_is_frozen_takes_no_backward_pass():
    model, variables = build()
    stages = multi_task.backbone_stages(model)

    def operations(*frozen, differentiated=True):
        patterns = tuple(entry for pattern in frozen for entry in expanded(pattern, stages))

        def loss(params):
            params = change_where(jax.lax.stop_gradient, params, patterns)
            passed = multi_task.train_raw(
                model,
                params,
                variables["batch_stats"],
                IMAGE,
                tasks=NAMES,
                key=jax.random.key(0),
                train_batch_norm=lambda path: not matches(path, patterns),
            )
            return sum(jnp.square(entry).sum() for entry in passed.raw.values())

        program = jax.grad(loss) if differentiated else loss
        text = jax.jit(program).lower(variables["params"]).as_text()
        return sum(text.count(name) for name in ("stablehlo.convolution", "stablehlo.dot_general", "custom_call"))

    everything = ("backbone", "neck", "kernels", "norms")
    full, lower, kernels = operations(), operations("backbone/until_8"), operations("backbone/until_8", "kernels")
    assert full > lower > kernels
    # Left are the gradients of the two slices' kernels.
    assert operations(*everything) == operations(*everything, differentiated=False) + len(NAMES)


def test_all_norms_are_the_case_of_the_first_stride():
    small = {"backbone": "plain_cnn", "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8}
    assert multi_task.build(small | {"norms_from": 1}, TASKS) == multi_task.build(small | {"norms_from": 1}, TASKS)


def test_a_counterpart_lies_in_the_other_task_s_parts():
    path = ("params", "backbone", "block_4", "expand", "norm", "seg", "scale")
    assert counterpart(path, "seg", "det") == (*path[:5], "det", "scale")
    assert counterpart(("head", "conv_0", "patch_seg", "up"), "seg", "det") == ("head", "conv_0", "patch_det", "up")
    assert counterpart(("branch_seg", "neck"), "seg", "det") == ("branch_det", "neck")
    assert counterpart(("head", "seg", "kernel"), "seg", "det") == ("head", "seg", "kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norms_from": 3}, "norms_from: expected one of 0, 1, 2, 4, 8, 16, 32"),
        ({"norms_from": 8, "batch_norm_per_task": True}, "has no setting batch_norm_per_task; it is now norms_from=1"),
        ({"norms_from": 8, "share_until": 8}, "batch norms of their own"),
        ({"norms_from": 8, "sharing": "mmoe"}, "norms_from: expected 0 with sharing 'mmoe'"),
        ({"norms_from": 0, "patches": {"head": 4}}, "set norms_from"),
        ({"norms_from": 32, "patches": {"backbone": 4}}, "expected layers above norms_from, 32 px, found none"),
        ({"patches": {"head": -1}}, "patches.head: expected at least 0"),
        ({"patches": {"tail": 1}}, r"patches: expected names of a network \(backbone, neck, head\), found tail"),
        ({"head_kernel": 4}, "head_kernel: expected an odd number"),
        ({"head_convolution": "sparse"}, "head_convolution: expected one of dense, separable"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message):
        multi_task.build(change, TASKS)
