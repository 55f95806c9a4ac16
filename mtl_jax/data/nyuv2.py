"""NYU Depth v2: indoor scenes with a mask of 40 classes and a depth map of the same image."""

from __future__ import annotations

from pathlib import Path

from mtl_jax.data.base import VOID, Sample, check_split, file_in, find_first, read_text
from mtl_jax.data.images import decode_depth, decode_mask, read_image
from mtl_jax.errors import UserError

# In the official order, which the masks' values count from 0.
NYUV2_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refrigerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)  # fmt: skip
OTHERPROP = 39  # also the value of the pixels that nobody labelled, which are most of it
LEVELS_PER_METRE = 25.5  # of the 8-bit depth maps: 255 is 10 m


class NYUv2:
    """Images with labels "segmentation" and "depth", both of every image.

    The last class is read as void, so the masks show the 39 before it.

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; {folder}/{split}.txt lists one image name per line.
        folder: the dataset's folder below `data_root`; nyu_images, nyu_labels40 and nyu_depths are inside it.

    Raises:
        UserError: no dataset there, or an empty list of images.

    References:
        Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", 2012.
        Gupta, Arbelaez, Malik, "Perceptual Organization and Recognition of Indoor Scenes from RGB-D Images"
        (the 40 classes), 2013.
    """

    def __init__(self, *, data_root: str | Path, split: str, folder: str = "nyuv2") -> None:
        check_split(split)
        self.folder = Path(data_root).expanduser() / folder
        index = find_first([self.folder / f"{split}.txt"], what="an NYUv2 dataset", data_root=data_root)
        self.class_names = {"segmentation": NYUV2_CLASSES[:OTHERPROP], "depth": ()}
        self._stems = read_text(index).split()
        if not self._stems:
            raise UserError(f"{index}: expected one image name per line, found none: use a complete copy")

    def __len__(self) -> int:
        return len(self._stems)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return file_in(self.folder / "nyu_images", f"{self._stems[index]}.jpg")

    def __getitem__(self, index: int) -> Sample:
        stem = self._stems[index]
        image = read_image(self.image_origin(index))
        mask = decode_mask(self.folder / "nyu_labels40" / f"{stem}.png", image=image, class_count=len(NYUV2_CLASSES))
        mask[mask == OTHERPROP] = VOID
        depth = decode_depth(self.folder / "nyu_depths" / f"{stem}.png", image=image, levels_per_metre=LEVELS_PER_METRE)
        labels = {"segmentation": {"mask": mask}, "depth": {"depth": depth}}
        return {"image": image.upright, "labels": labels, "id": stem}
