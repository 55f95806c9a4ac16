"""A dataset written as shards is read as it was, by threads and by processes, and damage is told with its place."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.cli import prepare
from mtl_jax.data import pipeline, records, shards
from mtl_jax.data.sources import registry
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError

pytest.importorskip("array_record", reason="there is no ArrayRecord for this system")


@pytest.fixture
def folder(tmp_path):
    """Photos of two classes, as JPEG and PNG, and the same as shards."""
    generator = np.random.default_rng(0)
    for number in range(7):
        place = tmp_path / "photos" / "train" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (9 + number, 11, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.{('jpg', 'png')[number % 3 == 0]}")
    shards.write(photos(tmp_path), tmp_path / "shards", split="train", shard_bytes=900)
    return tmp_path


def photos(root):
    return registry.build("image_folder", data_root=root, split="train", folder="photos")


def sharded(root):
    return registry.build("shards", data_root=root, split="train", folder="shards")


def batches(source):
    return pipeline.train_batches(
        source, labels={"cls": "classification"}, image_size=16, batch_size=3, augment=Augment(scale_max=1.5), seed=1
    )


def assert_alike(first, second):
    assert first["ids"] == second["ids"]
    np.testing.assert_array_equal(first["image"], second["image"])
    np.testing.assert_array_equal(first["labels"]["cls"]["label"], second["labels"]["cls"]["label"])


def test_batches_are_those_of_the_folder(folder):
    assert len(list((folder / "shards").glob("*.array_record"))) > 2
    source = sharded(folder)
    assert source.class_names == photos(folder).class_names
    expected = batches(photos(folder))
    for number, batch in zip(range(5), pipeline.prefetch(batches(source), threads=2), strict=False):
        assert_alike(batch, expected[number])


def test_processes_give_the_same_batches_from_any_step(folder):
    expected = batches(photos(folder))
    iterator = pipeline.prefetch(batches(sharded(folder)), start=2, threads=1, processes=2)
    for number in (2, 3, 4):
        assert_alike(next(iterator), expected[number])
    iterator.close()


def test_files_of_images_are_kept_and_other_pixels_are_kept_without_loss():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    labels = {"depth": {"depth": np.array([[1.5, np.nan]], np.float32)}, "cls": {"label": np.array(3, np.int32)}}
    sample = records.decode(records.encode({"image": pixels, "labels": labels, "id": "ä"}), location="here")
    assert sample["id"] == "ä"
    np.testing.assert_array_equal(sample["image"], pixels)
    np.testing.assert_array_equal(sample["labels"]["depth"]["depth"], labels["depth"]["depth"])
    assert sample["labels"]["cls"]["label"].dtype == np.int32
    assert sample["labels"]["cls"]["label"] == 3


def test_a_missing_or_shortened_shard_is_told_on_opening(folder):
    first, second = sorted((folder / "shards").glob("*.array_record"))[:2]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{second.name}: expected \d+ bytes, as train.json says, found \d+ bytes"):
        sharded(folder)
    first.unlink()
    with pytest.raises(UserError, match=rf"{first.name}: expected .*found no such file"):
        sharded(folder)


def test_a_damaged_record_is_told_with_its_place(folder):
    full = records.encode(photos(folder)[0])
    with pytest.raises(UserError, match=r"^there: expected a record as it was written, found a damaged one"):
        records.decode(full[:-1] + b"?", location="there")
    shard = sorted((folder / "shards").glob("*.array_record"))[0]
    content = np.frombuffer(bytearray(shard.read_bytes()), np.uint8)
    used = np.flatnonzero(content)  # the rest fills blocks
    content[used[len(used) // 2]] ^= 255
    shard.write_bytes(content.tobytes())
    with pytest.raises(UserError, match=rf"{shard.name}|train.json"):
        [sharded(folder)[index] for index in range(7)]


@pytest.mark.parametrize("content", ["{}", "[]", '{"version": 1}', '{"version": 1, "shards": [1]}'])
def test_another_list_is_refused(folder, content):
    (folder / "shards" / "train.json").write_text(content)
    with pytest.raises(UserError, match=r"train\.json: expected"):
        sharded(folder)


def test_an_unfinished_split_is_none_and_a_finished_one_is_not_replaced(folder):
    with pytest.raises(UserError, match=r"train.json: expected no train split yet"):
        shards.write(photos(folder), folder / "shards", split="train", shard_bytes=900)
    (folder / "shards" / "train.json").unlink()
    with pytest.raises(UserError, match="the list of a split's shards"):
        sharded(folder)


def test_the_datasets_of_a_page_are_packed(tmp_path, capsys):
    page = ["--config", "configs/quickstart.py", "--config.smoke=True", "--data_root", str(tmp_path)]
    assert prepare.main([*page, "--shards", "packed"]) == 0
    printed = capsys.readouterr().out
    assert "config.streams.scenes_boxes.options = 'shards', {'folder': 'packed/scenes_boxes'}" in printed
    options = {"data_root": tmp_path, "split": "val"}
    packed = registry.build("shards", folder="packed/scenes_boxes", **options)
    rendered = registry.build("digits", labels="detection", size=96, **options)
    assert 0 < len(packed) < len(rendered)  # as many as a smoke run trains on
    for index in range(len(packed)):
        for name, field in rendered[index]["labels"]["detection"].items():
            np.testing.assert_array_equal(packed[index]["labels"]["detection"][name], field)
        np.testing.assert_array_equal(packed[index]["image"], rendered[index]["image"])
    assert prepare.main(page) == 2
    assert "--config PAGE and --shards NAME together" in capsys.readouterr().err
