"""The COCO source: sparse categories, boxes at and beyond the border, crowds, images without objects."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.sources import registry
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
    return registry.build("coco_detection", data_root=root, split=split, **options)


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
    remainder = opened(tmp_path, classes=("teddy bear",), other_categories="ignore", images_without=("person",))
    assert [sample["id"] for sample in people] == ["7.jpg"]
    assert people[0]["labels"]["detection"]["boxes_xyxy"].tolist() == [[1, 2, 4, 6]]
    assert [sample["id"] for sample in remainder] == ["9.jpg"]
    with pytest.raises(UserError, match=f"{folder}.*expected images with .'person',., without .'person',., found none"):
        opened(tmp_path, images_with=("person",), images_without=("person",))
    with pytest.raises(UserError, match=r"expected the classes among the file's categories, found no \['cat'\]"):
        opened(tmp_path, images_with=("cat",))


def test_classes_that_no_file_has_count_as_not_labelled(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    source = opened(tmp_path, classes=("cup", "person", "teddy bear"))
    assert source.class_names["detection"] == ("cup", "person", "teddy bear")
    assert source.labelled_classes == dict.fromkeys(("detection", "multi_label"), ("person", "teddy bear"))
    assert source[0]["labels"]["detection"]["label"].tolist() == [1]


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


@pytest.mark.parametrize(
    ("size", "shape", "box"), [((40, 30), (40, 30, 3), [24, 1, 28, 4]), ((30, 40), (30, 40, 3), [1, 2, 4, 6])]
)
def test_boxes_turn_with_an_image_that_the_annotator_did_not_see_upright(tmp_path, size, shape, box):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], size=size, orientation=6)
    sample = opened(tmp_path)[0]
    assert sample["image"].shape == shape
    assert sample["labels"]["detection"]["boxes_xyxy"].tolist() == [box]


@pytest.mark.parametrize(("split", "images", "boxes", "crowds"), [("train", 240, 793, 13), ("val", 60, 167, 1)])
def test_real_coco_has_its_known_boxes_and_crowds(data_root, split, images, boxes, crowds):
    source = opened(data_root, split)
    fields = [source[index]["labels"]["detection"] for index in range(len(source))]
    names = source.class_names["detection"]
    assert len(source) == images
    assert (len(names), names[0], names[9]) == (10, "person", "teddy bear")
    assert sum(len(field["label"]) for field in fields) + sum(source.dropped_boxes.values()) == boxes
    assert sum(int(field["crowd"].sum()) for field in fields) == crowds
    labels = np.concatenate([field["label"] for field in fields])
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


def noted(source):
    return " ".join(source.reading.notes)


def test_what_was_read_clipped_and_dropped_is_counted(tmp_path):
    boxes = ([-5, 20, 100, 100], [1, 2, 3, 4], [1, 2, 3, 4], [5, 5, 0, 4], [50, 5, 4, 4])
    make_coco(tmp_path, [*(annotation(bbox) for bbox in boxes), annotation([1, 2, 3, 4], iscrowd=1)])
    source = opened(tmp_path)
    assert source.reading.counts == {
        "images": 2,
        "boxes": 3,
        "crowds among them": 1,
        "images without boxes": 1,
        "boxes clipped": 1,
        "boxes dropped: listed twice": 1,
        "boxes dropped: degenerate": 1,
        "boxes dropped: outside": 1,
    }
    assert not source.reading.notes


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ([annotation([5, 5, 0, 0])], r"no box is that of an object (1 dropped as degenerate); correct the file"),
        ([annotation([5, 5, 9, 9], iscrowd=1)], "(1 with iscrowd=1, which stand for groups)"),
        ([annotation([5, 5, 9, 0.5])], "(1 smaller than 1 px)"),
        ([], "(the file has none)"),
        (
            [annotation([30, 20, 38, 26]), annotation([3, 2, 20, 12])],
            "1 of 2 boxes (first: [30.0, 20.0, 38.0, 26.0] of an image of 40 x 30 px) end outside",
        ),
        (
            [annotation([30, 20, 38, 26]), annotation([3, 2, 20, 12]), annotation([1, 1, 5, 4])],
            "1 of 3 boxes (first: [30.0, 20.0, 38.0, 26.0] of an image of 40 x 30 px) end outside their image and are "
            "clipped, but all would fit as corners",
        ),
        (
            [annotation([30, 20, 38, 26]), annotation([30, 20, 20, 20]), annotation([30, 20, 4, 4])],
            "2 of 3 boxes (first: [30.0, 20.0, 38.0, 26.0] of an image of 40 x 30 px) end outside their image and are "
            "clipped or dropped: look whether they are in pixels",
        ),
    ],
)
def test_boxes_that_look_wrong_are_noted(tmp_path, annotations, words):
    make_coco(tmp_path, annotations)
    assert words in noted(opened(tmp_path))


def test_boxes_beyond_the_image_are_no_corners_where_one_would_not_fit(tmp_path):
    make_coco(tmp_path, [annotation([30, 20, 38, 26]), annotation([30, 20, 10, 10])])
    assert not opened(tmp_path).reading.notes


@pytest.mark.parametrize("split", ["train", "val"])
def test_shares_of_the_image_are_refused(tmp_path, split):
    shares = ([0.1, 0.2, 0.3, 1], [0, 0, 1, 1], [0.5, 0, 0.5, 1.02])
    make_coco(tmp_path, list(map(annotation, shares)), split=split)
    with pytest.raises(
        UserError, match=r"in pixels, found no number above 1.1 in 3 boxes .*, as shares of the image are"
    ):
        opened(tmp_path, split)


def test_entries_of_one_file_are_one_image_with_all_boxes(tmp_path):
    def change(content):
        content["images"].append({"id": 8, "file_name": "./7.jpg", "width": 40, "height": 30})
        content["annotations"] += [annotation([5, 6, 7, 8], image_id=8), annotation([1, 2, 3, 4], image_id=8)]

    rewritten(tmp_path, change)
    source = opened(tmp_path)
    assert [sample["id"] for sample in (source[0], source[1])] == ["7.jpg", "9.jpg"]
    assert source[0]["labels"]["detection"]["boxes_xyxy"].tolist() == [[1, 2, 4, 6], [5, 6, 12, 14]]
    assert source.dropped_boxes == {"listed_twice": 1}
    assert source.reading.counts["image entries merged"] == 1
    assert "lists 1 image more than once (first: 7.jpg)" in noted(source)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"id": 8, "file_name": "7.jpg", "width": 30, "height": 40},
            "expected one size of 7.jpg, found 40 x 30 and 30",
        ),
        ({"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}, "found 7 more often, for 7.jpg and a.jpg"),
        ({"id": 8, "file_name": "a.jpg", "width": 0, "height": 40}, "expected the size of a.jpg in px, found 0 x 40"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(tmp_path, change, reason):
    rewritten(tmp_path, lambda content: content["images"].append(change))
    with pytest.raises(UserError, match=reason):
        opened(tmp_path)


def test_ids_may_be_numbers_in_quotes_and_names(tmp_path):
    def change(content):
        content["categories"] = [{"id": "1", "name": "person"}, {"id": "07", "name": "cup"}]
        content["annotations"] = [annotation([1, 2, 3, 4], 1, "7"), annotation([5, 6, 7, 8], "07")]

    rewritten(tmp_path, change)
    source = opened(tmp_path)
    assert source.class_names["detection"] == ("person", "cup")
    assert source[0]["labels"]["detection"]["label"].tolist() == [0, 1]
    rewritten(tmp_path, lambda content: content["annotations"][0].update(category_id="01"))
    with pytest.raises(UserError, match="expected a category of the file, found id '01'"):
        opened(tmp_path)


def test_categories_of_the_splits_are_the_same_by_name(tmp_path):
    another = [{"id": 1, "name": "teddy bear"}, {"id": 2, "name": "person"}]
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], split="val", categories=another)
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert train.class_names == val.class_names == dict.fromkeys(train.class_names, ("person", "teddy bear"))
    assert val[0]["labels"]["detection"]["label"].tolist() == [1]


def test_a_split_may_lack_a_category(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], split="val", categories=CATEGORIES[1:])
    for options in ({}, {"classes": ("teddy bear", "person")}):
        names = opened(tmp_path, **options).class_names
        assert opened(tmp_path, "val", **options).class_names == names


def test_a_category_of_the_validation_split_alone_is_refused_where_it_is_used(tmp_path):
    more = [*CATEGORIES, {"id": 3, "name": "cup"}]
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    make_coco(tmp_path, [annotation([1, 2, 3, 4])], split="val", categories=more)
    assert opened(tmp_path, "val").class_names == opened(tmp_path).class_names
    make_coco(tmp_path, [annotation([1, 2, 3, 4], 3)], split="val", categories=more)
    with pytest.raises(
        UserError, match=r"found category 'cup'; add it to the stream's options\.classes and to the task"
    ):
        opened(tmp_path, "val")


def test_the_other_file_is_read_whole_where_its_categories_are_not_to_be_found_at_once(tmp_path):
    folder = make_coco(tmp_path, [annotation([1, 2, 3, 4], note='"categories": [1]')])
    make_coco(tmp_path, [annotation([1, 2, 3, 4], 88)], split="val")
    file = folder / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"info": {"categories": [1]}, **content}))
    assert opened(tmp_path, "val").class_names["detection"] == ("person", "teddy bear")


def turned(root, tags, **options):
    """Images of 40 x 30 px with a red box, 30 x 20 px from the corner of the stored pixels, each with an EXIF tag."""
    folder = make_coco(root, [annotation([4, 2, 10, 6], image_id=number) for number in (7, 9)])
    for number, tag in zip((7, 9), tags, strict=True):
        exif = Image.Exif()
        exif[0x0112] = tag
        pixels = np.full((30, 40, 3), 60, np.uint8)
        pixels[2:8, 4:14] = (250, 0, 0)
        Image.fromarray(pixels).save(folder / f"train/{number}.jpg", format="PNG", exif=exif)
    return opened(root, **options)


def red_in_box(sample):
    left, top, right, bottom = sample["labels"]["detection"]["boxes_xyxy"][0].astype(int).tolist()
    inside = sample["image"][top:bottom, left:right, 0]
    return inside.size == 60 and (inside == 250).all()


def test_an_image_whose_size_tells_decides_for_those_whose_size_does_not(tmp_path, caplog):
    source = turned(tmp_path, (6, 3))
    assert red_in_box(source[0])
    assert not caplog.text
    assert red_in_box(source[1])
    assert "EXIF turns 1 image (first: 9.jpg)" in caplog.text
    assert source.reading.counts["images turned"] == 2


@pytest.mark.parametrize(("annotated_on", "right"), [("upright", False), ("stored", True)])
def test_where_no_size_tells_the_setting_decides(tmp_path, annotated_on, right):
    source = turned(tmp_path, (3, 3), annotated_on=annotated_on)
    assert red_in_box(source[0]) == right
    assert not source.reading.notes


def test_where_nothing_tells_the_image_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"7\.jpg: .* found none here .* 2 turned images; set annotated_on to stored or upright"
    ):
        turned(tmp_path, (3, 3))[0]


def test_whole_numbers_that_are_written_as_floats_are_whole_numbers(tmp_path):
    make_coco(tmp_path, [annotation([1, 2, 3, 4])])
    file = tmp_path / "mini-coco-det/annotations/instances_train.json"
    content = json.loads(file.read_text())
    expected = opened(tmp_path)[0]["labels"]["detection"]
    for entry in (*content["images"], *content["annotations"]):
        entry |= {name: float(value) for name, value in entry.items() if type(value) is int and name != "iscrowd"}
    file.write_text(json.dumps(content))
    np.testing.assert_equal(opened(tmp_path)[0]["labels"]["detection"], expected)
