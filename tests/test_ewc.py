"""Fisher information against its closed form, whatever the batches; the penalty and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.continual import ewc
from mtl_jax.errors import UserError

CLASSES, FEATURES, EXAMPLES = 3, 4, 37


def log_probabilities(params, example):
    return jax.nn.log_softmax(example["x"] @ params["kernel"] + params["bias"])


def own_label_loss(params, example):
    return -log_probabilities(params, example)[example["y"]]


def drawn_label_loss(params, example, key):
    log_p = log_probabilities(params, example)
    return -log_p[jax.random.categorical(key, log_p)]


LOSSES = {"empirical": own_label_loss, "sampled": drawn_label_loss, "exact": log_probabilities}
EVERY_ESTIMATOR = pytest.mark.parametrize("estimator", LOSSES)


@pytest.fixture
def params(key):
    return {"kernel": jax.random.normal(key, (FEATURES, CLASSES)), "bias": jnp.array([0.5, 0.0, -1.0])}


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return {"x": x, "y": generator.integers(CLASSES, size=EXAMPLES).astype(np.int32)}


def batches_of(data, size):
    return ({name: leaf[i : i + size] for name, leaf in data.items()} for i in range(0, EXAMPLES, size))


def fisher_of(estimator, params, batches, key=None):
    return ewc.fisher_diagonal(LOSSES[estimator], params, batches, estimator, key=key)


def closed_form(params, data, label_weights):
    """For softmax regression d log p_y / d kernel[f, c] = x_f * (1[y = c] - p_c)."""
    x = np.asarray(data["x"], np.float64)
    logits = x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    label_weights = p if label_weights is None else label_weights
    square = (np.eye(CLASSES)[None] - p[:, None, :]) ** 2  # example, y, c
    per_example = np.einsum("ey,eyc->ec", label_weights, square)
    return {"kernel": np.einsum("ef,ec->fc", x**2, per_example) / len(x), "bias": per_example.mean(0)}


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for leaf, leave in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, leave, **tolerance)


def test_the_exact_estimator_is_the_closed_form_of_softmax_regression(params, data):
    expected = closed_form(params, data, None)
    assert_trees_close(fisher_of("exact", params, batches_of(data, 8)), expected, rtol=1e-5)


def test_the_empirical_estimator_squares_the_gradient_at_the_examples_own_label(params, data):
    expected = closed_form(params, data, np.eye(CLASSES)[data["y"]])
    assert_trees_close(fisher_of("empirical", params, batches_of(data, 8)), expected, rtol=1e-5)


def test_the_sampled_estimator_tends_to_the_exact_one(params, data, key):
    repeated = {name: np.tile(leaf, (1000, *[1] * (leaf.ndim - 1))) for name, leaf in data.items()}
    result = fisher_of("sampled", params, [repeated], key)
    # 37000 draws: the standard error is a few percent of the rarest entries.
    assert_trees_close(result, closed_form(params, data, None), rtol=0.1)


def test_the_sampled_estimator_follows_its_key(params, data, key):
    first, again, second = (fisher_of("sampled", params, [data], single) for single in (key, key, jax.random.key(1)))
    assert_trees_close(first, again, rtol=0)
    assert not np.allclose(first["kernel"], second["kernel"], rtol=1e-3)


@EVERY_ESTIMATOR
@pytest.mark.parametrize("size", [1, 4, 32])
def test_batching_does_not_change_it(params, data, key, estimator, size):
    full = fisher_of(estimator, params, [data], key)
    assert_trees_close(fisher_of(estimator, params, batches_of(data, size), key), full, rtol=1e-5)


def test_it_is_not_the_square_of_the_mean_gradient(params, data):
    def mean_loss(params):
        return jnp.mean(jax.vmap(own_label_loss, (None, 0))(params, data))

    of_mean = jax.tree.map(jnp.square, jax.grad(mean_loss)(params))
    fisher = fisher_of("empirical", params, [data])
    total, wrong = (sum(leaf.sum() for leaf in jax.tree.leaves(tree)) for tree in (fisher, of_mean))
    assert float(wrong) < 0.5 * float(total)


def test_the_loss_is_traced_once_for_each_shape_of_a_batch(params, data):
    traces = []

    def loss(params, example):
        traces.append(1)
        return own_label_loss(params, example)

    ewc.fisher_diagonal(loss, params, batches_of(data, 4))  # nine batches of 4 and one of 1
    many = len(traces)
    traces.clear()
    ewc.fisher_diagonal(loss, params, batches_of(data, 32))  # one batch of 32 and one of 5
    assert many == len(traces)


def test_half_precision_parameters_are_accumulated_in_float32(params, data):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    fisher = fisher_of("empirical", half, [data])
    assert {leaf.dtype for leaf in jax.tree.leaves(fisher)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("estimator", "batches", "words"),
    [
        ("empirical", [], "expected examples.*found none; give at least one batch"),
        ("empirical", [{"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, np.int32)}], "found none"),
        ("hessian", [], 'one of empirical, sampled, exact, found "hessian"'),
        ("sampled", [], 'a key for estimator "sampled"'),
    ],
)
def test_what_cannot_be_estimated_is_refused(params, estimator, batches, words):
    with pytest.raises(UserError, match=words):
        ewc.fisher_diagonal(own_label_loss, params, batches, estimator)


def test_the_exact_estimator_refuses_a_batch_axis(params, data):
    with pytest.raises(UserError, match=r"found shape \[1, 3\]; drop the batch axis"):
        ewc.fisher_diagonal(lambda p, e: log_probabilities(p, e)[None, :], params, [data], "exact")


@pytest.fixture
def fisher(params, data):
    return fisher_of("exact", params, [data])


def test_the_penalty_is_zero_at_the_anchor_and_positive_after_a_step(params, fisher):
    assert float(ewc.penalty(params, params, fisher, 10.0)) == 0.0
    moved = jax.tree.map(lambda leaf: leaf - 0.1, params)
    assert float(ewc.penalty(moved, params, fisher, 10.0)) > 1e-3


def test_the_penalty_is_half_the_strength_times_the_weighted_squared_distance():
    anchor, fisher = (
        {"a": jnp.array([1.0, 2.0]), "b": jnp.zeros(())},
        {"a": jnp.array([3.0, 0.0]), "b": jnp.ones(())},
    )
    params = {"a": jnp.array([3.0, 9.0]), "b": jnp.full((), 2.0)}
    assert float(ewc.penalty(params, anchor, fisher, 0.5)) == 0.25 * (3 * 4 + 0 + 1 * 4)


def test_the_gradient_of_the_penalty_is_strength_times_fisher_times_distance(params, fisher, key):
    moved = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), params)
    gradient = jax.jit(jax.grad(ewc.penalty))(moved, params, fisher, 7.0)
    expected = jax.tree.map(lambda m, p, f: 7.0 * f * (m - p), moved, params, fisher)
    assert_trees_close(gradient, expected, rtol=1e-5)


def test_importance_accumulates_with_decay():
    old, new = {"a": jnp.array([4.0])}, {"a": jnp.array([1.0])}
    assert ewc.accumulate(old, new)["a"].tolist() == [5.0]
    assert ewc.accumulate(old, new, decay=0.5)["a"].tolist() == [3.0]


def test_one_anchor_at_the_newest_task_serves_quadratic_tasks_exactly():
    """Two tasks with quadratic losses: minimising the second plus the penalty minimises their sum."""
    curvature, minima = (
        [jnp.array([1.0, 4.0]), jnp.array([3.0, 0.5])],
        [jnp.array([0.0, 1.0]), jnp.array([2.0, -1.0])],
    )
    joint = (curvature[0] * minima[0] + curvature[1] * minima[1]) / (curvature[0] + curvature[1])

    def objective(params):
        return 0.5 * jnp.sum(curvature[1] * (params - minima[1]) ** 2) + ewc.penalty(
            params, minima[0], curvature[0], 1.0
        )

    np.testing.assert_allclose(jax.grad(objective)(joint), [0.0, 0.0], atol=1e-5)


def test_normalising_gives_mean_one_whatever_the_scale_of_the_loss(fisher):
    scaled = jax.tree.map(lambda leaf: 1e-4 * leaf, fisher)
    assert_trees_close(ewc.normalise(scaled), ewc.normalise(fisher), rtol=1e-5)
    everything = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(ewc.normalise(fisher))])
    assert float(everything.mean()) == pytest.approx(1.0, rel=1e-5)


def test_normalising_clips_at_the_given_value_and_keeps_zeros():
    fisher = {"a": jnp.array([0.0, 0.0, 0.0, 8.0])}
    assert ewc.normalise(fisher)["a"].tolist() == [0.0, 0.0, 0.0, 4.0]
    assert ewc.normalise(fisher, clip=3.0)["a"].tolist() == [0.0, 0.0, 0.0, 3.0]
    assert ewc.normalise({"a": jnp.zeros(2)})["a"].tolist() == [0.0, 0.0]


def test_online_keeps_one_anchor_and_separate_one_for_each_stage():
    first, second = {"w": np.array([1.0], np.float32)}, {"w": np.array([3.0], np.float32)}
    for mode, expected in (("online", [(second, 7.0)]), ("separate", [(first, 4.0), (second, 5.0)])):
        anchors = ()
        for params, importance in ((first, 4.0), (second, 5.0)):
            fresh = {"w": np.array([importance], np.float32)}
            anchors = ewc.consolidate(anchors, params, fresh, mode=mode, decay=0.5)
        assert [(anchor.params, float(anchor.importance["w"][0])) for anchor in anchors] == expected
