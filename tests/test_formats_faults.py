"""The usual faults of label files: read with a counted warning, or refused in one line that names file and place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import cases, changed, changes, rewritten, verdict
from hypothesis import given
from hypothesis import strategies as st
from label_files import (
    BOXES,
    CLASS_LABELS,
    CLASSES,
    MASKS,
    PICTURES,
    TAGS,
    class_folders,
    coco,
    colour_masks,
    csv_values,
    depth,
    label_studio,
    labelme,
    number_masks,
    open_images,
    put,
    text,
    via,
    voc,
    yolo,
)
from PIL import Image

from mtl_jax import cli
from mtl_jax.data import formats
from mtl_jax.data.sources import registry
from mtl_jax.errors import UserError

EXIF_ORIENTATION = 0x0112

Write = Callable[[Path], None]


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder with nothing next to it, where images of masks are looked for: not the folders of all other tests."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder


def edited(write: Write, name: str, change: Callable[[str], str]) -> Write:
    def written(root: Path) -> None:
        write(root)
        file = root / name
        file.write_bytes(change(file.read_text(encoding="utf-8")).encode("utf-8"))

    return written


def replaced(write: Write, name: str, *changes: str) -> Write:
    def change(content: str) -> str:
        for old, new in zip(changes[::2], changes[1::2], strict=True):
            assert old in content
            content = content.replace(old, new)
        return content

    return edited(write, name, change)


def tree(write: Write, name: str, change: Callable[[Any], None]) -> Write:
    def changed_text(content: str) -> str:
        parsed = json.loads(content)
        change(parsed)
        return json.dumps(parsed)

    return edited(write, name, changed_text)


def yolo_rows(row: Callable[..., str], *, end: str = "\n", mark: bytes = b"") -> Write:
    """Every label file with rows of another convention: row(class, left, top, right, bottom, width, height)."""

    def written(root: Path) -> None:
        yolo(root)
        for picture in PICTURES:
            rows = [row(CLASSES.index(entry.label), *entry.box, *picture.size) for entry in picture.objects]
            file = root / "labels" / picture.split / f"{picture.name.removesuffix('.png')}.txt"
            file.write_bytes(mark + end.join(rows).encode())

    return written


def in_pixels(label: int, left: int, top: int, right: int, bottom: int, width: int, height: int) -> str:
    del width, height
    return f"{label} {(left + right) / 2} {(top + bottom) / 2} {right - left} {bottom - top}"


def from_one(label: int, left: int, top: int, right: int, bottom: int, width: int, height: int) -> str:
    shares = ((left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height)
    return " ".join(map(str, (label + 1, *shares)))


def as_shares(content: Any) -> None:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for entry in content["annotations"]:
        entry["bbox"] = [
            side / length for side, length in zip(entry["bbox"], sizes[entry["image_id"]] * 2, strict=True)
        ]


def both_as_shares(root: Path) -> None:
    tree(coco, "annotations/instances_train.json", as_shares)(root)
    file = root / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    as_shares(content)
    file.write_text(json.dumps(content))


def elsewhere(content: Any) -> None:
    for image in content["images"]:
        image["file_name"] = rf"C:\photos\train\{image['file_name']}"


def without(write: Write, name: str) -> Write:
    def written(root: Path) -> None:
        write(root)
        (root / name).unlink()

    return written


TRAIN = "annotations/instances_train.json"
ROW = "labels/train/b c.txt"
ALIKE: dict[str, tuple[Write, str]] = {  # read as if nothing were wrong; what is told
    "pixels, a mark and DOS lines": (yolo_rows(in_pixels, end="\r\n", mark=b"\xef\xbb\xbf"), "all are read as pixels"),
    "classes from 1": (yolo_rows(from_one), "counted from 1"),
    "names from 1": (
        lambda root: (yolo_rows(from_one)(root), text(root / "data.yaml", "names: {1: ant, 2: bee}\n"))[0],
        "",
    ),
    "shares in COCO": (both_as_shares, "all are read as shares"),
    "paths of another machine": (tree(coco, TRAIN, elsewhere), ""),
    "folders of another machine": (replaced(yolo, "data.yaml", "images/train", "../train/images"), "is not there"),
    "a path of another machine": (replaced(yolo, "data.yaml", "path: .", r"path: D:\data"), ""),
    "names of other files": (replaced(voc, "Annotations/b c.xml", "b c.png", "/home/me/IMG_1.jpg"), ""),
    "no size": (replaced(voc, "Annotations/b c.xml", "<width>24", "<width>0"), "1 file without the image's size"),
    "swapped corners": (
        replaced(voc, "Annotations/b c.xml", "<xmin>3<", "<xmin>8<", "<xmax>8<", "<xmax>3<"),
        "1 box with corners in another order",
    ),
    "one image twice": (
        tree(coco, TRAIN, lambda content: content["images"].append(content["images"][0] | {"id": 99})),
        "",
    ),
    "one box twice": (
        edited(yolo, ROW, lambda content: f"{content}\n{content.splitlines()[0]}"),
        "1 box dropped: listed twice",
    ),
    "negative sizes": (
        edited(yolo, ROW, lambda content: f"{content}\n0 0.5 0.5 -0.2 0.1\n0 nan 0.5 0.1 0.1"),
        "2 boxes dropped: degenerate",
    ),
    "a box outside": (
        edited(yolo, ROW, lambda content: f"{content}\n0 1.9 0.5 0.1 0.1"),
        "1 box dropped: outside",
    ),
    "label files alone": (edited(yolo, "data.yaml", str), ""),
}


def found(dataset: formats.Dataset) -> dict[str, list]:
    return {record.name: [(shape.label, shape.xyxy) for shape in record.shapes or ()] for record in dataset.records}


EXPECTED = {
    picture.name: [(entry.label, tuple(map(float, entry.box))) for entry in picture.objects] for picture in PICTURES
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_meant_is_read_and_told(tmp_path, name):
    write, message = ALIKE[name]
    write(tmp_path)
    dataset = formats.read(tmp_path)
    assert found(dataset) == EXPECTED
    assert dataset.splits == ("train", "val")
    assert any(message in note for note in dataset.reading.notes) or not message


LEFT_OUT: dict[str, tuple[Write, str]] = {
    "yolo": (without(yolo, "images/train/b c.png"), "1 label file without image"),
    "coco": (without(coco, "train/b c.png"), "1 image of 5 missing and left out (first: b c.png"),
    "voc": (without(voc, "JPEGImages/b c.png"), "1 image of 5 missing"),
    "labelme": (without(labelme, "train/b c.png"), "1 image of 5 missing"),
    "csv": (without(BOXES["csv"][1], "train/b c.png"), "1 image of 5 missing"),
    "masks": (without(colour_masks, "train/masks/b c.png"), "1 image without mask, left out"),
    "folders": (
        lambda root: (class_folders(root), (root / "train/bee/b c.png").rename(root / "train/b c.png"))[0],
        "1 image outside the class folders, left out",
    ),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_missing_is_left_out_and_told(tmp_path, name):
    write, message = LEFT_OUT[name]
    write(tmp_path)
    dataset = formats.read(tmp_path)
    assert {record.name for record in dataset.records} == {picture.name for picture in PICTURES} - {"b c.png"}
    assert any(message in note for note in dataset.reading.notes)


REFUSED: dict[str, tuple[Write, str]] = {
    "a class without name": (
        edited(yolo, ROW, lambda content: f"{content}\n5 0.5 0.5 0.1 0.1"),
        "b c.txt, line 3: expected a class among the 2 of 0 to 1, found 5",
    ),
    "a word": (edited(yolo, ROW, lambda content: f"{content}\n0 0.5 x 0.1 0.1"), "b c.txt, line 3: expected a number"),
    "a short row": (
        edited(yolo, ROW, lambda content: f"{content}\n0 0.5 0.5"),
        "b c.txt, line 3: expected a class and",
    ),
    "an entity": (
        edited(
            voc,
            "Annotations/b c.xml",
            lambda content: f'<!DOCTYPE a [<!ENTITY a "{"b" * 99}">]>{content[content.index("<annotation") :]}',
        ),
        "b c.xml: expected XML without entities",
    ),
    "half a file": (edited(coco, TRAIN, lambda content: content[:200]), "instances_train.json: expected a JSON file"),
    "half an XML file": (
        edited(voc, "Annotations/b c.xml", lambda content: content[:200]),
        "b c.xml: expected an XML file",
    ),
    "another size": (
        replaced(voc, "Annotations/b c.xml", "<width>24", "<width>25"),
        "for its 24 x 30 px, found 25 x 30",
    ),
    "a blank name": (replaced(labelme, "train/b c.json", '"ant"', '" "'), "b c.json: shape 1: label: expected a name"),
    "an id for two files": (
        tree(coco, TRAIN, lambda content: content["images"].append(content["images"][0] | {"file_name": "x.png"})),
        "expected every id of 'images' once",
    ),
    "shares beyond 1": (
        replaced(open_images, "train-annotations-bbox.csv", "0.375000", "12"),
        "annotations-bbox.csv, line 2: expected corners as shares",
    ),
    "a cell too many": (
        edited(BOXES["csv"][1], "train.csv", lambda content: f"{content}\r\na,b"),
        "train.csv, line 7: expected 8 cells, found 2",
    ),
    "other points": (
        tree(
            lambda root: label_studio(root, outlines="polygons"),
            "project-1.json",
            lambda content: content[0]["annotations"][0]["result"][0]["value"].update(points=[[1, 2, 3]]),
        ),
        "project-1.json: task 0, result 0: expected points [x, y]",
    ),
    "two classes": (
        replaced(via, "train/via_region_data.json", '{"class": "ant"}', '{"class": {"ant": true, "bee": true}}'),
        "region 0: expected one class, found ant, bee",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_broken_is_refused_by_file_and_place(tmp_path, name):
    write, output = REFUSED[name]
    write(tmp_path)
    with pytest.raises(UserError) as caught:
        formats.read(tmp_path)
    assert output in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_colour_outside_the_palette_is_refused_by_pixel(tmp_path):
    colour_masks(tmp_path)
    mask = np.zeros((30, 24, 3), np.uint8)
    mask[4, 7] = (1, 2, 3)
    Image.fromarray(mask).save(tmp_path / "train/masks/b c.png")
    source = registry.build("labels", data_root=tmp_path, split="train", path=".")
    with pytest.raises(UserError, match=r"b c.png, pixel \(7, 4\): expected a colour .* found \(1, 2, 3\)"):
        [source[i] for i in range(len(source))]


def test_masks_without_names_are_told_to_be_so(tmp_path):
    number_masks(tmp_path / "a")
    (tmp_path / "a/classes.txt").unlink()
    colour_masks(tmp_path / "b")
    (tmp_path / "b/palette.csv").unlink()
    numbers, colours = formats.read(tmp_path / "a"), formats.read(tmp_path / "b")
    assert numbers.classes["segmentation"] == ("0", "1", "2")
    assert colours.classes["segmentation"] == ("background", "#0000fa", "#c80a0a")
    assert all("no file names" in dataset.reading.notes[0] for dataset in (numbers, colours))


@pytest.mark.parametrize(
    ("path", "kind", "output"),
    [
        ("faces.csv", None, "expected one column among age, other, found 2; name it, as in faces.csv:age"),
        ("faces.csv:size", None, "expected a column 'size' among age, other"),
        ("faces.csv:other", "values", "line 2: expected a number, found 'x'"),
    ],
)
def test_columns_that_are_not_there_are_refused(tmp_path, path, kind, output):
    csv_values(tmp_path)
    with pytest.raises(UserError) as caught:
        formats.read(tmp_path / path, kind=kind)
    assert output in str(caught.value)


@pytest.mark.parametrize("tag", [3, 6])
@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_photos_that_exif_turns_keep_their_labels(tmp_path, tag, format):
    """The file says for which size its boxes are, where the photo lies on its side."""
    coco(tmp_path / "a")
    file = tmp_path / "a/train/b c.png"
    image, exif = Image.open(file), Image.Exif()
    exif[EXIF_ORIENTATION] = tag
    image.save(file, exif=exif)
    options = {"annotated_on": "stored"} if tag == 3 else {}
    if tag == 3:
        with pytest.raises(UserError, match="annotated_on"):
            formats.read(tmp_path / "a")
    flags = [f"--{name}={value}" for name, value in options.items()]
    assert cli.main(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to", format, *flags]) == 0
    width, height = (24, 30) if tag == 3 else (30, 24)
    turned = {3: lambda x, y: (24 - x, 30 - y), 6: lambda x, y: (30 - y, x)}[tag]
    for dataset in (formats.read(tmp_path / "a", **options), formats.read(tmp_path / "b")):
        record = next(record for record in dataset.records if record.name.startswith("b c.png"))
        assert record.size == (width, height)
        for shape, (label, (x0, y0, x1, y1)) in zip(record.shapes or (), EXPECTED["b c.png"], strict=True):
            corners = sorted([turned(x0, y0), turned(x1, y1)])
            ys = sorted(y for _, y in corners)
            assert (shape.label, shape.xyxy) == (label, (corners[0][0], ys[0], corners[1][0], ys[1]))


SETS = [write for group in (BOXES, MASKS, CLASS_LABELS, TAGS) for _, write in group.values()] + [csv_values, depth]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each dataset: its folder, and what its files of labels hold."""
    sets = []
    for write in SETS:
        root = tmp_path_factory.mktemp("set") / "alone"  # see tmp_path
        root.mkdir()
        write(root)
        files = sorted(path for path in root.rglob("*") if path.suffix in (".json", ".xml", ".txt", ".csv", ".yaml"))
        files = files or sorted(root.rglob("*.png"))
        sets.append((root, {file: file.read_bytes() for file in files}))
    return sets


def look(root: Path) -> None:
    source = registry.build("labels", data_root=root, split="train", path=".")
    for sample in (source[i] for i in range(len(source))):
        height, width = sample["image"].shape[:2]
        boxes = sample["labels"].get("detection", {}).get("boxes_xyxy", np.zeros((0, 4)))
        assert ((boxes >= 0) & (boxes <= [width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it then reads
@cases(48)
@given(st.data())
def test_whatever_a_file_holds_it_is_read_or_refused(written, data):
    root, files = written[data.draw(st.integers(0, len(written) - 1))]
    file = data.draw(st.sampled_from(sorted(files)))
    try:
        if file.suffix == ".json" and data.draw(st.booleans()):
            file.write_text(json.dumps(data.draw(rewritten(json.loads(files[file])))))
        else:
            file.write_bytes(changed(files[file], data.draw(changes())))
        verdict(lambda: look(root), str(root))
    finally:
        file.write_bytes(files[file])


def test_a_name_opens_no_file_outside(tmp_path):
    put(tmp_path / "secret.png", PICTURES[0])
    coco(tmp_path / "set")
    file = tmp_path / "set" / TRAIN
    content = json.loads(file.read_text())
    for image, name in zip(content["images"], ("../secret.png", "/dev/zero", "a\0b"), strict=True):
        image["file_name"] = name
    file.write_text(json.dumps(content))
    dataset = formats.read(tmp_path / "set")
    assert {record.name for record in dataset.records} == {"x.y.png", "z.png"}
