"""What all sources share: they are found by name, and say where they looked."""

import re

import pytest

from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import counted
from mtl_jax.errors import UserError

ON_DISK = ("voc_segmentation", "coco_detection", "open_images", "image_folder", "utkface", "nyuv2")


@pytest.mark.parametrize("kind", ON_DISK)
def test_missing_dataset_says_where_it_looked_and_how_to_set_the_folder(tmp_path, kind):
    with pytest.raises(UserError) as caught:
        registry.build(kind, data_root=tmp_path, split="train", folder="nowhere")
    message = str(caught.value)
    for section in (str(tmp_path / "nowhere"), "--config.data_root=DIR", "MTL_JAX_DATA"):
        assert section in message
    assert "\n" not in message


def test_missing_labels_say_where_they_were_looked_for(tmp_path):
    for path in ("nowhere", "nowhere.csv:age"):
        with pytest.raises(UserError, match=r"expected labels, found none at .*nowhere.*MTL_JAX_DATA"):
            registry.build("labels", data_root=tmp_path, split="train", path=path)


@pytest.mark.parametrize("kind", [*ON_DISK, "digits"])
def test_unknown_split_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="expected split 'train' or 'val', found 'test'"):
        registry.build(kind, data_root=tmp_path, split="test")


def test_unknown_source_and_option_are_refused():
    with pytest.raises(UserError, match=r"source: expected one of .*digits"):
        registry.build("mnist", data_root=None, split="train")
    with pytest.raises(UserError, match=r"options has no setting lenght; did you mean length"):
        registry.build("digits", data_root=None, split="train", lenght=3)


@pytest.mark.parametrize(
    ("kind", "options", "output"),
    [
        ("coco_detection", {"folder": 3}, "options.folder: expected text, such as 'mini-coco-det'"),
        ("nyuv2", {"folder": None}, "options.folder: expected text"),
        ("voc_segmentation", {"void": "x"}, "options.void: expected a whole number or None"),
        ("voc_segmentation", {"classes": ()}, "options.classes: expected names of classes"),
        ("image_folder", {"classes": (1, 2)}, "options.classes: expected names, in letters or digits, found 1"),
        ("coco_detection", {"classes": ("a", "b", "a")}, "expected each class once, found 'a' more than once"),
        ("open_images", {"classes": ("a", "")}, "options.classes: expected names, in letters or digits, found ''"),
        ("coco_detection", {"images_with": 5}, "options.images_with: expected several values"),
        ("digits", {"size": "x"}, "options.size: expected a whole number, such as 112"),
        (
            "tfds",
            {"name": "a", "fields": {}, "classes": {"det": "cat"}},
            "options.classes.det: expected a list of names",
        ),
    ],
)
def test_an_option_of_another_type_is_refused_before_anything_is_read(tmp_path, kind, options, output):
    with pytest.raises(UserError, match=re.escape(output)):
        registry.build(kind, data_root=tmp_path, split="train", **options)


@pytest.mark.parametrize(
    ("count", "subject", "output"),
    [
        (1, "images turned", "1 image turned"),
        (2, "images turned", "2 images turned"),
        (1, "image entries merged", "1 image entry merged"),
        (1, "boxes dropped: degenerate", "1 box dropped: degenerate"),
        (1, "images without boxes", "1 image without boxes"),
        (1, "tags", "1 tag"),
    ],
)
def test_one_of_a_kind_is_counted_in_the_singular(count, subject, output):
    assert counted(count, subject) == output
