"""Before its first step a run knows its data: what is wrong is refused in one line, what is odd is said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_survey import write

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.errors import UserError
from mtl_jax.workdir import data_record

CLASSES = ("blue", "red")


def folders(root, train=3, val=2, *, seed=0, folder="set"):
    for split, count, first in (("train", train, 0), ("val", val, 100)):
        for number, name in enumerate(CLASSES):
            for index in range(count):
                write(root / folder / split / name / f"{index}.png", (seed, first + number * 50 + index))
    return root


def masks(root, *, train, val):
    """VOC's layout; a mask is the list of its values."""
    base = root / "voc"
    for split, values in (("train", train), ("val", val)):
        for index, mask in enumerate(values):
            write(base / f"JPEGImages/{split}{index}.jpg", (7, len(split), index), size=(len(mask), 1))
            (base / "SegmentationClass").mkdir(exist_ok=True)
            Image.fromarray(np.array([mask], np.uint8)).save(base / f"SegmentationClass/{split}{index}.png")
        (base / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        names = "".join(f"{split}{index}\n" for index in range(len(values)))
        (base / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    return root


def boxes(root, *, train, val):
    """COCO's layout; an image is the list of its boxes' categories."""
    for split, images in (("train", train), ("val", val)):
        annotations = []
        for index, labels in enumerate(images):
            write(root / f"coco/{split}/{index}.png", (9, len(split), index))
            annotations += [
                {"image_id": index, "category_id": label, "bbox": [1 + place, 1, 4, 4]}
                for place, label in enumerate(labels)
            ]
        tree = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 12, "height": 8} for i in range(len(images))],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES)],
        }
        file = root / f"coco/annotations/instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(tree))
    return root


STREAMS = {
    "classes": ("image_folder", {"cls": "classification"}, {"folder": "set"}),
    "masks": ("voc_segmentation", {"seg": "segmentation"}, {"folder": "voc", "classes": CLASSES, "void": 255}),
    "boxes": ("coco_detection", {"det": "detection"}, {"folder": "coco"}),
    "found": ("labels", {"cls": "classification"}, {"path": "set"}),
}
KINDS = {"cls": "classification", "seg": "segmentation", "det": "detection"}


def examine(root, *streams, smoke=False, **settings):
    config = config_lib.base()
    config.smoke = smoke
    config.order = streams
    for stream in streams:
        config.stages[stream] = config_lib.stage((stream,))
        source, labels, options = STREAMS[stream]
        config.streams[stream] = config_lib.stream(source, labels, options=options)
        for task in labels:
            config.tasks[task] = {"kind": KINDS[task], "classes": CLASSES}
    setup = experiment.build(config.to_dict(), data_root=Path(root))
    return data_record.examine(setup, **settings)


def test_the_figures_are_those_of_the_files(tmp_path):
    folders(tmp_path)
    masks(tmp_path, train=[[0, 0, 1, 255], [1, 1, 1, 1]], val=[[0, 1]])
    boxes(tmp_path, train=[[0, 1, 1], []], val=[[0]])
    record = examine(tmp_path, "classes", "masks", "boxes")
    train = {stream: splits["train"] for stream, splits in record.streams.items()}
    assert {stream: entry["images"] for stream, entry in train.items()} == {"classes": 6, "masks": 2, "boxes": 2}
    assert train["masks"]["labels"]["segmentation"]["classes"] == {
        "blue": {"images": 1, "pixels": 2},
        "red": {"images": 2, "pixels": 5},
    }
    assert train["boxes"]["labels"]["detection"]["classes"]["red"] == {"images": 1, "boxes": 2}
    assert train["classes"]["width_px"] == {"min": 12, "median": 12, "max": 12}
    assert record.lines() == [
        "classes train: 6 images of 12 x 8 px; classification: 6 images labelled, 2 of 2 classes, fewest blue "
        "(3 images)",
        "classes val: 4 images of 12 x 8 px; classification: 4 images labelled, 2 of 2 classes, fewest blue (2 images)",
        "masks train: 2 images of 4 x 1 px; segmentation: 87.5 % of pixels labelled, 2 of 2 classes, fewest blue "
        "(1 image)",
        "masks val: 1 image of 2 x 1 px; segmentation: 100 % of pixels labelled, 2 of 2 classes, fewest blue (1 image)",
        "boxes train: 2 images of 12 x 8 px; detection: 3 boxes, 1 image without boxes, 2 of 2 classes, fewest blue "
        "(1 image)",
        "boxes val: 1 image of 12 x 8 px; detection: 1 box, 1 of 2 classes, fewest blue (1 image)",
        "warning: stream boxes: task det: no validation box shows 1 of 2 classes (red): not measured; choose other "
        "validation images",
    ]


def test_what_is_wrong_in_all_splits_and_streams_is_told_in_one_line(tmp_path):
    folders(tmp_path)
    masks(tmp_path, train=[[0, 1], [0, 1]], val=[[0, 1]])
    broken = [tmp_path / "set/train/red/1.png", tmp_path / "set/val/blue/0.png", tmp_path / "voc/JPEGImages/train1.jpg"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:50])
    Image.fromarray(np.array([[0, 9]], np.uint8)).save(tmp_path / "voc/SegmentationClass/val0.png")
    with pytest.raises(UserError, match="found 4 problems") as caught:
        examine(tmp_path, "classes", "masks")
    assert f"4 problems in {tmp_path}/: " in str(caught.value)
    assert all(str(file.relative_to(tmp_path)) in str(caught.value) for file in broken)
    assert "voc/SegmentationClass/val0.png: expected class indices" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_twenty_are_named_and_the_others_counted(tmp_path):
    folders(tmp_path, train=15)
    for file in (tmp_path / "set/train").rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(UserError, match="found 30 problems") as caught:
        examine(tmp_path, "classes")
    assert str(caught.value).count(".png") == 20
    assert str(caught.value).endswith("; and 10 more")


@pytest.mark.parametrize(
    ("stream", "train", "output"),
    [
        ("masks", [[0, 255, 0]], "task seg: no training mask shows 1 of 2 classes (red), which cannot be learnt"),
        ("boxes", [[1], []], "task det: no training box shows 1 of 2 classes (blue), which cannot be learnt"),
    ],
)
def test_a_class_that_no_training_label_shows_is_named(tmp_path, stream, train, output):
    {"masks": masks, "boxes": boxes}[stream](tmp_path, train=train, val=[[0, 1]])
    assert any(warning.startswith(output) for warning in examine(tmp_path, stream).warnings)


def test_a_class_folder_without_images_is_named(tmp_path):
    folders(tmp_path)
    shutil.rmtree(tmp_path / "set/train/red")
    (tmp_path / "set/train/red").mkdir()
    warnings = examine(tmp_path, "classes").warnings
    assert any(warning.startswith("task cls: no training image shows 1 of 2 classes (red)") for warning in warnings)


@pytest.mark.parametrize(
    ("stream", "train", "output"),
    [
        ("masks", [[255, 255]], "stream masks: expected labels to learn task seg from, found none in the 1 training"),
        ("boxes", [[], []], "stream boxes: expected labels to learn task det from, found none in the 2 training"),
    ],
)
def test_a_stream_that_teaches_nothing_is_refused(tmp_path, stream, train, output):
    {"masks": masks, "boxes": boxes}[stream](tmp_path, train=train, val=[[0, 1]])
    with pytest.raises(UserError, match=output):
        examine(tmp_path, stream)


@pytest.mark.parametrize(
    ("stream", "val", "output"),
    [
        ("masks", [[255, 255]], "stream masks: task seg: none of the 1 validation images has a label"),
        ("masks", [[0, 255]], "stream masks: task seg: no validation mask shows anything but blue"),
        ("boxes", [[], []], "stream boxes: task det: none of the 2 validation images has a label"),
    ],
)
def test_validation_that_measures_nothing_is_named(tmp_path, stream, val, output):
    {"masks": masks, "boxes": boxes}[stream](tmp_path, train=[[0, 1]], val=val)
    assert any(warning.startswith(output) for warning in examine(tmp_path, stream).warnings)


def test_an_image_of_both_splits_is_refused_in_a_smoke_run_too_wherever_it_is(tmp_path):
    folders(tmp_path, train=12, val=12)
    shutil.copy(tmp_path / "set/train/red/11.png", tmp_path / "set/val/red/11.png")
    for smoke in (False, True):
        with pytest.raises(UserError, match=r"found 1 \(first: 'red/11\.png'"):
            examine(tmp_path, "classes", smoke=smoke)


def test_in_a_smoke_run_of_a_large_dataset_files_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(data_record, "SMOKE_IMAGES", 3)
    folders(tmp_path, train=12, val=12)
    record = examine(tmp_path, "classes", smoke=True)
    assert record.streams["classes"]["train"]["looked_at"] == 3
    assert record.lines()[0].startswith("classes train: 24 images (3 looked at)")
    assert record.warnings == ()  # of what was not looked at, nothing is said
    shutil.copy(tmp_path / "set/train/red/11.png", tmp_path / "set/val/red/11.png")
    with pytest.raises(UserError, match="found 1 "):
        examine(tmp_path, "classes", smoke=True)


def test_a_copy_in_another_format_is_the_same_image(tmp_path):
    folders(tmp_path)
    Image.open(tmp_path / "set/train/red/1.png").save(tmp_path / "set/val/red/9.bmp")
    with pytest.raises(UserError, match=r"first: 'red/9\.bmp'"):
        examine(tmp_path, "classes")
    record = examine(tmp_path, "classes", tolerated_leakage_percent=50.0)
    assert record.streams["classes"]["val"]["images"] == 5


def test_images_that_are_there_twice_or_show_nothing_are_named(tmp_path):
    folders(tmp_path)
    shutil.copy(tmp_path / "set/train/blue/1.png", tmp_path / "set/train/red/1.png")
    Image.new("RGB", (12, 8)).save(tmp_path / "set/val/red/0.png")
    assert examine(tmp_path, "classes").warnings == (
        "stream classes, train: 1 image stored more than once, such as red/1.png and blue/1.png with other labels: "
        "they count twice; remove copies",
        "stream classes, val: 1 image of a single colour (red/0.png): look whether that is right",
    )


def test_what_holds_for_both_splits_is_said_once(tmp_path):
    for name in CLASSES:
        for index in range(8):
            write(tmp_path / "set" / name / f"{index}.png", (name == "red", index))
    (warning,) = examine(tmp_path, "found").warnings
    assert warning.startswith("stream found: ")
    assert "without splits for training and validation" in warning


def test_a_dataset_that_is_not_there_is_told_beside_what_is_broken(tmp_path):
    folders(tmp_path)
    (tmp_path / "set/val/red/1.png").write_bytes(b"")
    with pytest.raises(UserError, match="found 3 problems") as caught:
        examine(tmp_path, "classes", "boxes")
    assert "a COCO dataset" in str(caught.value)
    assert "set/val/red/1.png" in str(caught.value)


def test_the_whole_is_written_as_json_whatever_names_files_have(tmp_path):
    folders(tmp_path)
    write(tmp_path / "set/train/red" / "caf\udce9.png", 1)
    shutil.copy(tmp_path / "set/train/red" / "caf\udce9.png", tmp_path / "set/train/red/z.png")
    record = examine(tmp_path, "classes")
    record.write(tmp_path)
    tree = json.loads((tmp_path / "data.json").read_text("ascii"))
    assert tree["streams"] == record.streams
    assert len(tree["warnings"]) == 1
