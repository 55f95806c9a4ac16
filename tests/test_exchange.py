"""What tasks tell each other in the head: whom it reaches, and that a fresh refinement changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_wiring import NAMES, SETTINGS, TASKS, assert_close, build, image, outputs
from tiny import random_variables

from mtl_jax.errors import UserError
from mtl_jax.models import multi_task
from mtl_jax.models.ownership import split_private


def gradient(model, variables, task):
    """Of the task's squared raw outputs; zeros, where refinements start, would hide what flows."""
    params = jax.tree.map(lambda leaf: leaf + 0.01, variables["params"])

    @jax.jit
    def function(params):
        raw, _ = multi_task.eval_raw(model, {**variables, "params": params}, image(), tasks=(task,))
        return jnp.square(raw[task]).mean()

    return jax.grad(function)(params)


def moves(tree):
    return any(np.any(leaf) for leaf in jax.tree.leaves(tree))


def test_attention_takes_in_the_features_of_every_other_task():
    model = multi_task.build(SETTINGS | {"head_exchange": "attention", "head_layers": 3}, TASKS)
    variables = random_variables(model)
    grads = gradient(model, variables, "det")
    attention = grads["head"]["attention"]
    assert all(moves(attention[f"own_{name}"]) for name in NAMES)
    assert moves(attention["gate_det"])
    assert moves(attention["message_seg_to_det"])
    assert not any(moves(attention[name]) for name in attention if name.endswith(("_to_seg", "_to_cls", "gate_seg")))
    assert set(grads["head"]) >= {"conv_0", "attention"}
    assert "conv_1" not in grads["head"]  # its place is taken
    emitted = jax.eval_shape(functools.partial(multi_task.apply_eval, model, tasks=NAMES), variables, image())
    shapes = {name: out.shape for name, out in emitted.items()}
    assert shapes == {"seg": (2, 64, 64, 3), "det": (2, 84, 8), "cls": (2, 3)}


def test_refinement_is_a_task_s_own_and_teaches_the_others_nothing():
    model, variables = build(head_exchange="refinement", head_layers=3)
    shared, private = split_private(gradient(model, variables, "det"), NAMES)
    assert moves(shared["head"]["conv_0"])
    assert moves(private["det"]["head"]["branch_det"])
    assert not moves(private["seg"])
    plain = build(head_layers=2)
    head = {name: variables["params"]["head"][name] for name in plain[1]["params"]["head"]}
    assert_close(
        outputs(model, variables), outputs(plain[0], {**variables, "params": {**variables["params"], "head": head}})
    )
    message = functools.partial(jax.tree.map, lambda leaf: 3 * leaf)
    loud = {**variables["params"]["head"], "seg": message(variables["params"]["head"]["seg"])}
    loud["branch_det"] = jax.tree.map(jnp.ones_like, loud["branch_det"])
    quiet = {**loud, "seg": variables["params"]["head"]["seg"]}
    first, second = (
        outputs(model, {**variables, "params": {**variables["params"], "head": head}})["det"] for head in (loud, quiet)
    )
    assert not np.allclose(first, second)


def test_an_exchange_needs_a_layer_whose_place_it_takes():
    with pytest.raises(UserError, match=r"head_layers: expected at least 2 with head_exchange"):
        build(head_exchange="attention", head_layers=1)
    with pytest.raises(UserError, match=r"head_exchange: expected one of none, attention, refinement"):
        build(head_exchange="gossip")
