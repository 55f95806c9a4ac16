"""PASCAL VOC semantic segmentation: JPEGImages, SegmentationClass and the lists of ImageSets/Segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data.base import Sample, check_split, file_in, find_first, read_text
from mtl_jax.data.images import decode_mask, read_image
from mtl_jax.errors import UserError

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VocSegmentation:
    """Images with masks; label "segmentation".

    Args:
        data_root: the folder of all datasets.
        split: "train" or "val"; the list ImageSets/Segmentation/{split}.txt.
        folder: the dataset's folder below `data_root`; VOC2012 or VOCdevkit/VOC2012 inside it is found too.
        classes: names of the mask values, from 0.

    Raises:
        UserError: no dataset there, or an empty list of images.

    References:
        Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes
        (VOC) Challenge", 2010.
    """

    def __init__(
        self,
        *,
        data_root: str | Path,
        split: str,
        folder: str = "mini-voc-seg",
        classes: Sequence[str] = VOC_CLASSES,
    ) -> None:
        check_split(split)
        base = Path(data_root).expanduser() / folder
        tails = ("", "VOC2012", "VOCdevkit/VOC2012")
        index = find_first(
            [base / tail / "ImageSets/Segmentation" / f"{split}.txt" for tail in tails],
            what="a VOC segmentation dataset",
            data_root=data_root,
        )
        self.folder = index.parents[2]
        self.class_names = {"segmentation": tuple(classes)}
        self._stems = read_text(index).split()
        if not self._stems:
            raise UserError(f"{index}: expected one image name per line, found none: use a complete copy")

    def __len__(self) -> int:
        return len(self._stems)

    def image_origin(self, index: int) -> Path:
        """Returns the image's file."""
        return file_in(self.folder / "JPEGImages", f"{self._stems[index]}.jpg")

    def __getitem__(self, index: int) -> Sample:
        stem = self._stems[index]
        image = read_image(self.image_origin(index))
        mask = decode_mask(
            file_in(self.folder / "SegmentationClass", f"{stem}.png"),
            image=image,
            class_count=len(self.class_names["segmentation"]),
        )
        return {"image": image.upright, "labels": {"segmentation": {"mask": mask}}, "id": stem}
