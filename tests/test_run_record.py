"""A work directory belongs to one experiment, and to one process at a time."""

import pytest

from mtl_jax import run_record
from mtl_jax.errors import UserError

CONFIG = {"seed": 0, "resume": True, "data_root": "a", "stages": {"seg": {"epochs": 1.0}}}


def test_a_claimed_directory_takes_the_same_experiment_again_from_another_place(tmp_path):
    run_record.claim(tmp_path, CONFIG, command="one")
    run_record.claim(tmp_path, CONFIG | {"data_root": "b"}, command="two")
    with pytest.raises(UserError, match=r"stages\.seg\.epochs was 1\.0, is 2\.0"):
        run_record.claim(tmp_path, CONFIG | {"stages": {"seg": {"epochs": 2.0}}}, command="three")
    with pytest.raises(UserError, match="holds a run already"):
        run_record.claim(tmp_path, CONFIG | {"resume": False}, command="four")


def test_a_locked_directory_is_refused_until_it_is_let_go(tmp_path):
    with (
        run_record.locked(tmp_path / "run"),
        pytest.raises(UserError, match="another process is training in"),
        run_record.locked(tmp_path / "run"),
    ):
        pass
    with run_record.locked(tmp_path / "run"):
        pass


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"work directory .*file/run cannot be written \(Not a directory\)"),
        run_record.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_a_directory_that_was_taken_away_is_told(tmp_path):
    run_record.claim(tmp_path / "run", CONFIG, command="")
    run_record.still_there(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was removed or moved during training"):
        run_record.still_there(tmp_path / "run")
