"""Lays the mini set of COCO out as Open Images does: tables of boxes, masks and labels of the same images."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mtl_jax.data.minis.download import disk_errors
from mtl_jax.data.minis.mini_sets import SETS
from mtl_jax.data.minis.staging import exclusive_access, staging
from mtl_jax.data.outlines import outline
from mtl_jax.data.sources.base import SPLITS, file_in, read_bytes
from mtl_jax.data.sources.coco_file import read
from mtl_jax.data.sources.open_images_csv import BOXES, CLASSES, MASKS, PRESENCES, SPLIT_NAMES
from mtl_jax.errors import UserError

FOLDER = "open-images-mini"

# As the official files begin; points of extreme clicks follow there.
BOX_COLUMNS = (
    "ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsOccluded", "IsTruncated",
    "IsGroupOf", "IsDepiction", "IsInside",
)  # fmt: skip
PRESENCE_COLUMNS = ("ImageID", "Source", "LabelName", "Confidence")
MASK_COLUMNS = (
    "MaskPath", "ImageID", "LabelName", "BoxID", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax", "PredictedIoU", "Clicks",
)  # fmt: skip
UNKNOWN = -1  # of the flags of a box


def convert(data_root: Path, *, force: bool = False) -> str:
    """Makes `open-images-mini` of `mini-coco-det`, whole or not at all.

    Every second image gets masks, of all objects but crowds, which become groups. Each class counts as verified: to be
    there where it has a box, to be absent elsewhere.

    Args:
        data_root: the folder that holds the sets.
        force: makes the set again if it is there.

    Returns:
        What was done, in one line.

    Raises:
        UserError: there is no mini set of COCO, it is broken, or the disk is full or not writable.
    """
    target, coco = data_root / FOLDER, data_root / SETS["coco"].folder
    if target.exists() and not force:
        return f"{target}: there already; --force makes it again"
    contents = {split: read(coco / "annotations" / f"instances_{split}.json") for split in SPLITS}
    with disk_errors(target), exclusive_access(data_root), staging(target) as folder:
        try:
            names = [(_mid(category), category["name"]) for category in contents[SPLITS[0]]["categories"]]
            _write_table(folder / CLASSES[0], (), names)
            images = [_write_split(folder, split, contents[split], coco / split) for split in SPLITS]
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(
                f"{coco}: expected the mini set of COCO, found a fault in {error}; make it again"
            ) from error
    return f"{target}: laid out from {coco.name} ({sum(images)} images)"


def _write_split(folder: Path, split: str, content: Mapping[str, Any], images: Path) -> int:
    """Returns the number of images."""
    prefix = SPLIT_NAMES[split][0]
    copies, masks = folder / prefix, folder / f"{prefix}-masks"
    for entry_folder in (copies, masks):
        entry_folder.mkdir()
    mids = {category["id"]: _mid(category) for category in content["categories"]}
    objects: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    rows: dict[str, list[Sequence[Any]]] = {BOXES[0]: [], PRESENCES[0]: [], MASKS[0]: []}
    for number, image in enumerate(content["images"]):
        name = Path(image["file_name"]).stem
        with (copies / f"{name}.jpg").open("xb") as copy:  # images of one name in two folders would be one
            copy.write(read_bytes(file_in(images, image["file_name"]), noun="an image file"))
        annotations = objects[image["id"]]
        category_ids = {annotation["category_id"] for annotation in annotations}
        rows[PRESENCES[0]] += [
            (name, "verification", mid, int(category in category_ids)) for category, mid in mids.items()
        ]
        for annotation in annotations:
            mid, sides = mids[annotation["category_id"]], _sides(annotation["bbox"], image)
            crowd = annotation["iscrowd"]
            flags = (UNKNOWN, UNKNOWN, crowd, UNKNOWN, UNKNOWN)
            rows[BOXES[0]].append((name, "xclick", mid, 1, *sides, *flags))
            if number % 2 == 0 and not crowd:
                box = f"{annotation['id']:08x}"
                file = f"{name}_{mid.replace('/', '')}_{box}.png"
                Image.fromarray(outline(annotation["segmentation"], image["height"], image["width"])).save(masks / file)
                rows[MASKS[0]].append((file, name, mid, box, *sides, "", ""))
    for (table, annotations), columns in zip(rows.items(), (BOX_COLUMNS, PRESENCE_COLUMNS, MASK_COLUMNS), strict=True):
        _write_table(folder / f"{prefix}-{table}", columns, annotations)
    return len(content["images"])


def _mid(category: Mapping[str, Any]) -> str:
    """A machine id, which Open Images takes from Freebase."""
    return f"/m/coco_{category['id']}"


def _sides(bbox: Any, image: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """XMin, XMax, YMin, YMax as shares of the image, in the official number of digits."""
    x, y, width, height = bbox
    ends = ((x, image["width"]), (x + width, image["width"]), (y, image["height"]), (y + height, image["height"]))
    if not all(math.isfinite(end) for end, _ in ends):
        raise UserError(f"expected a finite box, found {bbox}; correct the annotations")
    left, right, top, bottom = (f"{min(max(end / length, 0.0), 1.0):.6f}" for end, length in ends)
    return left, right, top, bottom


def _write_table(file: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([columns] if columns else [])
        writer.writerows(rows)
