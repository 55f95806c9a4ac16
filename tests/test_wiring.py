"""Ways to share a network: what they emit, which parameters learn from which task, how they meet at their limits."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_network import SMALL
from tiny import random_variables

from mtl_jax import balance, tasks
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.layers import branch_name
from mtl_jax.models.ownership import split_private
from mtl_jax.models.sharing.wiring import WAYS
from mtl_jax.training import optimizer, soft_sharing, train_step
from mtl_jax.training.losses import Objective, StepSpec

CLASSES = ("a", "b", "c")
TASKS = tasks.build(
    {
        "seg": {"kind": "segmentation", "classes": CLASSES},
        "det": {"kind": "detection", "classes": CLASSES},
        "cls": {"kind": "classification", "classes": CLASSES},
    }
)
NAMES, SIZE = tuple(TASKS), 64
TRAINED = ("det", "cls")  # one after the other
SETTINGS = SMALL | {"width_multiplier": 0.1, "dropout_rate": 0.0}


def build(**changes):
    model = multi_task.build(SETTINGS | changes, TASKS)
    return model, multi_task.init_variables(model, key=jax.random.key(0), image_size=SIZE)


def image():
    return jax.random.uniform(jax.random.key(1), (2, SIZE, SIZE, 3))


class Passed(NamedTuple):
    """A network of one way, and what passing each task through it gave."""

    way: str
    variables: Any
    parts: dict[str, Any]
    grads: dict[str, Any]
    losses: dict[str, tuple[Any, Any]]  # before and after a small step against the gradient


@pytest.fixture(scope="module", params=[scheme for scheme in WAYS if scheme != "hard"])
def gradients(request):
    """Outputs, and gradients of each task's squared outputs."""
    model = multi_task.build(SETTINGS | {"sharing": request.param}, TASKS)
    variables = random_variables(model)

    @functools.partial(jax.jit, static_argnums=1)
    def function(params, requested):
        def losses(params):
            raw = multi_task.train_raw(
                model, params, variables["batch_stats"], image(), tasks=requested, key=jax.random.key(2)
            )
            return jnp.square(raw.raw[requested[0]]).mean(), raw

        return jax.value_and_grad(losses, has_aux=True)(params)

    params = variables["params"]
    passed = {name: function(params, (name,)) for name in TRAINED}
    stepped = {
        name: function(jax.tree.map(lambda leaf, grad: leaf - 1e-4 * grad, params, grads), (name,))
        for name, (_, grads) in passed.items()
    }
    return Passed(
        request.param,
        variables,
        {name: sections for name, ((_, sections), _) in passed.items()},
        {name: grads for name, (_, grads) in passed.items()},
        {name: (passed[name][0][0], stepped[name][0][0]) for name in TRAINED},
    )


def test_each_way_emits_every_task_and_trains_what_is_its_own_and_no_other_task_s(gradients):
    scheme, _, passed, grads, _ = gradients
    shapes = {"det": (2, 84, 8), "cls": (2, 3)}
    for name in TRAINED:
        assert passed[name].raw[name].shape == shapes[name]
        shared, private = split_private(grads[name], NAMES)
        still = [path for path, leaf in jax.tree_util.tree_leaves_with_path(private[name]) if not np.any(leaf)]
        # Dead units, and layers of levels that the task does not read.
        assert len(still) < 0.5 * len(jax.tree.leaves(private[name])), still
        for another in set(NAMES) - {name}:
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(private[another]))
        if scheme not in ("independent", "progressive"):
            assert any(np.any(leaf) for leaf in jax.tree.leaves(shared))
        else:
            assert not shared


def test_a_step_against_its_gradient_brings_each_task_nearer_to_its_aim(gradients):
    for before, after in gradients.losses.values():
        assert 0 < after < before


def test_a_pass_for_one_task_leaves_the_statistics_of_the_others_alone(gradients):
    scheme, variables, passed, _, _ = gradients
    if scheme == "cross_stitch":  # one network, whose columns all see every image
        return
    before, after = (split_private(tree, NAMES)[1] for tree in (variables["batch_stats"], passed["det"].batch_stats))
    assert any(
        not np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (before["det"], after["det"])), strict=True)
    )
    for another in ("seg", "cls"):
        jax.tree.map(np.testing.assert_array_equal, before[another], after[another])


@functools.cache
def compiled(model):
    return jax.jit(lambda variables: multi_task.apply_eval(model, variables, image(), tasks=NAMES))


def outputs(model, variables):
    return compiled(model)(variables)


def assert_close(first, second):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), first, second)


def test_fresh_adapters_change_nothing():
    adapted, plain = build(sharing="adapters"), build(norms_from=1)  # their former name
    shared = {name: section for name, section in adapted[1]["params"].items() if name in plain[1]["params"]}
    assert_close(outputs(*adapted), outputs(plain[0], {**plain[1], "params": shared}))


def test_cross_stitches_without_exchange_are_independent_networks():
    stitched, apart = (
        multi_task.build(SETTINGS | {"sharing": scheme}, TASKS) for scheme in ("cross_stitch", "independent")
    )
    custom = random_variables(apart)
    columns = {f"column_{name}": custom["params"][branch_name(name)] for name in NAMES}
    stitches = {f"stitch_{number}": jnp.eye(len(NAMES)) for number in range(5)}
    statistics = {f"column_{name}": custom["batch_stats"][branch_name(name)] for name in NAMES}
    variables = {"params": columns | stitches, "batch_stats": statistics}
    assert_close(outputs(stitched, variables), outputs(apart, custom))


def test_a_progressive_network_reads_earlier_columns_only():
    model = multi_task.build(SETTINGS | {"sharing": "progressive"}, TASKS)
    variables = random_variables(model)
    loud = variables["params"]
    plain = outputs(model, {**variables, "params": loud})
    changed = outputs(
        model, {**variables, "params": {**loud, "branch_det": jax.tree.map(lambda leaf: 2 * leaf, loud["branch_det"])}}
    )
    np.testing.assert_array_equal(plain["seg"], changed["seg"])
    assert not np.allclose(plain["cls"], changed["cls"])


def test_settings_of_hard_sharing_are_refused_elsewhere():
    with pytest.raises(UserError, match=r"model\.share_until: expected 'all' with sharing 'mmoe'"):
        build(sharing="mmoe", share_until=8)
    with pytest.raises(UserError, match=r"model\.sharing: expected one of hard, independent, "):
        build(sharing="soft")
    with pytest.raises(UserError, match=r"model\.experts: expected at least 1"):
        build(sharing="cgc", experts=0)


PARTS = [{"w": jnp.array([0.0, 2.0]), "own": jnp.zeros(3)}, {"w": jnp.array([4.0, 2.0])}, {"w": jnp.array([2.0, 8.0])}]


def test_soft_sharing_takes_the_proximal_step_of_the_sum_over_pairs():
    moved = soft_sharing.draw_near(PARTS, 0.5)

    def objective(w):  # what a proximal step minimises
        pairs = sum(jnp.sum((w[i] - w[j]) ** 2) for i, j in ((0, 1), (0, 2), (1, 2)))
        return 0.5 * jnp.sum((w - jnp.stack([section["w"] for section in PARTS])) ** 2) + 0.5 * 0.5 * pairs

    gradient = jax.grad(objective)(jnp.stack([section["w"] for section in moved]))
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    np.testing.assert_array_equal(moved[0]["own"], PARTS[0]["own"])  # it has no counterpart


def test_at_strength_0_networks_stay_apart_and_at_infinity_they_are_one():
    for before, after in zip(PARTS, soft_sharing.draw_near(PARTS, 0.0), strict=True):
        assert_close(before, after)
    for section in soft_sharing.draw_near(PARTS, jnp.inf):
        np.testing.assert_allclose(section["w"], [2.0, 4.0])


def step(model, variables, *, method, soft_sharing_strength=0.0):
    """One step of plain descent on a batch of two classification tasks' images."""
    schedule, balancing = optax.constant_schedule(0.1), balance.METHODS[method]()
    tx = optimizer.build("sgd", learning_rate=schedule, weight_decay=0.0, momentum=0.0)
    streams = {"one": ("first",), "two": ("second",)}
    aim = Objective(
        streams=streams, groups=(("one",), ("two",)), stream_weights=dict.fromkeys(streams, 1.0), loss_weights={},
        train_batch_norm=False,
    )  # fmt: skip
    names = {"tasks": tuple(TWO), "trained_tasks": tuple(TWO)}
    start = train_step.init_state(**variables, balance=balancing, tx=tx, ema=False, **names, key=jax.random.key(0))
    problem = StepSpec(model, TWO, aim, balancing, "summed" if method == "sum" else "stacked")
    created = train_step.make_train_step(problem, tx=tx, schedule=schedule, soft_sharing_strength=soft_sharing_strength)
    data = {
        stream: {"image": image()[number, None], "labels": {task: {"label": jnp.array([number])}}}
        for number, (stream, (task,)) in enumerate(streams.items())
    }
    return jax.jit(created)(start, {}, data)[0].params


TWO = tasks.build({name: {"kind": "classification", "classes": CLASSES} for name in ("first", "second")})


@pytest.mark.slow  # three compiled steps
def test_infinitely_strong_soft_sharing_is_hard_sharing_and_none_is_independence():
    hard = multi_task.build(SETTINGS, TWO)
    apart = multi_task.build(SETTINGS | {"sharing": "independent"}, TWO)
    variables = random_variables(hard)

    def column(tree, task):
        head = {name: section for name, section in tree["head"].items() if name == task or name not in TWO}
        return {**tree, "head": head}

    columns = {name: {branch_name(task): column(tree, task) for task in TWO} for name, tree in variables.items()}
    together = step(hard, variables, method="mean")
    merged = step(apart, columns, method="sum", soft_sharing_strength=float("inf"))
    for task in TWO:
        assert_close(merged[branch_name(task)], column(together, task))
    free = step(apart, columns, method="sum")
    assert not np.allclose(
        free["branch_first"]["neck"]["context"]["kernel"], free["branch_second"]["neck"]["context"]["kernel"]
    )
