"""Balancing methods: pinned values, properties over random gradients, and use as Optax transforms."""

import doctest
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import balance
from mtl_jax.balance import gradient_weights, transform

CONFLICT = jnp.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
LOSSES = jnp.array([1.0, 2.0])
# The first update on CONFLICT and LOSSES. Values that independent implementations agree on:
PINNED = {
    "sum": [2.0, 2.0, 2.0],
    "mean": [1.0, 1.0, 1.0],
    "fixed": [2.0, 2.0, 2.0],
    "pcgrad": [0.5848, 3.8012, 3.8012],
    "gradvac": [0.5848, 3.8012, 3.8012],
    "mgda": [0.0, 1.0, 1.0],
    "cagrad": [0.1835, 1.2041, 1.2041],
    "nash_mtl": [0.0542, 0.7061, 0.7061],
    "fairgrad": [0.0766, 0.9985, 0.9985],
    "imtl_g": [0.0767, 1.0, 1.0],
    "aligned_mtl": [0.2133, 0.9673, 0.9673],
    "upgrad": [0.2929, 1.9004, 1.9004],
    "dual_proj": [0.5563, 1.1109, 1.1109],
    "config": [0.1588, 2.0706, 2.0706],
}
# By hand: even weights at first, half a gradient each in the averages, the geometric mean's sqrt(2) / (2 loss), …
PINNED |= {
    "modo": [1.0, 1.0, 1.0],
    "moco": [-0.125, 0.5, 0.5],  # the inner products of the halves move the even weights to 5/8 and 3/8
    "db_mtl": [0.0129, 0.1688, 0.1688],
    "uncertainty": [1.0, 1.0, 1.0],
    "imtl_l": [2.0, 2.0, 2.0],
    "dwa": [2.0, 2.0, 2.0],
    "gls": [-0.7071, 1.0607, 1.0607],
    "stch": [1.1123, 0.5, 0.5],
    "famo": [-0.6667, 1.0, 1.0],
    "gradnorm": [2.0, 2.0, 2.0],
    "dtp": [7.8475, 2.3614, 2.3614],
}
# Drawn, or at the end of a search: the seed's own.
PINNED |= {
    "random": [2.0031, 1.0, 1.0],
    "rlw": [2.0031, 1.0, 1.0],
    "graddrop": [6.0, 2.0, 2.0],
    "sdmgrad": [4.8462, 1.0, 1.0],
    "excess_mtl": [4.8080, 1.0, 1.0],
}
WANDERING = ("graddrop", "db_mtl", "uncertainty", "imtl_l", "gradnorm", "dtp")
# A task alone: its direction always; its length too but for those that weigh even a single task by its loss, by the
# length of its gradient, or by averages that begin at zero.
NOT_PLAIN = {"cagrad", "nash_mtl", "fairgrad", "uncertainty", "dtp", "moco", "db_mtl"}
shortest = jax.jit(gradient_weights.mgda_weights)
EVERY_METHOD = pytest.mark.parametrize("name", balance.METHODS)


@functools.cache
def compiled(name, **options):
    tx = balance.METHODS[name](**options)
    return tx.init, jax.jit(tx.update)


def step_of(name, task_grads, params=None, losses=None, **options):
    """The first update and the state after it."""
    tasks = next((leaf.shape[0] for leaf in jax.tree.leaves(task_grads) if leaf.ndim), 0)
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), task_grads) if params is None else params
    init, update = compiled(name, **options)
    return update(task_grads, init(like), params, task_losses=jnp.ones(tasks) if losses is None else losses)


def update_of(name, task_grads, params=None, losses=None, **options):
    return step_of(name, task_grads, params, losses, **options)[0]


def random_gradients(seed, tasks=3, size=8, rank=3, scale=1.0):
    generator = np.random.default_rng(seed)
    matrix = generator.normal(size=(tasks, rank)) @ generator.normal(size=(rank, size))
    return jnp.asarray(scale * matrix, jnp.float32)


def test_every_method_has_a_pinned_value():
    assert set(PINNED) == set(balance.METHODS)


@EVERY_METHOD
def test_the_update_is_the_pinned_one(name):
    np.testing.assert_allclose(update_of(name, CONFLICT, losses=LOSSES), PINNED[name], atol=1e-4)


@EVERY_METHOD
def test_the_state_tells_the_weights_that_made_the_update(name):
    update, state = step_of(name, CONFLICT, losses=LOSSES)
    assert state.residual < 1e-5
    if name in ("moco", "db_mtl", "graddrop"):  # which combine something else than the gradients
        return
    np.testing.assert_allclose(state.task_weights[:2] @ CONFLICT, update, rtol=1e-5, atol=1e-5)
    assert not state.task_weights[2:].any()


@pytest.mark.parametrize("name", ["sum", "mgda", "moco", "modo", "db_mtl", "excess_mtl"])  # one of each way to the tree
def test_the_gradient_may_be_split_into_leaves_of_any_shape(name):
    full = random_gradients(0)
    split = {"a": full[:, :6].reshape(3, 2, 1, 3), "b": [full[:, 6], full[:, 7:]]}
    update = update_of(name, split, {"a": jnp.zeros((2, 1, 3)), "b": [jnp.zeros(()), jnp.zeros(1)]})
    joined = jnp.concatenate([update["a"].ravel(), update["b"][0][None], update["b"][1]])
    np.testing.assert_allclose(joined, update_of(name, full), rtol=1e-4, atol=1e-5)


@EVERY_METHOD
def test_a_single_task_goes_its_own_way(name):
    gradient = random_gradients(1, tasks=1)
    update = update_of(name, gradient)
    length = jnp.linalg.norm(update) if name in NOT_PLAIN else jnp.linalg.norm(gradient)
    assert length > 0
    np.testing.assert_allclose(update, gradient[0] / jnp.linalg.norm(gradient) * length, rtol=1e-4, atol=1e-5)


@EVERY_METHOD
def test_zero_gradients_give_a_zero_update(name):
    np.testing.assert_array_equal(update_of(name, jnp.zeros((2, 3))), np.zeros(3))


@EVERY_METHOD
@pytest.mark.parametrize("wrong", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_is_never_hidden(name, wrong):
    update = update_of(name, jnp.array([[1.0, 2.0, 3.0], [1.0, wrong, 3.0]]), losses=LOSSES)
    assert not np.isfinite(update[1])


@EVERY_METHOD
def test_the_update_keeps_the_gradients_dtype(name):
    tx = balance.METHODS[name]()
    state = tx.init(jnp.zeros(3))
    shapes = jax.eval_shape(lambda: tx.update(CONFLICT.astype(jnp.bfloat16), state, task_losses=LOSSES))
    assert shapes[0].dtype == jnp.bfloat16
    assert jax.tree.structure(shapes[1]) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(shapes[1])] == [leaf.dtype for leaf in jax.tree.leaves(state)]


@EVERY_METHOD
def test_chained_with_optax_it_settles_between_two_parabolas_without_recompiling(name):
    minima = {"x": jnp.array([[1.0, 0.0], [-1.0, 2.0]]), "y": jnp.array([3.0, 1.0])}
    params = {"x": jnp.array([4.0, -3.0]), "y": jnp.zeros(())}
    tx = optax.chain(
        balance.METHODS[name](),
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(0.3, 300), weight_decay=0.0),
    )
    traces = []

    def losses_of(params):
        return jnp.square(params["x"][None, :] - minima["x"]).sum(1) + jnp.square(params["y"] - minima["y"])

    @jax.jit
    def step(params, state):
        traces.append(1)
        task_grads = jax.jacrev(losses_of)(params)
        update, state = tx.update(task_grads, state, params, task_losses=losses_of(params))
        return optax.apply_updates(params, update), state

    @jax.jit
    def gramian_at_the_end(params, state):
        params, _ = jax.lax.fori_loop(0, 300, lambda _, carry: step(*carry), (params, state))
        return transform.gramian(jax.jacrev(losses_of)(params))

    state = tx.init(params)
    after = jax.eval_shape(step, *jax.eval_shape(step, params, state))
    assert len(traces) == 1, "it recompiles"
    assert jax.tree.structure(after) == jax.tree.structure((params, state))
    # Pareto stationary: some convex combination of the gradients is zero, here only between the minima. Weights that
    # follow the losses still move while the steps vanish, and draws wander: from a squared length of 150 to below 1.
    gramian = gramian_at_the_end(params, state)
    weights = shortest(gramian).weights
    assert float(weights @ gramian @ weights) < (1.0 if name in WANDERING else 1e-4)


WRONG = (
    ({"a": (2, 3), "b": (3, 1)}, r"\[2, 1\] at \['b'\], found \[3, 1\]: stack one gradient"),
    ({"a": (2, 3), "b": ()}, r"at \['b'\], found \[\]"),
    ({"a": (3,), "b": (1,)}, r"\[tasks, 3\] at \['a'\], found \[3\]"),
    ({"a": (0, 3), "b": (0, 1)}, r"found \[0, 3\]"),
    ({"a": (2, 3)}, "structure of params"),
    ({}, "empty tree"),
)


@EVERY_METHOD
def test_a_wrong_leading_axis_is_refused(name):
    params = {"a": np.ones(3, np.float32), "b": np.ones(1, np.float32)}
    for shapes, words in WRONG:
        with pytest.raises(ValueError, match=words):
            update_of(name, {key: np.ones(shape, np.float32) for key, shape in shapes.items()}, params)


def test_unequal_leading_axes_are_refused_without_params_too():
    with pytest.raises(ValueError, match=r"\[2, \*param_shape\] at \[1\], found \[3, 1\]"):
        update_of("sum", [jnp.ones((2, 3)), jnp.ones((3, 1))])


@EVERY_METHOD
def test_losses_that_do_not_match_the_tasks_are_refused(name):
    tx = balance.METHODS[name]()
    with pytest.raises(ValueError, match=r"task_losses of shape \[2\].*found \[3\]"):
        tx.update(CONFLICT, tx.init(jnp.zeros(3)), task_losses=jnp.ones(3))


BY_LOSS = ("db_mtl", "uncertainty", "imtl_l", "dwa", "gls", "rlw", "stch", "famo", "gradnorm", "dtp")


@EVERY_METHOD
def test_missing_losses_are_refused_where_they_are_needed_and_nowhere_else(name):
    tx = balance.METHODS[name]()
    if name not in BY_LOSS:
        jax.eval_shape(lambda: tx.update(CONFLICT, tx.init(jnp.zeros(3))))
        return
    with pytest.raises(ValueError, match=f"expected task_losses for {name}"):
        tx.update(CONFLICT, tx.init(jnp.zeros(3)))


def test_mgda_by_losses_refuses_missing_ones():
    tx = balance.mgda(normalise="loss")
    with pytest.raises(ValueError, match="expected task_losses"):
        tx.update(CONFLICT, tx.init(jnp.zeros(3)))


@EVERY_METHOD
def test_unknown_extra_arguments_are_ignored(name):
    tx = balance.METHODS[name]()
    result, _ = jax.eval_shape(lambda: tx.update(CONFLICT, tx.init(jnp.zeros(3)), task_losses=LOSSES, value=3.0))
    assert result.shape == (3,)


@EVERY_METHOD
def test_the_example_of_the_docstring_runs(name):
    factory = balance.METHODS[name]
    example = doctest.DocTestParser().get_doctest(factory.__doc__, {}, factory.__name__, None, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("shape", [(3, 1000), (5, 17, 4), (7,)])
def test_the_sum_is_bit_for_bit_the_added_gradients(shape):
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=shape) * 10.0 ** generator.integers(-6, 6, size=shape)
    task_grads = jnp.asarray(numbers, jnp.float32)
    np.testing.assert_array_equal(update_of("sum", task_grads), task_grads.sum(axis=0))


def test_the_sum_is_the_plain_gradient_of_the_added_losses():
    params, image = random_gradients(0, tasks=6, size=4), random_gradients(1, tasks=5, size=6)

    def losses_of(params):
        hidden = jnp.tanh(image @ params)
        return jnp.stack([jnp.sum(hidden**2), jnp.sum(jnp.sin(hidden))])

    update = update_of("sum", jax.jacrev(losses_of)(params), params)
    np.testing.assert_allclose(update, jax.grad(lambda p: losses_of(p).sum())(params), rtol=1e-5, atol=1e-5)


def test_fixed_weights_multiply_the_gradients():
    np.testing.assert_array_equal(update_of("fixed", CONFLICT, weights=(0.5, 2.0)), [10.0, 2.5, 2.5])


def test_fixed_weights_of_another_number_than_the_tasks_are_refused():
    with pytest.raises(ValueError, match="one weight for each of 2 task gradients, found 3"):
        update_of("fixed", CONFLICT, weights=(1.0, 1.0, 1.0))


def project_one_by_one(gradients, orders):
    """PCGrad as published, on the gradients themselves."""
    total = np.zeros(gradients.shape[1])
    for task, order in enumerate(orders):
        projected = gradients[task].copy()
        for another in order:
            inner = projected @ gradients[another]
            if another != task and inner < 0:
                projected -= inner / (gradients[another] @ gradients[another]) * gradients[another]
        total += projected
    return total


@pytest.mark.parametrize("seed", range(3))
def test_pcgrad_equals_the_projection_of_the_gradients_in_some_order(seed):
    gradients = random_gradients(seed, rank=2)  # a plane: three gradients there conflict often
    update = update_of("pcgrad", gradients, seed=seed)
    matrix = np.asarray(gradients, np.float64)
    peers = [list(itertools.permutations([second for second in range(3) if second != task])) for task in range(3)]
    possible = [project_one_by_one(matrix, orders) for orders in itertools.product(*peers)]
    assert min(np.abs(update - first).max() for first in possible) < 1e-4


def test_pcgrad_draws_a_new_order_at_every_step_and_repeats_with_its_seed():
    gradients = jnp.array([[-1.0, 0.2, 0.0], [0.9, 1.0, 0.3], [0.8, -1.5, 0.5]])

    @jax.jit
    def followed(state):
        return jax.lax.scan(lambda state, _: balance.pcgrad().update(gradients, state)[::-1], state, length=12)[1]

    def updates(seed):
        return followed(balance.pcgrad(seed=seed).init(jnp.zeros(3)))

    assert len(np.unique(np.asarray(updates(0)).round(4), axis=0)) > 1
    np.testing.assert_array_equal(updates(0), updates(0))
    assert not np.array_equal(updates(0), updates(1))


def test_pcgrad_adds_gradients_that_agree():
    gradients = jnp.abs(random_gradients(3))
    np.testing.assert_allclose(update_of("pcgrad", gradients), gradients.sum(0), rtol=1e-6)


# Properties that methods claim. MGDA, CAGrad with a large ball, UPGrad and the other projections oppose no task.
NON_CONFLICTING = ("mgda", "upgrad", "dual_proj", "config", "imtl_g", "nash_mtl", "fairgrad", "aligned_mtl")
# The same update whatever the order of the tasks; the others draw orders, coordinates or weights.
DRAWN = ("pcgrad", "gradvac", "graddrop", "random", "rlw")
# As long as the gradients. Nash-MTL's is of length 1, FairGrad's the root of theirs, DB-MTL's and those of methods that
# search in steps of given size depend on the loss or on the scale in other ways.
SCALING = ("sum", "mean", "fixed", "pcgrad", "gradvac", "graddrop", "mgda", "cagrad", "imtl_g", "aligned_mtl",
           "upgrad", "dual_proj", "config", "uncertainty", "imtl_l", "dwa", "gls", "rlw", "stch", "famo", "gradnorm",
           "dtp", "random")  # fmt: skip


@pytest.mark.parametrize("name", NON_CONFLICTING)
@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (3, 8), (7, 16)])  # two of the shapes of other tests: compiled
def test_the_update_opposes_no_task(name, tasks, size):
    for seed in range(3):
        gradients = random_gradients(seed, tasks=tasks, size=size, rank=size)
        options = {"regularisation": 0.0} if name in ("upgrad", "dual_proj") else {}
        update = np.asarray(update_of(name, gradients, **options), np.float64)
        gains = np.asarray(gradients, np.float64) @ update
        lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(update)
        if name == "aligned_mtl":  # opposes no principal component of the gradients
            rows = np.linalg.svd(np.asarray(gradients, np.float64), full_matrices=False)[2]
            gains = (rows @ update) * np.sign(rows @ np.asarray(gradients, np.float64).mean(0))
        assert (gains >= -1e-4 * lengths.min()).all()


@pytest.mark.parametrize("name", [name for name in balance.METHODS if name not in DRAWN])
def test_the_order_of_the_tasks_does_not_matter(name):
    gradients, losses, order = random_gradients(4), jnp.array([0.3, 1.0, 2.0]), jnp.array([2, 0, 1])
    local, present = update_of(name, gradients, losses=losses), update_of(name, gradients[order], losses=losses[order])
    np.testing.assert_allclose(present, local, rtol=1e-3, atol=1e-4 * float(jnp.linalg.norm(local)))


@pytest.mark.parametrize("name", SCALING)
def test_the_update_grows_with_the_gradients(name):
    gradients = random_gradients(5)
    update = update_of(name, gradients)
    for scale in (1e-6, 1e6):
        scaled = update_of(name, scale * gradients) / scale
        np.testing.assert_allclose(scaled, update, rtol=1e-3, atol=1e-4 * float(jnp.linalg.norm(update)))


@pytest.mark.parametrize("tasks", [2, 16])
def test_cagrad_leaves_no_direction_of_the_ball_in_which_the_worst_task_gains_more(tasks):
    for seed, opposite in itertools.product(range(3), (False, True)):
        gradients = np.array(random_gradients(seed, tasks=tasks, size=20, rank=20))
        if opposite:
            gradients[1] = -gradients[0]
        update, state = step_of("cagrad", jnp.asarray(gradients))
        wide, update = gradients.astype(np.float64), np.asarray(update, np.float64)
        mean = wide.mean(0)
        radius = 0.5 * np.linalg.norm(mean)
        assert np.linalg.norm(update - mean) <= 1.001 * radius + 1e-6
        gain, longest = (wide @ update).min(), np.square(wide).sum(1).max()
        # Weights of sum 1 bound what any direction of the ball can give the worst task: those found, or of the pair.
        result = np.maximum(np.asarray(state.task_weights[:tasks], np.float64) - 1 / tasks, 1e-12)
        pair = np.eye(2, tasks).sum(0) if opposite else np.ones(tasks)
        combined = [weights / weights.sum() @ wide for weights in (result, pair)]
        bound = min(gradient @ mean + radius * np.linalg.norm(gradient) for gradient in combined)
        assert gain >= bound - 1e-4 * longest


@pytest.mark.parametrize("tasks", [2, 16])
@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_gains_times_weights_are_the_same_for_all_tasks(name, tasks):
    gradients = random_gradients(tasks, tasks=tasks, size=20, rank=20) * 10.0 ** jnp.linspace(-2, 2, tasks)[:, None]
    update, state = step_of(name, gradients)
    products = (np.asarray(gradients, np.float64) @ np.asarray(update, np.float64)) * state.task_weights[:tasks]
    np.testing.assert_allclose(products, products.mean(), rtol=1e-3)
    assert state.residual < 1e-4


def test_a_solver_that_finds_no_answer_says_so():
    opposite = jnp.array([[1.0, 2.0], [-1.0, -2.0]])  # no direction is a gain for both
    assert step_of("nash_mtl", opposite)[1].residual > 1e-2
    assert step_of("fairgrad", opposite)[1].residual > 1e-2


def test_gradnorm_s_weights_follow_the_finite_differences_of_its_definition():
    rates = {"alpha": 0.7, "learning_rate": 0.1, "momentum": 0.0}
    gradients, first, later = random_gradients(6, rank=8), jnp.array([1.0, 2.0, 4.0]), jnp.array([0.9, 0.8, 3.0])
    init, update = compiled("gradnorm", **rates)
    _, state = update(gradients, init(jnp.zeros(8)), task_losses=first)
    before = np.asarray(update(gradients, state, task_losses=later)[1].task_weights[:3], np.float64)
    _, state = update(gradients, state, task_losses=later)
    after = np.asarray(update(gradients, state, task_losses=later)[1].task_weights[:3], np.float64)
    lengths = np.linalg.norm(np.asarray(gradients, np.float64), axis=1)
    ratios = np.asarray(later, np.float64) / np.asarray(first, np.float64)
    # Chen et al., equation 2: the distance of the weighted lengths from their mean times the relative inverse rates,
    # the right side held constant; in units of that mean.
    mean = (before * lengths).mean()
    requested = mean * (ratios / ratios.mean()) ** 0.7

    def distance(weights):
        return np.abs(weights * lengths - requested).sum() / mean

    steps = 1e-6 * np.eye(3)
    slope = np.array([(distance(before + step) - distance(before - step)) / 2e-6 for step in steps])
    moved = before - 0.1 * slope
    np.testing.assert_allclose(after, 3 * moved / moved.sum(), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8, 1e15])
@pytest.mark.parametrize(("tasks", "rank"), [(2, 1), (2, 2), (3, 2), (5, 5), (9, 4)])
def test_mgda_finds_the_shortest_point_of_the_convex_hull(tasks, rank, scale):
    gradients = random_gradients(tasks + rank, tasks=tasks, size=12, rank=rank) + 0.2
    update = np.asarray(update_of("mgda", scale * gradients), np.float64) / scale
    # The shortest point d is the one with d @ g >= d @ d for every gradient g.
    slack = np.asarray(gradients, np.float64) @ update - update @ update
    assert slack.min() > -1e-4 * np.square(gradients).sum(axis=1).max()


def test_mgda_is_not_led_astray_by_tasks_of_different_magnitude():
    gramian = jnp.diag(jnp.array([1.0, 1e6, 1e12]))
    weights = shortest(gramian).weights
    np.testing.assert_allclose(weights[:2], [1.0, 1e-6], rtol=1e-3)
    assert float(weights @ gramian @ weights) == pytest.approx(1.0, rel=1e-5)


def test_mgda_takes_the_shorter_of_parallel_gradients():
    np.testing.assert_allclose(update_of("mgda", jnp.array([[3.0, 0.0], [1.0, 0.0]])), [1.0, 0.0], atol=1e-6)


def test_mgda_normalised_by_length_gives_orthogonal_tasks_equal_weights():
    gradients = jnp.array([[10.0, 0.0], [0.0, 0.1]])
    np.testing.assert_allclose(update_of("mgda", gradients, normalise="l2"), [5.0, 0.05], rtol=1e-5)


def test_mgda_normalised_by_loss_weights_by_it():
    tx = balance.mgda(normalise="loss")
    update, _ = tx.update(jnp.eye(2), tx.init(jnp.zeros(2)), task_losses=jnp.array([1.0, 3.0]))
    # Divided by the losses the squared lengths are 1 and 1/9, and the weights inverse to them.
    np.testing.assert_allclose(update, [0.1, 0.9], rtol=1e-5)


def test_mgda_refuses_an_unknown_normalisation():
    with pytest.raises(ValueError, match='found "max"'):
        balance.mgda(normalise="max")


ON_LOSSES = [name for name, factory in balance.METHODS.items() if isinstance(factory(), balance.OnLosses)]


@pytest.mark.parametrize("name", ON_LOSSES)
def test_weights_that_need_no_gradient_are_those_of_the_update(name):
    """Unit vectors in the place of gradients show the weights that an update has used."""
    tx, losses = balance.METHODS[name](), jnp.array([1.0, 2.0])
    state = tx.init(jnp.zeros(2))
    used, expected = tx.update(jnp.eye(2), state, None, task_losses=losses)
    weights, after = tx.weigh(losses, state)
    np.testing.assert_array_equal(weights, used)
    np.testing.assert_array_equal(after.task_weights, expected.task_weights)
