"""Batches: a function of seed and step alone, resumable anywhere, complete, in the promised shapes."""

import logging
import time
from collections import Counter

import jax
import numpy as np
import pytest

from mtl_jax.data import pipeline
from mtl_jax.data.cache import CachedSource
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError

JOINT = {"seg": "segmentation", "det": "detection"}
LIVELY = Augment(
    scale_min=0.5,
    scale_max=1.5,
    random_position=True,
    flip_probability=0.5,
    brightness=0.2,
    saturation=0.2,
    mosaic_probability=0.5,
)


def digits(labels=("segmentation", "detection"), length=10, **options):
    return registry.build("digits", data_root=None, split="train", labels=labels, length=length, size=48, **options)


def batches(source, seed=0, labels=JOINT, **changes):
    settings = {"image_size": 32, "batch_size": 4, "augment": LIVELY, "max_boxes": 6, "cache_bytes": 10**7}
    return pipeline.train_batches(source, labels=labels, seed=seed, **{**settings, **changes})


def same(first, second):
    np.testing.assert_array_equal(first["image"], second["image"])
    for task, fields in first["labels"].items():
        for name, value in fields.items():
            np.testing.assert_array_equal(value, second["labels"][task][name])
    return True


class Levels:
    """Flat images whose level is their index, class likewise."""

    def __init__(self, count, shape=(8, 8)):
        self.count, self.shape = count, shape
        self.class_names = {"classification": tuple(str(i) for i in range(count))}

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {
            "image": np.full((*self.shape, 3), index, np.uint8),
            "labels": {"classification": {"label": np.array(index, np.int32)}},
            "id": str(index),
        }


def test_batches_have_the_promised_fields_and_types():
    batch = batches(digits())[0]
    kinds = {
        task: {name: (value.shape, value.dtype) for name, value in fields.items()}
        for task, fields in batch["labels"].items()
    }
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 32, 32, 3), np.float32)
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1
    assert kinds == {
        "seg": {"mask": ((4, 32, 32), np.int32)},
        "det": {
            "boxes_xyxy": ((4, 6, 4), np.float32),
            "label": ((4, 6), np.int32),
            "valid": ((4, 6), bool),
            "crowd": ((4, 6), bool),
        },
    }


def test_the_images_of_a_batch_are_not_copied_on_their_way_to_a_cpu():
    for index in range(4):
        image = batches(digits(), image_size=64)[index]["image"]
        on_device = jax.device_put(image, jax.devices("cpu")[0])
        assert np.shares_memory(np.asarray(on_device), image)


def test_classification_label_is_one_number_per_image():
    batch = batches(Levels(9), labels={"cls": "classification"}, augment=Augment())[0]
    label = batch["labels"]["cls"]["label"]
    assert label.dtype == np.int32
    np.testing.assert_allclose(batch["image"][:, 0, 0, 0], label / 255, rtol=1e-6)


def test_a_label_of_several_classes_is_one_row_per_image_and_survives_mosaics():
    class Tagged(Levels):
        def __getitem__(self, index):
            label = np.array([index % 2, np.nan, 0], np.float32)
            return super().__getitem__(index) | {"labels": {"classification": {"label": label}}}

    batch = batches(Tagged(9), labels={"tags": "classification"})[0]
    label = batch["labels"]["tags"]["label"]
    assert (label.shape, label.dtype) == ((4, 3), np.float32)
    assert np.isnan(label[:, 1]).all()
    assert not label[:, 2].any()
    assert np.isin(label[:, 0], (0, 1)).all()


def test_white_is_exactly_one_and_black_zero():
    batch = batches(Levels(256), labels={"cls": "classification"}, augment=Augment(), batch_size=256)[0]
    assert batch["image"].min() == 0
    assert batch["image"].max() == 1


def test_element_depends_on_seed_and_index_alone():
    first, again, another = batches(digits(), 3), batches(digits(), 3), batches(digits(), 4)
    for step in (7, 0, 123456):
        assert same(first[step], again[step])
        assert (first[step]["image"] != another[step]["image"]).any()
    assert (first[0]["image"] != first[1]["image"]).any()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_prefetching_from_any_step_gives_the_same_elements(threads):
    dataset = batches(digits())
    iterator = pipeline.prefetch(batches(digits()), start=5, threads=threads, buffer=2)
    for step in range(5, 12):
        assert same(next(iterator), dataset[step])
    assert iterator.get_state() == {"next_index": 12}
    iterator.close()


def test_every_sample_comes_once_before_any_comes_again():
    dataset = batches(Levels(10), labels={"cls": "classification"}, augment=Augment(), batch_size=5)
    epochs = [np.concatenate([dataset[2 * e + i]["labels"]["cls"]["label"] for i in (0, 1)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    counts = Counter(np.concatenate([dataset[i]["labels"]["cls"]["label"] for i in range(6)]).tolist())
    assert set(counts.values()) == {3}


def test_a_source_smaller_than_a_batch_is_repeated():
    batch = batches(Levels(2), labels={"cls": "classification"}, augment=Augment())[0]
    assert sorted(batch["labels"]["cls"]["label"].tolist()) == [0, 0, 1, 1]
    assert pipeline.steps_per_epoch(2, 4) == 1
    assert pipeline.steps_per_epoch(11, 4) == 2


def test_nothing_is_decoded_after_the_first_epoch():
    source = CachedSource(digits(), limit_bytes=10**7)
    dataset = batches(source, augment=Augment(), batch_size=5)
    for step in range(6):
        assert dataset[step]
    assert source.decodes == len(source)


def test_only_the_asked_labels_are_moved_and_returned():
    assert set(batches(digits(), labels={"objects": "detection"})[0]["labels"]) == {"objects"}


def test_too_many_boxes_are_reported(caplog):
    with caplog.at_level(logging.WARNING):
        batch = batches(digits(length=40), max_boxes=1, augment=Augment(), batch_size=20)[0]
    assert batch["labels"]["det"]["valid"].all()
    assert "exceed max_boxes=1" in caplog.text


def test_unknown_label_and_empty_source_are_refused():
    with pytest.raises(UserError, match=r"task cls: expected a label of the source \(segmentation, detection\)"):
        batches(digits(), labels={"cls": "classification"})
    with pytest.raises(UserError, match="expected a source with samples"):
        pipeline.eval_batches(Subset(digits(), ()), labels=JOINT, image_size=32, batch_size=2)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_file_reaches_the_user_from_the_loader(tmp_path, threads):
    folder = tmp_path / "imagenette-160/train/ant"
    folder.mkdir(parents=True)
    (folder / "broken.jpg").write_bytes(b"no image")
    source = registry.build("image_folder", data_root=tmp_path, split="train")
    iterator = pipeline.prefetch(batches(source, labels={"cls": "classification"}), threads=threads)
    with pytest.raises(UserError, match=r"broken\.jpg: expected an image"):
        next(iterator)
    iterator.close()


def test_evaluation_covers_every_sample_once_and_fills_the_last_batch():
    result = pipeline.eval_batches(Levels(5), labels={"cls": "classification"}, image_size=16, batch_size=2)
    assert len(result) == 3
    assert [name for batch in result for name in batch.ids] == ["0", "1", "2", "3", "4"]
    assert [int(target["cls"]["label"]) for batch in result for target in batch.targets] == [0, 1, 2, 3, 4]
    assert result[2].image.shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(result[2].image[0], result[2].image[1])
    assert len(result[2].ids) == len(result[2].targets) == len(result[2].geometries) == 1
    assert [batch.ids for batch in result[1:]] == [["2", "3"], ["4"]]
    assert result[-1].ids == ["4"]
    with pytest.raises(IndexError):
        result[3]


def test_geometry_leads_from_the_original_into_the_input():
    source = digits(("detection", "segmentation"), length=1)
    sample = source[0]
    batch = pipeline.eval_batches(source, labels=JOINT, image_size=(64, 96), batch_size=1)[0]
    geometry = batch.geometries[0]
    assert geometry == (64 / 48, 64 / 48, 16.0, 0.0, 48, 48)
    np.testing.assert_array_equal(batch.targets[0]["seg"]["mask"], sample["labels"]["segmentation"]["mask"])
    np.testing.assert_array_equal(batch.targets[0]["det"]["boxes_xyxy"], sample["labels"]["detection"]["boxes_xyxy"])
    assert np.allclose(batch.image[0, :, :16], 114 / 255)
    inside = batch.image[0, :, 16:80].mean(axis=(0, 1))
    np.testing.assert_allclose(inside, sample["image"].mean(axis=(0, 1)) / 255, atol=0.01)


def test_what_is_cropped_looks_alike_in_training_evaluation_and_examples():
    source, labels = Levels(2, shape=(20, 40)), {"cls": "classification"}
    evaluated = pipeline.eval_batches(source, labels=labels, image_size=16, batch_size=2, crop=True)[0].image
    trained = pipeline.train_batches(
        source, labels=labels, image_size=16, batch_size=2, augment=Augment(crop=True), seed=0
    )[0]
    examples = [example["image"] for example in pipeline.examples(source, labels=labels, image_size=16, crop=True)]
    order = [int(name) for name in trained["ids"]]
    np.testing.assert_array_equal(trained["image"], evaluated[order])
    np.testing.assert_array_equal(examples, evaluated)
    assert not np.isclose(evaluated, 114 / 255).any()


def test_evaluation_batches_can_be_prefetched():
    result = pipeline.eval_batches(Levels(5), labels={"cls": "classification"}, image_size=16, batch_size=2)
    iterator = pipeline.prefetch(result, threads=2)
    assert [batch.ids for batch in iterator] == [["0", "1"], ["2", "3"], ["4"]]
    iterator.close()


def test_cached_real_images_come_faster_than_a_small_network_trains(data_root):
    source = registry.build("voc_segmentation", data_root=data_root, split="val")
    dataset = pipeline.train_batches(
        source,
        labels={"seg": "segmentation"},
        image_size=512,
        batch_size=8,
        augment=Augment(scale_min=0.5, scale_max=2.0, random_position=True, flip_probability=0.5, brightness=0.2),
        seed=0,
        cache_bytes=10**9,
    )
    for step in range(8):
        assert dataset[step]["image"].shape == (8, 512, 512, 3)
    start = time.thread_time()
    assert dataset[8]["labels"]["seg"]["mask"].shape == (8, 512, 512)
    assert time.thread_time() - start < 0.5  # s of one core; a training step on two cores takes about 1 s


class Masked:
    """One image of 4 x 8 px with a mask, which an augmentation or a letterbox to a square moves away from its edges."""

    def __init__(self, mask):
        self.mask = mask
        self.class_names = {"segmentation": ("a", "b", "c")}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = np.zeros((*self.mask.shape, 3), np.uint8)
        return {"image": image, "labels": {"segmentation": {"mask": self.mask.copy()}}, "id": "m"}


@pytest.mark.parametrize(
    ("dtype", "void", "values"),
    [(np.uint8, 255, (0, 2)), (np.uint16, 65535, (255, 299)), (np.int32, -1, (255, 299))],
)
def test_void_is_what_the_task_calls_it_from_the_file_and_beside_the_image(dtype, void, values):
    mask = np.tile(np.array([values[0], values[1], void, void]), (4, 2)).astype(dtype)
    labels, message = {"seg": "segmentation"}, {"seg": 1000}
    (example,) = pipeline.examples(Masked(mask), labels=labels, image_size=8, ignore_labels=message)
    for augment in (Augment(), Augment(mosaic_probability=1.0)):
        batch = batches(Masked(mask), labels=labels, augment=augment, ignore_labels=message, image_size=8)[0]
        assert set(np.unique(batch["labels"]["seg"]["mask"])) == {*values, 1000}
    target = pipeline.eval_batches(Masked(mask), labels=labels, image_size=8, batch_size=1, ignore_labels=message)
    expected = np.where(mask == void, np.int32(1000), mask)
    np.testing.assert_array_equal(target[0].targets[0]["seg"]["mask"], expected)
    padded = np.full((8, 8), 1000)
    padded[2:6] = expected
    np.testing.assert_array_equal(example["labels"]["seg"]["mask"], padded)


def test_void_stays_255_without_a_task_s_word():
    mask = np.full((4, 8), 255, np.uint8)
    for kind in (np.uint8, np.int32):
        (example,) = pipeline.examples(Masked(mask.astype(kind)), labels={"seg": "segmentation"}, image_size=8)
        assert set(np.unique(example["labels"]["seg"]["mask"])) == {255}
