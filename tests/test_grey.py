"""Greyscale images of 16-bit files have one scale: that of their dataset, whatever a single file holds."""

import numpy as np
import pytest
from PIL import Image

from mtl_jax import config as config_lib
from mtl_jax.data import findings, survey
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Subset
from mtl_jax.errors import UserError
from mtl_jax.workdir import trained


def folder(root, **levels):
    """Writes a class folder of one image for each level, `train_1` standing for the split "train"."""
    for name, level in levels.items():
        place = root / "set" / name.partition("_")[0] / "thing"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.full((2, 2), level, np.uint16)
        pixels[0, 0] = 0
        Image.fromarray(pixels).save(place / f"{name}.png")


def build(root, split, **options):
    return registry.build("image_folder", data_root=root, split=split, folder="set", **options)


def brightness(source):
    return [int(source[index]["image"].max()) for index in range(len(source))]


@pytest.mark.parametrize(("brightest", "bits"), [(1023, 10), (1024, 12), (4095, 12), (16383, 14), (16384, 16)])
def test_the_training_images_decide_for_both_splits_so_that_dark_images_stay_dark(tmp_path, brightest, bits):
    folder(tmp_path, train_1=brightest, train_2=brightest // 4, val_1=brightest // 8)
    train, val = build(tmp_path, "train"), build(tmp_path, "val")
    assert brightness(val) == [round(brightest // 8 * 255 / (2**bits - 1))]
    assert brightness(train)[1] == round(brightest // 4 * 255 / (2**bits - 1))
    assert (train.grey.bits, val.grey.bits) == (bits, bits)


def test_a_setting_decides_and_levels_beyond_it_are_white(tmp_path):
    folder(tmp_path, train_1=1000, val_1=5000)
    assert brightness(build(tmp_path, "val", grey_bits=12)) == [255]
    assert brightness(build(tmp_path, "val", grey_bits=16)) == [round(5000 * 255 / 65535)]
    with pytest.raises(UserError, match="grey_bits: expected 9 to 16"):
        build(tmp_path, "val", grey_bits=8)


def test_images_of_eight_bits_are_as_they_are_and_decide_nothing(tmp_path):
    folder(tmp_path, train_1=900)
    Image.fromarray(np.full((2, 2), 77, np.uint8)).save(tmp_path / "set/train/thing/8.png")
    train = build(tmp_path, "train")
    assert train[0]["image"].max() == 77
    assert train.grey.bits is None
    assert GreyBits()() == 16  # where nothing is known, all bits count


@pytest.mark.parametrize("part", [lambda source: source, lambda source: Subset(source, [0])], ids=["whole", "part"])
def test_what_was_seen_tells_the_bits_and_is_not_reused_for_other_ones(tmp_path, monkeypatch, part):
    monkeypatch.setattr(survey, "WORTH_KEEPING_S", 0.0)
    folder(tmp_path, train_1=900, val_1=100)

    def look():
        observed = survey.look(part(build(tmp_path, "val")), cache=tmp_path / "cache")
        return findings.figures(observed, {"classification": ("thing",)})["grey_bits"], observed.samples[0].pixels

    first = look()
    assert first[0] == 10
    assert look() == first
    folder(tmp_path, train_2=4000)
    assert look()[0] == 12
    assert look()[1] != first[1]


def test_evaluation_and_prediction_take_the_bits_that_training_saw():
    streams = {
        name: {"source": source, "labels": {"cls": "class"}}
        for name, source in (("a", "image_folder"), ("b", "utkface"))
    }
    observed = {"a": {"train": {"grey_bits": 12}}, "b": {"train": {"grey_bits": None}}}
    scaled = trained.as_scaled(config_lib.read_settings({"streams": streams}), observed)
    assert scaled.streams["a"].options == {"grey_bits": 12}
    assert scaled.streams["b"].options == {}
