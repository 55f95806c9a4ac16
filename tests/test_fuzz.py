"""Whatever a file holds: it is read, or refused in one line; `make fuzz` tries more of it."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch_files
from fuzzing import CASES, DEFAULT_CASES, TEXTS, cases, changed, changes, rewritten, tree_of, verdict
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic_archives import tar_bytes, zip_bytes
from test_open_images_mini import coco as make_coco
from test_voc import make_voc

from mtl_jax import config as config_lib
from mtl_jax import experiment
from mtl_jax.cli import train
from mtl_jax.config import overrides
from mtl_jax.continual import memory
from mtl_jax.data import images, pixel_labels
from mtl_jax.data.minis.archives import read_files
from mtl_jax.data.minis.open_images_mini import convert
from mtl_jax.data.sources import registry
from mtl_jax.models.backbones import pretrained
from mtl_jax.training import stage_plan
from mtl_jax.workdir import checkpoints, files, metrics_log

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and PyTorch warn of much that they then read


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def all_formats() -> dict[str, bytes]:
    """Small images of every kind that is read."""
    numbers = np.random.default_rng(0)
    rgb = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), np.uint8))
    deep = Image.fromarray(numbers.integers(0, 65536, (12, 16), np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = rgb.quantize(8)
    return {
        "png": encoded(rgb, "PNG", exif=exif),
        "clear.png": encoded(palette, "PNG", transparency=b"\xff\x00\x80"),
        "deep.png": encoded(deep, "PNG"),
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "palette.png": encoded(palette, "PNG"),
        "jpg": encoded(rgb, "JPEG", exif=exif),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG", progressive=True),
        "webp": encoded(rgb, "WEBP", lossless=True),
        "gif": encoded(palette, "GIF"),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "deep.tif": encoded(deep, "TIFF"),
        "bmp": encoded(rgb, "BMP"),
        "ppm": encoded(rgb, "PPM"),
        "jp2": encoded(rgb, "JPEG2000"),
    }


FORMATS = all_formats()
SOME_FORMAT = st.sampled_from(sorted(FORMATS))


@cases(36)
@given(SOME_FORMAT, changes())
def test_images(kind, steps):
    verdict(lambda: images.decode_image(changed(FORMATS[kind], steps), name="bad.img"), "bad.img")


@cases(16)
@given(SOME_FORMAT, changes(), st.booleans())
def test_masks_and_depths(kind, steps, is_mask):
    content, image = changed(FORMATS[kind], steps), images.read_image(FORMATS["jpg"])

    def read():
        if is_mask:
            return pixel_labels.decode_mask(content, image=image, class_count=8, name="bad.img")
        return pixel_labels.decode_depth(content, image=image, levels_per_metre=25.5, name="bad.img")

    verdict(read, "bad.img")


def read_all(kind, root, **options):
    """Opens a training split and reads all of it."""
    source = registry.build(kind, data_root=root, split="train", **options)
    for index in range(len(source)):
        sample = source[index]
        assert sample["image"].dtype == np.uint8
        assert np.isfinite(sample["labels"].get("detection", {}).get("boxes_xyxy", np.zeros(1))).all()


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return make_coco(tmp_path_factory.mktemp("coco"))


def annotations(root):
    return root / "mini-coco-det" / "annotations" / "instances_train.json"


COCO_TREE = {
    "images": [{"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 4} for number in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 1, 4, 2], "iscrowd": 0, "area": 8.0}
        | {"segmentation": [[2.0, 1.0, 6.0, 1.0, 6.0, 3.0, 2.0, 3.0]]},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 2], "iscrowd": 1}
        | {"segmentation": {"counts": [1, 2, 29], "size": [4, 8]}},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
}


@cases(24)
@given(rewritten(COCO_TREE))
def test_the_tree_of_a_coco_file(coco, tree):
    annotations(coco).write_text(json.dumps(tree))
    verdict(lambda: read_all("coco_detection", coco), "instances_train.json", str(coco))


@cases(8)
@given(changes())
def test_the_bytes_of_a_coco_file(coco, steps):
    annotations(coco).write_bytes(changed(json.dumps(COCO_TREE).encode(), steps))
    verdict(lambda: read_all("coco_detection", coco), "instances_train.json", str(coco))


@cases(8)
@given(rewritten(COCO_TREE))
def test_the_conversion_of_a_coco_file(coco, tree):
    annotations(coco).write_text(json.dumps(tree))
    before = tree_of(coco.parent)
    verdict(lambda: convert(coco), "mini-coco-det", "instances_train.json")
    shutil.rmtree(coco / "open-images-mini", ignore_errors=True)
    assert tree_of(coco.parent) == before


@pytest.fixture(scope="module")
def open_images(tmp_path_factory):
    """The folder of the tables, and what they held."""
    root = make_coco(tmp_path_factory.mktemp("open_images"))
    convert(root)
    tables = sorted((root / "open-images-mini").glob("*.csv"))
    return root, {table: table.read_bytes() for table in tables if "validation" not in table.name}


@cases(16)
@given(st.data())
def test_the_tables_of_open_images(open_images, data):
    root, tables = open_images
    table = data.draw(st.sampled_from(sorted(tables)))
    if data.draw(st.booleans()):
        content = changed(tables[table], data.draw(changes()))
    else:
        rows = [line.split(",") for line in tables[table].decode().splitlines()]
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = (
            data.draw(st.sampled_from(TEXTS)).encode("utf-8", "replace").decode()
        )
        text = io.StringIO()
        csv.writer(text).writerows(rows)
        content = text.getvalue().encode()
    table.write_bytes(content)
    verdict(lambda: read_all("open_images", root), "open-images-mini")
    table.write_bytes(tables[table])


LIST_NAMES = st.sampled_from([text.replace("\ud800", "\ufffe") for text in TEXTS]) | st.text(max_size=9)


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The files of three datasets that are lists of names."""
    root = tmp_path_factory.mktemp("lists")
    make_voc(root / "mini-voc-seg")
    for folder in ("nyuv2/nyu_images", "nyuv2/nyu_labels40", "nyuv2/nyu_depths", "utkface/UTKFace"):
        (root / folder).mkdir(parents=True)
    face = "25_0_2_20170116174525125.jpg.chip.jpg"
    for file in (
        "nyuv2/nyu_images/a.jpg",
        "nyuv2/nyu_labels40/a.png",
        "nyuv2/nyu_depths/a.png",
        f"utkface/UTKFace/{face}",
    ):
        (root / file).write_bytes(FORMATS["grey.png"])
    return {
        "voc_segmentation": (root, root / "mini-voc-seg/ImageSets/Segmentation/train.txt", b"a\n"),
        "nyuv2": (root, root / "nyuv2/train.txt", b"a\n"),
        "utkface": (root, root / "utkface/train.txt", f"{face}\n".encode()),
    }


@cases(16)
@given(st.data())
def test_lists_of_names(listed, data):
    kind = data.draw(st.sampled_from(sorted(listed)))
    root, file, names = listed[kind]
    spoilt = changed(names * 3, data.draw(changes()))
    begun = b"25_0_2_" if kind == "utkface" else b""
    file.write_bytes(data.draw(st.sampled_from((spoilt, begun + data.draw(LIST_NAMES).encode("utf-8", "replace")))))
    verdict(lambda: read_all(kind, root), str(root))


@cases(6)
@given(st.data())
def test_folders_of_images(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("folder")
    names = {"n01440764": "tench", "n02102040": "spaniel"}
    for number, name in enumerate(names):
        (root / "set/train" / name).mkdir(parents=True)
        content = FORMATS[data.draw(SOME_FORMAT)]
        (root / "set/train" / name / f"{number}.png").write_bytes(changed(content, data.draw(changes())))
    (root / "set/wnid_to_name.json").write_text(json.dumps(data.draw(rewritten(names))))
    verdict(lambda: read_all("image_folder", root, folder="set"), "set")


NUMBER_WORDS = ("nan", "inf", "-inf", "-1", "0", "1", "1.5", "1e400", "1" * 5000, "1000000000")
ODD_WORDS = (
    "",
    "None",
    "True",
    "(1,",
    "()",
    "{}",
    "seg",
    "seg,",
    "('seg','det')",
    "((((",
    "[" * 500,
    "a" * 99,
    "\ud800",
)
NOTHING_LEARNT = stage_plan.StageResult({"params": {"backbone": {"kernel": np.zeros(1)}}}, memory.nothing(), [], 0.0, 0)


def fields_of(tree, prefix=""):
    for name in tree:
        branch = tree[name]
        yield from fields_of(branch, f"{prefix}{name}.") if hasattr(branch, "items") else [f"{prefix}{name}"]


FIELDS = sorted(fields_of(config_lib.load_page(ROOT / "configs/quickstart.py").get_config()))
PLAIN_WORDS = st.integers(-2, 9).map(str) | st.floats(-1, 9).map(str)
WORDS = PLAIN_WORDS | st.sampled_from(NUMBER_WORDS) | st.sampled_from(ODD_WORDS) | st.text(max_size=6)


@cases(20)
@given(st.lists(st.tuples(st.sampled_from(FIELDS) | st.text(max_size=5), WORDS), min_size=1, max_size=2))
def test_settings_on_the_command_line(settings):
    flags = [f"--config.{field}={word}" for field, word in settings]
    arguments = ["--config", str(ROOT / "configs/quickstart.py"), *flags]

    def read():
        page, overridden, _ = train.parse(arguments)
        config = config_lib.resolve(overrides.load(page, overridden))
        setup = experiment.build(config, data_root=Path("data"))
        stage_plan.plan(config, setup, 0, NOTHING_LEARNT)

    verdict(read, "config", "argument", "flag", "expected", "stream", "task")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small checkpoint, what it holds, and where copies of it are spoilt."""
    root = tmp_path_factory.mktemp("checkpoint")
    tree = {"a": np.arange(600, dtype=np.float32).reshape(20, 30), "b": {"c": np.ones(7, np.int32)}}
    checkpoints.save(root / "whole", {"variables": tree}, {"stages": [{"name": "seg"}], "step": 3})
    return root, tree


@cases(10)
@given(st.data())
def test_the_files_of_a_checkpoint(checkpoint, data):
    root, tree = checkpoint
    shutil.rmtree(root / "spoilt", ignore_errors=True)
    shutil.copytree(root / "whole", root / "spoilt")
    files = sorted(path for path in (root / "spoilt").rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    spoilt = changed(content, data.draw(changes()))
    file.write_bytes(spoilt)
    loaded = {}
    how = verdict(lambda: loaded.update(checkpoints.load(root / "spoilt", {"variables": tree})), "spoilt")
    assert how == "refused" or spoilt == content or file.name in UNREAD, f"{file} is damaged, and was read"
    if how == "read":
        np.testing.assert_array_equal(loaded["variables"]["a"], tree["a"])


UNREAD: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights in each way that they are written."""
    root = tmp_path_factory.mktemp("weights")
    state = {"features.0.0.weight": np.ones((2, 3, 1, 1), np.float32), "features.0.1.bias": np.zeros(2, np.float32)}
    np.savez(root / "a.npz", **state)
    np.savez_compressed(root / "b.npz", **state)
    tensors = {name: torch_files.Tensor(value) for name, value in state.items()}
    torch_files.save(root / "c.pth", tensors)
    torch_files.save_legacy(root / "d.pth", tensors)
    return {path: path.read_bytes() for path in sorted(root.iterdir())}


@cases(14)
@given(st.data())
def test_files_of_weights(weights, data):
    file = data.draw(st.sampled_from(sorted(weights)))
    file.write_bytes(changed(weights[file], data.draw(changes())))
    before = tree_of(file.parent)
    stem = {"conv": {"kernel": np.zeros((3, 2), np.float32)}, "norm": {"bias": np.ones(2, np.float32)}}
    variables = {"params": {"backbone": {"stem": stem}}}
    verdict(lambda: pretrained.load(variables, file), file.name)
    assert tree_of(file.parent) == before


MEMBERS = {"a/b.txt": b"1" * 300, "c.txt": b"", "deep/er/d": bytes(range(256))}
LINK = tarfile.TarInfo("link")
LINK.type, LINK.linkname = tarfile.SYMTYPE, "c.txt"
ARCHIVES = {
    "plain.tar": tar_bytes(MEMBERS, extra=(LINK,)),
    "packed.tgz": tar_bytes(MEMBERS, mode="w:gz"),
    "packed.tar.xz": tar_bytes(MEMBERS, mode="w:xz"),
    "packed.zip": zip_bytes(MEMBERS),
}


@cases(12)
@given(st.sampled_from(sorted(ARCHIVES)), changes())
def test_archives(tmp_path_factory, name, steps):
    folder = tmp_path_factory.getbasetemp() / "archives"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(changed(ARCHIVES[name], steps))
    before = tree_of(folder.parent)
    verdict(lambda: [content for _, content in read_files(folder / name, ["a/b.txt", "deep/er/d"])], name)
    assert tree_of(folder.parent) == before


@cases(6)
@given(st.sampled_from(["tar", "zip"]), st.lists(st.sampled_from(TEXTS) | st.text(max_size=6), max_size=3))
def test_names_in_archives(tmp_path_factory, kind, names):
    folder = tmp_path_factory.getbasetemp() / "archives"
    folder.mkdir(exist_ok=True)
    spelt = dict.fromkeys((name.encode("utf-8", "replace").decode() for name in names if name.strip("\0")), b"x") | {
        "wanted": b"1"
    }
    file = folder / f"names.{kind}"
    file.write_bytes(tar_bytes(spelt) if kind == "tar" else zip_bytes(spelt))
    before = tree_of(folder.parent)
    verdict(lambda: list(read_files(file, ["wanted"])), file.name)
    assert tree_of(folder.parent) == before


EVENT = {"step": 1, "epoch": 0.5, "stage": "s", "split": "val", "task": None, "name": "loss", "value": 1.0, "time": 2.0}


@cases(8)
@given(rewritten(EVENT), changes(), st.booleans())
def test_logs_of_metrics(tmp_path_factory, tree, steps, in_bytes):
    file = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    line = json.dumps(tree).encode() + b"\n"
    file.write_bytes(changed(line * 2, steps) if in_bytes else line)
    verdict(lambda: json.dumps(metrics_log.read(file), allow_nan=False), "metrics.jsonl")
    verdict(lambda: files.read_json(file), "metrics.jsonl")


@pytest.mark.skipif(CASES == DEFAULT_CASES, reason="takes ten seconds: make fuzz runs it")
def test_what_is_made_to_cost_memory_or_time_costs_neither():
    process = subprocess.run(
        [sys.executable, str(ROOT / "tests/worst_inputs.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/support")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert process.returncode == 0, process.stderr
    outcomes = [line.rpartition(": ")[2] for line in process.stdout.splitlines()]
    assert len(outcomes) == 9, process.stdout
    assert set(outcomes) == {"read", "refused"}, process.stdout
