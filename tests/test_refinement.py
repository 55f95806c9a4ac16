"""More data for known classes: what is trained, what stays, and when a version is taken back."""

import pytest
from test_extend import untrained
from test_new_classes import FIRST, joined, page

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.errors import UserError
from mtl_jax.extend import additions, exemplars, extend, new_classes, refinement, run
from mtl_jax.models import dependence
from mtl_jax.training import exactness
from mtl_jax.workdir import files, lineage


@pytest.fixture(scope="module")
def parent(tiny_backbone, tmp_path_factory):
    """An untrained run that counts as finished."""
    return untrained(tmp_path_factory.mktemp("parent"), page(FIRST, stage="first", first=True, tasks=("seg", "cls")))


def refined(old, config, limit=None):
    return additions.join(old, config_lib.read_settings(config), limit=limit, refine=True)


def test_the_refined_task_alone_may_move(parent):
    config = refined(parent, page(("0", "1"), stage="again", tasks=("cls",)))
    assert config.tasks == parent.config.tasks
    assert config.stages["again"].old_outputs == "others_exact"
    setup = experiment.build(config, data_root=parent.setup.data_root)
    held = exactness.frozen_patterns(config, setup, 1)
    reads = dependence.reads_of(setup.model)
    assert all(exactness._is_held(path, held) for path in reads["seg"])
    assert not all(exactness._is_held(path, held) for path in reads["cls"])
    assert exactness.kept_exactly(config, 2) == {"seg": "again"}


def test_the_refined_task_s_old_images_are_trained_on_too(parent):
    inputs = config_lib.read_settings(page(("0", "1"), stage="again", tasks=("cls",)))
    assert exemplars.usual_count(parent, inputs, may_change=False, refine=True) == exemplars.PER_CLASS
    config = additions.join(parent, inputs, limit=None, refine=True, per_class=2)
    assert config.stages["again"].keep == {"replay": {**exemplars.REPLAYED[True], "streams": ("first_cls",)}}
    assert set(exemplars.choose(config.to_dict(), parent, ("cls",), {}, may_change=False)) == {"first_cls"}
    moving = additions.join(parent, inputs, limit=2.0, refine=True, per_class=2)
    assert set(moving.stages["again"].keep) == {"lwf", "replay"}
    assert set(exemplars.choose(moving.to_dict(), parent, ("cls",), {}, may_change=True)) == {"first_seg", "first_cls"}


def test_within_a_percentage_shared_parts_move_too(parent):
    config = refined(parent, page(("0", "1"), stage="again", tasks=("cls",)), limit=2.0)
    assert config.stages["again"].old_outputs == "may_change"
    assert set(config.stages["again"].keep) == {"lwf"}
    assert config.contract.max_drop_percent == 2.0
    alone = refined(parent, page(FIRST, stage="again", tasks=("seg", "cls")), limit=2.0)
    assert not alone.stages["again"].keep  # no other task is there to be distilled


def test_new_classes_and_unknown_tasks_are_no_refinement(parent):
    with pytest.raises(UserError, match=r"task cls: expected classes of .*, found '7'"):
        refined(parent, page(("0", "7"), stage="again", tasks=("cls",)))
    with pytest.raises(UserError, match=r"expected tasks of .*, found 'det'"):
        refined(parent, page(("0", "1"), stage="again", tasks=("det",)))


def test_a_page_of_one_task_may_stand_for_any_of_the_run(parent):
    inputs = page(("4", "5"), stage="more", tasks=("cls",))
    with inputs.unlocked():
        inputs.tasks.images = {**inputs.tasks.cls.to_dict(), "label_smoothing": 0.1}
        del inputs.tasks["cls"]
        inputs.streams.more_cls.labels = {"images": "classification"}
    settings = config_lib.read_settings(inputs)
    result = new_classes.rename_task(settings, "cls", parent.config.tasks, location="runs/old")
    assert result.tasks == {"cls": {"kind": "classification", "classes": ("4", "5")}}
    assert result.streams["more_cls"].labels == {"cls": "classification"}
    assert joined(parent, result).tasks["cls"]["added"] == (("more", 2),)
    with pytest.raises(UserError, match="did you mean cls"):
        new_classes.rename_task(settings, "clz", parent.config.tasks, location="runs/old")
    with pytest.raises(UserError, match="task seg of runs/old is a segmentation task"):
        new_classes.rename_task(settings, "seg", parent.config.tasks, location="runs/old")


def entry(final, **more):
    return {"metric": "top1", "higher_is_better": True, "final": final, "drop_percent": None, **more}


def test_a_fall_by_more_than_the_bound_is_said():
    before = {"cls": {"top1": 0.8}, "age": {"mae": 10.0}, "seg": {"miou": None}}
    age = {"metric": "mae", "higher_is_better": False, "final": 10.4}
    retained = {"tasks": {"cls": entry(0.76), "age": age, "seg": {**entry(None), "metric": "miou"}}}
    assert refinement.describe_drops(retained, before, limit=5.0) == ""
    lost = {"tasks": {"cls": entry(0.75), "age": {**age, "final": 10.6}}}
    output = refinement.describe_drops(lost, before, limit=5.0)
    assert "cls top1" in output
    assert "age mae" in output
    assert "cls" in refinement.describe_drops({"tasks": {"cls": entry(None)}}, before, limit=5.0)


def test_classes_that_a_task_got_later_may_not_fall_either():
    before = {"cls": {"top1": 0.8}, "cls/more": {"top1": 0.6}, "cls/third": {"top1": 0.5}}
    added = {"more": entry(0.59), "third": entry(0.4), "fourth": entry(0.1)}  # the last was not measured before
    contract = {"tasks": {"cls": entry(0.9, added=added)}}
    assert refinement.describe_drops(contract, before, limit=5.0) == "cls/third top1 from 0.5 to 0.4"


def test_a_version_that_is_not_kept_leaves_the_old_one(parent, tmp_path):
    new = tmp_path / "new"
    for name in ("0-first", "1-again"):
        (new / "checkpoints" / name).mkdir(parents=True)
    versions = [{"stages": ["first"]}, {"stages": ["again"]}]
    lineage.write(new, parent.path, versions)
    contract = {"passed": True, "tasks": {}}
    result = refinement.reject(new, parent.path, contract, "cls top1 from 0.8 to 0.7", limit=5.0)
    assert not result["passed"]
    assert "more than 5 % were lost (cls top1" in result["refused"]
    assert [stage.name for stage in (new / "checkpoints").iterdir()] == ["0-first"]
    assert (new / "refused" / "1-again").is_dir()
    assert files.contract_of_run(str(new)) == result
    grown = lineage.read(new)
    assert grown is not None
    assert result["refused"] in lineage.sentence(grown)
    # Called again, it says so again.
    again = page(("0", "1"), stage="again", tasks=("cls",))
    assert extend(parent.path, new, again, refine=True) == result


@pytest.mark.parametrize("smoke", [False, True])
def test_a_run_of_few_images_is_not_judged(smoke, parent, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_create_workdir", lambda *arguments, **settings: None)
    monkeypatch.setattr(run, "train_and_evaluate", lambda *arguments, review, **settings: review({"tasks": {}}))
    monkeypatch.setattr(run.refinement, "describe_drops", lambda *arguments, **settings: "cls top1 from 0.8 to 0.2")
    monkeypatch.setattr(run.refinement, "reject", lambda *arguments, **settings: {"refused": "not kept"})
    again = page(("0", "1"), stage="again", tasks=("cls",))
    contract = extend(parent.path, tmp_path / "new", again, refine=True, settings={"smoke": smoke})
    assert ("refused" in contract) is not smoke
