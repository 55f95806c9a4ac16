"""Figures and weights are of the images that were there: any change is told."""

import pytest

from mtl_jax import data_changes


def splits(train="a", val="b", images=(4, 2)):
    return {"train": {"images": images[0], "digest": train}, "val": {"images": images[1], "digest": val}}


NOW = {"one": splits(), "two": splits("c", "d")}


def test_nothing_has_changed_where_digests_are_the_same_or_were_not_kept():
    for then in (NOW, {}, {"one": splits()}):
        assert data_changes.others(then, NOW, "train") == {}
        assert data_changes.others(then, NOW, "val") == {}


@pytest.mark.parametrize(
    ("images", "said"), [((4, 2), "stream one: 2, of which some differ"), ((4, 3), "stream one: 3 then, 2 now")]
)
def test_a_change_says_how_many_images_there_were(images, said):
    then = {**NOW, "one": splits(val="x", images=images)}
    assert data_changes.others(then, NOW, "val") == {"one": said}
    assert data_changes.others(then, NOW, "train") == {}
    assert data_changes.others(then, NOW, "val", ["two"]) == {}


def test_a_stage_is_told_by_its_own_streams_alone():
    then = {**NOW, "one": splits(train="x")}
    stages = [{"name": "first", "data": then}, {"name": "second", "data": then}, {"name": "old"}]
    streams = {"first": ("one",), "second": ("two",), "old": ("one",)}
    (said,) = data_changes.trained_on_others(stages, streams, NOW)
    assert said.startswith("stage first was trained on other images")


def test_measured_again_a_stage_has_the_validation_images_of_now_and_the_training_images_of_then():
    then = {"one": splits("x", "y"), "gone": splits()}
    stages = [{"name": "first", "data": then}]
    assert data_changes.measured_on_others(stages, NOW).startswith("validation images have changed (stream one")
    stages[0]["data"] = data_changes.measured_now(then, NOW)
    assert data_changes.measured_on_others(stages, NOW) == ""
    assert stages[0]["data"] == {"one": splits("x", "b"), "gone": splits()}
