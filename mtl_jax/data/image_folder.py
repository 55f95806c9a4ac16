"""Images sorted into one folder per class, as ImageNet and Imagenette are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.base import SPLITS, Sample, check_split, find_first, read_json
from mtl_jax.data.images import decode_image
from mtl_jax.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
NAMES_FILE = "wnid_to_name.json"  # optional: folder name -> readable class name

IMAGENETTE_NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


class ImageFolder:
    """Images with one class each; label "classification".

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; images are in {folder}/{split}/{class}/.
        folder: the dataset's folder below `data_root`.
        classes: names of the class folders, in the order of their labels; by default those of train (or of
            the split, where there is no train), sorted.

    Raises:
        UserError: no dataset there, no images, or a class folder that is not in the table.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        folder: str = "imagenette-160",
        classes: Sequence[str] | None = None,
    ) -> None:
        check_split(split)
        base = Path(data_root).expanduser() / folder
        self.folder = find_first([base / split], what="a folder of images by class", data_root=data_root)
        table = tuple(classes) if classes is not None else _class_folders(base, split)
        found = _folders_in(self.folder)
        for name in found:
            if name not in table:
                raise UserError(
                    f"{self.folder / name}: expected a class of the table ({', '.join(table[:5])}, …), found "
                    f"{name!r}: add it to classes or to the train folder"
                )
        self._files = [
            (file, table.index(name))
            for name in found
            for file in sorted((self.folder / name).iterdir())
            if file.suffix.lower() in SUFFIXES
        ]
        if not self._files:
            raise UserError(f"{self.folder}: expected images in one folder per class, found none: mend folder")
        self.class_names = {"classification": _readable(base, table)}

    def __len__(self) -> int:
        return len(self._files)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._files[index][0]

    def __getitem__(self, index: int) -> Sample:
        file, label = self._files[index]
        return {
            "image": decode_image(file),
            "labels": {"classification": {"label": np.array(label, np.int32)}},
            "id": f"{file.parent.name}/{file.name}",
        }


def _folders_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of images by class, found a file: mend folder")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")


def _class_folders(base: Path, split: str) -> tuple[str, ...]:
    """The training split names the classes, so that labels agree between splits."""
    train = base / SPLITS[0]
    return tuple(_folders_in(train if train.is_dir() else base / split))


def _readable(base: Path, table: Sequence[str]) -> tuple[str, ...]:
    file = base / NAMES_FILE
    names = read_json(file) if file.exists() else IMAGENETTE_NAMES
    if not isinstance(names, dict):
        raise UserError(f"{file}: expected a JSON object, folder -> name, found another value: mend or remove it")
    return tuple(str(names.get(folder, folder)) for folder in table)
