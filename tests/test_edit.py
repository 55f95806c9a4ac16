"""A version of a run with other names for classes, or fewer of them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from test_extend import untrained
from test_new_classes import FIRST, page

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.cli import edit as edit_command
from mtl_jax.errors import UserError
from mtl_jax.evaluation import contract_table, evaluate
from mtl_jax.extend import additions, edit, new_classes
from mtl_jax.extend.edit import change_settings
from mtl_jax.report import versions_section
from mtl_jax.tasks import calibration
from mtl_jax.training import measurement, train_loop
from mtl_jax.workdir import checkpoints, files, lineage, trained


@pytest.fixture(scope="module")
def parent(tiny_backbone, tmp_path_factory):
    """An untrained run that counts as finished, and that was calibrated after its training."""
    run = untrained(tmp_path_factory.mktemp("parent"), page(FIRST, stage="first", first=True, tasks=("cls",)))
    selected = {"cls": calibration.Calibration(1.5, {"0": 0.25, "1": 0.75})}
    files.write_json(run.path / trained.CALIBRATION, calibration.to_tree(selected))
    return run


def test_a_task_without_classes_and_the_background_stay_as_they_are(parent):
    tasks = {"age": {"kind": "regression"}, "seg": {"kind": "segmentation", "classes": ("background", "cat")}}
    others = parent._replace(config=dataclasses.replace(parent.config, tasks=tasks), names=("age", "seg"))
    with pytest.raises(UserError, match=r"task age of .* has no classes: it is a regression task"):
        change_settings(others, "age", {"a": "b"}, ())
    for rename, remove in (({"background": "none"}, ()), ({}, ("background",))):
        with pytest.raises(UserError, match="task seg: expected classes of objects, found 'background'"):
            change_settings(others, "seg", rename, remove)


@pytest.mark.parametrize(
    ("task", "rename", "remove", "words"),
    [
        ("clz", {"0": "zero"}, (), "did you mean cls"),
        ("cls", {"7": "seven"}, (), "expected classes of task cls of .*, found '7'"),
        ("cls", {"0": "1"}, (), "two classes 1"),
        ("cls", {}, ("9",), "expected classes of task cls of .*, found '9'"),
        ("cls", {}, (), "expected --rename OLD=NEW or --remove NAME"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_one_line(parent, task, rename, remove, words):
    with pytest.raises(UserError, match=words) as error:
        change_settings(parent, task, rename, remove)
    assert "\n" not in str(error.value)


def test_a_flag_takes_several_classes():
    flags = ["--from", "old", "--workdir", "new", "--task", "cls"]
    options = edit_command.parser().parse_args([*flags, "--remove", "0", "1", "--rename", "2=two", "--remove", "3"])
    assert options.remove == ["0", "1", "3"]
    assert options.rename == ["2=two"]
    assert edit_command.parser().parse_args(flags).remove == []


def test_a_class_may_be_renamed_twice_and_then_removed(parent):
    once = parent._replace(config=change_settings(parent, "cls", {"0": "zero", "1": "one"}, ()))
    twice = change_settings(once, "cls", {"zero": "nought"}, ("one",)).tasks["cls"]
    assert twice["classes"] == ("nought", "one", "2", "3")
    assert twice["renamed"] == (("0", "nought"), ("1", "one"))
    assert twice["removed"] == ("one",)


def test_additions_may_name_renamed_classes_as_datasets_do(parent):
    edited = parent._replace(config=change_settings(parent, "cls", {"0": "zero"}, ("3",)))
    inputs = page(("0", "1", "4"), stage="more", tasks=("cls",))
    inputs.tasks.cls.classes = ("0", "1", "2", "3", "4")
    settings = new_classes.with_current_names(config_lib.read_settings(inputs), edited.config.tasks)
    assert settings.tasks["cls"]["classes"] == ("zero", "1", "2", "3", "4")
    assert additions.join(edited, settings, limit=None).tasks["cls"]["added"] == (("more", 1),)
    inputs.tasks.cls.classes = ("0", "1", "2", "3")
    settings = new_classes.with_current_names(config_lib.read_settings(inputs), edited.config.tasks)
    with pytest.raises(UserError, match=r"expected a task or classes that .* has not, found none; use --refine"):
        additions.join(edited, settings, limit=None)
    additions.join(edited, settings, limit=None, refine=True)


def test_a_name_that_a_class_has_now_means_this_class_though_another_had_it(parent):
    once = parent._replace(config=change_settings(parent, "cls", {"0": "zero"}, ()))
    task = change_settings(once, "cls", {"1": "0"}, ()).tasks["cls"]  # "0" named another class before
    assert new_classes.names_in_data(task) == {"zero": "zero", "0": "0", "2": "2", "3": "3", "1": "0"}
    inputs = config_lib.read_settings(page(("zero", "0", "2", "3", "4"), stage="more", tasks=("cls",)))
    settings = new_classes.with_current_names(inputs, {"cls": task})
    assert settings.tasks["cls"]["classes"] == ("zero", "0", "2", "3", "4")


def test_a_version_with_other_names_has_the_same_weights_and_says_what_changed(parent, tmp_path, monkeypatch):
    for name in ("latency_ms", "gigaflops"):
        monkeypatch.setattr(train_loop.evaluate, name, lambda *arguments, **settings: 1.0)
    monkeypatch.setattr(measurement.pictures, "look", lambda *arguments, **settings: {})
    contract = edit(parent.path, tmp_path / "new", "cls", rename={"0": "zero"}, remove=("3",))
    network = trained.load(tmp_path / "new")
    assert network.tasks["cls"].classes == ("zero", "1", "2", "3")
    assert network.tasks["cls"].to_json({"probability": np.array([0.9, 0.1, 0.0, 0.0])})["label"] == "zero"
    assert network.calibration == {"cls": calibration.Calibration(1.5, {"zero": 0.25, "1": 0.75})}
    stored = [checkpoints.load(entry.path, {"variables": None})["variables"] for entry in (parent, network)]
    assert json.dumps(stored[0], default=_listed) == json.dumps(stored[1], default=_listed)
    version = contract["lineage"]["versions"][-1]
    assert version["edited"] == {"cls": {"renamed": {"0": "zero"}, "removed": ["3"]}}
    assert version["classes"]["cls"] == ["zero", "1", "2"]
    assert "0 renamed zero" in versions_section.section(contract)
    assert "3 removed" in lineage.sentence(contract["lineage"])
    labels = next(iter(experiment.eval_batches(network.setup, "first_cls"))).targets
    assert {int(target["cls"]["label"]) for target in labels} <= {0, 1, 2, 3}
    assert contract_table.table(contract)


def test_removal_measures_every_stage_again_over_the_remaining_classes(tiny_backbone, tmp_path, monkeypatch):
    """With their old figures, a removal would look like a loss or a gain, although no weight changes."""
    for name in ("latency_ms", "gigaflops"):
        monkeypatch.setattr(train_loop.evaluate, name, lambda *arguments, **settings: 1.0)
    monkeypatch.setattr(measurement.pictures, "look", lambda *arguments, **settings: {})
    config = page(FIRST, stage="first", first=True, tasks=("cls",))
    config.stages.second = config.stages.first
    config.order = ("first", "second")
    config.contract.baseline_from = {"cls": "elsewhere"}
    config.streams.first_cls.val_options = {"length": 64}
    run = untrained(tmp_path / "old", config)
    record = checkpoints.read_metadata(run.path)
    figures = {
        "metrics": {"cls": {"top1": 0.9}},
        "before": {"cls": {"top1": 0.8}},
        "constant": {"cls": {"figure": 0.7}},
    }
    stages = [{"name": "first", **figures}, {"name": "second", "metrics": {"cls": {"top1": 0.1}}}]
    trees = checkpoints.load(run.path, {"variables": None, "memory": None})
    others = jax.tree.map(lambda leaf: -np.asarray(leaf), trees["variables"]["params"])
    shutil.rmtree(run.path)
    checkpoints.save(run.path, trees, {**record, "stages": stages})
    first = {**trees, "variables": {**trees["variables"], "params": others}}
    checkpoints.save(run.path.parent / "0-first", first, {**record, "stage": "first", "stages": stages[:1]})

    entry = edit(tmp_path / "old", tmp_path / "new", "cls", remove=("3",))["tasks"]["cls"]
    network = trained.load(tmp_path / "new")
    predict = evaluate.make_predict(network.setup.model, network.tasks)
    expected = [
        evaluate.measured(network.setup, predict, variables, ("cls",))["cls"].compute()["top1"]
        for variables in (first["variables"], trees["variables"])
    ]
    assert [entry["baseline"], entry["final"]] == expected
    assert expected[0] != expected[1]
    assert (entry["baseline_from"], entry["untrained"]) == ("stage first", None)
    assert 1 / 3 <= entry["constant"] < 0.7
    only_renamed = change_settings(network, "cls", {"0": "zero"}, ())
    assert only_renamed.contract.baseline_from == network.config.contract.baseline_from


def _listed(array):
    return array.tolist()
