"""NYU Depth v2: indoor scenes with a mask of 40 classes and a depth map of the same image."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from mtl_jax.data.grey import GreyBits
from mtl_jax.data.images import read_image
from mtl_jax.data.pixel_labels import decode_depth, decode_mask
from mtl_jax.data.sources.base import VOID, Reading, Sample, check_split, find_first
from mtl_jax.data.sources.listed import ListedImages
from mtl_jax.errors import UserError

# In the official order, which the masks' values count from 0.
NYUV2_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
OTHERPROP = 39  # also the value of the pixels that nobody labelled, which are most of it
FARTHEST_M = 10.0  # that the sensor sees
LEVELS_PER_METRE = 255 / FARTHEST_M  # of the 8-bit depth maps


class NYUv2:
    """Images with labels "segmentation" and "depth", both of every image.

    The last class is read as void, so the masks show the 39 before it.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; {folder}/{split}.txt lists one image name per line.
        folder: the dataset's folder below `data_root`; nyu_images, nyu_labels40 and nyu_depths are inside it.
        annotated_on: masks and depths of images that EXIF turns are of the "upright" or the "stored" pixels where their
            size does not decide; "auto" follows those where it does.

    Raises:
        UserError: no dataset there, or an empty list of images.

    References:
        Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", 2012.
        Gupta, Arbelaez, Malik, "Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images"
        (the 40 classes), 2013.
    """

    def __init__(self, *, data_root: str | Path, split: str, folder: str = "nyuv2", annotated_on: str = "auto") -> None:
        self.grey = GreyBits()
        self.folder = Path(data_root).expanduser() / folder
        index = find_first([self.folder / f"{check_split(split)}.txt"], noun="an NYUv2 dataset", data_root=data_root)
        self.class_names = {"segmentation": NYUV2_CLASSES[:OTHERPROP], "depth": ()}
        self._files = ListedImages(
            index,
            images=self.folder / "nyu_images",
            maps={"mask": self.folder / "nyu_labels40", "depth": self.folder / "nyu_depths"},
            annotated_on=annotated_on,
        )

    def __len__(self) -> int:
        return len(self._files)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return self._files.image(index)

    @functools.cached_property
    def reading(self) -> Reading:
        """Counts and warnings of reading; looks at the head of every image."""
        return self._files.reading()

    def __getitem__(self, index: int) -> Sample:
        image = read_image(self.image_origin(index), grey_bits=self.grey)
        stored = self._files.is_stored(image.header, index)
        mask = decode_mask(self._files.map("mask", index), image=image, class_count=len(NYUV2_CLASSES), stored=stored)
        mask[mask == OTHERPROP] = VOID
        depth_file = self._files.map("depth", index)
        depth = decode_depth(depth_file, image=image, levels_per_metre=LEVELS_PER_METRE, stored=stored)
        farthest = np.nanmax(depth, initial=0.0)
        if farthest > FARTHEST_M:
            raise UserError(
                f"{depth_file}: expected a depth map of 8 bits, whose 255 is {FARTHEST_M:g} m, found a level of "
                f"{farthest * LEVELS_PER_METRE:.0f}; convert it, or read another copy"
            )
        labels = {"segmentation": {"mask": mask}, "depth": {"depth": depth}}
        return {"image": image.upright, "labels": labels, "id": self._files.names[index]}
