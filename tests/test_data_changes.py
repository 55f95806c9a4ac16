"""Figures and weights are of the images that were there: any change is told."""

import pytest

from mtl_jax.errors import UserError
from mtl_jax.workdir import data_changes, files


def splits(train="a", val="b", images=(4, 2)):
    return {
        split: {"images": count, "looked_at": count, "digest": digest, "tasks": {"seg": f"seg of {digest}"}}
        for split, count, digest in (("train", images[0], train), ("val", images[1], val))
    }


NOW = {"one": splits(), "two": splits("c", "d")}


def test_nothing_has_changed_where_digests_are_the_same_or_were_not_kept():
    for then in (NOW, {}, {"one": splits()}):
        assert data_changes.changed_streams(then, NOW, "train") == {}
        assert data_changes.changed_streams(then, NOW, "val") == {}


@pytest.mark.parametrize(
    ("images", "output"), [((4, 2), "stream one: 2, of which some differ"), ((4, 3), "stream one: 3 then, 2 now")]
)
def test_a_change_says_how_many_images_there_were(images, output):
    then = {**NOW, "one": splits(val="x", images=images)}
    assert data_changes.changed_streams(then, NOW, "val") == {"one": output}
    assert data_changes.changed_streams(then, NOW, "train") == {}
    assert data_changes.changed_streams(then, NOW, "val", ["two"]) == {}


def test_a_stage_is_told_by_its_own_streams_alone():
    then = {**NOW, "one": splits(train="x")}
    stages = [{"name": "first", "data": then}, {"name": "second", "data": then}, {"name": "old"}]
    streams = {"first": ("one",), "second": ("two",), "old": ("one",)}
    (output,) = data_changes.trained_on_others(stages, streams, NOW)
    assert output.startswith("stage first was trained on other images")


def test_measured_again_a_stage_has_the_validation_images_of_now_and_the_training_images_of_then():
    then = {"one": splits("x", "y"), "gone": splits()}
    stages = [{"name": "first", "data": then}]
    assert data_changes.measured_on_others(stages, NOW).startswith("validation images have changed (stream one")
    stages[0]["data"] = data_changes.measured_now(then, NOW)
    assert data_changes.measured_on_others(stages, NOW) == ""
    assert stages[0]["data"] == {"one": splits("x", "b"), "gone": splits()}


def test_where_another_share_was_looked_at_nothing_is_known_to_have_changed():
    then = {"one": splits(val="x")}
    then["one"]["val"]["looked_at"] = 1
    assert data_changes.changed_streams(then, NOW, "val") == {}
    then["one"]["val"]["images"] = 9
    assert list(data_changes.changed_streams(then, NOW, "val")) == ["one"]


@pytest.mark.parametrize("home", ["", "~"])
def test_a_baseline_of_other_validation_images_is_refused(tmp_path, monkeypatch, home):
    monkeypatch.setenv("HOME", str(tmp_path))

    def judge(data):
        files.write_json(tmp_path / "contract.json", {"stages": [{"name": "seg", "data": data}]})
        runs = {"seg": home or str(tmp_path), "det": ""}
        data_changes.refuse_other_baselines(runs, {"seg": "one", "det": "two"}, NOW)

    judge({})
    judge({"another name": splits(train="x")})
    with pytest.raises(
        UserError, match=r"baseline_from\.seg: expected a figure of the 2 .* stream one in .*, found one of others"
    ):
        judge({"one": splits(val="x")})
    other_tasks = {"one": splits(val="x")}
    other_tasks["one"]["val"]["tasks"]["seg"] = NOW["one"]["val"]["tasks"]["seg"]
    judge(other_tasks)
