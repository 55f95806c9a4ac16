"""The same boxes and masks as other programs lay them out: folders, older versions, packed pixels, curves."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from label_files import (
    COLOURS,
    PICTURES,
    Picture,
    coco,
    cvat,
    label_studio,
    labelme,
    number_masks,
    put,
    text,
    via,
    yolo,
)
from PIL import Image
from pycocotools import mask as coco_mask

from mtl_jax.data import formats
from mtl_jax.data.formats import painting, pixels, tracing, writing
from mtl_jax.data.formats.records import Dataset, Record, Shape
from mtl_jax.data.images import read_image
from mtl_jax.data.outlines import outline
from mtl_jax.data.sources.base import Reading


def boxes_of(dataset: formats.Dataset) -> dict[str, list]:
    return {record.name: [(shape.label, shape.xyxy) for shape in record.shapes or ()] for record in dataset.records}


def mask_of(record: formats.Record, dataset: formats.Dataset) -> np.ndarray:
    names = dataset.classes["segmentation"]
    mask = pixels.mask_of(record, {name: value for value, name in enumerate(names)}, read_image(record.image))
    assert mask is not None
    return mask


BOXES = {
    picture.name: [(entry.label, tuple(map(float, entry.box))) for entry in picture.objects] for picture in PICTURES
}


def roboflow_coco(root: Path) -> Path:
    coco(root)
    (root / "val").rename(root / "valid")
    for split, folder in (("train", "train"), ("val", "valid")):
        (root / f"annotations/instances_{split}.json").rename(root / folder / "_annotations.coco.json")
    return root


def roboflow_yolo(root: Path) -> Path:
    yolo(root)
    for split, folder in (("train", "train"), ("val", "valid")):
        for kind in ("images", "labels"):
            (root / folder).mkdir(exist_ok=True)
            (root / kind / split).rename(root / folder / kind)
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['ant', 'bee']\n")
    return root


def yaml_elsewhere(root: Path) -> Path:
    yolo(root / "sets/mine")
    (root / "sets/mine/data.yaml").unlink()
    text(root / "cfg/mine.yaml", "path: ../sets/mine\ntrain: images/train\nval: images/val\nnames: [ant, bee]\n")
    return root / "cfg/mine.yaml"


def darknet(root: Path) -> Path:
    yolo(root)
    for file in [*(root / "images").rglob("*.png"), *(root / "labels").rglob("*.txt")]:
        (root / "obj_train_data").mkdir(exist_ok=True)
        file.rename(root / "obj_train_data" / file.name)
    shutil.rmtree(root / "images")
    shutil.rmtree(root / "labels")
    (root / "data.yaml").unlink()
    text(root / "obj.names", "ant\nbee\n")
    for split in ("train", "val"):
        names = [f"data/obj_train_data/{picture.name}\n" for picture in PICTURES if picture.split == split]
        text(root / f"{split}.txt", "".join(names))
    return root


def via_of_version_1(root: Path) -> Path:
    via(root)
    for file in root.rglob("*.json"):
        content = json.loads(file.read_text())
        for image in content.values():
            image["regions"] = {str(number): region for number, region in enumerate(image["regions"])}
        file.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": content}))
    return root


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "roboflow coco": roboflow_coco,
    "roboflow yolo": roboflow_yolo,
    "yaml elsewhere": yaml_elsewhere,
    "darknet": darknet,
    "via 1": via_of_version_1,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_programs(tmp_path, name):
    dataset = formats.read(LAYOUTS[name](tmp_path))
    assert boxes_of(dataset) == BOXES
    assert dataset.splits == ("train", "val")
    assert set(dataset.classes["detection"]) == {"ant", "bee"}


def packed_coco(root: Path) -> Path:
    coco(root, outlines="runs")
    for file in (root / "annotations").glob("*.json"):
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            runs = coco_mask.frPyObjects(entry["segmentation"], *entry["segmentation"]["size"])
            entry["segmentation"] = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
        file.write_text(json.dumps(content))
    return root


def labelme_masks(root: Path) -> Path:
    labelme(root)
    for picture in PICTURES:
        file = root / picture.split / f"{picture.name.removesuffix('.png')}.json"
        content = json.loads(file.read_text())
        for shape, entry in zip(content["shapes"], picture.objects, strict=True):
            left, top, right, bottom = entry.box
            inside = picture._replace(objects=(entry,)).mask[top:bottom, left:right] > 0
            packed = io.BytesIO()
            Image.fromarray(inside).save(packed, "PNG")
            shape |= {"shape_type": "mask", "points": [[left, top], [right, bottom]]}
            shape["mask"] = base64.b64encode(packed.getvalue()).decode()
        file.write_text(json.dumps(content))
    return root


def brush(root: Path) -> Path:
    label_studio(root)
    content = json.loads((root / "project-1.json").read_text())
    for task, picture in zip(content, PICTURES, strict=True):
        for result, entry in zip(task["annotations"][0]["result"], picture.objects, strict=True):
            inside = picture._replace(objects=(entry,)).mask > 0
            result["type"] = "brushlabels"
            result["value"] = {"format": "rle", "rle": list(strokes(inside)), "brushlabels": [entry.label]}
    (root / "project-1.json").write_text(json.dumps(content))
    return root


def strokes(inside: np.ndarray) -> bytes:
    """Runs of up to 256 equal values, and the first value as a list of one."""
    values = np.repeat(np.where(inside, 255, 0).ravel(), 4).tolist()
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (1, 4, 8, 16)) + f"000{0:01b}"
    bits += f"{values[0]:08b}"
    at = 1
    while at < len(values):
        end = at
        while end < len(values) and end - at < 256 and values[end] == values[at]:
            end += 1
        bits += f"110{end - at - 1:08b}{values[at]:08b}"
        at = end
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def masks_below_the_images(root: Path) -> Path:
    for picture in PICTURES:
        put(root / "photos" / picture.name, picture)
        (root / "photos/masks").mkdir(exist_ok=True)
        Image.fromarray(picture.mask).save(root / "photos/masks" / picture.name)
    text(root / "photos/classes.txt", "background\nant\nbee\n")
    return root / "photos/masks"


def masks_beside_photographs(root: Path) -> Path:
    for picture in PICTURES:
        file = put(root / picture.name, picture)
        Image.open(file).save(file.with_suffix(".jpg"))
        Image.fromarray(picture.mask).save(file)
    text(root / "classes.txt", "background\nant\nbee\n")
    return root


def palette_files(root: Path) -> Path:
    """The numbers count in another order than the palette's file."""
    colours = np.array([COLOURS[name] for name in ("bee", "background", "ant")], np.uint8)
    for picture in PICTURES:
        put(root / "img" / picture.name, picture)
        mask = Image.fromarray(np.array([1, 2, 0], np.uint8)[picture.mask])
        mask.putpalette(colours.tobytes())
        (root / "gt").mkdir(exist_ok=True)
        mask.save(root / "gt" / picture.name)
    text(root / "colors.txt", "".join(f"{r} {g} {b}\t{name}\n" for name, (r, g, b) in COLOURS.items()))
    return root


MASKS: dict[str, Callable[[Path], Path]] = {
    "packed runs": packed_coco,
    "masks of LabelMe": labelme_masks,
    "brush": brush,
    "masks below the images": masks_below_the_images,
    "masks beside photographs": masks_beside_photographs,
    "palette files": palette_files,
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_other_programs(tmp_path, name):
    dataset = formats.read(MASKS[name](tmp_path), kind="masks")
    assert dataset.classes["segmentation"] == ("background", "ant", "bee")
    rendered: dict[str, Picture] = {picture.name.removesuffix(".png"): picture for picture in PICTURES}
    assert {Path(record.name).stem for record in dataset.records} == set(rendered)
    for record in dataset.records:
        assert np.array_equal(mask_of(record, dataset), rendered[Path(record.name).stem].mask)


def test_curves_and_turned_boxes_become_polygons(tmp_path):
    cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    content = file.read_text()
    first = content[content.index("<box") : content.index("</box>") + len("</box>")]
    rendered = (
        '<ellipse label="ant" cx="16" cy="12" rx="8" ry="4"></ellipse>'
        '<box label="bee" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90"></box>'
    )
    file.write_text(content.replace(first, rendered, 1))
    dataset = formats.read(tmp_path)
    record = next(record for record in dataset.records if record.name == PICTURES[0].name)
    ellipse, turned = (record.shapes or ())[:2]
    assert ellipse.xyxy == (8, 8, 24, 16)
    assert painting.pixels_covered_by(ellipse, record.size).sum() == pytest.approx(np.pi * 8 * 4, rel=0.05)
    assert turned.xyxy == (13, 7, 17, 17)


@pytest.mark.parametrize("density", [0.05, 0.5, 0.9])
def test_outlines_of_pixels_cover_the_same_pixels(density):
    numbers = np.random.default_rng(0)
    for _ in range(20):
        rendered = numbers.random(tuple(numbers.integers(1, 16, 2))) < density
        flat = [[side for corner in polygon for side in corner] for polygon in tracing.polygons_of(rendered)]
        covered = outline(flat, *rendered.shape) if flat else np.zeros_like(rendered)
        assert np.array_equal(covered, rendered)
        assert np.array_equal(painting.pixels_of(painting.runs_of(rendered)), rendered)


def test_masks_become_polygons_and_masks_again(tmp_path):
    number_masks(tmp_path / "a")
    formats.convert(tmp_path / "a", tmp_path / "b", to="yolo", kind="masks")
    formats.convert(tmp_path / "b", tmp_path / "c", to="class_masks", kind="masks")
    for folder in ("a", "b", "c"):
        dataset = formats.read(tmp_path / folder, kind="masks")
        for record in dataset.records:
            rendered = next(picture for picture in PICTURES if picture.name == record.name)
            assert np.array_equal(mask_of(record, dataset), rendered.mask)


def test_a_crowd_of_several_parts_is_left_out_as_one():
    sections = np.zeros((8, 8), bool)
    sections[1:3, 1:3] = sections[5:7, 5:7] = True
    runs = painting.runs_of(sections)
    shapes = (Shape("cat", (1, 1, 7, 7), runs=runs, crowd=True), Shape("dog", (1, 1, 7, 7), runs=runs))
    record = Record(Path("a.png"), "a.png", (8, 8), "", shapes=shapes)
    dataset = Dataset("coco", Path("labels.json"), (record,), {"detection": ("cat", "dog")}, (), Reading())
    counts: Counter[str] = Counter()
    (traced,) = pixels.with_objects(dataset, outlines="polygons", counts=counts).records
    assert [shape.label for shape in writing.simple(traced.shapes, counts)] == ["dog", "dog"]
    assert counts["crowds left out"] == 1
