"""The examples beside the package run as they stand, and find what the exported network finds."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_checkpoint

from mtl_jax.cli import export as command

ROOT = Path(__file__).parent.parent
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
    for name in ("photo.png", "photo.ppm"):
        photograph.save(folder / name)
    return folder


def answers(lines: str, word: str) -> np.ndarray:
    """Numbers of the lines about a task."""
    return np.array([[float(n) for n in line.split()[-5:]] for line in lines.splitlines() if line.startswith(word)])


def python_example(folder: Path, rendered: Path) -> str:
    script = ROOT / "examples" / "onnx_predict.py"
    words = [sys.executable, script, folder / "exported", folder / "photo.png", rendered, "0"]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout


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
    words = [program, exported / "exported" / "model.onnx", exported / "photo.ppm", tmp_path / "drawn.ppm", "0"]
    output = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout
    ours, theirs = answers(output, "det"), answers(python_example(exported, tmp_path / "drawn.png"), "det")
    assert len(ours) > 0
    # Pillow rounds where the image goes to whole pixels, and resizes otherwise: boxes agree to a few pixels.
    apart = np.abs(ours[:5, None, 1:] - theirs[None, :, 1:]).max(axis=-1).min(axis=1)
    assert apart.max() < 4
    assert (np.asarray(Image.open(tmp_path / "drawn.ppm")) != np.asarray(Image.open(exported / "photo.ppm"))).any()
    words[1] = exported / "nothing.onnx"
    assert subprocess.run(list(map(str, words)), capture_output=True, check=False).returncode == 2
