"""The VOC segmentation source, in both layouts and on real files."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.sources import registry
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
    source = registry.build("voc_segmentation", data_root=tmp_path, split="train", folder=folder)
    sample = source[0]
    assert len(source) == 1
    assert sample["id"] == "a"
    assert sample["image"].shape == (4, 6, 3)
    assert (sample["labels"]["segmentation"]["mask"] == 15).all()


def test_classes_may_be_read_as_background_and_are_then_not_labelled(tmp_path):
    make_voc(tmp_path / "mini-voc-seg")
    options = {"data_root": tmp_path, "split": "train"}
    source = registry.build("voc_segmentation", **options, as_background=("person", "cat"))
    assert not source[0]["labels"]["segmentation"]["mask"].any()
    assert set(source.class_names["segmentation"]) - set(source.labelled_classes["segmentation"]) == {"person", "cat"}
    with pytest.raises(UserError, match=r"as_background: expected some of aeroplane.*, found background, dogg"):
        registry.build("voc_segmentation", **options, as_background=("background", "dogg"))


def test_images_are_chosen_by_the_classes_that_they_show(tmp_path):
    folder = tmp_path / "mini-voc-seg"
    make_voc(folder)
    for name, value in (("b", 8), ("c", 0)):
        Image.fromarray(np.full((4, 6, 3), 80, np.uint8)).save(folder / f"JPEGImages/{name}.jpg")
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(folder / f"SegmentationClass/{name}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\n")

    def ids(**options):
        source = registry.build("voc_segmentation", data_root=tmp_path, split="train", **options)
        return [source[index]["id"] for index in range(len(source))]

    assert ids() == ["a", "b", "c"]
    assert ids(images_with=("person", "cat")) == ["a", "b"]
    assert ids(images_without=("person",)) == ["b", "c"]
    assert ids(images_with=("cat",), images_without=("person",)) == ["b"]
    with pytest.raises(UserError, match=r"train\.txt: expected images with \('dog',\), without \(\), found none"):
        ids(images_with=("dog",))
    with pytest.raises(UserError, match=r"images_with: expected some of aeroplane.*, found background"):
        ids(images_with=("background",))


def test_empty_list_is_refused(tmp_path):
    make_voc(tmp_path / "mini-voc-seg")
    with pytest.raises(UserError, match=r"val\.txt: expected one image name per line"):
        registry.build("voc_segmentation", data_root=tmp_path, split="val")


def test_mask_of_another_size_is_refused_with_its_file(tmp_path):
    make_voc(tmp_path / "mini-voc-seg", mask_shape=(6, 4))
    source = registry.build("voc_segmentation", data_root=tmp_path, split="train")
    with pytest.raises(UserError, match=r"a\.png: expected a mask of the image's size 6 x 4"):
        source[0]


def test_mask_with_a_class_outside_the_table_is_refused(tmp_path):
    make_voc(tmp_path / "mini-voc-seg")
    source = registry.build("voc_segmentation", data_root=tmp_path, split="train", classes=("ground", "thing"))
    with pytest.raises(UserError, match=r"a\.png: expected class indices 0 to 1 .*found \[15\]"):
        source[0]


def test_real_voc_has_its_known_share_of_background_and_void(data_root):
    counts = np.zeros(256, np.int64)
    for split, size in (("train", 240), ("val", 60)):
        source = registry.build("voc_segmentation", data_root=data_root, split=split)
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
        registry.build("voc_segmentation", data_root=tmp_path, split="train")[0]


def make_masks(root, masks, *, classes=("ground", "thing"), split_of=lambda number: "train", **options):
    """Grey images with these masks; returns the training source."""
    folder = root / "mini-voc-seg"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lists = {"train": [], "val": []}
    for number, mask in enumerate(masks):
        Image.fromarray(np.full((*np.shape(mask), 3), 90, np.uint8)).save(folder / f"JPEGImages/{number}.png")
        Image.fromarray(np.array(mask)).save(folder / f"SegmentationClass/{number}.png")
        lists[split_of(number)].append(str(number))
    for split, names in lists.items():
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
    return registry.build("voc_segmentation", data_root=root, split="train", classes=classes, **options)


def mask_of(source, index=0):
    return source[index]["labels"]["segmentation"]["mask"].tolist()


HALF, NONE = np.array([[0, 255]], np.uint8), np.array([[0, 0]], np.uint8)


def test_masks_of_0_and_255_are_two_classes_in_both_splits_and_it_is_said(tmp_path):
    source = make_masks(tmp_path, [NONE, HALF, HALF, HALF], split_of=lambda number: "val" if number == 3 else "train")
    (note,) = source.reading.notes
    assert "The masks hold 0 and 255 alone" in note
    assert "ground and thing; set the stream's options.void=255" in note
    assert [mask_of(source, index) for index in range(3)] == [[[0, 0]], [[0, 1]], [[0, 1]]]
    assert mask_of(registry.build("voc_segmentation", data_root=tmp_path, split="val", classes=("a", "b"))) == [[0, 1]]


def test_a_split_that_differs_from_the_training_masks_is_noted(tmp_path):
    ones = np.array([[0, 1]], np.uint8)
    make_masks(tmp_path, [ones, HALF], split_of=lambda number: ("train", "val")[number])
    val = registry.build("voc_segmentation", data_root=tmp_path, split="val", classes=("a", "b"))
    assert mask_of(val) == [[0, 255]]
    (note,) = val.reading.notes
    assert "but the training masks do not: 255 is void" in note


def test_whoever_reads_such_masks_without_asking_is_told(tmp_path, caplog):
    make_masks(tmp_path, [HALF])[0]
    assert "The masks hold 0 and 255 alone" in caplog.text


def test_255_stays_void_beside_1_where_told_so_and_of_more_classes(tmp_path):
    ones = np.array([[0, 1]], np.uint8)
    for name, masks, options in (
        ("ones", [HALF, ones], {}),
        ("told", [HALF], {"void": 255}),
        ("more", [HALF], {"classes": ("a", "b", "c")}),
    ):
        source = make_masks(tmp_path / name, masks, **options)
        assert mask_of(source) == [[0, 255]]
        assert not source.reading.notes


def test_the_file_s_own_void_and_the_task_s_are_void(tmp_path):
    three = np.array([[0, 3, 255]], np.uint8)
    assert mask_of(make_masks(tmp_path / "task", [three], ignore_label=3)) == [[0, 255, 255]]
    with pytest.raises(UserError, match=r"found \[255\]"):
        make_masks(tmp_path / "file", [three], void=3)[0]


def test_a_class_beyond_255_keeps_its_index(tmp_path):
    names = tuple(f"c{number}" for number in range(300))
    source = make_masks(tmp_path, [np.array([[0, 4, 260, 65535]], np.uint16)], classes=names)
    assert mask_of(source) == [[0, 4, 260, 65535]]


def test_palettes_that_differ_are_noted(tmp_path):
    def coloured(colour):
        mask = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
        mask.putpalette([0, 0, 0, *colour])
        return mask

    make_masks(tmp_path, [NONE, NONE])
    for number, colour in enumerate(((255, 0, 0), (0, 255, 0))):
        coloured(colour).save(tmp_path / f"mini-voc-seg/SegmentationClass/{number}.png")
    source = registry.build("voc_segmentation", data_root=tmp_path, split="train", classes=("a", "b"))
    assert "Value 1 has another colour in the palette of" in source.reading.notes[0]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp"])
def test_images_of_any_suffix_are_found(tmp_path, suffix):
    source = make_masks(tmp_path, [np.array([[0, 1]], np.uint8)])
    file = tmp_path / "mini-voc-seg/JPEGImages/0.png"
    file.rename(file.with_suffix(suffix))
    assert source.image_origin(0).name == f"0{suffix}"
    assert mask_of(source) == [[0, 1]]


def test_names_may_hold_spaces_and_are_read_once(tmp_path):
    source = make_masks(tmp_path, [np.array([[0, value]], np.uint8) for value in (1, 1, 0)])
    folder = tmp_path / "mini-voc-seg"
    for kind in ("JPEGImages", "SegmentationClass"):
        for number, name in enumerate(("cat", "1", "cat 1")):
            (folder / kind / f"{number}.png").rename(folder / kind / f"{name}.png")
    (folder / "ImageSets/Segmentation/train.txt").write_text(" cat 1 \n\ncat 1\ncat.png\ncat\n./cat 1.png\n")
    source = registry.build("voc_segmentation", data_root=tmp_path, split="train", classes=("a", "b"))
    assert [sample["id"] for sample in (source[0], source[1])] == ["cat 1", "cat.png"]
    assert (mask_of(source), mask_of(source, 1)) == ([[0, 0]], [[0, 1]])
    assert source.reading.counts == {"images": 2, "names listed twice": 3}


def test_a_name_with_two_images_or_none_is_refused(tmp_path):
    source = make_masks(tmp_path, [NONE, NONE])
    images = tmp_path / "mini-voc-seg/JPEGImages"
    (images / "0.jpg").write_bytes((images / "0.png").read_bytes())
    (images / "1.png").unlink()
    with pytest.raises(
        UserError, match=r"0: expected one image of this name, found 0\.jpg, 0\.png; remove all but one"
    ):
        source[0]
    with pytest.raises(UserError, match=r"1: expected an image of this name .* found none; add the file"):
        source[1]


def test_masks_of_turned_images_follow_the_dataset_where_their_size_does_not_tell(tmp_path, caplog):
    """One image on its side says that masks are of the stored pixels; one turned by 180 degrees follows."""
    mask = np.array([[0, 1, 1], [0, 0, 1]], np.uint8)
    source = make_masks(tmp_path, [mask, mask])
    for number, tag in enumerate((6, 3)):
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.new("RGB", (3, 2)).save(tmp_path / f"mini-voc-seg/JPEGImages/{number}.png", exif=exif)
    assert mask_of(source, 1) == mask[::-1, ::-1].tolist()
    assert (
        "whose size does not show whether masks are of the pixels as stored or upright: taken as stored" in caplog.text
    )
    assert mask_of(source, 0) == np.rot90(mask, -1).tolist()
    upright = registry.build(
        "voc_segmentation", data_root=tmp_path, split="train", classes=("a", "b"), annotated_on="upright"
    )
    assert mask_of(upright, 1) == mask.tolist()
