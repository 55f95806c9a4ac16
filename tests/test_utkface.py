"""UTKFace: labels from file names, malformed ones skipped and counted, the real set, and the page that trains on it."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl_jax import config as config_lib
from mtl_jax.data.sources.utkface import UTKFace, parse
from mtl_jax.errors import UserError

PAGE = Path(__file__).parent.parent / "configs" / "hydranet.py"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("25_0_2_20170116174525125.jpg.chip.jpg", (25, 0, 2)),
        ("116_1_4_20170116174525125.jpg", (116, 1, 4)),
        ("61_1_20170109142408075.jpg.chip.jpg", None),  # as in the published set: no ethnicity
        ("25_0_2_3_20170116174525125.jpg", None),
        ("25_3_2_20170116174525125.jpg", None),
        ("25_0_5_20170116174525125.jpg", None),
        ("250_0_1_20170116174525125.jpg", None),
        ("-1_0_1_20170116174525125.jpg", None),
        ("²_0_1_20170116174525125.jpg", None),
        ("face.jpg", None),
        ("", None),
    ],
)
def test_a_name_says_all_three_or_nothing(name, expected):
    assert parse(name) == expected


def write(root, names):
    folder = root / "utkface"
    (folder / "UTKFace").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(folder / "UTKFace" / name)
    (folder / "train.txt").write_text("\n".join(names) + "\n")


def test_malformed_names_are_skipped_counted_and_told(tmp_path, caplog):
    write(tmp_path, ["7_1_3_2017.jpg.chip.jpg", "7_1_2017.jpg.chip.jpg", "80_0_0_2017.jpg.chip.jpg"])
    with caplog.at_level(logging.WARNING):
        source = UTKFace(data_root=tmp_path, split="train")
    assert (len(source), source.skipped) == (2, 1)
    assert "train.txt: 1 name skipped as malformed, the first 7_1_2017.jpg.chip.jpg" in caplog.text
    sample = source[1]
    assert sample["id"] == "80_0_0_2017.jpg.chip.jpg"
    assert sample["labels"]["age"]["value"] == 80
    assert sample["labels"]["age"]["value"].dtype == np.float32
    assert [int(sample["labels"][name]["label"]) for name in ("gender", "ethnicity")] == [0, 0]


def test_names_listed_twice_are_read_once_and_counted(tmp_path):
    write(tmp_path, ["7_1_3_a b.jpg", "7_1_3_a b.jpg", "80_0_0_c.jpg"])
    source = UTKFace(data_root=tmp_path, split="train")
    assert [source[index]["id"] for index in range(len(source))] == ["7_1_3_a b.jpg", "80_0_0_c.jpg"]
    assert source.reading.counts == {"images": 2, "names listed twice": 1}


def test_a_list_of_other_names_is_refused(tmp_path):
    write(tmp_path, ["cat.jpg"])
    with pytest.raises(UserError, match=r"train.txt: expected names like 25_0_2.*found none among 1"):
        UTKFace(data_root=tmp_path, split="train")
    with pytest.raises(UserError, match=r"expected a UTKFace dataset, found none at .*val\.txt"):
        UTKFace(data_root=tmp_path, split="val")


def test_the_real_set_has_the_page_s_classes(data_root):
    page = config_lib.load_page(PAGE)
    config = page.get_config("gradnorm")
    config_lib.resolve(config)
    for split, count in (("train", 1200), ("val", 300)):
        source = UTKFace(data_root=data_root, split=split)
        assert len(source) == count
        assert source[0]["image"].shape == (200, 200, 3)
    for name in ("gender", "ethnicity"):
        assert source.class_names[name] == tuple(config.tasks[name]["classes"])
    with pytest.raises(UserError, match=r"hydranet\.py:pc: expected one of sum, mean"):
        page.get_config("pc")


def test_a_number_of_any_length_is_no_age():
    assert parse(f"{'1' * 5000}_0_2_x.jpg") is None
