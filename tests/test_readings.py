"""What training sees of random datasets is what was written: every pixel, box, class, number and count; and back."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from random_sets import (
    INPUT_PX,
    NAMES,
    rectangles,
    seen,
    shown_boxes,
    shown_map,
    size,
    stored,
    stored_box,
    write_map,
    write_photo,
)
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment, predict
from mtl_jax.data.sources import registry

BOTH_WAYS = pytest.mark.parametrize("flip", [False, True])


@pytest.fixture(params=range(4))
def rng(request):
    return np.random.default_rng(request.param)


@pytest.fixture
def layout(request, rng):
    """On which pixels labels were made, both among the seeds, a suffix, and every EXIF tag once."""
    annotated_on = ("upright", "stored")[request.node.callspec.params["rng"] % 2]
    return annotated_on, str(rng.choice([".png", ".jpg", ".JPG", ".tiff"])), (rng.permutation(8) + 1).tolist()


def assert_map(actual, upright, missing, *, flip):
    expected, sure = shown_map(upright, missing, flip=flip)
    assert sure.mean() > 0.4
    np.testing.assert_array_equal(actual[sure], expected[sure])


@BOTH_WAYS
def test_every_pixel_of_voc_masks_has_its_class(tmp_path, rng, layout, flip):
    annotated_on, suffix, tags = layout
    count = int(rng.choice([2, 3, 255, 256, 300]))
    void = int(rng.choice([255 if count <= 255 else 65535, 401]))
    classes, masks = tuple(f"c{i}" for i in range(count)), {}
    for name, tag in zip(NAMES, tags, strict=True):
        mask = rng.choice([*rng.integers(0, count, 4), 1, void], size(rng))  # a 1 says that 255 is void
        masks[name] = mask
        written = mask if annotated_on == "upright" else stored(mask.astype(np.int32), tag)
        write_photo(tmp_path / f"s/JPEGImages/{name}{suffix}", rng.integers(0, 256, (*mask.shape, 3), np.uint8), tag)
        write_map(
            tmp_path / f"s/SegmentationClass/{name}.png", written.astype(np.uint16 if written.max() > 255 else np.uint8)
        )
    lists = tmp_path / "s/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\r\n".join([*NAMES, *NAMES[:2]]), encoding="utf-8")
    source = registry.build(
        "voc_segmentation", data_root=tmp_path, split="train", folder="s", classes=classes, annotated_on=annotated_on,
        ignore_label=void,
    )  # fmt: skip
    assert source.reading.counts["images"] == len(NAMES)
    assert source.reading.counts["names listed twice"] == 2
    assert source.reading.counts.get("images turned", 0) == sum(tag > 1 for tag in tags)
    for name, sample in seen(source, {"seg": "segmentation"}, flip=flip, ignore_label=1000).items():
        assert_map(sample["seg"]["mask"], np.where(masks[name] == void, 1000, masks[name]), 1000, flip=flip)


@BOTH_WAYS
def test_every_pixel_of_nyuv2_has_its_class_and_depth(tmp_path, rng, layout, flip):
    annotated_on, suffix, tags = layout
    reference = {}
    for name, tag in zip(NAMES, tags, strict=True):
        shape = size(rng)
        maps = rng.integers(0, 40, shape, np.uint8), rng.integers(0, 256, shape, np.uint8)
        reference[name] = maps
        write_photo(tmp_path / f"nyuv2/nyu_images/{name}{suffix}", rng.integers(0, 256, (*shape, 3), np.uint8), tag)
        for kind, values in zip(("labels40", "depths"), maps, strict=True):
            written = values if annotated_on == "upright" else stored(values, tag)
            write_map(tmp_path / f"nyuv2/nyu_{kind}/{name}.png", written)
    (tmp_path / "nyuv2/val.txt").write_text("\n".join(NAMES), encoding="utf-8")
    source = registry.build("nyuv2", data_root=tmp_path, split="val", annotated_on=annotated_on)
    for name, sample in seen(source, {"seg": "segmentation", "depth": "depth"}, flip=flip).items():
        mask, levels = reference[name]
        assert_map(sample["seg"]["mask"], np.where(mask == 39, 255, mask), 255, flip=flip)
        metres = np.where(levels == 0, np.nan, levels / np.float32(25.5)).astype(np.float32)
        assert_map(sample["depth"]["depth"], metres, np.nan, flip=flip)


def photo_of(rng, boxes, shape):
    """A dark photo whose boxes have the colours of their numbers."""
    pixels = np.full((*shape, 3), 20, np.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        pixels[top:bottom, left:right] = (60 + 60 * number, 200, 0)
    return pixels


def assert_boxes(sample, boxes, labels, shape, *, flip):
    """The boxes are where they must be to half a pixel of the photo, and each holds its own colour."""
    actual, valid = sample["det"]["boxes_xyxy"], sample["det"]["valid"]
    expected = shown_boxes(boxes, shape, flip=flip)
    half_px = 0.5 * INPUT_PX / max(shape)
    order = [int(abs(actual[valid] - box).max(axis=1).argmin()) for box in expected]
    assert sorted(order) == list(range(int(valid.sum())))
    for number, (index, box) in enumerate(zip(order, expected, strict=True)):
        assert abs(actual[valid][index] - box).max() < half_px
        assert sample["det"]["label"][valid][index] == labels[number]
        column, row = ((box[:2] + box[2:]) / 2).astype(int)
        if min(box[2:] - box[:2]) * max(shape) / INPUT_PX > 3:  # a colour that its neighbours do not blend into
            np.testing.assert_allclose(sample["image"][row, column] * 255, (60 + 60 * number, 200, 0), atol=1)


@BOTH_WAYS
def test_every_coco_box_lies_on_its_object(tmp_path, rng, layout, flip):
    annotated_on, suffix, tags = layout
    categories = [{"id": int(7 * k + 3), "name": f"thing {k}"} for k in rng.permutation(3)]
    images, annotations, reference = [], [], {}
    for number, (name, tag) in enumerate(zip(NAMES, tags, strict=True)):
        shape, file_name = size(rng), f"{name}{suffix}"
        boxes = rectangles(rng, *shape, int(rng.integers(0, 4)))
        selected = [categories[int(k)] for k in rng.integers(0, 3, len(boxes))]
        reference[file_name] = shape, boxes, [(category["id"] - 3) // 7 for category in selected]
        write_photo(tmp_path / f"c/train/{file_name}", photo_of(rng, boxes, shape), tag)
        rendered = np.zeros(shape, np.uint8) if annotated_on == "upright" else stored(np.zeros(shape, np.uint8), tag)
        images.append(
            {"id": f"i{number}", "file_name": file_name, "height": rendered.shape[0], "width": rendered.shape[1]}
        )
        for box, category in zip(boxes, selected, strict=True):
            left, top, right, bottom = box if annotated_on == "upright" else stored_box(box, shape, tag)
            bbox = [left, top, right - left, bottom - top]
            annotations.append({"image_id": f"i{number}", "category_id": category["id"], "bbox": bbox})
    rng.shuffle(annotations)
    content = {"images": images, "annotations": [*annotations, *annotations[:3]], "categories": categories}
    (tmp_path / "c/annotations").mkdir()
    (tmp_path / "c/annotations/instances_train.json").write_text(json.dumps(content))
    source = registry.build("coco_detection", data_root=tmp_path, split="train", folder="c", annotated_on=annotated_on)
    counts = source.reading.counts
    assert (counts["images"], counts["boxes"]) == (len(NAMES), len(annotations))
    assert counts.get("boxes dropped: listed twice", 0) == min(3, len(annotations))
    assert source.class_names["detection"] == ("thing 0", "thing 1", "thing 2")
    for name, sample in seen(source, {"det": "detection", "tags": "multi_label"}, flip=flip).items():
        shape, boxes, labels = reference[name]
        assert_boxes(sample, boxes, labels, shape, flip=flip)
        assert sample["tags"]["label"].tolist() == [k in labels for k in range(3)]


@BOTH_WAYS
def test_every_open_images_box_lies_on_its_object_and_fills_the_mask(tmp_path, rng, layout, flip):
    annotated_on, suffix, tags = layout
    rows, reference, folder = [], {}, tmp_path / "open-images-mini"
    for name, tag in zip(NAMES, tags, strict=True):
        shape = size(rng)
        boxes = rectangles(rng, *shape, int(rng.integers(1, 4)))
        reference[name] = shape, boxes, [int(k) for k in rng.integers(0, 3, len(boxes))]
        write_photo(folder / f"train/{name}{suffix}", photo_of(rng, boxes, shape), tag)
        frame = shape if annotated_on == "upright" else stored(np.zeros(shape, np.uint8), tag).shape
        for box, label in zip(boxes, reference[name][2], strict=True):
            left, top, right, bottom = box if annotated_on == "upright" else stored_box(box, shape, tag)
            rows.append([name, f"/m/{label}", left / frame[1], right / frame[1], top / frame[0], bottom / frame[0], 0])
    with (folder / "train-annotations-bbox.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"], *rows])
    (folder / "class-descriptions-boxable.csv").write_text("/m/0,Cat\n/m/1,Dog\n/m/2,Tree\n")
    source = registry.build("open_images", data_root=tmp_path, split="train", annotated_on=annotated_on)
    assert source.reading.counts["boxes"] == len(rows)
    for name, sample in seen(source, {"det": "detection", "seg": "segmentation"}, flip=flip).items():
        shape, boxes, labels = reference[name]
        assert_boxes(sample, boxes, labels, shape, flip=flip)
        mask = np.zeros(shape, np.uint8)
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            mask[top:bottom, left:right] = label + 1
        assert_map(sample["seg"]["mask"], mask, 255, flip=flip)


def test_every_image_of_a_class_folder_has_its_class(tmp_path, rng):
    reference = {}
    for number in range(10):
        label, deeper = int(rng.integers(0, 3)), rng.choice(["", "part 1/", "a/b/"])
        name = f"class {label}/{deeper}{number}{rng.choice(['.png', '.JPEG', '.jfif', '.ppm'])}"
        reference[name] = label
        write_photo(
            tmp_path / f"f/train/{name}", np.full((*size(rng), 3), 25 * number, np.uint8), int(rng.integers(1, 9))
        )
    for label in range(3):
        (tmp_path / f"f/train/class {label}").mkdir(exist_ok=True)
    source = registry.build("image_folder", data_root=tmp_path, split="train", folder="f")
    assert source.class_names["classification"] == ("class 0", "class 1", "class 2")
    assert source.reading.counts["images"] == 10
    result = seen(source, {"cls": "classification"}, flip=False)
    assert {name: int(sample["cls"]["label"]) for name, sample in result.items()} == reference
    levels = {name: round(float(sample["image"][24, 24, 0]) * 255) for name, sample in result.items()}
    assert levels == {name: 25 * int(name.rsplit("/", 1)[-1].split(".")[0]) for name in reference}


def test_every_face_has_its_age_gender_and_ethnicity(tmp_path, rng):
    reference = {}
    for number in range(6):
        truth = tuple(int(rng.integers(0, most)) for most in (117, 2, 5))
        name = "_".join(map(str, (*truth, f"face {number}.jpg.chip.jpg")))
        reference[name] = truth
        write_photo(tmp_path / f"utkface/UTKFace/{name}", np.full((9, 7, 3), number, np.uint8), 1)
    (tmp_path / "utkface/train.txt").write_text("\n".join([*reference, *reference]))
    source = registry.build("utkface", data_root=tmp_path, split="train")
    assert source.reading.counts == {"images": 6, "names listed twice": 6}
    labels = {"age": "age", "gender": "gender", "origin": "ethnicity"}
    for name, sample in seen(source, labels, flip=False).items():
        assert (sample["age"]["value"], sample["gender"]["label"], sample["origin"]["label"]) == reference[name]


def perfect(pixels, names):
    """Stands for a network that knows the class of each level of grey, and finds the one box of light pixels."""
    grey = np.round(np.asarray(pixels)[..., 0] * 255).astype(int)
    corners = []
    for image in np.asarray(pixels)[..., 1]:
        rows, columns = np.nonzero(image > 0.75)
        corners.append([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    single = np.ones((len(grey), 1))
    boxes = {
        "boxes_xyxy": np.array(corners, np.float32),
        "label": single.astype(np.int32),
        "score": single,
        "valid": single > 0,
    }
    return {name: {"seg": {"mask": 250 + grey // 10}, "det": boxes}[name] for name in names}


def test_predicted_masks_and_boxes_lie_on_the_photo_as_viewers_show_it(tmp_path, rng, monkeypatch, tiny_backbone):
    config = config_lib.base()
    config.image_size = 96
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.seg = {"kind": "segmentation", "classes": tuple(f"c{i}" for i in range(300))}
        config.tasks.det = {"kind": "detection", "classes": ("dark", "light")}
    setup = experiment.build(config.to_dict(), data_root=tmp_path)
    network = predict.trained.Trained(tmp_path, "all", {}, setup, ("seg", "det"), None)
    monkeypatch.setattr(predict.trained, "load", lambda *_, **__: network)
    monkeypatch.setattr(
        predict.evaluate, "make_predict", lambda *_, **__: lambda _, pixels, names: perfect(pixels, names)
    )
    reference = {}
    for number in range(6):
        height, width = size(rng)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.where(np.arange(width) < width // 2, 14, 214)  # classes 251 and 271
        ((left, top, right, bottom),) = rectangles(rng, height, width, 1)
        pixels[top:bottom, left:right, 1] = 255
        file = tmp_path / f"{number}.png"
        write_photo(file, pixels, int(rng.integers(1, 9)))
        reference[file] = pixels, (left, top, right, bottom)
    for predicted in predict.predict(tmp_path, list(reference), threshold=0.0):
        pixels, box = reference[predicted.path]
        np.testing.assert_array_equal(predicted.image, pixels)
        assert predicted.outputs["det"]["label"] == ["light"]
        np.testing.assert_allclose(predicted.outputs["det"]["boxes_xyxy"], [box], atol=0.5)
        mask = predicted.outputs["seg"]["mask"]
        middle = pixels.shape[1] // 2
        assert mask.shape == pixels.shape[:2]
        assert (mask[:, : middle - 1] == 251).all()
        assert (mask[:, middle + 1 :] == 271).all()
    predict.write(predicted, tmp_path, "last")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "last.seg.mask.png")), mask)
