"""A work directory belongs to one experiment, and to one process at a time."""

import json

import pytest

import mtl_jax
from mtl_jax.errors import UserError
from mtl_jax.workdir import run_record

CONFIG = {"seed": 0, "resume": True, "data_root": "a", "stages": {"seg": {"epochs": 1.0}}}


def test_the_record_is_of_the_last_start_that_trained(tmp_path):
    def claim(command, **changes):
        run_record.claim(tmp_path, CONFIG | changes, command=command, trains=command != "judge")
        return json.loads((tmp_path / run_record.RECORD).read_text())

    claim("one")
    assert claim("two", data_root="b")["command"] == "two"
    judged = claim("judge", data_root="c")
    assert judged["command"] == "two"
    assert judged["config"]["data_root"] == "c"
    with pytest.raises(UserError, match="holds a run already"):
        claim("four", resume=False)


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
    run_record.claim(tmp_path / "run", CONFIG, command="", trains=True)
    run_record.still_there(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was removed or moved during training"):
        run_record.still_there(tmp_path / "run")


def test_versions_are_known_of_a_checkout_that_is_not_installed(monkeypatch):
    def version(name):
        raise run_record.packages.PackageNotFoundError(name)

    monkeypatch.setattr(run_record.packages, "version", version)
    assert run_record.versions() == {
        "python": run_record.platform.python_version(),
        "mtl_jax": mtl_jax.__version__,
        **dict.fromkeys(run_record.PACKAGES, "not installed"),
    }
