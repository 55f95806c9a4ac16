"""The examples beside the package run as they stand, and find what the exported network finds."""

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_checkpoint

from mtl_jax.cli import export as command
from mtl_jax.data import warp

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "onnx_predict.py"
SIZE = 64


@pytest.fixture(scope="module")
def exported(tiny_backbone, tmp_path_factory) -> Path:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `export` is not installed: the examples are not tested")
    folder = tmp_path_factory.mktemp("examples")
    weights = save_checkpoint(folder / "run" / "checkpoints" / "0-all", image_size=SIZE)
    flags = ["--weights", str(weights), "--out", str(folder / "exported"), "--format", "onnx"]
    assert command.main([*flags, "--tasks", "seg,det,cls"]) == 0
    blotches = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    photograph = Image.fromarray(blotches.repeat(8, axis=0).repeat(8, axis=1))
    for name in ("photo", "large"):
        for kind in ("png", "ppm"):
            photograph.save(folder / f"{name}.{kind}")
        photograph = photograph.resize((288, 192), Image.Resampling.BICUBIC)
    return folder


def answers(lines: str, word: str) -> np.ndarray:
    """Numbers of the lines about a task."""
    return np.array([[float(n) for n in line.split()[-5:]] for line in lines.splitlines() if line.startswith(word)])


def python_example(folder: Path, rendered: Path, name: str = "photo") -> str:
    words = [sys.executable, SCRIPT, folder / "exported", folder / f"{name}.png", rendered, "0"]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("height", "width", "largest", "mean"), [(60, 80, 2, 0.5), (100, 31, 2, 0.5), (311, 420, 255, 3)]
)
def test_the_python_example_letterboxes_as_the_package_does(height, width, largest, mean):
    pytest.importorskip("onnxruntime", reason="the extra `export` is not installed: the examples are not tested")
    namespace = runpy.run_path(str(SCRIPT))
    blotches = np.random.default_rng(1).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    pixels = blotches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    placed, scale, offset = namespace["letterbox"](Image.fromarray(pixels), SIZE, 2 * SIZE)
    placement = warp.fit(height, width, size=(SIZE, 2 * SIZE))
    assert (scale, *offset) == pytest.approx((placement.scale_x, *2 * (placement.offset_x, placement.offset_y)))
    apart = np.abs(255 * placed[0] - warp.warp(pixels, placement, size=(SIZE, 2 * SIZE)))
    assert apart.max() <= largest
    assert apart.mean() < mean


def test_the_python_example_prints_and_draws(exported, tmp_path):
    output = python_example(exported, tmp_path / "drawn.png")
    assert answers(output, "det").shape[1] == 5
    assert "cls " in output
    rendered, inputs = (np.asarray(Image.open(path)) for path in (tmp_path / "drawn.png", exported / "photo.png"))
    assert rendered.shape == inputs.shape
    assert (rendered != inputs).any()


def test_the_cpp_example_finds_what_the_python_example_finds(exported, tmp_path):
    include = Path(os.environ.get("ONNXRUNTIME_DIR", "/usr")) / "include"
    headers = [place for place in (include, include / "onnxruntime") if (place / "onnxruntime_cxx_api.h").is_file()]
    if not headers or not shutil.which("g++"):
        pytest.skip("no g++, or no onnxruntime_cxx_api.h in $ONNXRUNTIME_DIR/include: the C++ example is not compiled")
    spec = importlib.util.find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    program, linked = tmp_path / "onnx_predict", tmp_path / "libonnxruntime.so.1"
    linked.symlink_to(library)  # the name that the library gives itself, which the wheel lacks
    built = ["g++", "-std=c++17", "-O1", "-Wall", ROOT / "examples" / "onnx_predict.cpp", "-isystem", headers[0]]
    built += [linked, f"-Wl,-rpath,{tmp_path}", "-o", program]
    process = subprocess.run(list(map(str, built)), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert "warning" not in process.stderr
    for name in ("photo", "large"):
        photograph, rendered = exported / f"{name}.ppm", tmp_path / "drawn.ppm"
        words = [program, exported / "exported" / "model.onnx", photograph, rendered, "0"]
        output = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
        expected = python_example(exported, tmp_path / "drawn.png", name)
        ours, theirs = answers(output, "det"), answers(expected, "det")
        assert len(ours) > 0
        # Pillow rounds the resized pixels to whole numbers.
        assert np.abs(ours[:5, None] - theirs[None]).max(axis=-1).min(axis=1).max() < (1 if name == "photo" else 4)
        assert (np.asarray(Image.open(rendered)) != np.asarray(Image.open(photograph))).any()
    words[1] = exported / "nothing.onnx"
    assert subprocess.run(list(map(str, words)), capture_output=True, check=False).returncode == 2
