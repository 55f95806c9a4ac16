"""Leakage: the same image in training and validation is found, in one stream or across, and nothing else is."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import leakage
from mtl_jax.data.leakage import Leak, Place
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError


def folder(root, **splits):
    """Lays out images of one colour each; a split lists the colours."""
    for split, colours in splits.items():
        (root / "set" / split / "thing").mkdir(parents=True)
        for number, colour in enumerate(colours):
            Image.new("RGB", (8, 8), (colour, 0, 0)).save(root / "set" / split / "thing" / f"{number}.bmp")
    return {
        split: registry.build("image_folder", data_root=root, split=split, folder="set", classes=("thing",))
        for split in splits
    }


class Pixels:
    """A source that knows no files."""

    def __init__(self, images):
        self.images = images
        self.class_names = {}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index], "labels": {}, "id": f"pixels {index}"}


def test_an_image_in_both_splits_is_found_among_files_of_the_same_length(tmp_path):
    splits = folder(tmp_path, train=(1, 2, 3), val=(9, 3, 8))
    assert leakage.find({"a": splits["train"]}, {"a": splits["val"]}) == [Leak(Place("a", 1), Place("a", 2))]


def test_the_refusal_names_both_images_both_streams_and_what_to_do(tmp_path):
    splits = folder(tmp_path, train=(1, 2, 3), val=(9, 3, 8))
    with pytest.raises(
        UserError,
        match=r"found 1 \(first: 'thing/1.bmp' of stream b, which stream a trains on as 'thing/2.bmp'\); take them out",
    ):
        leakage.refuse({"a": splits["train"]}, {"b": splits["val"]})


def test_an_image_that_one_stream_validates_with_and_another_trains_on_is_found(tmp_path):
    first, second = folder(tmp_path / "1", train=(1, 2), val=(3,)), folder(tmp_path / "2", train=(3, 4), val=(5,))
    training, validation = ({"a": first[split], "b": second[split]} for split in ("train", "val"))
    assert leakage.find(training, validation) == [Leak(Place("a", 0), Place("b", 0))]


def test_a_split_validated_with_itself_leaks_whole(tmp_path):
    train = folder(tmp_path, train=(1, 2))["train"]
    assert len(leakage.find({"a": train}, {"a": train})) == 2


def test_splits_without_a_common_image_pass_and_repetitions_within_a_split_do_no_harm(tmp_path):
    splits = folder(tmp_path, train=(1, 1, 2), val=(3, 3))
    leakage.refuse({"a": splits["train"]}, {"a": splits["val"]})


def test_files_are_read_only_where_their_length_is_on_the_other_side(tmp_path, monkeypatch):
    splits = folder(tmp_path, train=(1, 2), val=(3,))
    for file in (tmp_path / "set/val/thing").iterdir():
        file.write_bytes(b"shorter")
    monkeypatch.setattr(leakage, "read_bytes", lambda *_, **__: pytest.fail("read a file"))
    assert leakage.find({"a": splits["train"]}, {"a": splits["val"]}) == []


def test_sources_without_files_are_compared_by_pixels_and_shape():
    grey, wide = np.zeros((2, 8, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    assert leakage.find({"a": Pixels([wide])}, {"a": Pixels([grey])}) == []
    assert leakage.find({"a": Pixels([wide, grey])}, {"a": Pixels([grey])}) == [Leak(Place("a", 0), Place("a", 1))]


def test_a_file_that_is_not_there_is_named(tmp_path):
    splits = folder(tmp_path, train=(1, 2), val=(3,))
    (tmp_path / "set/train/thing/1.bmp").unlink()
    with pytest.raises(UserError, match=r"1\.bmp: expected an image file, found No such file"):
        leakage.refuse({"a": splits["train"]}, {"a": splits["val"]})


@pytest.mark.parametrize("labels", ["segmentation", "classification"])
def test_embedded_scenes_are_told_apart_by_what_they_are_drawn_from(labels):
    train, val = (registry.build("digits", data_root=None, split=split, labels=labels) for split in ("train", "val"))
    leakage.refuse({"a": train}, {"a": val})
    another = registry.build("digits", data_root=None, split="train", labels=("detection", labels), length=3)
    assert len(leakage.find({"a": train}, {"a": another})) == 3
    np.testing.assert_array_equal(train[2]["image"], another[2]["image"])


def test_up_to_the_tolerated_share_leaks_are_logged(tmp_path, caplog):
    splits = folder(tmp_path, train=(1, 2), val=(2, 3, 4, 5))
    with pytest.raises(UserError, match="found 1 "):
        leakage.refuse({"a": splits["train"]}, {"a": splits["val"]}, tolerated_percent=24.9)
    leakage.refuse({"a": splits["train"]}, {"a": splits["val"]}, tolerated_percent=25.0)
    assert "Tolerated: 1 validation image in training too (first: " in caplog.text


def test_of_the_real_sets_only_utkface_holds_an_image_in_both_splits(data_root):
    kinds = ("voc_segmentation", "coco_detection", "image_folder", "utkface", "nyuv2")
    training, validation = (
        {kind: registry.build(kind, data_root=data_root, split=split) for kind in kinds} for split in ("train", "val")
    )
    (leak,) = leakage.find(training, validation)  # one photograph with two ages, as published
    assert validation["utkface"][leak.validation.index]["id"] == "21_0_4_20161223214825003.jpg.chip.jpg"
    assert training["utkface"][leak.training.index]["id"] == "30_1_4_20170103230152025.jpg.chip.jpg"
