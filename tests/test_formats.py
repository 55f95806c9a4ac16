"""One small dataset in every label format: told by content, read alike, and converted there and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from label_files import (
    BOXES,
    CLASS_LABELS,
    CLASSES,
    MASKS,
    PICTURES,
    TAGS,
    colour_masks,
    csv_values,
    depth,
    millimetres,
    put,
    text,
)

from mtl_jax.data import formats, pipeline
from mtl_jax.data.sources import registry
from mtl_jax.data.transforms import Augment
from mtl_jax.errors import UserError

GROUPS = {"boxes": BOXES, "masks": MASKS, "classes": CLASS_LABELS, "tags": TAGS}
LABELLED = [(kind, name) for kind, group in GROUPS.items() for name in group]
BY_SPLIT = {
    split: {picture.name: picture for picture in PICTURES if picture.split == split} for split in ("train", "val")
}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder with nothing next to it, where images of masks are looked for: not the folders of all other tests."""
    folder = tmp_path / "alone"
    folder.mkdir()
    return folder


def batches(root: Path, kind: str) -> list[str]:
    """Returns digests of the first training batches, with augmentation, and of what validates."""
    labels, result = {"task": formats.LABELS[kind]}, []
    for split in ("train", "val"):
        source = registry.build("labels", data_root=root, split=split, path=".", read_as=kind)
        assert source.class_names[labels["task"]] == ((*CLASSES,) if kind != "masks" else ("background", *CLASSES))
        train = pipeline.train_batches(
            source, labels=labels, image_size=48, batch_size=2, augment=Augment(flip_probability=0.5), seed=7
        )
        validation = pipeline.eval_batches(source, labels=labels, image_size=48, batch_size=9)[0]
        for entry in (*jax.tree.leaves([train[0], train[1]]), validation.image, str(validation.ids)):
            content = entry.tobytes() if isinstance(entry, np.ndarray) else str(entry).encode()
            result.append(hashlib.sha256(content).hexdigest())
    return result


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Kind of label -> the batches of the first format."""
    root = tmp_path_factory.mktemp("expected")
    for kind, group in GROUPS.items():
        next(iter(group.values()))[1](root / kind)
    return {kind: batches(root / kind, kind) for kind in GROUPS}


@pytest.mark.parametrize(("kind", "name"), LABELLED)
def test_the_same_labels_give_the_same_batches(tmp_path, expected, kind, name):
    format, write = GROUPS[kind][name]
    write(tmp_path)
    assert formats.detect(tmp_path) == formats.detect(tmp_path, kind=kind) == format
    assert batches(tmp_path, kind) == expected[kind]


@pytest.mark.parametrize(("kind", "name"), LABELLED)
def test_conversion_there_and_back_gives_the_same_batches(tmp_path, expected, kind, name):
    format, write = GROUPS[kind][name]
    write(tmp_path / "a")
    middle = {"boxes": "coco", "masks": "coco", "classes": "class_folders", "tags": "csv"}[kind]
    formats.convert(tmp_path / "a", tmp_path / "b", to=middle, kind=kind)
    if kind not in formats.FORMATS[format].written:
        with pytest.raises(UserError, match=f"found {kind}"):
            formats.convert(tmp_path / "b", tmp_path / "c", to=format, kind=kind)
        format = "labelme"
    formats.convert(tmp_path / "b", tmp_path / "c", to=format, kind=kind)
    for folder in ("b", "c"):
        assert batches(tmp_path / folder, kind) == expected[kind]
    assert formats.detect(tmp_path / "c") == format


def test_labels_are_those_that_were_drawn(tmp_path):
    BOXES["yolo"][1](tmp_path / "boxes")
    colour_masks(tmp_path / "masks")
    for split, rendered in BY_SPLIT.items():
        boxes = registry.build("labels", data_root=tmp_path, split=split, path="boxes")
        masks = registry.build("labels", data_root=tmp_path, split=split, path="masks")
        assert (
            {boxes[i]["id"] for i in range(len(boxes))} == {masks[i]["id"] for i in range(len(masks))} == set(rendered)
        )
        for i in range(len(rendered)):
            label, objects = boxes[i]["labels"]["detection"], rendered[boxes[i]["id"]].objects
            assert label["boxes_xyxy"].tolist() == [list(map(float, entry.box)) for entry in objects]
            assert label["label"].tolist() == [CLASSES.index(entry.label) for entry in objects]
            mask = masks[i]["labels"]["segmentation"]["mask"]
            assert np.array_equal(mask, rendered[masks[i]["id"]].mask)


@pytest.mark.parametrize("written", [csv_values, BOXES["csv"][1], CLASS_LABELS["label studio"][1]])
def test_numbers_are_read_and_written(tmp_path, written):
    written(tmp_path / "a")
    path = tmp_path / "a" / ("faces.csv:age" if written is csv_values else ".")
    if written is BOXES["csv"][1]:
        with pytest.raises(UserError, match="values"):
            formats.read(path, kind="values")
        return
    formats.convert(path, tmp_path / "b", to="csv", kind="values")
    for place in (path, tmp_path / "b"):
        dataset = formats.read(place, kind="values")
        assert {record.name: record.value for record in dataset.records} == {
            picture.name: picture.value for picture in PICTURES
        }


@pytest.mark.parametrize(
    ("header", "row", "column", "expected"),
    [
        ("image,bed", "1", "", {"bed": True}),
        ("image,bed,cup", "0,1", ":cup", {"cup": True}),
        ("image,bed,cup,age", "0,1,31", "", {"bed": False, "cup": True}),
        ("image,things,new", "bed;cup,1", "", {"bed": True, "cup": True}),
    ],
)
def test_columns_of_0_and_1_are_tags_unless_another_lists_them(tmp_path, header, row, column, expected):
    put(tmp_path / "photo.png", PICTURES[0])
    text(tmp_path / "table.csv", f"{header}\nphoto.png,{row}\n")
    (record,) = formats.read(tmp_path / f"table.csv{column}", kind="tags").records
    assert record.tags == expected


def test_depths_are_read_in_metres_and_written(tmp_path):
    depth(tmp_path / "a")
    formats.convert(tmp_path / "a", tmp_path / "b", to="depth")
    for folder in ("a", "b"):
        source = registry.build("labels", data_root=tmp_path, split="val", path=folder)
        for sample in (source[i] for i in range(len(source))):
            levels = millimetres(BY_SPLIT["val"][sample["id"]])
            metres = sample["labels"]["depth"]["depth"]
            assert np.array_equal(np.isnan(metres), levels == 0)
            assert np.allclose(np.nan_to_num(metres), levels / 1000)


def test_a_folder_of_something_else_is_refused_with_what_was_looked_for(tmp_path):
    text(tmp_path / "notes.txt", "hello")
    with pytest.raises(UserError, match="found none among 1 files; looked for") as caught:
        formats.detect(tmp_path)
    assert all(name in str(caught.value) for name in formats.FORMATS)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"\(depth\) in a known format"):
        formats.detect(tmp_path, kind="depth")


@pytest.mark.parametrize(
    ("to", "kind", "output"),
    [
        ("png", None, "expected a format among coco"),
        ("yolo", "colours", "expected a kind of label among boxes"),
        ("class_folders", None, "expected classes for the format class_folders, found boxes, tags"),
    ],
)
def test_what_cannot_be_converted_is_refused(tmp_path, to, kind, output):
    BOXES["voc"][1](tmp_path / "a")
    with pytest.raises(UserError, match=output):
        formats.convert(tmp_path / "a", tmp_path / "b", to=to, kind=kind)
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_nothing_is_written_over(tmp_path):
    BOXES["voc"][1](tmp_path / "a")
    text(tmp_path / "b/mine.txt", "x")
    with pytest.raises(UserError, match="expected an empty folder"):
        formats.convert(tmp_path / "a", tmp_path / "b", to="coco")
    assert (tmp_path / "b/mine.txt").read_text() == "x"


def test_without_splits_content_decides_and_copies_stay_together(tmp_path):
    for number in range(12):
        put(tmp_path / ("ant" if number % 2 else "bee") / f"{number}.png", PICTURES[0]._replace(name=str(number % 6)))
    result = {
        split: registry.build("labels", data_root=tmp_path, split=split, path=".", val_share=0.3)
        for split in ("train", "val")
    }
    ids = {split: {source[i]["id"] for i in range(len(source))} for split, source in result.items()}
    assert len(ids["train"] | ids["val"]) == 12
    assert all(ids.values())
    for split in ids.values():
        assert {f"{(int(name.removesuffix('.png')) + 6) % 12}.png" for name in split} == split
    assert any("chosen by their content" in note for note in result["train"].reading.notes)
    put(tmp_path / "ant/more.png", PICTURES[1])
    more = registry.build("labels", data_root=tmp_path, split="train", path=".", val_share=0.3)
    assert ids["train"] <= {more[i]["id"] for i in range(len(more))} <= ids["train"] | {"more.png"}


def test_the_stream_names_and_orders_classes(tmp_path):
    BOXES["yolo"][1](tmp_path / "boxes")
    (tmp_path / "boxes/data.yaml").unlink()
    MASKS["numbers"][1](tmp_path / "masks")
    (tmp_path / "masks/classes.txt").unlink()
    MASKS["colours"][1](tmp_path / "colours")

    def source(path: str, *classes: str, **options):
        return registry.build("labels", data_root=tmp_path, split="train", path=path, classes=classes, **options)

    boxes = source("boxes", "wasp", "fly", "moth")
    assert boxes.class_names["detection"] == ("wasp", "fly", "moth")
    labels = {boxes[i]["id"]: boxes[i]["labels"]["detection"]["label"].tolist() for i in range(len(boxes))}
    rendered = BY_SPLIT["train"]
    assert labels == {name: [CLASSES.index(entry.label) for entry in rendered[name].objects] for name in rendered}
    for path, order in (("masks", ("background", "ant", "bee")), ("colours", ("bee", "background", "ant"))):
        masks = source(path, *order)
        for sample in (masks[i] for i in range(len(masks))):
            meant = np.array([order.index(name) for name in ("background", *CLASSES)])[rendered[sample["id"]].mask]
            assert np.array_equal(sample["labels"]["segmentation"]["mask"], meant)
    with pytest.raises(UserError, match="for segmentation, found 'bee'"):
        source("colours", "background", "ant")
    some = source("colours", "background", "ant", other_classes="ignore")
    for sample in (some[i] for i in range(len(some))):
        mask = rendered[sample["id"]].mask
        assert np.array_equal(sample["labels"]["segmentation"]["mask"], np.where(mask == 2, 255, mask))
