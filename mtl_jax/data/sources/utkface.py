"""UTKFace: aligned faces whose file names say age, gender and ethnicity."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mtl_jax.data.files import ImageFolderIndex, read_names
from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import decode_image
from mtl_jax.data.sources.base import Reading, Sample, check_split, counted, find_first
from mtl_jax.errors import UserError

GENDERS = ("male", "female")  # in the order of the numbers in the file names
ETHNICITIES = ("White", "Black", "Asian", "Indian", "other")
MAX_AGE = 116  # years, of the dataset's oldest face

log = logging.getLogger(__name__)


class UTKFace:
    """Faces with labels "age" (years), "gender" and "ethnicity".

    Files are named {age}_{gender}_{ethnicity}_{date}.jpg.chip.jpg. Names that say something else (in the wild, a field
    is sometimes missing) are skipped, and their number is logged.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; {folder}/{split}.txt lists one file name per line.
        folder: the dataset's folder below `data_root`; the images are in UTKFace/ inside it.

    Raises:
        UserError: no dataset there, or no name in the list is well-formed.

    References:
        Zhang, Song, Qi, "Age Progression/Regression by Conditional Adversarial Autoencoder", 2017.
    """

    def __init__(self, *, data_root: str | Path, split: str, folder: str = "utkface") -> None:
        self.grey = GreyBits()
        check_split(split)
        base = Path(data_root).expanduser() / folder
        index = find_first([base / f"{split}.txt"], noun="a UTKFace dataset", data_root=data_root)
        self.folder = base / "UTKFace"
        self._images = ImageFolderIndex(self.folder)
        self.class_names = {"age": (), "gender": GENDERS, "ethnicity": ETHNICITIES}
        names, repeated = read_names(index)
        parsed = [(name, parse(name)) for name in names]
        self._files = [(name, labels) for name, labels in parsed if labels is not None]
        self.skipped = len(parsed) - len(self._files)
        if not self._files:
            raise UserError(
                f"{index}: expected names like 25_0_2_20170116174525125.jpg.chip.jpg (age, gender, ethnicity, date), "
                f"found none among {len(parsed)}; use a complete copy"
            )
        if self.skipped:
            first = next(name for name, labels in parsed if labels is None)
            log.warning("%s: %s, the first %s", index, counted(self.skipped, "names skipped as malformed"), first)
        counts = {"images": len(self._files), "names listed twice": repeated, "names skipped: malformed": self.skipped}
        self.reading = Reading({name: count for name, count in counts.items() if count})

    def __len__(self) -> int:
        return len(self._files)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._images.find(self._files[index][0])

    def __getitem__(self, index: int) -> Sample:
        name, (age, gender, ethnicity) = self._files[index]
        labels = {
            "age": {"value": np.array(age, np.float32)},
            "gender": {"label": np.array(gender, np.int32)},
            "ethnicity": {"label": np.array(ethnicity, np.int32)},
        }
        return {"image": decode_image(self.image_origin(index), grey_bits=self.grey), "labels": labels, "id": name}


def parse(name: str) -> tuple[int, int, int] | None:
    """Returns age, gender and ethnicity of a file name; None if it does not say all three."""
    fields = name.split("_")
    if len(fields) != 4 or not all(field.isascii() and field.isdigit() and len(field) < 4 for field in fields[:3]):
        return None
    age, gender, ethnicity = map(int, fields[:3])
    is_valid = age <= MAX_AGE and gender < len(GENDERS) and ethnicity < len(ETHNICITIES)
    return (age, gender, ethnicity) if is_valid else None
