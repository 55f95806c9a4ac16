"""Balancing methods beside TorchJD's, on random, dependent and degenerate gradients."""

import functools
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
    "mgda": (None, {}),
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
}


# Up to a factor: these two make updates whose length does not grow with the gradients'.
BY_DIRECTION = ("nash_mtl", "fairgrad")
# Where the method leaves one answer. Elsewhere (dependent gradients, for most) answers are held to the method's own
# conditions, in test_balance.py.
UNIQUE = {
    "upgrad": ("independent", "of three decades", "rank 1", "rank 2", "a zero row", "equal rows", "opposite rows"),
    "dual_proj": ("independent", "of three decades", "rank 1", "rank 2", "a zero row", "equal rows", "opposite rows"),
    "imtl_g": ("independent", "of three decades", "rank 1", "rank 2", "a zero row", "equal rows", "opposite rows"),
    "aligned_mtl": ("independent", "rank 1", "rank 2", "a zero row", "equal rows", "opposite rows"),
    "config": ("independent", "of three decades", "a zero row", "equal rows", "opposite rows"),
    "cagrad": ("independent", "equal rows", "rank 2"),
    "nash_mtl": ("independent", "equal rows"),
    "fairgrad": ("independent", "a zero row", "equal rows"),
}


def gradients(kind, tasks):
    generator = np.random.default_rng(tasks)
    matrix = generator.normal(size=(tasks, 40))
    if kind.startswith("rank"):
        rank = int(kind[-1])
        matrix = generator.normal(size=(tasks, rank)) @ generator.normal(size=(rank, 40))
    elif kind == "of three decades":
        matrix *= 10.0 ** np.linspace(-1.5, 1.5, tasks)[:, None]
    elif kind != "independent":
        matrix[1] = {"a zero row": 0.0, "equal rows": 1.0, "opposite rows": -1.0}[kind] * matrix[0]
    return matrix.astype(np.float32)


@functools.cache
def compiled(name, **options):
    tx = balance.METHODS[name](**options)
    return tx.init(jnp.zeros(40)), jax.jit(tx.update)


def ours(name, matrix):
    state, update = compiled(name, **METHODS[name][1])
    result, state = update(jnp.asarray(matrix), state)
    return np.asarray(result, np.float64), float(state.residual)


def theirs(name, matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return METHODS[name][0](len(matrix))(torch.tensor(matrix.astype(np.float64))).numpy()


@pytest.mark.parametrize("tasks", [2, 3, 5, 16])
@pytest.mark.parametrize("name", UNIQUE)
def test_the_update_is_the_same_wherever_there_is_but_one(name, tasks):
    for kind in UNIQUE[name]:
        if kind == "rank 2" and tasks <= 2 + (name == "cagrad"):
            continue  # independent
        matrix = gradients(kind, tasks)
        expected, longest = theirs(name, matrix), np.linalg.norm(matrix, axis=1).max()
        for scale in (1e-6, 1.0, 1e6):
            update, residual = ours(name, matrix * np.float32(scale))
            length = np.linalg.norm(update) / np.linalg.norm(expected) if name in BY_DIRECTION else scale
            # Relative to the answer, but where it is zero up to rounding: to the longest gradient.
            tolerance = max(1e-4 * np.linalg.norm(expected), 1e-6 * longest)
            np.testing.assert_allclose(update / length, expected, atol=tolerance, err_msg=f"{kind}, scale {scale:g}")
            assert residual < 1e-3


@pytest.mark.parametrize("tasks", [2, 3, 5, 16])
def test_mgda_s_update_is_the_same_or_shorter(tasks):
    peer = aggregation.MGDA(epsilon=1e-9, max_iters=2000)
    for kind in ("independent", "of three decades", "rank 2", "a zero row", "equal rows", "opposite rows"):
        matrix = gradients(kind, tasks)
        update, expected = ours("mgda", matrix)[0], peer(torch.tensor(matrix.astype(np.float64))).numpy()
        assert np.linalg.norm(update) <= (1 + 1e-5) * np.linalg.norm(expected) + 1e-5, kind


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
