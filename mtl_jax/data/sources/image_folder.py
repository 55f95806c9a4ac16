"""Images sorted into one folder per class, as ImageNet and Imagenette are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data.files import is_image, is_system, skipped, walk
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import decode_image
from mtl_jax.data.sources.base import SPLITS, Reading, Sample, check_split, counted, find_first, read_json
from mtl_jax.errors import UserError

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
        split: "train" or "val"; images are in {folder}/{split}/{class}/ and the folders below it.
        folder: the dataset's folder below `data_root`.
        classes: names of the class folders, in the order of their labels; by default those of train (or of
            the split, where there is no train), sorted.
        grey_bits: of the levels of greyscale images in 16-bit files; 0 takes the fewest of 10, 12, 14 and 16 that hold
            those of all training images.

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
        grey_bits: int = 0,
    ) -> None:
        self.grey = GreyBits(grey_bits)
        check_split(split)
        base = Path(data_root).expanduser() / folder
        self.folder = find_first([base / split], noun="a folder of images by class", data_root=data_root)
        table = tuple(classes) if classes is not None else _class_folders(base, split)
        class_folders = _folders_in(self.folder)
        for name in class_folders:
            if name not in table:
                raise UserError(
                    f"{self.folder / name}: expected a class of the table ({', '.join(table[:5])}, …), found "
                    f"{name!r}; add it to classes or to the train folder"
                )
        files = {name: list(walk(self.folder / name)) for name in class_folders}
        self._files = [
            (file, table.index(name)) for name, folder_files in files.items() for file in folder_files if is_image(file)
        ]
        if not self._files:
            raise UserError(f"{self.folder}: expected images in one folder per class, found none; correct folder")
        self.class_names = {"classification": readable(base, table)}
        loose_files = [path for path in sorted(self.folder.iterdir()) if not path.is_dir() or is_system(path)]
        left_out = [file for folder_files in files.values() for file in folder_files if not is_image(file)]
        deeper = sum(file.parent.parent != self.folder for file, _ in self._files)
        counts = {"images": len(self._files), "images in deeper folders": deeper, **skipped([*left_out, *loose_files])}
        empty = [name for name in table if not any(map(is_image, files.get(name, [])))]
        self.reading = Reading(
            {name: count for name, count in counts.items() if count},
            tuple(_notes(self.folder, [*left_out, *loose_files], empty)),
        )

    def __len__(self) -> int:
        return len(self._files)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._files[index][0]

    def __getitem__(self, index: int) -> Sample:
        file, label = self._files[index]
        return {
            "image": decode_image(file, grey_bits=self.grey),
            "labels": {"classification": {"label": np.array(label, np.int32)}},
            "id": file.relative_to(self.folder).as_posix(),
        }


def _folders_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of images by class, found a file; correct folder")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not is_system(entry))


def _notes(folder: Path, left_out: Sequence[Path], empty: Sequence[str]) -> Iterator[str]:
    images = [file for file in left_out if file.parent == folder and is_image(file)]
    if images:
        yield (
            f"{counted(len(images), 'images')} outside the class folders (first: {images[0]}), not read: move each "
            "into the folder of its class."
        )
    other_files = [file for file in left_out if not is_system(file) and file not in images]
    if other_files:
        yield f"{counted(len(other_files), 'files')} not read, as no image has such a suffix (first: {other_files[0]})."
    if empty:
        classes = counted(len(empty), "classes")
        yield f"{folder}: {classes} without images (first: {empty[0]}): add images or remove the folder."


def _class_folders(base: Path, split: str) -> tuple[str, ...]:
    """The training split names the classes, so that labels agree between splits."""
    train = base / SPLITS[0]
    return tuple(_folders_in(train if train.is_dir() else base / split))


def readable(base: Path, table: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of class folders, as the file of names next to them or Imagenette's own say.

    Raises:
        UserError: the file is broken.
    """
    file = base / NAMES_FILE
    names = read_json(file) if file.exists() else IMAGENETTE_NAMES
    if not isinstance(names, dict):
        raise UserError(f"{file}: expected a JSON object, folder -> name, found another value; correct or remove it")
    return tuple(str(names.get(folder, folder)) for folder in table)
