"""Pasted replay: objects arrive whole with their labels, and nothing is said of the rest of the new image."""

from pathlib import Path

import numpy as np
import pytest
from test_train import tiny_config

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.continual import memory
from mtl_jax.continual.paste import SCENES, PastedReplay, paste
from mtl_jax.continual.replay_buffer import ReplayBuffer
from mtl_jax.errors import UserError
from mtl_jax.training import stage_plan

NAMES = {"segmentation": ("background", "cat"), "detection": ("cup",), "classification": ("a", "b")}


def sample(*labels):
    """A white image of 6 x 8 px with one object, 2 x 3 px."""
    mask = np.zeros((6, 8), np.uint8)
    mask[1:3, 2:5] = 1
    mask[5] = 255
    fields = {
        "segmentation": {"mask": mask},
        "detection": {
            "boxes_xyxy": np.array([[2, 1, 5, 3], [0, 4, 8, 6]], np.float32),
            "label": np.zeros(2, np.int32),
            "crowd": np.array([False, True]),
            "area": np.array([6, 16], np.float32),
        },
        "classification": {"label": np.int32(1)},
    }
    return {"image": np.full((6, 8, 3), 255, np.uint8), "labels": {name: fields[name] for name in labels}, "id": "old"}


SCENE = np.zeros((12, 10, 3), np.uint8)


@pytest.mark.parametrize("label", ["segmentation", "detection"])
def test_the_object_alone_is_laid_onto_the_scene(label):
    pasted = paste(sample(label), SCENE, NAMES, generator=np.random.default_rng(3))
    present = pasted["image"][..., 0] == 255
    assert pasted["image"].shape == SCENE.shape
    assert present.sum() == 6
    assert ((pasted["image"] == 255) | (pasted["image"] == 0)).all()
    fields = pasted["labels"][label]
    if label == "segmentation":
        np.testing.assert_array_equal(fields["mask"], np.where(present, 1, 255))
    else:
        left, top, right, bottom = fields["boxes_xyxy"][0].astype(int)
        assert present[top:bottom, left:right].all()
        np.testing.assert_array_equal(fields["boxes_xyxy"][-1], [0, 0, 10, 12])
        assert fields["crowd"].tolist() == [False, True, True]


def test_an_object_larger_than_the_scene_is_scaled_down_with_its_box():
    pasted = paste(sample("detection"), SCENE[:3, :8], NAMES, generator=np.random.default_rng(0))
    box = pasted["labels"]["detection"]["boxes_xyxy"][0]
    np.testing.assert_allclose(box[2:] - box[:2], [1.5, 1])


def test_labels_of_whole_images_and_images_without_objects_stay_as_they_are():
    full = sample("segmentation", "classification")
    assert paste(full, SCENE, NAMES, generator=np.random.default_rng(0)) is full
    empty = sample("segmentation")
    empty["labels"]["segmentation"]["mask"] = np.zeros((6, 8), np.uint8)
    assert paste(empty, SCENE, NAMES, generator=np.random.default_rng(0)) is empty


def test_a_share_of_the_exemplars_is_pasted_and_each_index_always_gives_the_same():
    buffer = ReplayBuffer(samples=(sample("detection"), sample("segmentation")), class_names=NAMES)
    scenes = [{"image": np.full((12, 10, 3), value, np.uint8), "labels": {}, "id": "new"} for value in range(3)]
    source = PastedReplay(buffer, ReplayBuffer(tuple(scenes), {}), share=0.5, seed=1)
    assert len(source) == 2 * SCENES
    pasted = [source[index]["image"].shape == (12, 10, 3) for index in range(len(source))]
    assert 8 <= sum(pasted) <= 24
    index = pasted.index(True)
    np.testing.assert_array_equal(source[index]["image"], source[index]["image"])
    assert len({int(source[i]["image"].min()) for i, is_pasted in enumerate(pasted) if is_pasted}) == 3


@pytest.mark.usefixtures("tiny_backbone")
def test_a_stage_replays_pasted_objects_where_it_says_so_but_no_stored_outputs_of_them():
    config = tiny_config()
    setup = experiment.build(config.to_dict(), data_root=Path())
    masks = experiment.source(setup, "masks", training=True)
    retained = {**memory.nothing(), "replay": {"masks": ReplayBuffer((masks[0],), dict(masks.class_names))}}
    learnt = stage_plan.StageResult(experiment.abstract_variables(setup), retained, [], 0.0, 0)
    config.stages.cls.keep.paste = {"share": 1.0}
    plan = stage_plan.plan(config_lib.resolve(config), setup, 1, learnt)
    labels = plan.data["masks_replay"][0]["labels"]["seg"]["mask"]
    assert (labels == 255).mean() > 0.5  # all but the digits of one scene
    assert (labels == 0).sum() == 0
    config.stages.cls.keep.der = {"weight": 1.0}
    with pytest.raises(UserError, match=r"config\.stages\.cls\.keep\.der compares .* name one of them"):
        stage_plan.plan(config_lib.resolve(config), setup, 1, learnt)
