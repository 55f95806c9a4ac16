"""The head: readouts, what a task's slice costs, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stub_task import stub

from mtl_jax.models.head import Head
from mtl_jax.models.layers import draw_kernels

TASKS = (stub("seg", "dense", 5, (8,)), stub("det", "cells", 7, (16, 8, 32)), stub("cls", "pooled", 3, (32,)))
NAMES = ("seg", "det", "cls")


def head(**changes):
    return Head(**{"tasks": TASKS, "channels": 4, "layers": 2, "dropout_rate": 0.5} | changes)


@pytest.fixture(scope="module")
def levels():
    rng = np.random.default_rng(0)
    return {s: jnp.asarray(rng.normal(size=(2, 64 // s, 96 // s, 6)), jnp.float32) for s in (8, 16, 32)}


def init(module, levels):
    key = jax.random.key(0)
    variables = module.init(key, levels, tasks=NAMES, train=False, train_batch_norm=False)
    return variables | {"params": draw_kernels(variables["params"], key=key)}


@pytest.fixture(scope="module")
def variables(levels):
    return jax.jit(lambda: init(head(), levels))()


@pytest.fixture(scope="module")
def raw(variables, levels):
    return jax.jit(lambda v: head().apply(v, levels, tasks=NAMES, train=False, train_batch_norm=False))(variables)


def test_raw_outputs_have_the_shape_of_their_readout(raw):
    shapes = {name: value.shape for name, value in raw.items()}
    assert shapes == {"seg": (2, 8, 12, 5), "det": (2, 24 + 96 + 6, 7), "cls": (2, 3)}


def test_the_readouts_are_the_shared_branch_times_the_tasks_slices(raw, variables, levels):
    params, branch = variables["params"], {}
    for stride, x in levels.items():
        hidden = jax.lax.conv_general_dilated(
            x, params["conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        branch[stride] = np.maximum(np.asarray(hidden) / np.sqrt(1 + 1e-5), 0)
    seg = branch[8] @ np.asarray(params["seg"]["kernel"])
    det = [branch[s].reshape(2, -1, 4) @ np.asarray(params["det"]["kernel"]) for s in (16, 8, 32)]
    cls = branch[32].mean((1, 2)) @ np.asarray(params["cls"]["kernel"])
    for name, expected in {"seg": seg, "det": np.concatenate(det, axis=1), "cls": cls}.items():
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(raw[name], expected, atol=1e-5)


@pytest.mark.parametrize(("name", "strides"), [("seg", {8}), ("det", {8, 16, 32}), ("cls", {32})])
def test_only_the_asked_tasks_slice_and_levels_are_computed(name, strides, variables, levels):
    """The rest of the parameters is not even there."""
    norms = {f"norm_0_stride_{stride}" for stride in strides}
    params = {section: tree for section, tree in variables["params"].items() if section in norms | {"conv_0", name}}
    stats = {section: tree for section, tree in variables["batch_stats"].items() if section in norms}
    needed = {stride: x for stride, x in levels.items() if stride in strides}
    outputs = jax.eval_shape(
        lambda: head().apply(
            {"params": params, "batch_stats": stats},
            needed,
            tasks=(name,),
            train=False,
            train_batch_norm=False,
        )
    )
    assert list(outputs) == [name]


def test_a_tasks_loss_moves_neither_the_other_slices_nor_their_statistics(variables, levels):
    @jax.jit
    def step(params):
        def loss(params):
            outputs, updated = head().apply(
                variables | {"params": params},
                levels,
                tasks=("cls",),
                train=True,
                train_batch_norm=True,
                rngs={"dropout": jax.random.key(3)},
                mutable=["batch_stats"],
            )
            return (outputs["cls"] ** 2).sum(), updated["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradient, stats = step(variables["params"])
    moved = {section for section, tree in gradient.items() if any(leaf.any() for leaf in jax.tree.leaves(tree))}
    assert moved == {"conv_0", "norm_0_stride_32", "cls"}
    assert set(stats) == set(variables["batch_stats"])
    for section, old in variables["batch_stats"].items():
        assert np.array_equal(stats[section]["mean"], old["mean"]) == (section != "norm_0_stride_32")


def test_dropout_zeroes_whole_channels_by_its_key(levels):
    """With one channel and one class, a dropped channel leaves the bias alone."""
    module = head(channels=1, tasks=(stub("seg", "dense", 1, (8,)),))
    x = {8: jnp.ones((64, 2, 2, 6))}
    params = {
        "conv_0": {"kernel": jnp.ones((3, 3, 6, 1))},
        "norm_0_stride_8": {"scale": jnp.ones(1), "bias": jnp.zeros(1)},
        "seg": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)},
    }
    stats = {"norm_0_stride_8": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}

    @jax.jit
    def apply(key):
        return module.apply(
            {"params": params, "batch_stats": stats},
            x,
            tasks=("seg",),
            train=True,
            train_batch_norm=False,
            rngs={"dropout": key},
        )["seg"]

    first, again, another = apply(jax.random.key(0)), apply(jax.random.key(0)), apply(jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(another)).any()
    dropped = np.asarray(first == 0).reshape(64, -1)
    assert (dropped.all(axis=1) == dropped.any(axis=1)).all()
    assert 16 < dropped.all(axis=1).sum() < 48
    retained = np.asarray(first)[~dropped.all(axis=1)]
    np.testing.assert_allclose(retained, 2 * 24 / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_outputs_are_float32_when_the_branch_is_bfloat16(levels):
    module = head(dtype=jnp.dtype("bfloat16"))
    outputs, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), levels, tasks=NAMES, train=False, train_batch_norm=False)
    )
    assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
