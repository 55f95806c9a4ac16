"""One small dataset in every label format: told by content, read alike, and converted there and back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from label_files import CLASSES, OUTLINES, PICTURES, WRITERS

from mtl_jax.data import formats, pipeline
from mtl_jax.data.sources import registry
from mtl_jax.data.transforms import Augment


def batches(root: Path, **labels: str) -> list:
    """Returns digests of the first training batches, with augmentation, and of the images that validate."""
    found = []
    for split in ("train", "val"):
        source = registry.build("labels", data_root=root, split=split, path=".")
        options = {"labels": labels, "image_size": 48}
        train = pipeline.train_batches(source, batch_size=2, augment=Augment(flip_probability=0.5), seed=7, **options)
        for batch in (train[0], train[1], pipeline.eval_batches(source, batch_size=9, **options)[0]):
            arrays, _ = jax.tree.flatten(batch)
            found += [each.tobytes() if isinstance(each, np.ndarray) else each for each in arrays]
    return [hashlib.sha256(each).hexdigest() if isinstance(each, bytes) else each for each in found]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What the source for COCO's boxes makes of the dataset."""
    root = tmp_path_factory.mktemp("expected")
    WRITERS["coco"](root / "set")
    return root


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_boxes_give_the_same_bytes(tmp_path, expected, name):
    WRITERS[name](tmp_path)
    assert formats.detect(tmp_path) == name
    assert batches(tmp_path, det="detection") == batches(expected / "set", det="detection")


@pytest.mark.parametrize("name", OUTLINES)
def test_the_same_masks_give_the_same_bytes(tmp_path, name):
    OUTLINES[name](tmp_path)
    dataset = formats.read(tmp_path, kind="masks")
    assert dataset.classes["segmentation"] == ("background", *CLASSES)
    for split in ("train", "val"):
        source = registry.build("labels", data_root=tmp_path, split=split, path=".", read_as="masks")
        drawn = {picture.name: picture.mask for picture in PICTURES if picture.split == split}
        found = {source[i]["id"]: source[i]["labels"]["segmentation"]["mask"] for i in range(len(source))}
        assert found.keys() == drawn.keys()
        assert all(np.array_equal(found[name], drawn[name]) for name in drawn)


def test_boxes_are_those_that_were_drawn(expected):
    source = registry.build("labels", data_root=expected, split="train", path="set")
    drawn = {picture.name: picture for picture in PICTURES if picture.split == "train"}
    for sample in (source[i] for i in range(len(source))):
        objects = drawn[sample["id"]].objects
        label = sample["labels"]["detection"]
        assert label["boxes_xyxy"].tolist() == [list(map(float, each.box)) for each in objects]
        assert label["label"].tolist() == [CLASSES.index(each.label) for each in objects]


@pytest.mark.parametrize("first", WRITERS)
@pytest.mark.parametrize("other", WRITERS)
def test_boxes_survive_conversion_there_and_back(tmp_path, first, other):
    WRITERS[first](tmp_path / "a")
    formats.convert(tmp_path / "a", tmp_path / "b", to=other, kind="boxes")
    formats.convert(tmp_path / "b", tmp_path / "c", to=first)
    assert formats.detect(tmp_path / "b") == other
    for folder in ("b", "c"):
        assert batches(tmp_path / folder, det="detection") == batches(tmp_path / "a", det="detection")
