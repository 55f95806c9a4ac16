"""8-bit LiteRT export: files are smaller, close to the network, and run on any number of images for the metrics."""

import numpy as np
import pytest
from tiny import KINDS, save_checkpoint

from mtl_jax.cli import export as command
from mtl_jax.export import check, formats, litert, litert_int8, network
from mtl_jax.workdir import trained

SIZE = 64
FORM = network.Form("none")


@pytest.fixture(scope="module")
def weights(tiny_backbone, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run") / "checkpoints" / "0-all", image_size=SIZE)


def require_quantizer() -> None:
    for package in (*formats.PACKAGES["litert"], *formats.PACKAGES["litert int8"]):
        pytest.importorskip(package, reason="the extra `litert` is not installed: its eight bits are not tested")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ImportWarning")  # of the converters themselves
def test_an_8_bit_file_is_smaller_and_its_outputs_are_close_to_those_of_the_network(weights, tmp_path):
    require_quantizer()
    model, image = trained.load(weights), network.input_shape(image_size=SIZE, batch_size=1)
    full = litert.litert(model, tmp_path, image, FORM)
    small = litert_int8.litert_int8(model, tmp_path, image, FORM)
    assert small.path.name == "model.int8.tflite"
    assert small.size < 0.9 * full.size  # most kernels of so small a network are small
    pixels = np.random.default_rng(0).random((1, SIZE, SIZE, 3), np.float32)
    assert set(small.run(pixels)) == {f"{task}/outputs" for task in KINDS}
    expected = check.reference(model, FORM)[1](pixels)
    assert check.relative_error(expected, full.check(pixels)) < 1e-4
    assert 1e-4 < check.relative_error(expected, small.check(pixels)) < 0.3


def test_a_file_of_two_images_is_run_on_any_number():
    calls = []

    def pair(pixels):
        calls.append(len(pixels))
        return {"mean": pixels.mean(axis=(1, 2, 3))}

    pixels = np.arange(5.0).reshape(5, 1, 1, 1).repeat(3, axis=3)
    assert formats.run_in_batches(pair, 2)(pixels)["mean"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert calls == [2, 2, 2]


def test_images_to_calibrate_with_are_refused_where_none_are_used(weights, tmp_path, capsys):
    flags = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--format", "litert", "--int8"]
    assert command.main([*flags, "--calibrate", str(tmp_path)]) == 2
    assert "needs no images" in capsys.readouterr().err
