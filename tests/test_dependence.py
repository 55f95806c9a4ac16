"""Which tasks depend on which parameters: by the program, by gradients, and by where they lie."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pages import CONFIGS
from test_patches import IMAGE, NAMES, PATCHES, SETTINGS, TASKS

from mtl_jax import tasks as tasks_lib
from mtl_jax.config import load_page
from mtl_jax.models import dependence, multi_task
from mtl_jax.models.ownership import owner_of
from mtl_jax.models.patterns import path_of


@functools.cache
def built(scheme):
    changes: dict = {
        "shared": SETTINGS | PATCHES,
        "plain": SETTINGS | {"norms_from": 0},
        "branched": SETTINGS | {"norms_from": 0, "share_until": 8},
        "cross_stitch": SETTINGS | {"norms_from": 0, "sharing": "cross_stitch"},
    }[scheme]
    return multi_task.build(changes, TASKS)


@pytest.mark.parametrize("scheme", ["shared", "plain", "branched", "cross_stitch"])
def test_a_parameter_lies_where_the_one_task_that_reads_it_has_its_own(scheme):
    readers = dependence.readers_of(built(scheme))
    owners = {path: owner_of(tuple(path_of(path).split("/")), NAMES) for path in readers}
    custom = {path_of(path): (readers[path], owner) for path, owner in owners.items() if owner}
    assert not [path for path, (tasks, owner) in custom.items() if tasks not in ((owner,), ())]
    assert any(owner is None and len(readers[path]) == 2 for path, owner in owners.items())


def test_a_parameter_has_a_gradient_where_its_task_depends_on_it_and_nowhere_else():
    model = built("shared")
    variables = multi_task.init_variables(model, key=jax.random.key(0))
    readers = dependence.readers_of(model)
    params = jax.tree.map(lambda leaf: leaf + 0.05, variables["params"])  # zeros would hide what flows

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(params, task):
        def loss(params):
            raw = multi_task.eval_raw(model, {**variables, "params": params}, IMAGE, tasks=(task,))[0]
            return jnp.square(raw[task]).sum()

        return jax.grad(loss)(params)

    for task in NAMES:
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params, task)):
            if task not in readers[path]:
                assert not np.any(leaf), path_of(path)
            elif not path_of(path).startswith("backbone"):  # its dead units pass nothing on
                assert np.any(leaf), path_of(path)


@pytest.mark.parametrize(
    ("variant", "params", "percent"),
    [("shared", 1_202_862, 87.86), ("branched", 3_485_662, 0.30), ("plain", 1_400_142, 99.08)],
)
def test_the_flagship_shares_so_much(variant, params, percent):
    config = load_page(CONFIGS / "seq.py").get_config(variant)
    counts = dependence.params_by_owner(multi_task.build(config.model, tasks_lib.build(config.tasks.to_dict())))
    assert sum(counts.values()) == params
    assert dependence.shared_percent(counts) == pytest.approx(percent, abs=0.005)
