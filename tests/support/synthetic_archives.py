"""Small archives in the official layouts of the three sets, each with the id list of what to cut out."""

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VOC, COCO, IMAGENETTE = "VOCtrainval_11-May-2012.tar", "zips/val2017.zip", "imagenette2-160.tgz"
COCO_ANNOTATIONS = "annotations/annotations_trainval2017.zip"


def image_bytes(seed: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels) if kind == "JPEG" else Image.fromarray(pixels[..., 0] % 21).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes], *, mode: str = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member, io.BytesIO(b"evil"[: member.size]))
    return buffer.getvalue()


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def coco_official(image_ids: list[int]) -> dict[str, Any]:
    """One box of category 1 and one of category 2 in each image."""
    boxes = [
        {"segmentation": [[0, 0, 1.5, 0, 1, 1]], "area": 0.75, "iscrowd": 0, "image_id": image}
        | {"bbox": [0.0, 0.25, 1.5, 1.0], "category_id": category, "id": 10 * image + category}
        for image in image_ids
        for category in (1, 2)
    ]
    categories = [{"supercategory": "x", "id": number, "name": f"class {number}"} for number in (1, 2)]
    images = [{"file_name": f"{image:012d}.jpg", "height": 6, "width": 8, "id": image} for image in image_ids]
    return {
        "info": {"year": 2017},
        "licenses": [{"id": 1}],
        "images": images,
        "annotations": boxes,
        "categories": categories,
    }


def synthetic_voc() -> tuple[dict[str, bytes], dict[str, Any]]:
    files, laid_out = {"VOCdevkit/VOC2012/Annotations/a.xml": b"<not needed/>"}, {}
    for seed, stem in enumerate(("a", "b", "c", "not_listed")):
        for path, kind in ((f"JPEGImages/{stem}.jpg", "JPEG"), (f"SegmentationClass/{stem}.png", "PNG")):
            files[f"VOCdevkit/VOC2012/{path}"] = laid_out[path] = image_bytes(seed, kind)
    laid_out = {path: content for path, content in laid_out.items() if "not_listed" not in path}
    for split, text in {"train": "a\nc\n", "val": "b\n", "trainval": "a\nb\nc\n"}.items():
        laid_out[f"ImageSets/Segmentation/{split}.txt"] = text.encode()
    checksums = {path: sha256(content) for path, content in laid_out.items()}
    return {VOC: tar_bytes(files)}, {"train": ["a", "c"], "val": ["b"], "sha256": checksums}


def synthetic_coco() -> tuple[dict[str, bytes], dict[str, Any]]:
    images = {image: image_bytes(image, "JPEG") for image in (3, 1, 2)}
    official = coco_official(list(images))
    archives = {COCO: zip_bytes({f"val2017/{image:012d}.jpg": content for image, content in images.items()})}
    archives[COCO_ANNOTATIONS] = zip_bytes(
        {
            "annotations/instances_val2017.json": json.dumps(official).encode(),
            "annotations/captions.json": b"x",
        }
    )
    archives |= {f"val2017/{image:012d}.jpg": content for image, content in images.items()}
    laid_out = {"train/000000000002.jpg": images[2], "val/000000000003.jpg": images[3]}
    for split, image in {"train": 2, "val": 3}.items():
        subset = {
            "info": {"year": 2017},
            "licenses": [{"id": 1}],
            "categories": official["categories"][1:],
            "images": [entry for entry in official["images"] if entry["id"] == image],
            "annotations": [box for box in official["annotations"] if box["id"] == 10 * image + 2],
        }
        laid_out[f"annotations/instances_{split}.json"] = dump(subset)
    id_list = {
        "categories": [2],
        "train": ["000000000002"],
        "val": ["000000000003"],
        "annotations": {"train": [22], "val": [32]},
        "sha256": {path: sha256(content) for path, content in laid_out.items()},
    }
    return archives, id_list


def synthetic_imagenette() -> tuple[dict[str, bytes], dict[str, Any]]:
    paths = ("train/n01/x.JPEG", "train/n02/y.JPEG", "val/n01/z.JPEG")
    images = {path: image_bytes(seed, "JPEG") for seed, path in enumerate(paths)}
    files = {f"imagenette2-160/{path}": content for path, content in images.items()}
    archive = tar_bytes(files | {"imagenette2-160/noisy_imagenette.csv": b"path\n"}, mode="w:gz")
    laid_out = images | {"wnid_to_name.json": b'{\n "n01": "tench",\n "n02": "church"\n}'}
    id_list = {
        "class_names": {"n01": "tench", "n02": "church"},
        "train": ["n01/x", "n02/y"],
        "val": ["n01/z"],
        "sha256": {path: sha256(content) for path, content in laid_out.items()},
    }
    return {IMAGENETTE: archive}, id_list


SYNTHETIC = {"voc": synthetic_voc, "coco": synthetic_coco, "imagenette": synthetic_imagenette}


def write_archives(folder: Path, archives: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for path, content in archives.items():
        if not path.startswith("val2017/"):
            (folder / Path(path).name).write_bytes(content)
    return folder


def official_archives(data_root: Path, folder: Path) -> Path:
    """Archives in the official layouts, made of the real sets and of things that are to be left out."""
    folder.mkdir()
    with tarfile.open(folder / VOC, "w") as archive:
        for section in ("ImageSets", "SegmentationClass", "JPEGImages"):
            archive.add(data_root / "mini-voc-seg" / section, f"VOCdevkit/VOC2012/{section}")
    with tarfile.open(folder / IMAGENETTE, "w:gz", compresslevel=1) as archive:
        for section in ("val", "train"):
            archive.add(data_root / "imagenette-160" / section, f"imagenette2-160/{section}")
    official = coco_official([1, 2])
    with zipfile.ZipFile(folder / "val2017.zip", "w") as archive:
        archive.writestr("val2017/000000000001.jpg", b"not needed")
        for split in ("val", "train"):
            mini = json.loads((data_root / f"mini-coco-det/annotations/instances_{split}.json").read_text())
            official = {key: official[key] + mini[key] for key in ("images", "annotations")} | {
                "info": mini["info"],
                "licenses": mini["licenses"],
                "categories": [{"id": 2, "name": "bicycle", "supercategory": "vehicle"}, *mini["categories"]],
            }
            for image in sorted((data_root / "mini-coco-det" / split).iterdir()):
                archive.write(image, f"val2017/{image.name}")
    official["images"].sort(key=lambda image: image["id"])
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(official))
    return folder
