"""Checkpoints are complete or absent, what is damaged is found, and the one before it serves."""

import json
import logging
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from mtl_jax.workdir import checkpoints
from mtl_jax.workdir.checkpoints import CheckpointError

PARTS = {"state": {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7)}}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "0-seg"
    checkpoints.save(path, PARTS, {"stage": "seg"})
    return path


def test_what_was_saved_comes_back_with_keys_and_metadata(tmp_path):
    sections = {"state": {**PARTS["state"], "key": jax.random.key(3)}}
    checkpoints.save(tmp_path / "a", sections, {"step": 7})
    loaded = checkpoints.load(tmp_path / "a", sections)["state"]
    np.testing.assert_array_equal(loaded["weights"], PARTS["state"]["weights"])
    assert jax.random.key_data(loaded["key"]).tolist() == jax.random.key_data(jax.random.key(3)).tolist()
    assert checkpoints.read_metadata(tmp_path / "a") == {"step": 7}


def test_saving_again_replaces(saved):
    checkpoints.save(saved, {"state": {"weights": np.zeros(1, np.float32)}}, {"stage": "new"})
    assert checkpoints.read_metadata(saved) == {"stage": "new"}
    assert [path.name for path in saved.parent.iterdir()] == ["0-seg"]


def largest_file(path):
    return max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize("damage", ["a flipped bit", "truncated", "removed", "metadata"])
def test_damage_is_found_and_named(saved, damage):
    victim = saved / checkpoints.METADATA if damage == "metadata" else largest_file(saved / "state")
    content = bytearray(victim.read_bytes())
    if damage == "removed":
        victim.unlink()
    elif damage == "truncated":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "metadata":
        victim.write_text(json.dumps({"stage": "det"}))
    else:
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=victim.name):
        checkpoints.load(saved, {"state": None})
    if damage == "metadata":
        with pytest.raises(CheckpointError, match=r"metadata\.json is damaged"):
            checkpoints.read_metadata(saved)


def test_a_folder_without_metadata_is_no_checkpoint(saved):
    (saved / checkpoints.METADATA).unlink()
    assert not checkpoints.is_complete(saved)
    with pytest.raises(CheckpointError, match="expected a complete checkpoint"):
        checkpoints.load(saved, {"state": None})


def test_the_newest_sound_checkpoint_is_told_and_damaged_ones_are_warned_of(tmp_path, caplog):
    for step in (5, 10, 100):
        checkpoints.save_step(tmp_path, step, PARTS, {"step": step}, keep=2)
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["100", "10"]
    victim = largest_file(tmp_path / "100" / "state")
    victim.write_bytes(victim.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert checkpoints.newest_sound(checkpoints.steps(tmp_path)) == tmp_path / "10"
    assert str(tmp_path / "100") in caplog.text
    assert "going on from the one before it" in caplog.text
    assert checkpoints.newest_sound([]) is None


def test_stages_are_listed_in_order_and_drafts_are_not(tmp_path):
    for name in ("1-det", "0-seg", "10-cls"):
        checkpoints.save(tmp_path / "checkpoints" / name, PARTS, {})
    draft = tmp_path / "checkpoints" / "2-cls.new"
    draft.mkdir()
    (draft / checkpoints.METADATA).write_text("{}")
    assert [stage.name for stage in checkpoints.stages(tmp_path)] == ["seg", "det", "cls"]
    assert checkpoints.find(tmp_path).name == "10-cls"


def test_what_cannot_be_written_leaves_the_earlier_one_and_nothing_else(saved, monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_seal", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints are intact"):
            checkpoints.save(saved, PARTS, {"stage": "new"})
    assert checkpoints.read_metadata(saved) == {"stage": "seg"}
    checkpoints.verify(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["0-seg"]


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(saved, monkeypatch):
    (saved.parent / "0-seg.new.orbax-checkpoint-tmp").mkdir()  # of a write that was killed
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(CheckpointError, match=r"about 0 MB are needed, 0 MB are free.*earlier checkpoints are intact"):
        checkpoints.save(saved, PARTS, {"stage": "new"})
    assert checkpoints.read_metadata(saved) == {"stage": "seg"}
    assert [path.name for path in saved.parent.iterdir()] == ["0-seg"]


def test_another_structure_is_refused(saved):
    state = dict(PARTS["state"])
    with pytest.raises(CheckpointError, match=r"expected weights of shape \(3, 3\), found \(2, 3\)\); use the version"):
        checkpoints.load(saved, {"state": {**state, "weights": np.zeros((3, 3), np.float32)}})
    state["kernel"] = state.pop("weights")
    with pytest.raises(CheckpointError, match=r"\(expected state/kernel, found state/weights\); use the version"):
        checkpoints.load(saved, {"state": state})
    state["other"] = state["kernel"]
    with pytest.raises(CheckpointError, match=r"expected state/kernel and 1 more, found state/weights\)"):
        checkpoints.load(saved, {"state": state})


def test_weights_are_a_work_directory_or_whatever_lies_in_a_stage_s_folder(saved, monkeypatch):
    workdir = saved.parent.parent
    monkeypatch.setenv("HOME", str(workdir.parent))
    for weights in (workdir, saved, saved.parent, saved / checkpoints.METADATA, Path("~") / workdir.name):
        assert checkpoints.find(weights) == saved


def test_the_state_within_a_stage_is_no_weights(tmp_path):
    checkpoints.save_step(tmp_path / "partial" / "0-seg", 5, PARTS, {"step": 5}, keep=1)
    for weights in (tmp_path / "partial" / "0-seg" / "5", tmp_path / "partial" / "0-seg" / "5" / checkpoints.METADATA):
        with pytest.raises(CheckpointError, match="is the state within a stage, to resume from; name the work"):
            checkpoints.find(weights)
    with pytest.raises(CheckpointError, match="is neither a work directory"):
        checkpoints.find(tmp_path / "partial")
