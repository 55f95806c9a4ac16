"""NYUv2: masks without the mixed class, depths in metres, the real set, and the page that trains on both."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax.balance import METHODS
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.nyuv2 import NYUV2_CLASSES, NYUv2
from mtl_jax.errors import UserError
from mtl_jax.training import train_loop
from mtl_jax.workdir import metrics_log

PAGE = config_lib.load_page(Path(__file__).parent.parent / "configs" / "nyuv2.py")


def write(root, count=4, size=(24, 32)):
    """Images whose left half is a near floor and whose right half is a far wall; a column is unlabelled."""
    folder = root / "nyuv2"
    for name in ("nyu_images", "nyu_labels40", "nyu_depths"):
        (folder / name).mkdir(parents=True)
    right = np.broadcast_to(np.arange(size[1]) >= size[1] // 2, size)
    mask, depth = np.where(right, 0, 1), np.where(right, 102, 51)
    mask[:, 0], depth[:, 0] = 39, 0
    for number in range(count):
        image = np.repeat((60 + 100 * right + number)[..., None], 3, axis=2)
        Image.fromarray(image.astype(np.uint8)).save(folder / "nyu_images" / f"{number}.jpg")
        Image.fromarray(mask.astype(np.uint8)).save(folder / "nyu_labels40" / f"{number}.png")
        Image.fromarray(depth.astype(np.uint8)).save(folder / "nyu_depths" / f"{number}.png")
    for split in ("train", "val"):
        (folder / f"{split}.txt").write_text("\n".join(map(str, range(count))) + "\n")
    return folder


def test_a_sample_has_mask_and_depth_in_metres_and_says_what_is_missing(tmp_path):
    write(tmp_path)
    source = registry.build("nyuv2", data_root=tmp_path, split="val")
    assert len(source) == 4
    sample = source[2]
    assert sample["id"] == "2"
    mask, depth = sample["labels"]["segmentation"]["mask"], sample["labels"]["depth"]["depth"]
    assert mask[5].tolist() == [255] + [1] * 15 + [0] * 16
    assert (mask.dtype, depth.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(depth[5], [np.nan] + [2.0] * 15 + [4.0] * 16)


def test_broken_files_are_refused_by_name(tmp_path):
    folder = write(tmp_path)
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(folder / "nyu_depths" / "0.png")
    Image.fromarray(np.full((24, 32), 40, np.uint8)).save(folder / "nyu_labels40" / "1.png")
    source = NYUv2(data_root=tmp_path, split="train")
    with pytest.raises(UserError, match=r"0\.png: expected a depth map of the image's size 32 x 24 px, found 6 x 4"):
        source[0]
    with pytest.raises(UserError, match=r"1\.png: expected class indices 0 to 39 .* found \[40\]"):
        source[1]
    Image.fromarray(np.full((24, 32), 2000, np.uint16)).save(folder / "nyu_depths" / "2.png")
    with pytest.raises(UserError, match=r"2\.png: expected a depth map of 8 bits, .*, found a level of 2000"):
        source[2]
    (folder / "val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val\.txt: expected one image name per line"):
        NYUv2(data_root=tmp_path, split="val")


def test_every_method_and_either_task_alone_is_a_word_after_the_page_s_name():
    joint = PAGE.get_config()
    assert set(PAGE.VARIANTS) == {"seg", "depth", *METHODS}
    for word in ("sum", "nash_mtl", "seg", "depth"):
        config = PAGE.get_config(word)
        config_lib.resolve(config)
        alone = word in joint.tasks
        assert set(config.streams.rooms.labels) == ({word} if alone else {"seg", "depth"})
        assert config.stages.rooms.balance == ("sum" if alone else word)
        # What a task alone is compared by: the same network, and the same number of the same images.
        assert (config.model, config.tasks) == (joint.model, joint.tasks)
        assert config.stages.rooms.epochs == joint.stages.rooms.epochs
        assert config.streams.rooms.batch_size == joint.streams.rooms.batch_size
    with pytest.raises(UserError, match=r"configs/nyuv2\.py:det: expected one of seg, depth, sum, mean"):
        PAGE.get_config("det")


@pytest.mark.usefixtures("no_report", "one_device")
def test_masks_and_depths_of_the_same_images_train_together(tiny_backbone, tmp_path):
    write(tmp_path)
    config = PAGE.get_config("uncertainty")
    with config.ignore_type():
        config.model.update(MODEL)
    config.pretrained = ""
    config.data_root = str(tmp_path)
    config.image_size = config.contract.latency_image_size = config.streams.rooms.train_image_size = 32
    config.example_images = 1
    config.log_every_steps = 1
    config.tolerated_leakage_percent = 100.0  # the four images are both splits
    config.streams.rooms.batch_size = 4
    config.stages.rooms.update({"epochs": 12.0, "learning_rate": 1e-2, "ema_decay": 0.0, "eval_every_epochs": 0.0})
    contract = train_loop.train_and_evaluate(config, tmp_path / "run")
    assert {task: entry["metric"] for task, entry in contract["tasks"].items()} == {"seg": "miou", "depth": "abs_error"}
    events = metrics_log.read(tmp_path / "run" / "metrics.jsonl")
    for name in ("rooms/l1", "rooms/cross_entropy"):
        losses = [event["value"] for event in events if event["name"] == name]
        assert losses[-1] < losses[0]
    (rmse,) = {event["value"] for event in events if event["name"] == "rmse"}
    assert rmse >= contract["tasks"]["depth"]["final"] > 0


def test_the_real_set_shows_what_its_labels_say(data_root):
    config = PAGE.get_config()
    for split, count in (("train", 240), ("val", 60)):
        source = NYUv2(data_root=data_root, split=split)
        assert len(source) == count
    assert source.class_names["segmentation"] == tuple(config.tasks.seg["classes"])
    assert NYUV2_CLASSES[39] == "otherprop"
    counts, height, depths = np.zeros(256, np.int64), np.zeros(256), []
    rows = np.linspace(0, 1, 480)[:, None]
    for index in range(len(source)):
        sample = source[index]
        mask, depth = sample["labels"]["segmentation"]["mask"], sample["labels"]["depth"]["depth"]
        assert mask.shape == depth.shape == sample["image"].shape[:2] == (480, 640)
        counts += np.bincount(mask.ravel(), minlength=256)
        height += np.bincount(mask.ravel(), np.broadcast_to(rows, mask.shape).ravel(), minlength=256)
        depths.append(depth[::8, ::8])
    assert counts[39:255].sum() == 0
    assert 0.15 < counts[255] / counts.sum() < 0.35
    # Ceilings are above walls, and walls above floors.
    ceiling, wall, floor = (height[c] / counts[c] for c in map(NYUV2_CLASSES.index, ("ceiling", "wall", "floor")))
    assert ceiling < 0.2 < wall < 0.5 < 0.7 < floor
    depths = np.array(depths)
    assert 0.5 < np.nanmin(depths) < 1.5
    assert 8 < np.nanmax(depths) <= 10
    assert 2 < np.nanmean(depths) < 4
