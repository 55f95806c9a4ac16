"""Rates, clipping, decay and averaging do what a stage's settings say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax.errors import UserError
from mtl_jax.training import optimizer

PARAMS = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}


def rate(schedule: str, step: int) -> float:
    created = optimizer.learning_rate_schedule(schedule, learning_rate=0.1, total_steps=110, warmup_fraction=10 / 110)
    return float(created(step))


@pytest.mark.parametrize("schedule", optimizer.SCHEDULES)
def test_the_rate_rises_linearly_to_its_peak_and_the_first_step_moves(schedule):
    assert rate(schedule, 0) == pytest.approx(0.1 / 11)
    assert rate(schedule, 5) == pytest.approx(0.1 * 6 / 11)
    assert rate(schedule, 10) == pytest.approx(0.1)


def test_the_rate_decays_by_schedule():
    assert rate("constant", 110) == pytest.approx(0.1)
    assert rate("linear", 60) == pytest.approx(0.05)
    assert rate("cosine", 60) == pytest.approx(0.05)
    assert rate("linear", 110) == pytest.approx(0.0, abs=1e-9)
    assert rate("cosine", 110) == pytest.approx(0.0, abs=1e-9)


def update(grads=None, **changes):
    settings = {
        "learning_rate": optax.constant_schedule(0.1),
        "weight_decay": 0.0,
        "momentum": 0.0,
    }
    tx = optimizer.build(changes.pop("rule", "sgd"), **(settings | changes))
    grads = jax.tree.map(jnp.ones_like, PARAMS) if grads is None else grads
    return tx.update(grads, tx.init(PARAMS), PARAMS, jnp.ones(()))[0]


@pytest.mark.parametrize("rule", optimizer.RULES)
def test_the_state_follows_from_shapes_alone(rule):
    tx = optimizer.build(rule, learning_rate=optax.constant_schedule(0.1), weight_decay=0.1, momentum=0.9)
    shapes = jax.eval_shape(lambda: PARAMS)
    jax.tree.map(np.testing.assert_array_equal, tx.init(shapes), tx.init(PARAMS))


def test_sgd_without_momentum_is_minus_rate_times_gradient():
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.allclose(leaf, -0.1), update()))


def test_rates_scale_the_parts_that_their_patterns_name():
    scaled = update(rates={"backbone": 0.25, "head": 2.0, "head/bias": 0.5, "neck": 9.0})
    np.testing.assert_allclose(scaled["backbone"]["kernel"], -0.025, rtol=1e-6)
    np.testing.assert_allclose(scaled["head"]["kernel"], -0.2, rtol=1e-6)
    np.testing.assert_allclose(scaled["head"]["bias"], -0.1, rtol=1e-6)  # both patterns fit


def test_clipping_bounds_the_norm_of_all_parts_together():
    tx = optimizer.build(
        "sgd", learning_rate=optax.constant_schedule(1.0), weight_decay=0.0, momentum=0.0, rates={"a": 0.5}
    )
    sections = [{"a": jnp.array([2.0]), "b": jnp.array([[2.0, 1.0]])}, {"w": jnp.array([4.0])}]
    squares = [tx.squared_norm(section) for section in sections]
    np.testing.assert_allclose(squares, [9.0, 16.0])  # of the gradient, before any rate
    factor = optimizer.clip_factor(squares, 1.0)
    np.testing.assert_allclose(factor, 0.2)
    shortened = tx.update(sections[0], tx.init(sections[0]), sections[0], factor)[0]
    np.testing.assert_allclose(shortened["b"], [[-0.4, -0.2]], rtol=1e-6)
    np.testing.assert_allclose(shortened["a"], [-0.2], rtol=1e-6)
    assert optimizer.clip_factor(squares, 0.0) == optimizer.clip_factor(squares, 6.0) == 1.0


@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_is_not_clipped_to_one_that_is(wrong):
    factor = optimizer.clip_factor([jnp.square(wrong)], 1.0)
    assert not np.isfinite(wrong * factor)


def test_weight_decay_spares_biases():
    decayed = update(jax.tree.map(jnp.zeros_like, PARAMS), weight_decay=0.5)
    np.testing.assert_allclose(decayed["head"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(decayed["head"]["bias"], 0.0)


def test_adamw_s_first_step_has_the_size_of_the_rate():
    np.testing.assert_allclose(update(rule="adamw")["head"]["kernel"], -0.1, rtol=1e-4)


def test_packing_and_unpacking_give_the_tree_back():
    generator = np.random.default_rng(0)
    tree = jax.tree.map(lambda leaf: jnp.asarray(generator.normal(size=leaf.shape), jnp.float32), PARAMS)
    rates = {"backbone": 0.3}
    vectors = optimizer.pack(tree, rates)
    assert {group: vector.size for group, vector in vectors.items()} == {"kernel_0.3": 4, "kernel_1": 4, "vector_1": 2}
    jax.tree.map(np.testing.assert_array_equal, optimizer.unpack(vectors, rates, like=tree), tree)


def test_unknown_rules_and_schedules_are_refused():
    with pytest.raises(UserError, match="optimizer: expected one of adamw, sgd"):
        update(rule="lion")
    with pytest.raises(UserError, match="schedule: expected one of"):
        rate("step", 0)


def test_the_average_forgets_its_start_and_then_follows_with_the_decay():
    state = optimizer.EmaState({"w": jnp.array(0.0)}, jnp.array(0))
    state = optimizer.ema_update(state, {"w": jnp.array(1.0)}, 0.99)
    assert float(state.params["w"]) == pytest.approx(0.9)  # (1 + 0) / (10 + 0) of the old
    late = optimizer.EmaState({"w": jnp.array(0.0)}, jnp.array(100_000))
    assert float(optimizer.ema_update(late, {"w": jnp.array(1.0)}, 0.99).params["w"]) == pytest.approx(0.01)
