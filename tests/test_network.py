"""Branched wirings: one task's branch is its own, and a split backbone is the whole one."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_multi_task import TASKS

from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.backbones.mobilenet_v3 import MobileNetV3Large, MobileNetV3Small
from mtl_jax.models.backbones.plain_cnn import PlainCNN

SMALL = {"backbone": "plain_cnn", "width_multiplier": 0.25, "neck_channels": 8, "head_channels": 8, "head_layers": 2}
IMAGE = jax.random.uniform(jax.random.key(1), (2, 32, 64, 3))
SHARES = (2, 4, 8, 16)


@pytest.fixture(scope="module")
def model():
    return multi_task.build(SMALL | {"share_until": 8}, TASKS)


@pytest.fixture(scope="module")
def variables(model):
    return multi_task.init_variables(model, key=jax.random.key(0))


def count(share):
    model = multi_task.build(SMALL | {"share_until": share}, TASKS)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(model, key=key), jax.random.key(0))
    return multi_task.parameter_count(shapes["params"])


def test_the_more_is_shared_the_fewer_parameters_there_are():
    counts = {share: count(share) for share in (*SHARES, "all")}
    totals = [sum(sections.values()) for sections in counts.values()]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)
    for share in SHARES:
        assert set(counts[share]) == {"backbone", "branch_seg", "branch_det", "branch_cls"}


def test_outputs_have_the_shapes_of_the_shared_network(model, variables):
    shared = multi_task.build(SMALL, TASKS)
    names = ("seg", "det", "cls")
    ours = jax.eval_shape(lambda v: multi_task.apply_eval(model, v, IMAGE, tasks=names), variables)
    theirs = jax.eval_shape(
        lambda key: multi_task.apply_eval(shared, multi_task.init_variables(shared, key=key), IMAGE, tasks=names),
        jax.random.key(0),
    )
    assert ours == theirs


def test_a_task_sends_its_gradient_to_the_shared_stages_and_its_own_branch_alone(model, variables):
    @jax.jit
    def loss(params):
        outputs, stats = multi_task.apply_train(
            model, params, variables["batch_stats"], IMAGE, tasks=("det",), key=jax.random.key(0)
        )
        return jnp.square(outputs["det"]).sum(), stats

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    touched = {section for section, tree in grads.items() if any(leaf.any() for leaf in jax.tree.leaves(tree))}
    assert touched == {"backbone", "branch_det"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), stats, variables["batch_stats"])
    assert {section for section, tree in changed.items() if any(jax.tree.leaves(tree))} == {"backbone", "branch_det"}


def test_a_task_needs_no_other_branch(model, variables):
    alone = {
        kind: {section: tree[section] for section in ("backbone", "branch_cls")} for kind, tree in variables.items()
    }
    cut, full = (
        jax.jit(functools.partial(multi_task.apply_eval, model, tasks=names))(known, IMAGE)
        for known, names in ((alone, ("cls",)), (variables, ("seg", "cls")))
    )
    np.testing.assert_allclose(cut["cls"], full["cls"], rtol=1e-5)


WHOLE = {}  # backbone -> its levels and variables, in shapes


@pytest.mark.parametrize(
    ("backbone", "stride"),
    [
        *itertools.product((PlainCNN,), (2, 4, 8, 16)),
        (MobileNetV3Small, 4),
        (MobileNetV3Small, 8),
        (MobileNetV3Large, 16),
    ],
)
def test_the_lower_and_the_upper_stages_together_hold_the_whole_backbone(backbone, stride):
    def abstract(x, **section):
        module = backbone(0.25, **section)
        return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train_batch_norm=False), x)

    if backbone not in WHOLE:
        WHOLE[backbone] = abstract(IMAGE)
    levels, variables = WHOLE[backbone]
    below, lower = abstract(IMAGE, until=stride)
    assert max(below) == stride
    above, upper = abstract(below[stride], after=stride)
    finer = {level: x for level, x in below.items() if level < stride}
    assert finer | above == levels
    assert lower["params"] | upper["params"] == variables["params"]


def test_split_stages_compute_what_the_whole_computes():
    full, lower, upper = (PlainCNN(0.25, **section) for section in ({}, {"until": 8}, {"after": 8}))
    variables = full.init(jax.random.key(0), IMAGE, train_batch_norm=False)

    def layers(numbers):
        return {kind: {f"layer_{n}": tree[f"layer_{n}"] for n in numbers} for kind, tree in variables.items()}

    below = lower.apply(layers(range(4)), IMAGE, train_batch_norm=False)
    above = upper.apply(layers(range(4, 7)), below[8], train_batch_norm=False)
    for stride, features in full.apply(variables, IMAGE, train_batch_norm=False).items():
        np.testing.assert_allclose(above[stride], features, rtol=1e-5, atol=1e-6)


def test_nothing_left_for_the_branches_is_refused():
    settings = {"share_until": 16, "output_stride": 16, "neck": "two_conv", "width_multiplier": 0.25}
    with pytest.raises(UserError, match="nothing is left for the branches"):
        multi_task.build(settings, {"seg": dataclasses.replace(TASKS["seg"], strides=(16,))})


def test_an_unknown_stage_is_refused():
    with pytest.raises(UserError, match=r"share_until: expected one of all, 2, 4, 8, 16"):
        multi_task.build(SMALL | {"share_until": "stage_9"}, TASKS)


def test_a_branch_may_have_its_own_width_and_depth(model, variables):
    custom = {"branches": {"det": {"head_channels": 24, "neck_channels": 24, "head_layers": 3}}}
    wider = multi_task.build(SMALL | {"share_until": 8} | custom, TASKS)
    shapes = jax.eval_shape(lambda key: multi_task.init_variables(wider, key=key), jax.random.key(0))["params"]
    assert shapes["branch_det"]["head"]["conv_1"]["kernel"].shape == (3, 3, 24, 24)
    before, after = (
        {path: leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree["branch_cls"])}
        for tree in (variables["params"], shapes)
    )
    assert before == after


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"branches": {"pose": {}}}, r"branches: expected names of config.tasks \(.*, found pose"),
        (
            {"branches": {"det": {"neck": "two_conv"}}},
            r"branches.det: expected names of a branch \(neck_channels.*, found neck",
        ),
        ({"branches": {"det": {"head_layers": 0}}}, "model.branches.det.head_layers: expected at least 1"),
        (
            {"branches": {"det": {}}, "share_until": "all"},
            "config.model.branches: expected none where nothing branches",
        ),
    ],
)
def test_impossible_branches_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        multi_task.build(SMALL | {"share_until": 8} | changes, TASKS)
