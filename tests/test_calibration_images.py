"""Ranges of eight bits come from training images: never from those that figures are reported of."""

import numpy as np
import pytest
from PIL import Image
from tiny import MODEL

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.data.facts import image_digest
from mtl_jax.errors import UserError
from mtl_jax.experiment import View
from mtl_jax.export import calibration_images
from mtl_jax.workdir.trained import Trained

VIEW = View(32, crop=False)


@pytest.fixture
def network(tmp_path, tiny_backbone, monkeypatch):
    """A run of one stream: eight training images of brightness 0 to 7, four validation images from 100 on."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    for split, first, count in (("train", 0, 8), ("val", 100, 4)):
        for number in range(first, first + count):
            folder = tmp_path / "pets" / split / ("indoors", "outdoors")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number,) * 3).save(folder / f"{number}.png")
    return run_of(tmp_path)


def run_of(root, held_out_percent: float = 0.0):
    config = config_lib.base()
    config.image_size, config.held_out_percent = 32, held_out_percent
    with config.ignore_type():
        config.model.update(MODEL)
        config.tasks.cls = {"kind": "classification", "classes": ("indoors", "outdoors")}
    config.streams.pets = config_lib.stream("image_folder", {"cls": "classification"}, options={"folder": "pets"})
    setup = experiment.build(config.to_dict(), data_root=root)
    settings = config_lib.read_settings(config.to_dict())
    return Trained(root / "checkpoint", "all", settings, setup, ("cls",), {}, {}, ("all",), {})


def brightness(images) -> set[int]:
    return {round(255 * float(image.mean())) for image in images}


def test_a_run_gives_training_images_alone(network):
    images = calibration_images.training_images(network, VIEW, count=4)
    assert images[0].shape == (1, 32, 32, 3)
    assert len(brightness(images)) == 4
    assert brightness(images) <= set(range(8))


def test_of_training_images_it_gives_those_that_no_step_saw(network):
    held_out = run_of(network.path.parent, held_out_percent=25.0)
    unseen = experiment.source(held_out.setup, "pets", training=True, held_out=True)
    images = calibration_images.training_images(held_out, VIEW)
    assert brightness(images) == {int(sample["image"].mean()) for sample in unseen}
    assert len(images) == 2


def test_a_training_image_that_is_a_validation_image_too_is_left_out(network, tmp_path):
    Image.new("RGB", (32, 32), (3, 3, 3)).save(tmp_path / "pets" / "val" / "outdoors" / "again.bmp")
    assert brightness(calibration_images.training_images(network, VIEW)) == {0, 1, 2, 4, 5, 6, 7}
    for number in range(8):
        Image.new("RGB", (32, 32), (number,) * 3).save(tmp_path / "pets" / "val" / "outdoors" / f"{number}.png")
    again = run_of(tmp_path)
    with pytest.raises(
        UserError, match="expected training images that are no validation images of the run, found none"
    ):
        calibration_images.training_images(again, VIEW)


def test_validation_images_are_refused_under_any_name_and_in_any_file(network, tmp_path):
    copy, training_image = tmp_path / "copy.bmp", tmp_path / "own.png"
    Image.new("RGB", (32, 32), (101,) * 3).save(copy)
    Image.new("RGB", (32, 32), (50,) * 3).save(training_image)
    assert brightness(calibration_images.load_images(network, [training_image], VIEW)) == {50}
    with pytest.raises(UserError, match=r"found 1 of the run's validation images, such as .*copy.bmp"):
        calibration_images.load_images(network, [training_image, copy], VIEW)


def test_without_its_data_a_run_takes_images_that_are_named(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    training_image = tmp_path / "own.png"
    Image.new("RGB", (32, 32), (50,) * 3).save(training_image)
    assert len(calibration_images.load_images(run_of(tmp_path), [training_image], VIEW)) == 1
    with pytest.raises(UserError, match="--calibrate"):
        calibration_images.training_images(run_of(tmp_path), VIEW)


def test_images_are_spread_evenly():
    assert calibration_images.spread_indices(100, 4) == [12, 37, 62, 87]
    assert calibration_images.spread_indices(2, 4) == [0, 1]


def test_training_windows_are_of_training_images_and_depend_on_their_number_alone(network, monkeypatch):
    sizes = {"count": 12, "batch_size": 2}
    batches = calibration_images.TrainingBatches(network, VIEW, **sizes, crop=16)
    assert len(batches) == 12
    assert batches[3].shape == (2, 16, 16, 3)
    np.testing.assert_array_equal(batches[3], batches[3])
    assert {level for batch in batches for level in brightness(batch)} <= set(range(8))
    digests = {image_digest(np.full((32, 32, 3), number, np.uint8)) for number in range(7)}
    # All but the last are validation images.
    monkeypatch.setattr(calibration_images, "_validation_digests", lambda _: digests)
    remaining = calibration_images.TrainingBatches(network, VIEW, **sizes, crop=64)
    assert {level for batch in remaining for level in brightness(batch)} == {7}
    assert remaining[0].shape == (2, 32, 32, 3)  # no larger than the images are shown
    digests.add(image_digest(np.full((32, 32, 3), 7, np.uint8)))
    with pytest.raises(UserError, match="no validation images of the run, found none; leave --qat out"):
        calibration_images.TrainingBatches(network, VIEW, **sizes, crop=16)[0]
