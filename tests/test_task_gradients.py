"""Every way from a batch to one gradient, against the plainest one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_train_step import SIZE, TASKS, assert_close, batch, objective
from tiny import MODEL

from mtl_jax import balance
from mtl_jax.config.stage_settings import StageSettings
from mtl_jax.continual import agem
from mtl_jax.continual.method import StageTasks
from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import join_private, split_private
from mtl_jax.training import task_balancing, task_gradients
from mtl_jax.training.losses import StepInputs, StepSpec

NAMES = ("seg", "cls")
SHARED_IMAGES = objective(streams={"both": NAMES})
PROJECTED = objective(
    streams={"both": NAMES}, keep={"agem": agem.AGEM()}, stage=StageTasks(old=("seg",), replayed=("seg",))
)
OWN_IMAGES = objective(streams={"masks": ("seg",), "names": ("cls",)})
DATA = {"both": batch("both"), "masks": batch("masks", seed=1), "names": batch("names", seed=2)}


def build(**changes):
    model = multi_task.build(MODEL | {"dropout_rate": 0.0} | changes, TASKS)
    return model, multi_task.init_variables(model, key=jax.random.key(0), image_size=SIZE)


@pytest.fixture(scope="module")
def network(tiny_backbone):
    return build()


def given_to(network, data=DATA):
    params, batch_stats = network[1]["params"], network[1]["batch_stats"]
    return StepInputs(params, batch_stats, {}, data, jax.random.key(1))


def take(network, aim, method, backward, micro_batches=1):
    """The balanced gradient of DATA."""
    tx = balance.METHODS[method]()
    problem = StepSpec(network[0], TASKS, aim, tx, backward, micro_batches)
    inputs = given_to(network)
    state = tx.init(split_private(inputs.params, NAMES)[0])
    return jax.jit(functools.partial(task_gradients.balanced, problem))(inputs, state)


@pytest.fixture(scope="module")
def by_task(network):
    """The tasks' gradients on shared images, [tasks, ...]."""
    problem = StepSpec(network[0], TASKS, SHARED_IMAGES, balance.METHODS["sum"](), "stacked")
    return jax.jit(functools.partial(task_gradients.stacked, problem))(given_to(network)).grads


def weighted_by_hand(by_task, weights):
    """Shared leaves weighted, each private leaf its own task's gradient."""
    shared, private = split_private(by_task, NAMES)
    combined = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), shared)
    return join_private(combined, jax.tree.map(lambda leaf: leaf.sum(0), private))


@pytest.mark.parametrize("method", ["uncertainty", "fixed"])  # learnt from losses, and given
def test_methods_on_losses_need_one_way_back_for_all_tasks(network, by_task, method):
    result = take(network, SHARED_IMAGES, method, "weighted")
    weights = jnp.stack([result.metrics[f"{name}/task_weight"] for name in NAMES])
    assert_close(result.grads, weighted_by_hand(by_task, weights))
    if method == "uncertainty":  # which has a state
        stacked = take(network, SHARED_IMAGES, method, "stacked")
        assert_close(result.grads, stacked.grads)
        assert_close(result.balance_state, stacked.balance_state)


@pytest.mark.parametrize("streams", [OWN_IMAGES.streams, {"both": NAMES, "masks": ("seg",)}])
def test_they_weigh_streams_of_one_task_or_of_several_alike(network, streams):
    aim = objective(streams=streams)
    result, stacked = (take(network, aim, "uncertainty", backward) for backward in ("weighted", "stacked"))
    assert_close(result.grads, stacked.grads)
    assert_close(result.balance_state, stacked.balance_state)


def test_a_weight_of_zero_leaves_the_tasks_own_parameters_alone(network):
    tx = balance.fixed((1.0, 0.0))
    problem = StepSpec(network[0], TASKS, SHARED_IMAGES, tx, "weighted")
    result = jax.jit(functools.partial(task_gradients.balanced, problem))(given_to(network), tx.init(jnp.zeros(())))
    assert not np.any(result.grads["head"]["cls"]["kernel"])
    assert np.any(result.grads["head"]["seg"]["kernel"])


@pytest.mark.parametrize("method", ["sum", "mgda"])
def test_at_the_features_weights_meet_before_one_way_back_through_what_is_shared(network, by_task, method):
    result = take(network, SHARED_IMAGES, method, "features")
    weights = jnp.stack([result.metrics[f"{name}/task_weight"] for name in NAMES])
    assert_close(result.grads, weighted_by_hand(by_task, weights), tolerance=1e-4)
    if method == "mgda":
        by_params = take(network, SHARED_IMAGES, method, "stacked")
        assert_close(result.losses, by_params.losses)
        # The angles there are others than at the parameters.
        assert abs(result.metrics["all/cosine/seg/cls"] - by_params.metrics["all/cosine/seg/cls"]) > 1e-3


def test_the_features_of_a_branched_network_are_those_before_its_branches(tiny_branches):
    result = take(tiny_branches, SHARED_IMAGES, "sum", "features")
    assert_close(result.grads, take(tiny_branches, SHARED_IMAGES, "sum", "summed").grads, tolerance=1e-4)
    assert np.any(result.grads["branch_cls"]["head"]["cls"]["kernel"])


@pytest.fixture(scope="module")
def tiny_branches(tiny_backbone):
    return build(backbone="plain_cnn", width_multiplier=0.25, share_until=4)


@pytest.mark.slow
def test_gradients_of_micro_batches_are_float32_too(tiny_backbone):
    result = take(build(compute_dtype="bfloat16"), SHARED_IMAGES, "pcgrad", "stacked", micro_batches=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.grads)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("method", ["sum", "pcgrad"])
def test_micro_batches_give_the_gradient_of_the_whole_where_no_statistic_spans_it(network, method):
    aim = objective(streams=OWN_IMAGES.streams, train_batch_norm=False)
    backward = "summed" if method == "sum" else "stacked"
    full, sections = (take(network, aim, method, backward, micro_batches=count) for count in (1, 2))
    assert_close(sections.grads, full.grads)
    assert_close(sections.losses, full.losses)
    assert_close(sections.metrics, full.metrics)


def test_micro_batches_follow_one_another_through_the_running_statistics(network):
    result = take(network, OWN_IMAGES, "sum", "summed", micro_batches=2)
    plain = take(network, OWN_IMAGES, "sum", "summed")
    start = network[1]["batch_stats"]
    moved = [optax.tree.norm(jax.tree.map(jnp.subtract, after.batch_stats, start)) for after in (result, plain)]
    assert moved[0] > 1.5 * moved[1]  # two updates instead of one


def test_gradients_are_float32_when_the_network_computes_in_bfloat16(tiny_backbone, by_task):
    network = build(compute_dtype="bfloat16")
    for backward in ("stacked", "features"):
        result = take(network, SHARED_IMAGES, "sum", backward)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.grads)} == {jnp.dtype("float32")}
        exact = weighted_by_hand(by_task, jnp.ones(2))
        product = optax.tree.vdot(result.grads, exact)
        assert product > 0.99 * optax.tree.norm(result.grads) * optax.tree.norm(exact)


def chosen(aim, *, features_are_shared=True, **changes):
    settings = StageSettings(tuple(aim.streams), **changes)
    method = task_balancing.method(settings, tasks=2, location="stage")
    return task_balancing.backward(settings, method, aim, features_are_shared=features_are_shared, location="stage")


@pytest.mark.parametrize(
    ("aim", "settings", "expected"),
    [
        (SHARED_IMAGES, {}, "summed"),
        (SHARED_IMAGES, {"log_conflicts": True}, "stacked"),
        (SHARED_IMAGES, {"balance": "pcgrad"}, "stacked"),
        (SHARED_IMAGES, {"balance": "pcgrad", "gradient_space": "features"}, "features"),
        (SHARED_IMAGES, {"balance": "uncertainty"}, "weighted"),
        (SHARED_IMAGES, {"balance": "gradnorm"}, "stacked"),  # it measures gradients
        (SHARED_IMAGES, {"balance": "uncertainty", "micro_batches": 2}, "stacked"),
        (SHARED_IMAGES, {"balance": "uncertainty", "log_conflicts": True}, "stacked"),
        (OWN_IMAGES, {"balance": "uncertainty"}, "weighted"),
    ],
)
def test_a_step_goes_back_as_often_as_the_method_needs(aim, settings, expected):
    assert chosen(aim, **settings) == expected


@pytest.mark.parametrize(
    ("aim", "settings", "words"),
    [
        (OWN_IMAGES, {}, "do not share their images"),
        (SHARED_IMAGES, {"features_are_shared": False}, "no common features"),
        (SHARED_IMAGES, {"balance": "moco"}, "remembers gradients"),
        (SHARED_IMAGES, {"micro_batches": 2}, "micro_batches 2"),
        (PROJECTED, {}, "agem"),
    ],
)
def test_gradients_at_features_are_refused_where_there_are_none(aim, settings, words):
    with pytest.raises(UserError, match=f'stage.gradient_space: expected "params" with .*{words}.*found "features"'):
        chosen(aim, gradient_space="features", **settings)
