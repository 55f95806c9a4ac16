"""The Open Images source: tables, labels of three kinds, masks and boxes over each other, subsets, mistakes."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax import config as config_lib
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.open_images_csv import read_boxes
from mtl_jax.errors import UserError

PAGE = Path(__file__).parent.parent / "configs" / "open_images.py"
CLASSES = "/m/1,Cat\n/m/2,Dog\n/m/3,Tree\n"
BOX_HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
PRESENCE_HEADER = "ImageID,Source,LabelName,Confidence"
MASK_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
CAT = "a,xclick,/m/1,1,0.25,0.75,0.5,1,0,0,0,0,0"
WHOLE_TREE = "a,xclick,/m/3,1,0,1,0,1,0,0,1,0,0"


def box(corners, image="a", mid="/m/1", group=0):
    """A row of the table of boxes; corners are left, right, top, bottom."""
    return f"{image},xclick,{mid},1,{corners},-1,-1,{group},-1,-1"


def table(header, *rows):
    return "\n".join([header, *rows]) + "\n"


def make(root, boxes, presences=None, masks=None, images=("a", "b"), prefix="train", named="train-", classes=CLASSES):
    """A data set of grey images, 8 x 4 px."""
    folder = root / "open-images-mini"
    (folder / prefix).mkdir(parents=True)
    (folder / f"{prefix}-masks").mkdir()
    for name in images:
        Image.new("RGB", (8, 4), (90, 90, 90)).save(folder / prefix / f"{name}.jpg")
    (folder / "class-descriptions-boxable.csv").write_text(classes)
    (folder / f"{named}annotations-bbox.csv").write_text(table(BOX_HEADER, *boxes))
    if presences is not None:
        file = folder / f"{named}annotations-human-imagelabels-boxable.csv"
        file.write_text(table(PRESENCE_HEADER, *presences))
    if masks is not None:
        (folder / f"{named}annotations-object-segmentation.csv").write_text(table(MASK_HEADER, *masks))
    return folder


def opened(root, split="train", **options):
    return registry.build("open_images", data_root=root, split=split, **options)


def labels(root, index=0, **options):
    return opened(root, **options)[index]["labels"]


def test_boxes_are_in_pixels_and_groups_are_crowds(tmp_path):
    make(tmp_path, [CAT, WHOLE_TREE])
    fields = labels(tmp_path)["detection"]
    assert fields["boxes_xyxy"].tolist() == [[2, 2, 6, 4], [0, 0, 8, 4]]
    assert fields["label"].tolist() == [0, 2]
    assert fields["crowd"].tolist() == [False, True]
    assert fields["area"].tolist() == [8, 32]


def test_columns_are_found_by_name_and_an_unknown_group_is_none(tmp_path):
    folder = make(tmp_path, [])
    text = "IsGroupOf,YMax,YMin,XMax,XMin,LabelName,More,ImageID\n-1,1.0,0.5,0.75,0.25,/m/1,x,a\n\n"
    (folder / "train-annotations-bbox.csv").write_text("\ufeff" + text)
    fields = labels(tmp_path)["detection"]
    assert fields["boxes_xyxy"].tolist() == [[2, 2, 6, 4]]
    assert not fields["crowd"].any()


def test_what_people_verified_is_known_and_all_else_is_not(tmp_path):
    rows = ["a,verification,/m/1,1", "a,verification,/m/2,0", "a,machine,/m/3,0.9", "a,verification,/m/none,1"]
    make(tmp_path, [CAT], rows)
    label = labels(tmp_path)["multi_label"]["label"]
    np.testing.assert_array_equal(label, [1, 0, np.nan])
    assert label.dtype == np.float32


def test_boxes_and_masks_say_which_classes_people_looked_for(tmp_path):
    rows = ["a,verification,/m/2,0", "b,verification,/m/3,1", "b,verification,/m/1,0", "b,human,/m/1,1"]
    make(tmp_path, [CAT], rows)
    first, second = (labels(tmp_path, index) for index in range(2))
    assert first["detection"]["labelled"].tolist() == [True, True, False]
    assert first["segmentation"]["labelled"].tolist() == [True, True, True, False]
    assert second["detection"]["labelled"].tolist() == [False, False, True]  # a contradiction is no answer
    assert registry.reading_of(opened(tmp_path)).counts["images not searched for every class"] == 2


@pytest.mark.parametrize("presences", [None, [f"a,verification,/m/{number},0" for number in (1, 2, 3)]])
def test_classes_that_were_looked_for_in_every_image_are_not_told(tmp_path, presences):
    make(tmp_path, [CAT], presences)
    assert all("labelled" not in fields for fields in labels(tmp_path).values())


def test_classes_restrict_the_images_and_order_the_labels(tmp_path):
    boxes = [CAT, WHOLE_TREE, box("0,1,0,1", "b", "/m/2"), box("0,1,0,1", "d", "/m/2")]
    presences = ["b,verification,/m/2,1", "c,verification,/m/3,0", "d,verification,/m/2,1", "a,verification,/m/1,1"]
    make(tmp_path, boxes, presences, images=("a", "b", "c", "d"))
    source = opened(tmp_path, classes=("Tree", "Cat"))
    assert source.class_names["detection"] == source.class_names["multi_label"] == ("Tree", "Cat")
    assert source.class_names["segmentation"] == ("background", "Tree", "Cat")
    # c shows neither, which is known; nothing of the two classes is known of b and d.
    assert [source[index]["id"] for index in range(len(source))] == ["a", "c"]
    assert source[0]["labels"]["detection"]["label"].tolist() == [1, 0]
    np.testing.assert_array_equal(source[1]["labels"]["multi_label"]["label"], [0, np.nan])
    assert source[1]["labels"]["detection"]["boxes_xyxy"].shape == (0, 4)
    assert not source[1]["labels"]["segmentation"]["mask"].any()


def test_smaller_objects_lie_over_larger_ones_and_boxes_fill_in_for_masks(tmp_path, caplog):
    dog = box("0,0.375,0,0.5", mid="/m/2")
    # The corners are rounded otherwise than in the table of boxes; the file of the other mask is not there.
    masks = ["cat.png,a,/m/1,1,0.2499,0.7501,0.5,1,0.9,", "lost.png,a,/m/2,2,0,0.375,0,0.5,0.9,"]
    folder = make(tmp_path, [dog, CAT, WHOLE_TREE], masks=masks)
    outline = np.zeros((8, 16), np.uint8)  # twice as fine as the image
    outline[2:, 4:8] = 255
    Image.fromarray(outline).save(folder / "train-masks" / "cat.png")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # the log says it once
            mask = labels(tmp_path)["segmentation"]["mask"]
    expected = np.full((4, 8), 3)
    expected[1:, 2:4] = 1
    expected[:2, :3] = 2
    np.testing.assert_array_equal(mask, expected)
    assert caplog.text.count("1 objects have a mask, 2 fill their box instead") == 1


def test_each_mask_goes_to_its_own_box_of_the_same_class(tmp_path):
    boxes = [box("0,0.5,0,1"), box("0.5,1,0,1"), box("0.5,1,0,1", mid="/m/2")]
    masks = [f"{name}.png,a,/m/1,1,{corners},1," for name, corners in (("right", "0.5,1,0,1"), ("left", "0,0.5,0,1"))]
    folder = make(tmp_path, boxes, masks=[*masks, "right.png,a,/m/2,1,0.1,0.3,0,1,1,"])
    for name, column in (("left", 1), ("right", 6)):
        outline = np.zeros((4, 8), bool)
        outline[:, column] = True
        Image.fromarray(outline).save(folder / "train-masks" / f"{name}.png")
    source = opened(tmp_path, classes=("Cat",))
    np.testing.assert_array_equal(np.nonzero(source[0]["labels"]["segmentation"]["mask"][0])[0], [1, 6])
    assert not source.dropped
    assert opened(tmp_path).dropped == {"mask_without_box": 1}


def test_images_that_are_not_there_are_skipped_counted_and_told(tmp_path, caplog):
    make(tmp_path, [CAT, box("0,1,0,1", "x"), box("0,1,0,1", "y"), box("0,1,0,1", "x")], ["z,verification,/m/1,0"])
    with caplog.at_level(logging.WARNING):
        assert len(opened(tmp_path)) == 1
    assert "3 of 4 annotated images are missing and skipped" in caplog.text


def test_a_box_without_area_is_dropped_and_one_beyond_the_border_is_clipped(tmp_path):
    make(tmp_path, [CAT, box("0.5,0.5,0,1"), box("0.5,0.25,0,1"), box("-0.001,1.001,0,1")])
    source = opened(tmp_path)
    assert source.dropped == {"degenerate": 2}
    assert source[0]["labels"]["detection"]["boxes_xyxy"].tolist() == [[2, 2, 6, 4], [0, 0, 8, 4]]


@pytest.mark.parametrize(
    ("split", "prefix", "named"),
    [("train", "train", "oidv6-train-"), ("val", "validation", "validation-"), ("val", "val", "oidv7-val-")],
)
def test_official_names_are_found(tmp_path, split, prefix, named):
    make(tmp_path, [CAT], ["a,verification,/m/1,1"], prefix=prefix, named=named)
    source = opened(tmp_path, split)
    assert list(source.class_names) == ["detection", "multi_label", "segmentation"]
    assert source[0]["image"].shape == (4, 8, 3)


def test_without_labels_of_whole_images_there_is_no_multi_label(tmp_path):
    make(tmp_path, [CAT])
    assert list(opened(tmp_path).class_names) == ["detection", "segmentation"]


def test_masks_of_more_than_255_classes_have_16_bits(tmp_path):
    make(tmp_path, [CAT], classes="LabelName,DisplayName\n" + "".join(f"/m/{i},name {i}\n" for i in range(255)))
    source = opened(tmp_path)
    assert len(source.class_names["detection"]) == 255
    mask = source[0]["labels"]["segmentation"]["mask"]
    assert mask.dtype == np.uint16
    assert set(np.unique(mask)) == {0, 1 + source.class_names["detection"].index("name 1")}


def test_what_was_read_and_dropped_is_counted(tmp_path):
    group = box("0,1,0,0.5", group=1)
    boxes = [CAT, CAT, group, box("0.75,0.25,1,0.5"), box("0.5,0.5,0,1"), box("0,1,0,1", "gone")]
    rows = ["a,verification,/m/1,1", "a,verification,/m/2,0", "a,crowd,/m/2,1", "b,verification,/m/1,0"]
    make(tmp_path, boxes, rows)
    source = opened(tmp_path)
    np.testing.assert_array_equal(source[0]["labels"]["multi_label"]["label"], [1, np.nan, np.nan])
    assert source.reading.counts == {
        "images": 2,
        "images missing": 1,
        "boxes": 2,
        "crowds among them": 1,
        "boxes dropped: listed twice": 1,
        "boxes dropped: degenerate": 2,
        "labels of whole images": 2,
        "labels in contradiction": 1,
        "images not searched for every class": 2,
    }


@pytest.mark.parametrize("suffix", [".png", ".JPG"])
def test_images_may_have_any_suffix(tmp_path, suffix):
    folder = make(tmp_path, [CAT])
    (folder / "train/a.jpg").rename(folder / f"train/a{suffix}")
    assert opened(tmp_path)[0]["image"].shape == (4, 8, 3)


def test_boxes_and_masks_of_stored_pixels_turn_with_their_image(tmp_path):
    folder = make(tmp_path, [CAT])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(folder / "train/a.jpg", exif=exif)
    with pytest.raises(UserError, match=r"a\.jpg: expected a size that shows .* boxes and masks .*annotated_on"):
        opened(tmp_path)[0]
    for annotated_on, corners in (("upright", [1, 4, 3, 8]), ("stored", [0, 2, 2, 6])):
        sample = opened(tmp_path, annotated_on=annotated_on)[0]
        assert sample["image"].shape == (8, 4, 3)
        assert sample["labels"]["detection"]["boxes_xyxy"].tolist() == [corners]
        rows, columns = np.nonzero(sample["labels"]["segmentation"]["mask"])
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == corners


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["a,xclick,/m/1,1"], "line 3: expected 13 cells, found 4"),
        ([box("left,1,0,1")], "line 3: expected numbers, found left, 0, 1, 1"),
        ([box("20,300,5,90")], "line 3: expected corners as shares of the image, 0 to 1, found 20, 5, 300, 90"),
        ([box("nan,1,0,1")], "line 3: expected corners"),
        ([box("0,1,0,1", group="yes")], "line 3: expected numbers, found yes"),
        (['a,"x"y'], "line 3: expected a row of CSV"),
    ],
)
def test_a_malformed_row_is_refused_with_file_and_line(tmp_path, rows, reason):
    make(tmp_path, [CAT, *rows])
    with pytest.raises(UserError, match=rf"train-annotations-bbox\.csv, {reason}") as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_sizes_in_the_place_of_corners_are_told(tmp_path):
    sizes = [box("0.5,0.1,0.5,0.2"), box("0.6,0.3,0.1,0.4")]
    make(tmp_path / "some", [CAT, *sizes])
    assert "2 of 3 boxes have no area and are dropped" in " ".join(opened(tmp_path / "some").reading.notes)
    make(tmp_path / "all", sizes)
    with pytest.raises(UserError, match="expected boxes with XMin < XMax and YMin < YMax, found none of 2"):
        opened(tmp_path / "all")


def test_malformed_labels_and_masks_are_refused_too(tmp_path):
    make(tmp_path / "labels", [CAT], ["a,verification,/m/1,sure"])
    with pytest.raises(UserError, match=r"imagelabels-boxable\.csv, line 2: expected numbers, found sure"):
        opened(tmp_path / "labels")
    folder = make(tmp_path / "masks", [CAT], masks=["cat.png,a,/m/1,1,0,1,0,9,1,"])
    (folder / "train-masks" / "cat.png").touch()
    with pytest.raises(UserError, match=r"object-segmentation\.csv, line 2: expected corners"):
        opened(tmp_path / "masks")


def test_tables_that_are_none_are_refused(tmp_path):
    folder = make(tmp_path, [CAT])
    (folder / "train-annotations-bbox.csv").write_text("ImageID,LabelName\n")
    with pytest.raises(UserError, match=r"line 1: expected the columns .* found no IsGroupOf, XMin"):
        opened(tmp_path)
    (folder / "train-annotations-bbox.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"bbox\.csv: expected a CSV file"):
        opened(tmp_path)
    (folder / "class-descriptions-boxable.csv").write_text("")
    with pytest.raises(UserError, match="expected rows of machine id and name"):
        opened(tmp_path)


def test_unknown_classes_and_a_set_without_images_are_refused(tmp_path):
    make(tmp_path, [CAT], images=())
    with pytest.raises(UserError, match="among the file's names, found no 'cat'"):
        opened(tmp_path, classes=("Dog", "cat"))
    with pytest.raises(UserError, match=r"expected images <ImageID>\.jpg of .*bbox\.csv, found none of the 1"):
        opened(tmp_path)


def test_a_table_is_read_row_by_row_and_unwanted_rows_are_passed_over(tmp_path):
    folder = make(tmp_path, [box("?,?,?,?", "b"), box("?,?,?,?", mid="/m/2"), CAT, "broken"])
    rows = read_boxes(folder / "train-annotations-bbox.csv", {"/m/1": 0}, lambda image: image == "a")
    assert next(rows)[0] == "a"  # before the broken row is met
    with pytest.raises(UserError, match="line 5"):
        next(rows)


def test_the_page_takes_every_method_and_no_other_word():
    page = config_lib.load_page(PAGE)
    config = page.get_config("pcgrad")
    config_lib.resolve(config)
    assert config.stages.joint.balance == "pcgrad"
    assert set(config.streams.open_images.labels) == set(config.tasks)
    with pytest.raises(UserError, match=r"open_images\.py:pc: expected one of sum, mean"):
        page.get_config("pc")
