"""The COCO source: sparse categories, boxes at and beyond the border, crowds, images without objects."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data import sources
from mtl_jax.errors import UserError

CATEGORIES = [{"id": 88, "name": "teddy bear"}, {"id": 1, "name": "person"}]


def annotation(bbox, category_id=1, image_id=7, **more):
    return {"id": 5, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


def make_coco(root, annotations, split="train", categories=CATEGORIES, size=(40, 30), orientation=None):
    folder = root / "mini-coco-det"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / split).mkdir(exist_ok=True)
    images = [{"id": number, "file_name": f"{number}.jpg", "width": 40, "height": 30} for number in (7, 9)]
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    for image in images:
        Image.new("RGB", size, (90, 90, 90)).save(folder / split / image["file_name"], exif=exif)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return folder


def opened(root, split="train", **options):
    return sources.build("coco_detection", data_root=root, split=split, **options)


def test_sparse_category_ids_become_contiguous_labels_in_order_of_id(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4]), annotation([5, 6, 7, 8], 88)])
    source = opened(tmp_path)
    fields = source[0]["labels"]["detection"]
    assert source.class_names == dict.fromkeys(("detection", "multi_label"), ("person", "teddy bear"))
    assert source[0]["labels"]["multi_label"]["label"].tolist() == [1, 1]
    assert source[1]["labels"]["multi_label"]["label"].tolist() == [0, 0]
    assert fields["label"].tolist() == [0, 1]
    assert fields["boxes_xyxy"].tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert fields["area"].tolist() == [12, 56]


def test_a_given_table_decides_the_labels(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4]), annotation([5, 6, 7, 8], 88)])
    source = opened(tmp_path, classes=("teddy bear", "person"))
    assert source[0]["labels"]["detection"]["label"].tolist() == [1, 0]


def test_images_are_chosen_by_what_they_show_and_other_objects_are_left_unlabelled(tmp_path):
    folder = make_coco(
        tmp_path, [annotation([1, 2, 3, 4]), annotation([5, 6, 7, 8], 88), annotation([1, 2, 3, 4], 88, 9)]
    )
    people = opened(tmp_path, classes=("person",), other_categories="ignore", images_with=("person",))
    rest = opened(tmp_path, classes=("teddy bear",), other_categories="ignore", images_without=("person",))
    assert [sample["id"] for sample in people] == ["7.jpg"]
    assert people[0]["labels"]["detection"]["boxes_xyxy"].tolist() == [[1, 2, 4, 6]]
    assert [sample["id"] for sample in rest] == ["9.jpg"]
    with pytest.raises(UserError, match=f"{folder}.*expected images with .'person',., without .'person',., found none"):
        opened(tmp_path, images_with=("person",), images_without=("person",))
    with pytest.raises(UserError, match=r"expected the classes among the file's categories, found no \['cat'\]"):
        opened(tmp_path, images_with=("cat",))


def test_image_without_objects_stays_with_zero_boxes(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    source = opened(tmp_path)
    assert len(source) == 2
    assert source[1]["labels"]["detection"]["boxes_xyxy"].shape == (0, 4)


def test_box_partly_outside_is_clipped(tmp_path):
    make_coco(tmp_path, [annotation([-5, 20, 100, 100])])
    source = opened(tmp_path)
    assert source[0]["labels"]["detection"]["boxes_xyxy"].tolist() == [[0, 20, 40, 30]]
    assert sum(source.dropped_boxes.values()) == 0


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([5, 5, 0, 4], "degenerate"),
        ([5, 5, 4, -1], "degenerate"),
        ([5, math.nan, 4, 4], "degenerate"),
        ([math.inf, 5, 4, 4], "degenerate"),
        ([40, 5, 4, 4], "outside"),
        ([-9, 5, 4, 4], "outside"),
        ([5, 31, 4, 4], "outside"),
    ],
)
def test_useless_box_is_dropped_and_counted(tmp_path, bbox, reason):
    make_coco(tmp_path, [annotation(bbox), annotation([1, 2, 3, 4])])
    source = opened(tmp_path)
    assert len(source[0]["labels"]["detection"]["label"]) == 1
    assert source.dropped_boxes == {reason: 1}


def test_crowd_and_area_are_kept(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4], iscrowd=1, area=5.5), annotation([1, 2, 3, 4], iscrowd=0)])
    fields = opened(tmp_path)[0]["labels"]["detection"]
    assert fields["crowd"].tolist() == [True, False]
    assert fields["area"].tolist() == [5.5, 12]


@pytest.mark.parametrize(
    ("entry", "options", "reason"),
    [
        (annotation([1, 2, 3, 4], 2), {}, "annotation 5: expected a category of the file, found id 2"),
        (annotation([1, 2, 3, 4], image_id=8), {}, "annotation 5: expected an image of the file, found id 8"),
        (annotation([1, 2, 3]), {}, r"annotation 5: expected bbox \[x, y, width, height\]"),
        (annotation(None), {}, r"annotation 5: expected bbox \[x, y, width, height\]"),
        (annotation([1, 2, 3, 4], 88), {"classes": ["person"]}, "found category 'teddy bear'.*'ignore'"),
        (annotation([1, 2, 3, 4]), {"classes": ["persom"]}, r"found no \['persom'\].*person"),
        (annotation([1, 2, 3, 4]), {"other_categories": "drop"}, "expected other_categories"),
    ],
)
def test_wrong_annotation_is_refused_with_file_and_reason(tmp_path, entry, options, reason):
    make_coco(tmp_path, [entry])
    with pytest.raises(UserError, match=reason):
        opened(tmp_path, **options)


def test_other_categories_can_be_ignored_and_are_counted(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4], 88), annotation([1, 2, 3, 4])])
    source = opened(tmp_path, classes=("person",), other_categories="ignore")
    assert source[0]["labels"]["detection"]["label"].tolist() == [0]
    assert source.dropped_boxes == {"other_category": 1}


def test_standard_names_of_2017_are_found(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], split="val2017")
    assert opened(tmp_path, split="val")[0]["image"].shape == (30, 40, 3)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [], "categories": []}']
)
def test_broken_annotation_file_is_refused_with_its_name(tmp_path, content):
    folder = make_coco(tmp_path, [])
    (folder / "annotations/instances_train.json").write_text(content)
    with pytest.raises(UserError, match=r"instances_train\.json: expected"):
        opened(tmp_path)


def test_image_entry_without_its_size_is_refused(tmp_path):
    folder = make_coco(tmp_path, [])
    file = folder / "annotations/instances_train.json"
    file.write_text(json.dumps({"images": [{"id": 1, "file_name": "x"}], "annotations": [], "categories": []}))
    with pytest.raises(UserError, match=r"expected \['width', 'height'\] in each of 'images'"):
        opened(tmp_path)


def test_image_of_another_size_than_annotated_is_refused(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], size=(20, 20))
    with pytest.raises(UserError, match=r"7\.jpg: expected 40 x 30 px as annotated, found 20 x 20"):
        opened(tmp_path)[0]


@pytest.mark.parametrize("size", [(40, 30), (30, 40)])
def test_rotated_image_is_turned_only_where_the_annotator_saw_it_so(tmp_path, size):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], size=size, orientation=6)
    assert opened(tmp_path)[0]["image"].shape == (30, 40, 3)


@pytest.mark.parametrize(("split", "images", "boxes", "crowds"), [("train", 240, 793, 13), ("val", 60, 167, 1)])
def test_real_coco_has_its_known_boxes_and_crowds(data_root, split, images, boxes, crowds):
    source = opened(data_root, split)
    fields = [source[index]["labels"]["detection"] for index in range(len(source))]
    names = source.class_names["detection"]
    assert len(source) == images
    assert (len(names), names[0], names[9]) == (10, "person", "teddy bear")
    assert sum(len(each["label"]) for each in fields) + sum(source.dropped_boxes.values()) == boxes
    assert sum(int(each["crowd"].sum()) for each in fields) == crowds
    labels = np.concatenate([each["label"] for each in fields])
    assert set(labels.tolist()) <= set(range(10))


def rewritten(root, change):
    """Lays a dataset out and changes its annotation file."""
    file = make_coco(root, [annotation([1, 2, 3, 4])]) / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda c: c["images"].append(3),
            "expected .'id', 'file_name', 'width', 'height'. in each of 'images', found 3",
        ),
        (lambda c: c["images"][0].update(id=[7]), r"found \['id'\] in"),
        (lambda c: c["images"][0].update(width="40"), r"found \['width'\] in"),
        (lambda c: c["images"][1].update(id=7), "expected every id of 'images' once, found 7 more often"),
        (lambda c: c["categories"][1].update(id=88), "expected every id of 'categories' once, found 88"),
        (lambda c: c["annotations"].append("text"), "expected .'image_id', 'category_id'. in each of 'annotations'"),
        (lambda c: c["annotations"][0].update(bbox="1234"), "expected bbox"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "expected iscrowd 0 or 1, found '0'"),
        (lambda c: c["annotations"][0].update(area=None), "expected an area in px², found None"),
        (lambda c: c["annotations"][0].update(area=math.nan), "expected an area in px², found nan"),
    ],
)
def test_an_entry_of_another_shape_is_refused_with_file_and_reason(tmp_path, change, reason):
    rewritten(tmp_path, change)
    with pytest.raises(UserError, match=rf"instances_train\.json.*{reason}"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["../val/7.jpg", "/dev/zero"])
def test_an_image_outside_of_its_folder_is_not_read(tmp_path, name):
    rewritten(tmp_path, lambda content: content["images"][0].update(file_name=name))
    with pytest.raises(UserError, match=r"expected names of files inside, found '.*', which leads outside"):
        opened(tmp_path)[0]


def test_numbers_that_no_float_can_hold_make_a_degenerate_box(tmp_path):
    rewritten(tmp_path, lambda content: content["annotations"][0].update(bbox=[0, 0, 10**400, 5]))
    assert opened(tmp_path).dropped_boxes == {"degenerate": 1}


def test_categories_of_one_name_are_one_class(tmp_path):
    rewritten(tmp_path, lambda content: content["categories"].append({"id": 2, "name": "person"}))
    assert opened(tmp_path).class_names["detection"] == ("person", "teddy bear")


def test_json_nested_without_end_is_refused(tmp_path):
    file = make_coco(tmp_path, []) / "annotations/instances_train.json"
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"instances_train\.json: expected a JSON file"):
        opened(tmp_path)
