"""The VOC segmentation source, in both layouts and on real files."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import sources
from mtl_jax.errors import UserError


def make_voc(folder, mask_shape=(4, 6)):
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(np.full((4, 6, 3), 80, np.uint8)).save(folder / "JPEGImages/a.jpg")
    Image.fromarray(np.full(mask_shape, 15, np.uint8)).save(folder / "SegmentationClass/a.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n")


@pytest.mark.parametrize(
    ("place", "folder"), [("mini", "mini"), ("VOCdevkit/VOC2012", "."), ("VOCdevkit/VOC2012", "VOCdevkit")]
)
def test_the_mini_and_the_standard_layout_are_found(tmp_path, place, folder):
    make_voc(tmp_path / place)
    source = sources.build("voc_segmentation", data_root=tmp_path, split="train", folder=folder)
    sample = source[0]
    assert len(source) == 1
    assert sample["id"] == "a"
    assert sample["image"].shape == (4, 6, 3)
    assert (sample["labels"]["segmentation"]["mask"] == 15).all()


def test_empty_list_is_refused(tmp_path):
    make_voc(tmp_path / "mini-voc-seg")
    with pytest.raises(UserError, match=r"val\.txt: expected one image name per line"):
        sources.build("voc_segmentation", data_root=tmp_path, split="val")


def test_mask_of_another_size_is_refused_with_its_file(tmp_path):
    make_voc(tmp_path / "mini-voc-seg", mask_shape=(6, 4))
    source = sources.build("voc_segmentation", data_root=tmp_path, split="train")
    with pytest.raises(UserError, match=r"a\.png: expected a mask of the image's size 6 x 4"):
        source[0]


def test_mask_with_a_class_outside_the_table_is_refused(tmp_path):
    make_voc(tmp_path / "mini-voc-seg")
    source = sources.build("voc_segmentation", data_root=tmp_path, split="train", classes=("ground", "thing"))
    with pytest.raises(UserError, match=r"a\.png: expected class indices 0 to 1 .*found \[15\]"):
        source[0]


def test_real_voc_has_its_known_share_of_background_and_void(data_root):
    counts = np.zeros(256, np.int64)
    for split, size in (("train", 240), ("val", 60)):
        source = sources.build("voc_segmentation", data_root=data_root, split=split)
        assert len(source) == size
    for index in range(len(source)):
        sample = source[index]
        mask = sample["labels"]["segmentation"]["mask"]
        assert mask.shape == sample["image"].shape[:2]
        counts += np.bincount(mask.ravel(), minlength=256)
    assert counts[21:255].sum() == 0
    share = counts / counts.sum()
    assert 0.5 < share[0] < 0.8
    assert 0.03 < share[255] < 0.08


@pytest.mark.parametrize(("content", "words"), [(b"\xff\xfe", "expected text in UTF-8"), (b"../../x", "leads outside")])
def test_a_list_that_is_no_text_or_leads_outside_is_refused(tmp_path, content, words):
    lists = tmp_path / "mini-voc-seg/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(content)
    with pytest.raises(UserError, match=words):
        sources.build("voc_segmentation", data_root=tmp_path, split="train")[0]
