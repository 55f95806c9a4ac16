"""Images sorted into class folders."""

import json

import numpy as np
import pytest
from PIL import Image

from mtl_jax.data.sources import registry
from mtl_jax.data.sources.base import Reading
from mtl_jax.errors import UserError


def make_folder(root, classes_by_split, folder="imagenette-160"):
    for split, classes in classes_by_split.items():
        for name in classes:
            (root / folder / split / name).mkdir(parents=True)
            Image.new("L", (5, 4), 7).save(root / folder / split / name / "a.JPEG")
            (root / folder / split / name / "notes.txt").write_text("no image")


def test_labels_are_the_sorted_training_folders_in_every_split(tmp_path):
    make_folder(tmp_path, {"train": ("cat", "ant", "dog"), "val": ("dog",)})
    train = registry.build("image_folder", data_root=tmp_path, split="train")
    val = registry.build("image_folder", data_root=tmp_path, split="val")
    assert train.class_names == val.class_names == {"classification": ("ant", "cat", "dog")}
    assert [int(train[i]["labels"]["classification"]["label"]) for i in range(3)] == [0, 1, 2]
    assert int(val[0]["labels"]["classification"]["label"]) == 2
    assert val[0]["id"] == "dog/a.JPEG"
    assert val[0]["image"].shape == (4, 5, 3)


def test_given_classes_decide_the_labels(tmp_path):
    make_folder(tmp_path, {"train": ("cat", "ant")})
    source = registry.build("image_folder", data_root=tmp_path, split="train", classes=("dog", "cat", "ant"))
    assert [int(source[i]["labels"]["classification"]["label"]) for i in range(2)] == [2, 1]


def test_names_come_from_the_file_or_the_built_in_table(tmp_path):
    make_folder(tmp_path, {"train": ("n01440764", "n99999999")})
    source = registry.build("image_folder", data_root=tmp_path, split="train")
    assert source.class_names["classification"] == ("tench", "n99999999")
    (tmp_path / "imagenette-160/wnid_to_name.json").write_text(json.dumps({"n99999999": "unicorn"}))
    source = registry.build("image_folder", data_root=tmp_path, split="train")
    assert source.class_names["classification"] == ("n01440764", "unicorn")


def test_validation_class_unknown_to_training_is_refused(tmp_path):
    make_folder(tmp_path, {"train": ("ant",), "val": ("bee",)})
    with pytest.raises(UserError, match=r"val/bee: expected a class of the table"):
        registry.build("image_folder", data_root=tmp_path, split="val")


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "imagenette-160/train/ant").mkdir(parents=True)
    with pytest.raises(UserError, match="expected images in one folder per class"):
        registry.build("image_folder", data_root=tmp_path, split="train")


def test_real_imagenette_is_all_rgb_with_ten_balanced_classes(data_root):
    source = registry.build("image_folder", data_root=data_root, split="train")
    samples = [source[index] for index in range(len(source))]
    labels = [int(sample["labels"]["classification"]["label"]) for sample in samples]
    grey = sum((np.ptp(sample["image"], axis=2) == 0).all() for sample in samples)
    assert all(sample["image"].shape[2] == 3 for sample in samples)
    assert np.bincount(labels).tolist() == [24] * 10
    assert grey >= 3  # three files are stored as greyscale
    assert source.class_names["classification"][0] == "tench"


def test_a_table_of_names_that_is_no_object_and_a_split_that_is_a_file_are_refused(tmp_path):
    base = tmp_path / "imagenette-160"
    (base / "train/thing").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(base / "train/thing/1.png")
    (base / "wnid_to_name.json").write_text("[]")
    (base / "val").write_text("")
    with pytest.raises(UserError, match=r"wnid_to_name\.json: expected a JSON object"):
        registry.build("image_folder", data_root=tmp_path, split="train")
    with pytest.raises(UserError, match="val: expected a folder of images by class, found a file"):
        registry.build("image_folder", data_root=tmp_path, split="val")


def grey(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4), 7).save(file, format="PNG")


def test_every_readable_suffix_and_every_folder_below_a_class_are_read(tmp_path):
    base = tmp_path / "imagenette-160/train"
    names = ("a.jfif", "b.jpe", "c.PPM", "d.jp2", "e.avif", "f.tiff", "part 1/deep/g.png")
    for name in names:
        grey(base / "cat" / name)
    grey(base / "emu/part1/0.png")  # a class whose images all lie deeper
    source = registry.build("image_folder", data_root=tmp_path, split="train")
    assert [source[index]["id"] for index in range(len(source))] == [
        *(f"cat/{name}" for name in names),
        "emu/part1/0.png",
    ]
    assert source.reading == Reading({"images": 8, "images in deeper folders": 2})


def test_what_is_not_read_is_counted_and_said(tmp_path):
    base = tmp_path / "imagenette-160/train"
    for name in ("cat/a.png", "cat/.DS_Store", "cat/._a.png", "cat/Thumbs.db", "stray.png", "__MACOSX/cat/a.png"):
        grey(base / name)
    for name in ("cat/notes.txt", "cat/more.txt", "cat/film.mp4", "cat/README", "desktop.ini"):
        (base / name).write_text("no image")
    for name in ("cat/@eaDir/a.png", "cat/.ipynb_checkpoints/a.png", "lost+found/a.png"):
        grey(base / name)
    (base / "dog").mkdir()
    source = registry.build("image_folder", data_root=tmp_path, split="train")
    assert source.class_names == {"classification": ("cat", "dog")}
    assert source.reading.counts == {
        "images": 1,
        "files skipped: a system's own": 6,
        "files skipped: .mp4": 1,
        "files skipped: .png": 1,
        "files skipped: .txt": 2,
        "files skipped: no suffix": 1,
    }
    stray, peers, empty = source.reading.notes
    assert "1 image outside the class folders" in stray
    assert "4 files not read" in peers
    assert "1 class without images (first: dog)" in empty


def test_a_folder_that_leads_back_into_itself_is_read_once(tmp_path):
    base = tmp_path / "imagenette-160/train"
    grey(base / "cat/a.png")
    (base / "cat/again").symlink_to(base / "cat")
    assert len(registry.build("image_folder", data_root=tmp_path, split="train")) == 1
