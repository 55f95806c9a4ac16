"""The mini set of COCO in Open Images' layout: the same boxes, masks of every second image, verified labels."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from test_open_images import PAGE

from mtl_jax import config as config_lib
from mtl_jax.data.minis.open_images_mini import convert, outline
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError

SQUARE = [2.0, 1.0, 6.0, 1.0, 6.0, 3.0, 2.0, 3.0]  # x from 2 to 6, y from 1 to 3


def coco(root, **changes):
    """Two images of 8 x 4 px in each split, each with a cat; in the first a crowd of dogs too."""
    folder = root / "mini-coco-det"
    (folder / "annotations").mkdir(parents=True)
    cat = {"category_id": 3, "bbox": [2, 1, 4, 2], "iscrowd": 0, "segmentation": [SQUARE]} | changes
    crowd = {"id": 9, "image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 2], "iscrowd": 1, "segmentation": {}}
    for split in ("train", "val"):
        (folder / split).mkdir()
        images = [{"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 4} for number in (1, 2)]
        for image in images:
            Image.new("RGB", (8, 4), (90, 90, 90)).save(folder / split / image["file_name"])
        content = {
            "images": images,
            "annotations": [{"id": number, "image_id": number, **cat} for number in (1, 2)] + [crowd],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def test_the_same_boxes_and_verified_labels_come_back(tmp_path):
    assert convert(coco(tmp_path)) == f"{tmp_path}/open-images-mini: laid out from mini-coco-det (4 images)"
    for split in ("train", "val"):
        first, second = registry.build("open_images", data_root=tmp_path, split=split)
        fields = first["labels"]["detection"]
        assert fields["boxes_xyxy"].tolist() == [[2, 1, 6, 3], [0, 0, 8, 2]]
        assert fields["label"].tolist() == [0, 1]
        assert fields["crowd"].tolist() == [False, True]
        assert first["labels"]["multi_label"]["label"].tolist() == [1, 1]
        assert second["labels"]["multi_label"]["label"].tolist() == [1, 0]


def test_every_second_image_has_masks(tmp_path):
    triangle = [2.0, 1.0, 6.0, 1.0, 2.0, 3.0]
    convert(coco(tmp_path, segmentation=[triangle]))
    assert len(list((tmp_path / "open-images-mini/train-masks").iterdir())) == 1
    first, second = (
        sample["labels"]["segmentation"]["mask"] == 1
        for sample in registry.build("open_images", data_root=tmp_path, split="train")
    )
    assert second.sum() == 8
    assert 0 < first.sum() < 8


def test_an_outline_holds_the_pixels_of_all_its_polygons():
    rendered = outline([SQUARE, [0.0, 0.0, 1.0, 0.0, 1.0, 4.0, 0.0, 4.0]], 4, 8)
    expected = np.zeros((4, 8), bool)
    expected[1:3, 2:6] = expected[:, 0] = True
    np.testing.assert_array_equal(rendered, expected)


def test_an_outline_on_an_absurd_canvas_is_refused():
    with pytest.raises(UserError, match="expected at most 64000000 pixels, found 1000000000 x 1000000000"):
        outline([SQUARE], 10**9, 10**9)


def test_a_second_run_does_nothing_unless_forced(tmp_path):
    convert(coco(tmp_path))
    mine = tmp_path / "open-images-mini" / "mine.txt"
    mine.touch()
    assert convert(tmp_path).endswith("there already; --force makes it again")
    assert mine.exists()
    convert(tmp_path, force=True)
    assert not mine.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mini-coco-det", "open-images-mini"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segmentation": [[1.0, 2.0, 3.0, 4.0]]}, "expected polygons of three corners or more"),
        ({"bbox": [1, 2, 3]}, "mini-coco-det: expected the mini set of COCO, found a fault in"),
        ({"category_id": 5}, "mini-coco-det: expected the mini set of COCO, found a fault in 5"),
        ({"bbox": [1, 2, math.nan, 4]}, "expected a finite box"),
        ({"segmentation": [[1e30, 2.0, 3.0, 4.0, 5.0, 6.0]]}, "expected outlines of at most 1000000 px"),
        ({"segmentation": [[1e9] * 6]}, "expected outlines of at most 1000000 px"),
        ({"segmentation": {"counts": [10**9], "size": [4, 8]}}, "mini-coco-det: expected the mini set of COCO"),
    ],
)
def test_a_broken_set_leaves_nothing_behind(tmp_path, changes, reason):
    with pytest.raises(UserError, match=reason):
        convert(coco(tmp_path, **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["mini-coco-det"]


def test_the_real_set_has_coco_s_boxes_and_the_page_s_classes(data_root, tmp_path):
    (tmp_path / "mini-coco-det").symlink_to(data_root / "mini-coco-det")
    convert(tmp_path)
    options = config_lib.load_page(PAGE).get_config().streams.open_images.options
    for split in ("train", "val"):
        official = registry.build("coco_detection", data_root=data_root, split=split)
        source = registry.build("open_images", data_root=tmp_path, split=split, **options)
        assert source.class_names["detection"] == official.class_names["detection"]
        assert len(source) == len(official)
        order = [image["file_name"] for image in json.loads(official.file.read_text())["images"]]
        for index in range(0, len(source), 20):
            actual = source[index]
            expected = official[order.index(f"{actual['id']}.jpg")]["labels"]["detection"]
            fields = actual["labels"]["detection"]
            np.testing.assert_allclose(fields["boxes_xyxy"], expected["boxes_xyxy"], atol=2e-3)
            for name in ("label", "crowd"):
                np.testing.assert_array_equal(fields[name], expected[name])
            shown = np.flatnonzero(actual["labels"]["multi_label"]["label"])
            assert set(shown) == set(expected["label"].tolist())
            assert set(np.unique(actual["labels"]["segmentation"]["mask"])) - {0} <= {label + 1 for label in shown}
