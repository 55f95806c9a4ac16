"""A run from when each method against forgetting was a set of flat settings is read, compared and gone on with."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.config import legacy
from mtl_jax.continual import reading
from mtl_jax.training import stage_checkpoints, stage_plan, stage_setup
from mtl_jax.training.run_context import Run
from mtl_jax.training.stage_checkpoints import StageClock
from mtl_jax.workdir import checkpoints, continuation, files

# One stage finished, two of four steps of the next one taken, one to come; written on 28 November 2026.
BEFORE = Path(__file__).with_name("before.tar.xz")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(BEFORE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "before"


@pytest.fixture(scope="module")
def config(run):
    """The configuration of then, as it is read today."""
    plain: Any = config_lib.completed(json.loads((run / "config.json").read_text())["config"])
    plain["order"] = tuple(plain["order"])  # JSON has no tuples
    for stage in plain["stages"].values():
        stage["streams"] = tuple(stage["streams"])
    return ConfigDict(plain)


def test_flat_settings_are_read_as_what_a_stage_keeps(config):
    keeps = {name: stage.keep.to_dict() for name, stage in config.stages.items()}
    assert set(keeps["seg"]) == {"replay", "gpm", "ewc"}  # its parameters were measured otherwise than the next asks
    assert keeps["seg"]["replay"] == {
        "images": 2, "selection": "class_balanced", "max_side": 32, "max_mb": 0.0, "batch_size": 0, "weight": 1.0,
    }  # fmt: skip
    assert keeps["seg"]["gpm"]["energy"] == 0.5
    assert keeps["seg"]["ewc"]["strength"] == 0.0
    assert keeps["cls"]["si"] == {"strength": 1e-3, "mode": "online", "decay": 1.0}
    assert keeps["cls"]["lwf"] == {
        "weight": 2.0, "weights": {"seg": 0.5}, "balance": "mean", "feature_weight": 0.5,
    }  # fmt: skip
    assert (keeps["cls"]["der"], keeps["cls"]["agem"]) == ({"weight": 0.25}, {})
    assert keeps["seg_again"] == {
        "ewc": {"strength": 1e-3, "estimator": "empirical", "examples": 2, "mode": "separate", "decay": 0.5}
    }
    assert not any(legacy.FLAT.keys() & stage.keys() for stage in config.stages.values())


@pytest.mark.parametrize("flat", legacy.FLAT)
def test_every_flat_setting_has_a_place(flat):
    place = legacy.FLAT[flat]
    changed = {"order": ["a", "b"], "stages": {"a": {flat: place.default}, "b": {"ewc_strength": 1.0}}}
    assert legacy.is_flat(changed)
    keep = legacy.translated(changed)["stages"]
    assert keep["a"] == {"keep": {}}
    settings = {"tasks": {}, **legacy.translated(changed)}
    assert reading.completed(settings)["stages"]["b"]["keep"]["ewc"]["strength"] == 1.0


def test_a_page_of_today_goes_on_with_a_run_of_then(run, config):
    """What it leaves to defaults, and to later stages, is the same."""
    config = config.copy_and_resolve_references()
    config.stages.cls.keep = {
        "lwf": {"weight": 2.0, "weights": {"seg": 0.5}, "feature_weight": 0.5},
        "replay": {"batch_size": 2, "weight": 0.5},
        "der": {"weight": 0.25},
        "si": {"strength": 1e-3},
        "agem": {},
    }
    then = checkpoints.read_metadata(run / "partial" / "1-cls" / "2")["config"]
    assert continuation.refuse_another(run, then, config.to_dict(), stages=2, partly=True) == []
    retained = files.without_nan(config_lib.completed(config.to_dict()))
    assert retained["stages"]["cls"]["keep"]["si"] == {"strength": 1e-3}


def test_checkpoints_of_then_give_back_what_a_stage_left_and_where_the_next_one_was(run, config):
    config = config_lib.resolve(config)
    setup = experiment.build(config, data_root=Path())
    learnt = stage_checkpoints.read(run / "checkpoints" / "0-seg", config, setup)
    (anchor,), buffers, held = (learnt.memory[slot] for slot in ("anchors", "replay", "gpm"))
    assert any(np.any(leaf > 0) for leaf in anchor.importance["head"]["seg"].values())
    assert len(buffers["masks"]) == 2
    assert "seg/outputs" in buffers["masks"][0]["labels"]
    assert "head/conv_0/kernel" in held.bases

    stage = stage_plan.plan(config, setup, 1, learnt)
    state, _, inputs = stage_setup.prepare(setup, stage, learnt, seed=config.seed)
    assert set(inputs) == {"si", "lwf", "gpm"}
    clock = StageClock(state, step=0, saved=0, started=0.0)
    nobody = dict.fromkeys(("predict", "log", "preemption"))
    stage_checkpoints.resume(Run(config=config, setup=setup, workdir=run, written=run, data={}, **nobody), stage, clock)
    assert clock.step == 2
    assert np.any(clock.state.si_path_integral["head"]["cls"]["kernel"] != 0)
