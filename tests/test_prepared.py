"""A set that was laid out is looked at before anybody trains on it."""

import pytest
from test_open_images_mini import coco as make_coco

from mtl_jax.data.minis import prepared
from mtl_jax.data.minis.mini_sets import SETS
from mtl_jax.data.minis.prepare import CONVERTED
from mtl_jax.data.sources.registry import SOURCES
from mtl_jax.errors import UserError


def test_every_set_has_its_source():
    assert set(prepared.KINDS) == {*SETS, *CONVERTED}
    assert set(prepared.KINDS.values()) <= set(SOURCES)


def test_each_split_has_a_line_and_a_broken_file_is_named(tmp_path):
    root = make_coco(tmp_path)
    output = list(prepared.describe("coco", data_root=root))
    train, val = (line for line in output if not line.startswith("warning: coco, "))
    assert train.startswith("coco train: ")
    assert val.startswith("coco val: ")
    assert "boxes" in train
    file = next(file for file in sorted((root / "mini-coco-det").rglob("*.jpg")))
    file.write_bytes(b"")
    with pytest.raises(UserError, match=file.name):
        list(prepared.describe("coco", data_root=root))


def test_the_real_sets_are_described_by_their_numbers(data_root):
    output = " ".join(prepared.describe("coco", data_root=data_root))
    assert "240 images" in output
    assert "780 boxes, 13 crowds, 10 of 10 classes" in output
    assert "166 boxes, 1 crowd, 10 of 10 classes" in output
    assert "warning" not in output
