"""Gradient projection memory: what is held, that updates leave it alone, and where it is refused."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import tiny_config

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.continual import held_space, memory
from mtl_jax.errors import UserError
from mtl_jax.models import kernel_inputs, multi_task
from mtl_jax.models.patterns import path_of
from mtl_jax.training import stage_checkpoints, stage_plan, train_loop
from mtl_jax.training.stage_view import StageView
from mtl_jax.workdir import checkpoints


def covariance(seed=0, *, groups=1, inputs=12, rank=12, rows=40):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(groups, rows, rank)) * 0.5 ** np.arange(rank)
    x = x @ generator.normal(size=(groups, rank, inputs))
    return np.einsum("gni,gnj->gij", x, x), x


def held_share(basis, observed):
    inside = np.einsum("gih,gij,gjh->g", basis, observed, basis, dtype=np.float64)
    return inside / np.trace(observed, axis1=1, axis2=2)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_basis_is_orthonormal_and_holds_its_share_with_the_fewest_directions(groups):
    observed, _ = covariance(groups=groups)
    basis = held_space.extend(None, observed, energy=0.9)
    for group in basis:
        custom = group[:, group.any(axis=0)]
        np.testing.assert_allclose(custom.T @ custom, np.eye(custom.shape[1]), atol=1e-6)
    share = held_share(basis, observed)
    assert (share >= 0.9 - 1e-6).all()
    eigenvalues = np.linalg.eigvalsh(observed)[:, ::-1]
    fewest = (np.cumsum(eigenvalues, 1) / eigenvalues.sum(1, keepdims=True) < 0.9).sum(1) + 1
    np.testing.assert_array_equal(basis.any(axis=1).sum(axis=1), fewest)


def test_more_energy_holds_more_and_all_of_it_what_was_seen():
    observed, x = covariance(rank=5)
    sizes = [held_space.extend(None, observed, energy=energy).shape[-1] for energy in (0.3, 0.6, 0.9, 0.99, 1.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    basis = held_space.extend(None, observed, energy=1.0)[0]
    np.testing.assert_allclose(x[0] @ basis @ basis.T, x[0], atol=1e-5)


def test_a_later_stage_adds_only_what_is_not_held_yet():
    first, second = covariance(0, rank=3)[0], covariance(1, rank=3)[0]
    basis = held_space.extend(None, first, energy=0.99)
    np.testing.assert_array_equal(held_space.extend(basis, first, energy=0.99), basis)
    both = held_space.extend(basis, second, energy=0.99)
    np.testing.assert_allclose(both[..., : basis.shape[-1]], basis, atol=1e-6)
    np.testing.assert_allclose(both[0].T @ both[0], np.eye(both.shape[-1]), atol=1e-6)
    assert min(held_share(both, first)[0], held_share(both, second)[0]) >= 0.99 - 1e-6


def test_a_kernel_that_read_nothing_but_zeros_is_free():
    held = held_space.remember(held_space.NOTHING, {"kernel": np.zeros((1, 1, 4, 4))}, ["bias"], energy=0.9)
    assert held == held_space.Held({}, ("bias",))


@pytest.mark.parametrize(("shape", "groups"), [((12, 5), 1), ((2, 2, 3, 5), 1), ((2, 2, 1, 5), 5)])
def test_projected_updates_leave_what_held_inputs_give_and_projecting_again_changes_nothing(key, shape, groups):
    inputs = 4 if groups > 1 else 12
    observed, x = covariance(groups=groups, inputs=inputs, rank=3)
    updates = {"layer": {"kernel": jax.random.normal(key, shape), "bias": jnp.ones(5)}}
    bases = {"layer/kernel": held_space.extend(None, observed, energy=1.0)}
    once = held_space.project(updates, bases)
    np.testing.assert_array_equal(once["layer"]["bias"], updates["layer"]["bias"])
    np.testing.assert_allclose(held_space.project(once, bases)["layer"]["kernel"], once["layer"]["kernel"], atol=1e-6)
    matrices = kernel_inputs.by_group(once["layer"]["kernel"], groups)
    assert np.abs(np.asarray(matrices)).max() > 0.1
    np.testing.assert_allclose(np.einsum("gni,gio->gno", x, matrices), 0, atol=1e-5)


def test_what_is_held_survives_a_checkpoint_bit_for_bit():
    held = held_space.Held({"neck/a/kernel": held_space.extend(None, covariance()[0], energy=0.9)}, ("neck/a/bias",))
    again = held_space.from_tree(held_space.to_tree(held))
    assert again.other_params == held.other_params
    assert again.bases.keys() == held.bases.keys()
    np.testing.assert_array_equal(again.bases["neck/a/kernel"], held.bases["neck/a/kernel"])
    assert held_space.from_tree({}) == held_space.NOTHING


LATER = {"train_batch_norm": "new_levels", "weight_decay": 0.1}


def held_config(**later):
    """Four images are seen, which have fewer patches than a kernel of the head has inputs."""
    config = tiny_config()
    config.image_size = 32
    config.streams.masks.options.length = 4
    config.stages.seg.keep.gpm = {"energy": 1.0, "images": 4}
    config.stages.cls = config_lib.stage(("single",), **({"epochs": 1.0} | LATER | later))
    return config


def training_images(sections):
    """All four of the first stage, as they are."""
    source = experiment.source(sections, "masks", training=True)
    return jnp.stack([example["image"] for example in experiment.examples(sections, "masks", source)])


@pytest.mark.usefixtures("no_report", "tiny_backbone")
def test_a_later_stage_moves_shared_kernels_beside_what_is_held_and_leaves_old_outputs(tmp_path):
    config = held_config()
    train_loop.train_and_evaluate(config, tmp_path)
    before, after = (tmp_path / "checkpoints" / name for name in ("0-seg", "1-cls"))
    old, new = (checkpoints.load(path, {"variables": None})["variables"] for path in (before, after))
    assert np.abs(new["params"]["head"]["conv_0"]["kernel"] - old["params"]["head"]["conv_0"]["kernel"]).max() > 1e-4
    setup = experiment.build(config.to_dict(), data_root=tmp_path)
    raw = jax.jit(functools.partial(multi_task.eval_raw, setup.model, image=training_images(setup), tasks=("seg",)))
    np.testing.assert_allclose(raw(new)[0]["seg"], raw(old)[0]["seg"], atol=1e-5)

    # What is held comes back from the checkpoint: the shared kernels have moved beside it, and nothing else has.
    held = stage_checkpoints.read(before, config_lib.resolve(config), setup).memory["gpm"]
    moved = jax.tree.map(lambda end, start: jnp.asarray(end - start), new["params"], old["params"])
    largest = {path_of(path): np.abs(leaf).max() for path, leaf in jax.tree_util.tree_leaves_with_path(moved)}
    assert all(largest[path] == 0 for path in held.other_params)
    assert max(largest[path] for path in held.bases) > 1e-4
    projected = jax.jit(held_space.project)(moved, held.bases)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), projected, moved)


@pytest.fixture(scope="module")
def network(tiny_backbone):
    setup = experiment.build(held_config().to_dict(), data_root=Path())
    return setup, experiment.abstract_variables(setup)


@pytest.mark.parametrize(
    ("first", "later", "words"),
    [
        ({}, {"train_batch_norm": "everywhere"}, 'moves the running statistics of .*train_batch_norm="new_levels"'),
        ({"layers": ("neck", "head")}, {}, "trains backbone/.*freeze it with config.stages.cls.freeze, or hold it"),
        ({"layers": ("neck", "head")}, {"freeze": {"backbone": (0, 0.5)}}, "trains backbone/.*freeze it"),
        (
            {"layers": ("necks",)},
            {},
            "keep.gpm.layers: expected patterns of parameters that tasks share, found 'necks'",
        ),
        ({}, {}, ""),
        ({"layers": ("neck", "head")}, {"freeze": ("backbone",)}, ""),
        ({}, {"train_batch_norm": "nowhere"}, ""),
    ],
)
def test_what_would_not_hold_is_refused(network, first, later, words):
    config, (sections, variables) = held_config(**later), network
    config.stages.seg.keep.gpm.update(first)
    config = config_lib.resolve(config)

    def plan():
        view = StageView(config, sections, 0)
        retained = view.keep["gpm"].expected(view, memory.nothing(), variables)
        return retained["gpm"], stage_plan.plan(
            config, sections, 1, stage_plan.StageResult(variables, retained, [], 0.0, 0)
        )

    if words:
        with pytest.raises(UserError, match=words):
            plan()
    else:
        held, stage = plan()
        assert "head/conv_0/kernel" in held.bases
        assert "head/norm_0_stride_8/scale" in held.other_params
        assert all(set(held.other_params) <= set(objective.frozen) for objective in stage.objectives.values())
