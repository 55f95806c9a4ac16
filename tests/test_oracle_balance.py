"""Balancing methods beside TorchJD's, on random, dependent and degenerate gradients."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import balance

torch = pytest.importorskip("torch")
aggregation = pytest.importorskip("torchjd.aggregation", reason="needs torchjd: pip install -e '.[oracle]'")
linalg = pytest.importorskip("torchjd.linalg")
scalarization = pytest.importorskip("torchjd.scalarization")
pytestmark = pytest.mark.filterwarnings("ignore")

# No more regularisation there than float64 needs, and as little here.
PROJECTOR = {"norm_eps": 1e-30, "reg_eps": 1e-11}
METHODS = {
    "upgrad": (
        lambda m: aggregation.UPGrad(projector=linalg.QuadprogProjector(**PROJECTOR)),
        {"regularisation": 1e-11},
    ),
    "dual_proj": (
        lambda m: aggregation.DualProj(projector=linalg.QuadprogProjector(**PROJECTOR)),
        {"regularisation": 1e-11},
    ),
    "cagrad": (lambda m: aggregation.CAGrad(c=0.5, norm_eps=1e-12), {}),
    "nash_mtl": (lambda m: aggregation.NashMTL(n_tasks=m), {}),
    "fairgrad": (lambda m: aggregation.FairGrad(alpha=1.0), {}),
    "imtl_g": (lambda m: aggregation.IMTLG(), {}),
    "aligned_mtl": (lambda m: aggregation.AlignedMTL(), {}),
    "config": (lambda m: aggregation.ConFIG(), {}),
    "gradvac": (lambda m: aggregation.GradVac(), {}),
}


def gradients(tasks, rank, seed=0):
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(tasks, rank)) @ generator.normal(size=(rank, 40))).astype(np.float32)


def ours(name, matrix, **options):
    tx = balance.METHODS[name](**options)
    update, state = jax.jit(tx.update)(jnp.asarray(matrix), tx.init(jnp.zeros(matrix.shape[1])))
    return np.asarray(update, np.float64), float(state.residual)


def theirs(name, matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METHODS[name][0](len(matrix))(torch.tensor(matrix.astype(np.float64))).numpy()


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "gradvac"])
def test_independent_gradients_give_the_same_update_at_any_scale(name, tasks):
    generator = np.random.default_rng(tasks)
    matrix = generator.normal(size=(tasks, 40)).astype(np.float32)
    expected = theirs(name, matrix)
    for scale in (1e-6, 1.0, 1e6):
        update, residual = ours(name, matrix * np.float32(scale), **METHODS[name][1])
        # The lengths of these two do not grow with the gradients': only the direction is compared.
        length = np.linalg.norm(update) / np.linalg.norm(expected) if name in ("nash_mtl", "fairgrad") else scale
        np.testing.assert_allclose(update / length, expected, atol=1e-4 * np.linalg.norm(expected))
        assert residual < 1e-3


@pytest.mark.parametrize("name", ["upgrad", "dual_proj"])
@pytest.mark.parametrize("kind", ["rank 1", "rank 2", "a zero row", "two equal rows", "two opposite rows", "16 tasks"])
def test_projections_are_the_same_for_dependent_gradients(name, kind):
    matrix = gradients(4, {"rank 1": 1, "rank 2": 2}.get(kind, 4), seed=3)
    if kind == "16 tasks":
        matrix = np.random.default_rng(5).normal(size=(16, 40)).astype(np.float32)
    elif "row" in kind:
        matrix[1] = {"a": 0.0, "two equal": 1.0, "two opposite": -1.0}[
            kind.rsplit(" ", 2 if kind[0] == "a" else 1)[0]
        ] * matrix[0]
    update, residual = ours(name, matrix, **METHODS[name][1])
    longest = np.linalg.norm(matrix, axis=1).max()
    np.testing.assert_allclose(update, theirs(name, matrix), atol=1e-4 * longest)
    assert residual < 1e-4


def test_two_tasks_leave_gradvac_no_order_and_its_averages_agree_over_steps():
    generator = np.random.default_rng(0)
    tx, peer = balance.METHODS["gradvac"](), aggregation.GradVac(eps=0.0)
    state, step = tx.init(jnp.zeros(40)), jax.jit(tx.update)
    for _ in range(5):
        matrix = generator.normal(size=(2, 40)).astype(np.float32)
        update, state = step(jnp.asarray(matrix), state)
        np.testing.assert_allclose(update, peer(torch.tensor(matrix.astype(np.float64))).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("sdmgrad", lambda: aggregation.SDMGradWeighting()),
        ("excess_mtl", lambda: aggregation.ExcessMTLWeighting()),
    ],
)
def test_searches_take_the_same_weights_over_steps(name, peer):
    generator = np.random.default_rng(1)
    tx, peer = balance.METHODS[name](), peer()
    state, step = tx.init(jnp.zeros(40)), jax.jit(tx.update)
    for _ in range(4):
        matrix = generator.normal(size=(3, 40)).astype(np.float32)
        _, state = step(jnp.asarray(matrix), state)
        wide = torch.tensor(matrix.astype(np.float64))
        expected = peer(wide @ wide.T if name == "sdmgrad" else wide)
        np.testing.assert_allclose(state.task_weights[:3], expected.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "peer", "factor"),
    [
        ("uncertainty", lambda: scalarization.UW(3), 1.0),
        ("imtl_l", lambda: scalarization.IMTLL(3), 1.0),
        ("gls", lambda: scalarization.GeometricMean(), 1.0),
        ("stch", lambda: scalarization.STCH(mu=1.0), 1.0),
        ("famo", lambda: scalarization.FAMO(3), 1.0),
        ("dwa", lambda: scalarization.DWA(), 1.0),
    ],
)
def test_loss_methods_begin_with_the_gradient_of_the_same_scalar(name, peer, factor):
    losses = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64, requires_grad=True)
    peer()(losses).backward()
    tx = balance.METHODS[name]()
    _, state = tx.update(jnp.eye(3), tx.init(jnp.zeros(3)), task_losses=jnp.array([0.5, 2.0, 7.0]))
    np.testing.assert_allclose(state.task_weights[:3], factor * losses.grad.numpy(), rtol=1e-4)
